"""Damaged pictures: whatever the bytes, a picture is read or refused, and nothing crashes."""

import io
import random
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from artgraph_vit.data import read_picture
from artgraph_vit.model.pictures import BadPictureError


@cache
def real_pictures() -> dict[str, bytes]:
    """A file of each kind, small but with all that the format can have in it."""
    rng = np.random.default_rng(0)
    smooth = np.linspace(0, 255, 40 * 30 * 4).reshape(30, 40, 4) + rng.normal(0, 8, (30, 40, 4))
    rgba = Image.fromarray(smooth.clip(0, 255).astype(np.uint8))
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    palette = rgb.quantize(16)
    deep = Image.fromarray(rng.integers(0, 65536, (30, 40), dtype=np.uint16))
    real = Image.fromarray(rng.uniform(0, 255, (30, 40)).astype(np.float32))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    paged = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    kinds = {
        "jpeg baseline": (rgb, "JPEG", {"exif": exif, "comment": b"a comment", "icc_profile": bytes(100)}),
        "jpeg progressive": (rgb, "JPEG", {"progressive": True, "subsampling": 0}),
        "jpeg cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "jpeg restarts": (grey, "JPEG", {"restart_marker_rows": 1}),
        "mpo": (rgb, "MPO", paged),
        "png palette": (palette, "PNG", {"transparency": bytes(range(16)), "exif": exif}),
        "png 16 bits": (deep, "PNG", {}),
        "png rgba": (rgba, "PNG", {}),
        "png animated": (rgb, "PNG", paged),
        "webp lossy": (rgb, "WEBP", {"exif": exif.tobytes()}),
        "webp lossless": (rgba, "WEBP", {"lossless": True}),
        "webp animated": (rgb, "WEBP", {**paged, "duration": 40}),
        "gif animated": (rgb, "GIF", {**paged, "duration": 40, "comment": b"a comment"}),
        "gif interlaced": (palette, "GIF", {"interlace": 1, "transparency": 3}),
        "tiff raw": (rgba, "TIFF", {}),
        "tiff lzw": (rgb, "TIFF", {"compression": "tiff_lzw", "tiffinfo": {274: 6}}),
        "tiff deflate": (deep, "TIFF", {"compression": "tiff_deflate"}),
        "tiff jpeg": (rgb, "TIFF", {"compression": "jpeg"}),
        "tiff fax": (grey.convert("1"), "TIFF", {"compression": "group4"}),
        "tiff pages": (rgb, "TIFF", {**paged, "compression": "packbits"}),
        "tiff cmyk": (rgb.convert("CMYK"), "TIFF", {"compression": "tiff_lzw"}),
        "tiff float": (real, "TIFF", {}),
        "bmp": (rgb, "BMP", {}),
        "bmp palette": (palette, "BMP", {}),
        "ppm": (rgb, "PPM", {}),
    }
    files = {}
    for kind, (picture, format, options) in kinds.items():
        buffer = io.BytesIO()
        if "append_images" in options:  # Pillow hands the options of one format on to the next: save copies
            options = options | {"append_images": [page.copy() for page in options["append_images"]]}
        picture.copy().save(buffer, format, **options)
        files[kind] = buffer.getvalue()
    return files | {"bmp rle": bmp_rle(palette)}


def bmp_rle(palette: Image.Image) -> bytes:
    """A run-length encoded BMP, which Pillow reads but does not write."""
    buffer = io.BytesIO()
    palette.save(buffer, "BMP")
    header = bytearray(buffer.getvalue()[: -(40 * 30)])
    header[30] = 1  # compression
    rows = np.asarray(palette)[::-1]
    runs = b"".join(b"".join(bytes([1, pixel]) for pixel in row) + b"\0\0" for row in rows.tolist())
    return bytes(header) + runs + b"\0\1"


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to four damages: bits flipped, numbers made extreme, ends cut off, stretches erased, doubled or moved."""
    for _ in range(rng.randint(1, 4)):
        # Most of the structure is at the beginning.
        start = rng.randrange(len(data) if rng.random() < 0.5 else min(len(data), 200)) if data else 0
        stop = min(len(data), start + rng.choice([1, 2, 4, 8, 64, 1000]))
        part = data[start:stop]
        match rng.randrange(7):
            case 0:
                part = bytes(byte ^ (1 << rng.randrange(8)) for byte in part[:4]) + part[4:]
            case 1:
                part = rng.choice([b"\0", b"\xff", b"\x7f", b"\x80", b"\1"]) * len(part)
            case 2:
                data, part, stop = data[:start], b"", start
            case 3:
                part = b""
            case 4:
                part = part * rng.choice([2, 3, 50])
            case 5:
                part = rng.randbytes(len(part))
            case 6:
                other = rng.randrange(len(data) + 1)
                part = data[other : other + len(part)]
        data = data[:start] + part + data[stop:]
    return data


def outcome(data: bytes, at_least: int | None = None) -> str:
    try:
        picture = read_picture({"bytes": data, "path": "damaged.bin"}, at_least)
    except BadPictureError as error:
        return "bad" if str(error).startswith("damaged.bin: ") else f"not told by name: {error}"
    assert picture.mode == "RGB"
    assert np.asarray(picture).shape == (picture.height, picture.width, 3)
    return "read"


@pytest.mark.parametrize("kind", real_pictures())
def test_what_is_damaged_below_can_be_read_whole(kind):
    assert outcome(real_pictures()[kind]) == "read"


def test_the_file_that_pillow_does_not_write_has_its_pixels_in_place():
    grey = Image.fromarray(np.arange(40 * 30, dtype=np.uint16).astype(np.uint8).reshape(30, 40))
    palette = grey.convert("RGB").quantize(16)
    assert (np.asarray(read_picture({"bytes": bmp_rle(palette)})) == np.asarray(palette.convert("RGB"))).all()


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(
    st.binary(max_size=500), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"BM"])
)
@example(b"", b"")
def test_arbitrary_bytes_are_read_or_refused(data, magic):
    assert outcome(magic + data) in ("read", "bad")


@settings(max_examples=1000, derandomize=True, deadline=None, database=None)
@given(st.sampled_from(sorted(real_pictures())), st.integers(0, 2**32), st.sampled_from([None, 8]))
def test_damaged_pictures_are_read_or_refused(kind, seed, at_least):
    assert outcome(damaged(real_pictures()[kind], random.Random(seed)), at_least) in ("read", "bad")


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.sampled_from(sorted(real_pictures())), st.integers(0, 2**32))
def test_a_picture_is_bad_at_every_scale_or_at_none(kind, seed):
    data = damaged(real_pictures()[kind], random.Random(seed))
    assert outcome(data) == outcome(data, at_least=8)
