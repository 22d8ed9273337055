"""From stored bytes to an RGB picture, and the check that finds the pictures for which that fails.

Greyscale, CMYK, palette, 16-bit, transparent, animated and EXIF-rotated pictures are read as a viewer shows them;
a decompression bomb (Pillow's limit, about 179 million pixels) is refused.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image, ImageOps
from tqdm.auto import tqdm
from transformers.utils import logging

from .sources import DataError

logger = logging.get_logger(__name__)


class BadPictureError(ValueError):
    """The bytes are no picture that can be decoded whole."""


def read_picture(image: Mapping[str, Any], at_least: int | None = None) -> Image.Image:
    """Decodes one picture.

    Args:
        image (`Mapping`): what an undecoded `datasets.Image` holds: `bytes`, or else the `path` of a file.
        at_least (`int`, *optional*): pixels that both sides need; a larger JPEG is decoded at a half, a quarter or an
            eighth of its size where that is enough, which is faster.

    Returns:
        A PIL picture in mode RGB, the right way up; of an animation the first frame, on white where transparent.

    Raises:
        BadPictureError: if it is truncated, of no known format, or too large.
    """
    data = image.get("bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to speak up once for each epoch
            with Image.open(image["path"] if data is None else io.BytesIO(data)) as picture:
                if at_least is not None:
                    picture.draft(None, (at_least, at_least))  # does something for JPEGs only
                picture.load()
                return _to_rgb(ImageOps.exif_transpose(picture))
    except Exception as error:  # each of Pillow's decoders has errors of its own
        raise BadPictureError(f"{image.get('path') or 'embedded picture'}: {error}") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip at 255
        values = np.asarray(picture, dtype=np.float64) / 257
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def find_bad_pictures(rows: Dataset, num_processes: int | None = None, progress: bool = True) -> dict[int, str]:
    """Decodes every picture once, on all cores.

    Args:
        rows (`Dataset`): with an undecoded column `image`.
        num_processes (`int`, *optional*, defaults to the number of cores).
        progress (`bool`, *optional*, defaults to `True`): show a progress bar.

    Returns:
        The index of each row whose picture cannot be read, and why.
    """
    pictures = rows.select_columns(["image"])
    num_processes = min(num_processes or os.cpu_count() or 1, max(1, len(rows) // 256))
    chunks = [(pictures, start, min(start + 64, len(rows))) for start in range(0, len(rows), 64)]
    bar = tqdm(total=len(rows), desc="Checking pictures", unit="picture", disable=not progress)
    bad: dict[int, str] = {}
    with bar:
        if num_processes == 1:
            results = map(_check_chunk, chunks)
            for chunk, found in zip(chunks, results, strict=True):
                bad |= found
                bar.update(chunk[2] - chunk[1])
        else:
            # "spawn": a fork of a process that already runs torch's threads can hang.
            with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
                for chunk, found in zip(chunks, pool.map(_check_chunk, chunks), strict=True):
                    bad |= found
                    bar.update(chunk[2] - chunk[1])
    return bad


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
