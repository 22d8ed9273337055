"""The check that finds the pictures that cannot be read, and what becomes of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from datasets import Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from ..model.pictures import BadPictureError, read_picture
from .sources import DataError
from .workers import end_with_parent

logger = logging.get_logger(__name__)

DEADLY = "the process that decodes it dies"


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
