"""Pictures of every kind are read as a viewer shows them, and what cannot be read is refused by name."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from artgraph_vit.model.pictures import MAX_FILE, MAX_METADATA, BadPictureError, read_picture
from tests.made_pictures import bad_pictures_in, encoded, noise, png


def pixels(image: dict) -> np.ndarray:
    picture = read_picture(image)
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def row(mode: str, *values, palette=()) -> Image.Image:
    """A picture one pixel high."""
    picture = Image.new(mode, (len(values), 1))
    if palette:
        picture.putpalette(palette)
    picture.putdata(values)
    return picture


RED, GREEN, BLUE, CYAN = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 255, 255)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
INKS = row("CMYK", (0, 255, 255, 0), (255, 0, 0, 0)).resize((32, 16), Image.Resampling.NEAREST)
PALETTE = row("P", 0, 1, 2, palette=[*RED, *GREEN, *BLUE])
SIXTEEN_BITS = Image.fromarray(np.array([[0, 100, 257, 257 * 100, 65535]], dtype=np.uint16))
FRAMES = [Image.new("RGB", (3, 1), colour) for colour in ("red", "lime", "blue")]


@pytest.mark.parametrize(
    ("image", "seen", "tolerance"),
    [
        (encoded(row("L", 0, 7, 255), "PNG"), [BLACK, [7, 7, 7], WHITE], 0),
        (encoded(row("1", 0, 1), "PNG"), [BLACK, WHITE], 0),
        (encoded(INKS, "JPEG", quality=95), [RED] * 16 + [CYAN] * 16, 6),  # as printed: no cyan, or nothing else
        (encoded(PALETTE, "PNG", transparency=0), [WHITE, GREEN, BLUE], 0),
        (encoded(PALETTE, "PNG", transparency=bytes([0, 255, 255])), [WHITE, GREEN, BLUE], 0),
        (encoded(row("RGBA", (255, 0, 0, 128), (10, 20, 30, 255)), "PNG"), [[255, 127, 127], [10, 20, 30]], 1),
        (encoded(row("LA", (0, 0)), "PNG"), [WHITE], 0),
        (encoded(SIXTEEN_BITS, "PNG"), [[grey] * 3 for grey in (0, 0, 1, 100, 255)], 0),  # scaled, not clipped
        (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), [RED] * 3, 0),  # the first frame
    ],
    ids=["grey", "bilevel", "CMYK", "palette", "alpha of palette", "RGBA", "grey alpha", "16 bits", "animation"],
)
def test_a_picture_has_the_colours_that_a_viewer_shows(image, seen, tolerance):
    assert np.abs(pixels(image)[0] - seen).max() <= tolerance


@pytest.mark.parametrize(
    ("orientation", "size", "top_left", "bottom_right"),
    [
        (1, (40, 20), RED, BLUE),
        (3, (40, 20), BLUE, RED),
        (6, (20, 40), RED, BLUE),
        (8, (20, 40), BLUE, RED),
    ],
)
def test_a_picture_taken_with_a_turned_camera_is_turned_upright(orientation, size, top_left, bottom_right):
    picture = Image.new("RGB", (40, 20), "red")
    picture.paste("blue", (20, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation  # 6: the camera's left is the top
    read = pixels(encoded(picture, "JPEG", quality=95, exif=exif))
    assert read.shape == (*size[::-1], 3)
    assert np.abs(read[[2, -3], [2, -3]] - [top_left, bottom_right]).max() <= 8


def test_a_broken_exif_leaves_the_picture_as_it_is_stored():
    image = encoded(Image.new("RGB", (40, 20)), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert read_picture(image).size == (40, 20)


def test_large_pictures_are_converted_in_bands_that_fit_together():
    values = np.arange(1300 * 1000, dtype=np.uint16).reshape(1300, 1000)
    assert (pixels(encoded(Image.fromarray(values), "PNG"))[..., 0] == np.round(values / 257)).all()


def tiff(width: int, height: int, bits: int, data: bytes, **tags: int) -> bytes:
    """An RGBA TIFF in one deflated strip, or in one tile."""
    values = {256: width, 257: height, 259: 8, 262: 2, 277: 4, 278: height, 338: 2, 273: 8, 279: len(data)}
    values |= {int(tag[1:]): value for tag, value in tags.items()}
    offset = 8 + len(data)
    entries = {tag: struct.pack("<HHLL", tag, 4, 1, value) for tag, value in values.items()}
    entries[258] = struct.pack("<HHLL", 258, 3, 4, offset + 2 + 12 * (len(entries) + 1) + 4)
    directory = struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    return b"II*\0" + struct.pack("<L", offset) + data + directory + struct.pack("<4H", *[bits] * 4)


def deflated_zeros(size: int) -> bytes:
    compressor = zlib.compressobj(1)
    blocks = [compressor.compress(bytes(min(10**6, size - start))) for start in range(0, size, 10**6)]
    return b"".join(blocks) + compressor.flush()


def webp_canvas(side: int) -> bytes:
    """An animation with a small frame on a large canvas."""
    frame = encoded(Image.new("RGB", (16, 16)), "WEBP", lossless=True)["bytes"][12:]
    at, size = bytes(6), (15).to_bytes(3, "little") * 2
    frame = b"ANMF" + struct.pack("<I", 16 + len(frame)) + at + size + bytes(4) + frame
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + (side - 1).to_bytes(3, "little") * 2
    body = b"WEBP" + canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp_rle(width: int, height: int) -> bytes:
    """A run-length encoded BMP that skips 255 rows in four bytes."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + header + bytes(1024) + b"\0\2\0\xff" * 4


