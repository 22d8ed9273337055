"""From stored bytes to an RGB picture.

Greyscale, CMYK, palette, 16-bit, transparent, animated and EXIF-rotated pictures are read as a viewer shows them.
Whatever the bytes, reading them takes less than 1 GB of memory and a few seconds: a picture that would take more is
refused before its pixels are decoded. Of JPEG, 100 megapixels are read. Travels to the Hub.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError

# The formats of picture collections, each with the bytes that decoding takes a pixel at worst, as measured. Of the
# others that Pillow knows one starts Ghostscript (EPS), and one takes ten times as long (JPEG 2000).
BYTES_PER_PIXEL = {"JPEG": 8, "PNG": 8, "WEBP": 18, "GIF": 8, "TIFF": 16, "BMP": 8, "PPM": 8}
MAX_MEMORY = 1_000_000_000  # bytes, for the pixels and the file
MAX_FILE = 250_000_000  # bytes
MAX_METADATA = 8_000_000  # bytes
MAX_READS = 300_000
MAX_SIDE = 65_535  # pixels, as in most formats: in a BMP of one long row a byte can skip gigabytes
MAX_RATIO = 200  # of the sides: resized by the shorter one, a longer strip would fill the memory
MAX_SCANNED = 1_500_000_000  # pixels in all scans of a progressive JPEG together
MAX_RLE = 20_000_000  # pixels of a compressed BMP, which Pillow decodes in Python

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadPictureError(ValueError):
    """The bytes are no picture that can be decoded whole, or decoding them would take too much; `reason` says why."""

    def __init__(self, path: str | None, reason: str):
        super().__init__(f"{path or 'embedded picture'}: {reason}")
        self.reason = reason


def read_picture(image: Mapping[str, Any], at_least: int | None = None) -> Image.Image:
    """Decodes one picture.

    Args:
        image (`Mapping`): what an undecoded `datasets.Image` holds: `bytes`, or else the `path` of a file.
        at_least (`int`, *optional*): pixels that both sides need; a larger JPEG is decoded at a half, a quarter or an
            eighth of its size where that is enough, which is faster. What is too large is so at any scale.

    Returns:
        A PIL picture in mode RGB, the right way up; of an animation the first frame, on white where transparent.

    Raises:
        BadPictureError: if it is truncated, of no known format, or too large.
    """
    image = image or {}
    try:
        data = image.get("bytes")
        if data is None:
            data = _read_file(image.get("path"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to speak up once for each epoch
            return _decode(data, at_least)
    except Exception as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"not a picture in one of the formats {', '.join(BYTES_PER_PIXEL)}"
        raise BadPictureError(image.get("path"), reason) from error


def _read_file(path: str | None) -> bytes:
    if path is None:
        raise ValueError("neither bytes nor a path is stored")
    if not Path(path).is_file():  # a pipe would keep the reader waiting for ever
        raise FileNotFoundError("there is no such file")
    with open(path, "rb") as file:
        return file.read(MAX_FILE + 1)  # one more, and it is refused as too large


class _PictureFile(io.BytesIO):
    """Stops decoders that read and read: metadata can point to the same bytes a thousand times, or come in millions of
    pieces."""

    reads = MAX_READS
    metadata = math.inf

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.reads -= 1
        self.metadata -= len(data)
        if self.reads < 0 or self.metadata < 0:
            raise ValueError(f"more than {MAX_METADATA // 10**6} MB of metadata, or more than {MAX_READS} pieces")
        return data


def _decode(data: bytes, at_least: int | None) -> Image.Image:
    if len(data) > MAX_FILE:
        raise ValueError(f"the file has more than {MAX_FILE // 10**6} MB")
    file = _PictureFile(data)
    if not data.startswith(b"RIFF"):  # WebP, which is read in one piece
        file.metadata = MAX_METADATA
    with Image.open(file, formats=list(BYTES_PER_PIXEL)) as picture:
        file.metadata = math.inf
        _refuse_costly(picture, data)
        if at_least is not None:
            picture.draft(None, (at_least, at_least))  # does something for JPEGs only
        picture.load()
        turn, rgb = _turn(picture), _to_rgb(picture)
    del picture  # its memory is needed now
    return rgb if turn is None else rgb.transpose(turn)


def upright_rgb(picture: Image.Image) -> Image.Image:
    """A picture that Pillow has opened, in mode RGB and the right way up, on white where it is transparent.

    Raises:
        BadPictureError: if its pixels cannot be read, or it is a strip so long that resizing it would fill the memory.
    """
    try:
        picture.load()  # of a file that Pillow opened the pixels are read only now
        _refuse_strip(picture)
        turn, rgb = _turn(picture), _to_rgb(picture)
        return rgb if turn is None else rgb.transpose(turn)
    except Exception as error:  # each of Pillow's decoders has errors of its own
        raise BadPictureError(None, str(error) or type(error).__name__) from error


def decoding_side(image_processor: Any, times: int = 2) -> int | None:
    """The pixels that the sides of a JPEG are decoded to at least: `times` the size that the model takes, if known."""
    size: Any = getattr(image_processor, "size", None) or {}
    sides: list[Any] = [size.get(name) for name in ("height", "width", "shortest_edge") if size.get(name)]
    return times * max(sides) if sides else None


def _refuse_costly(picture: Any, data: bytes) -> None:
    width, height = picture.size
    pixels, kind = width * height, "JPEG" if picture.format == "MPO" else picture.format
    bytes_per_pixel = BYTES_PER_PIXEL[kind]
    if kind == "JPEG":
        scans = 1 + data.count(b"\xff\xda", picture.fp.tell())
        if scans > 1:  # until the last scan, coefficients of two bytes are kept
            most = max(h * v for _, h, v, _ in picture.layer)
            bytes_per_pixel = max(8, 4 + sum(2 * h * v / most for _, h, v, _ in picture.layer))
        if pixels * scans > MAX_SCANNED:
            raise ValueError(f"{scans} scans of {pixels / 1e6:.1f} megapixels would take too long")
    if kind == "TIFF":  # tiles may be larger than the picture
        pixels = max(width, picture.tag_v2.get(322, 0)) * max(height, picture.tag_v2.get(323, 0))
    if kind == "PPM" and picture.tile[0][0] != "raw":  # decoded in Python
        raise ValueError("a PPM in plain text or of an odd depth would take too long")
    if kind == "BMP" and picture.tile[0][0] == "bmp_rle" and pixels > MAX_RLE:
        raise ValueError(f"a compressed BMP of {pixels / 1e6:.1f} megapixels would take too long")
    if max(width, height) > MAX_SIDE:
        raise ValueError(f"{width} x {height} pixels, of which a side may have {MAX_SIDE}")
    _refuse_strip(picture)
    if pixels * bytes_per_pixel + len(data) > MAX_MEMORY:
        most = (MAX_MEMORY - len(data)) / bytes_per_pixel
        raise ValueError(f"{pixels / 1e6:.1f} megapixels, of which such a {kind} may have {max(0, most / 1e6):.1f}")


def _refuse_strip(picture: Image.Image) -> None:
    width, height = picture.size
    if 0 in picture.size or max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(f"{width} x {height} pixels, of which one side may be {MAX_RATIO} times as long as the other")


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What turns a picture the right way up."""
    if max(len(picture.info.get(key) or "") for key in ("exif", "Raw profile type exif")) > 2**18:
        return None  # no camera writes that much
    try:
        return _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a viewer shows a picture even if its EXIF is broken
        return None


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture
    rgb = Image.new("RGB", picture.size)
    rows = max(1, 2**20 // picture.width)  # a band at a time, since the conversions make copies
    for top in range(0, picture.height, rows):
        box = (0, top, picture.width, min(top + rows, picture.height))
        rgb.paste(_band_to_rgb(picture.crop(box)), box)
    return rgb


def _band_to_rgb(band: Image.Image) -> Image.Image:
    if band.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip at 255
        return band.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L").convert("RGB")
    if band.has_transparency_data:
        band = band.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB")
    return band.convert("RGB")
