"""From stored bytes to an RGB picture, and the check that finds the pictures for which that fails.

Greyscale, CMYK, palette, 16-bit, transparent, animated and EXIF-rotated pictures are read as a viewer shows them.
Whatever the bytes, reading them takes less than 1 GB of memory and a few seconds: a picture that would take more is
refused before its pixels are decoded. Of JPEG, 100 megapixels are read.
"""

from __future__ import annotations

import io
import json
import math
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm.auto import tqdm
from transformers.utils import logging

from .sources import DataError
from .workers import end_with_parent

logger = logging.get_logger(__name__)

# The formats of picture collections, each with the bytes that decoding takes a pixel at worst, as measured. Of the
# others that Pillow knows one starts Ghostscript (EPS), and one takes ten times as long (JPEG 2000).
BYTES_PER_PIXEL = {"JPEG": 8, "PNG": 8, "WEBP": 18, "GIF": 8, "TIFF": 16, "BMP": 8, "PPM": 8}
MAX_MEMORY = 1_000_000_000  # bytes, for the pixels and the file
MAX_FILE = 250_000_000  # bytes
MAX_METADATA = 8_000_000  # bytes
MAX_READS = 300_000
MAX_SIDE = 65_535  # pixels, as in most formats: in a BMP of one long row a byte can skip gigabytes
MAX_SCANNED = 1_500_000_000  # pixels in all scans of a progressive JPEG together
MAX_RLE = 20_000_000  # pixels of a compressed BMP, which Pillow decodes in Python

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


DEADLY = "the process that decodes it dies"


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
    except Exception as error:  # each of Pillow's decoders has errors of its own
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"not a picture in one of the formats {', '.join(BYTES_PER_PIXEL)}"
        raise BadPictureError(image.get("path"), reason) from error


def _read_file(path: str | None) -> bytes:
    if path is None:
        raise ValueError("neither bytes nor a path is stored")
    if not Path(path).is_file():  # a pipe would keep the reader waiting for ever
        raise FileNotFoundError("there is no such file")
    _refuse_large(Path(path).stat().st_size)
    return Path(path).read_bytes()


def _refuse_large(size: int) -> None:
    if size > MAX_FILE:
        raise ValueError(f"the file has {size / 1e6:.0f} MB, of which it may have {MAX_FILE / 1e6:.0f}")


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
    _refuse_large(len(data))
    file = _PictureFile(data)
    if not data.startswith(b"RIFF"):  # WebP, which is read in one piece
        file.metadata = MAX_METADATA
    with Image.open(file, formats=list(BYTES_PER_PIXEL)) as picture:
        file.metadata = math.inf
        _refuse_costly(picture, data)
        if at_least is not None:
            picture.draft(None, (at_least, at_least))  # does something for JPEGs only
        picture.load()
        turn = TURNS.get(_orientation(picture))
        rgb = _to_rgb(picture)
    del picture  # its memory is needed now
    return rgb if turn is None else rgb.transpose(turn)


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
    if pixels * bytes_per_pixel + len(data) > MAX_MEMORY:
        most = (MAX_MEMORY - len(data)) / bytes_per_pixel
        raise ValueError(f"{pixels / 1e6:.1f} megapixels, of which such a {kind} may have {max(0, most / 1e6):.1f}")


def _orientation(picture: Image.Image) -> int:
    if max(len(picture.info.get(key) or "") for key in ("exif", "Raw profile type exif")) > 2**18:
        return 1  # no camera writes that much
    try:
        return picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a viewer shows a picture even if its EXIF is broken
        return 1


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
        values = np.asarray(band, dtype=np.float64) / 257
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if band.has_transparency_data:
        band = band.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB")
    return band.convert("RGB")


def find_bad_pictures(rows: Dataset, num_processes: int | None = None, progress: bool = True) -> dict[int, str]:
    """Decodes every picture once, on all cores.

    Args:
        rows (`Dataset`): with an undecoded column `image`.
        num_processes (`int`, *optional*): by default one a core, but no more than one for 256 pictures.
        progress (`bool`, *optional*, defaults to `True`): show a progress bar.

    Returns:
        The index of each row whose picture cannot be read, and why.
    """
    pictures = rows.select_columns(["image"])
    num_processes = num_processes or min(os.cpu_count() or 1, max(1, len(rows) // 256))
    chunks = [(pictures, start, min(start + 64, len(rows))) for start in range(0, len(rows), 64)]
    bad: dict[int, str] = {}
    with tqdm(total=len(rows), desc="Checking pictures", unit="picture", disable=not progress) as bar:
        if num_processes == 1:
            for chunk in chunks:
                bad |= _check_chunk(chunk)
                bar.update(chunk[2] - chunk[1])
        while num_processes > 1 and chunks:
            chunks = _check_in_processes(chunks, num_processes, bad, bar)
            # If a decoder killed its process, it was at one of the first chunks: those are tried picture by picture.
            at_work, chunks = chunks[: num_processes + 1], chunks[num_processes + 1 :]
            singles = [(pictures, row, row + 1) for _, start, stop in at_work for row in range(start, stop)]
            while singles := _check_in_processes(singles, 1, bad, bar):
                row = singles.pop(0)[1]
                bad[row] = DEADLY
                bar.update(1)
    return dict(sorted(bad.items()))


def _check_in_processes(chunks: list, num_processes: int, bad: dict[int, str], bar: tqdm) -> list:
    """Adds to `bad`; returns the chunks that were not checked since a process died, the one it died at among the first
    `num_processes + 1` of them."""
    if not chunks:
        return []
    unchecked = []
    # "spawn": a fork of a process that already runs torch's threads can hang.
    with ProcessPoolExecutor(num_processes, get_context("spawn"), initializer=end_with_parent) as pool:
        for chunk, future in [(chunk, pool.submit(_check_chunk, chunk)) for chunk in chunks]:
            try:
                bad |= future.result()
                bar.update(chunk[2] - chunk[1])
            except BrokenProcessPool:
                unchecked.append(chunk)
    return unchecked


def _check_chunk(chunk: tuple[Dataset, int, int]) -> dict[int, str]:
    rows, start, stop = chunk
    bad = {}
    for index, row in enumerate(rows.select(range(start, stop)), start=start):
        try:
            read_picture(row["image"])
        except BadPictureError as error:
            bad[index] = str(error)
    return bad


def leave_out(rows: Dataset, bad: Mapping[int, str], on_bad_image: str, report: Path | None = None) -> Dataset:
    """Does with bad pictures what the user chose.

    Args:
        rows (`Dataset`).
        bad (`Mapping[int, str]`): as [`find_bad_pictures`] returns it.
        on_bad_image (`str`): `"skip"` leaves the rows out, `"stop"` raises.
        report (`Path`, *optional*): a JSON file to list them in.

    Raises:
        DataError: with `"stop"`, names the first bad picture and how many there are.
    """
    if not bad:
        return rows
    names = rows["name"][:]
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        listed = [{"name": names[index], "reason": reason} for index, reason in bad.items()]
        report.write_text(json.dumps({"count": len(bad), "pictures": listed}, indent=2), encoding="utf-8")
    logger.warning("%d of %d pictures cannot be read%s", len(bad), len(rows), f": see {report}" if report else "")
    if on_bad_image == "stop":
        index, reason = next(iter(bad.items()))
        raise DataError(
            f"{len(bad)} of {len(rows)} pictures cannot be read, the first is {names[index]!r} ({reason}). "
            "Mend them, or pass on_bad_image=skip to leave them out."
        )
    return rows.select([index for index in range(len(rows)) if index not in bad])