def scans(times: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(Image.new("RGB", (1000, 1000)), "JPEG", progressive=True)["bytes"]
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * times + data[-2:]


LARGE_JPEG = encoded(Image.new("L", (8, 8)), "JPEG")["bytes"].replace(
    struct.pack(">HH", 8, 8), struct.pack(">HH", 13_000, 13_000), 1
)
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
# Small files that would take gigabytes or minutes, each with the reason that is told.
COSTLY = {
    "jpeg": (lambda: LARGE_JPEG, r"169.0 megapixels, of which such a JPEG may have 125.0"),
    "png": (lambda: png(13_000, 13_000), r"169.0 megapixels, of which such a PNG may have 125.0"),
    "webp": (lambda: webp_canvas(8_000), r"64.0 megapixels, of which such a WEBP may have 55.6"),
    "tiff": (lambda: tiff(8_000, 8_000, 8, b""), r"64.0 megapixels, of which such a TIFF may have 62.5"),
    "tile": (lambda: tiff(16, 16, 8, b"", t322=9_600, t323=9_600, t324=8, t325=9), r"92.2 megapixels, of which"),
    "strip": (lambda: png(60_000, 200), r"60000 x 200 pixels, of which one side may be 200 times as long"),
    "row": (lambda: bmp_rle(70_000, 1), r"70000 x 1 pixels, of which a side may have 65535"),
    "rle": (lambda: bmp_rle(5_000, 5_000), r"a compressed BMP of 25.0 megapixels would take too long"),
    "text": (lambda: b"P3 2 1 255\n1 2 3 4 5 6\n", r"a PPM in plain text or of an odd depth would take too long"),
    "scans": (lambda: scans(1500), r"15\d\d scans of 1.0 megapixels would take too long"),
    "pieces": (lambda: png(8, 8, *[(b"teSt", b"")] * 200_000), r"or more than 300000 pieces"),
    "metadata": (lambda: png(8, 8, (b"teSt", bytes(MAX_METADATA))), r"more than 8 MB of metadata"),
    "file": (lambda: bytes(MAX_FILE + 1), r"the file has more than 250 MB"),
    "eps": (lambda: POSTSCRIPT, r"not a picture in one of the formats JPEG, PNG, WEBP, GIF, TIFF, BMP, PPM"),
    "jp2": (lambda: encoded(noise(), "JPEG2000")["bytes"], r"not a picture in one of the formats"),
}


@pytest.mark.parametrize("name", COSTLY)
def test_what_would_take_too_much_is_refused_by_name_at_every_scale(name, monkeypatch):
    make, reason = COSTLY[name]
    image = {"bytes": make(), "path": f"bad/{name}.img"}
    monkeypatch.setattr(subprocess, "Popen", None)  # no program is started for it
    for at_least in (None, 8):
        with pytest.raises(BadPictureError, match=f"^bad/{name}.img: .*{reason}"):
            read_picture(image, at_least)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read as Linux tells it")
def test_the_largest_pictures_that_are_read_take_less_than_a_gigabyte(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    image = encoded(Image.new("RGB", (11_000, 10_500)), "JPEG", exif=turned)  # 115 megapixels
    (tmp_path / "turned.jpg").write_bytes(image["bytes"])
    (tmp_path / "canvas.webp").write_bytes(webp_canvas(7_400))
    (tmp_path / "turned.tif").write_bytes(tiff(7_800, 7_800, 16, deflated_zeros(7_800**2 * 8), t274=6))
    script = """
import re, sys
from pathlib import Path
from artgraph_vit.data import read_picture

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

before = peak()
for path in sys.argv[1:]:
    read_picture({"bytes": None, "path": path}).getpixel((5, 5))
print(peak() - before)
"""
    command = [sys.executable, "-c", script, *map(str, sorted(tmp_path.iterdir()))]
    grown = int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    assert 700e6 < grown < 1e9, f"{grown / 1e6:.0f} MB"


def test_a_picture_of_100_megapixels_is_read():
    image = encoded(Image.new("L", (10_000, 10_000), 7), "JPEG")
    assert read_picture(image, at_least=512).size == (1250, 1250)


def test_settings_of_pillow_stay_the_users():
    assert Image.MAX_IMAGE_PIXELS == (1024 * 1024 * 1024 // 4 // 3)  # Pillow's default
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("name", ["truncated", "text", "empty", "missing", "folder", "bomb"])
def test_what_cannot_be_decoded_is_refused_by_name(tmp_path, name):
    image = bad_pictures_in(tmp_path)[name]
    with pytest.raises(BadPictureError, match="400000000 pixels" if name == "bomb" else f"{name}."):
        read_picture(image)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_half_a_file_of_any_format_is_refused(format):
    image = encoded(noise(), format)
    with pytest.raises(BadPictureError, match=f"half.{format}: "):
        read_picture({"bytes": image["bytes"][: len(image["bytes"]) // 2], "path": f"half.{format}"})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes with names")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(BadPictureError, match=r"pipe.jpg: there is no such file"):
        read_picture({"bytes": None, "path": str(tmp_path / "pipe.jpg")})


@pytest.mark.parametrize("image", [None, {}, {"bytes": None, "path": None}, {"bytes": b"", "path": None}])
def test_a_row_without_a_picture_is_a_bad_picture(image):
    with pytest.raises(BadPictureError, match=r"neither bytes nor a path|not a picture"):
        read_picture(image)
