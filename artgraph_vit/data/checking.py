"""The check that finds the pictures of a raw source that cannot be read, and what becomes of them.

Each picture is decoded whole, but once: what was found is kept in the Hugging Face cache, and holds for one release
of Pillow and one state of our reading rules.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import PIL
from datasets import Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from ..errors import UserError
from ..files import atomic_write
from ..model import pictures as reading_rules
from .decoding import DEADLY, Picture, Unreadable, default_workers, process_pictures

logger = logging.get_logger(__name__)

BATCH = 64
# What is found for want of memory, or by a disk or a permission, may be over tomorrow.
PASSING = (DEADLY, "MemoryError", "[Errno")


def find_bad_pictures(rows: Dataset, num_processes: int | None = None, progress: bool = True) -> dict[int, str]:
    """Decodes every picture, of an undecoded column `image`, that was not decoded before.

    Args:
        num_processes (`int`, *optional*): by default one a core, but no more than one for 256 pictures.

    Returns:
        The index of each row whose picture cannot be read, and why.
    """
    pictures = rows.select_columns(["image"])
    keys = list(_keys(pictures))
    memory = _open_memory()
    known = dict(memory.execute("SELECT * FROM checked"))
    unchecked = [row for row, key in enumerate(keys) if key not in known]

    batches = (
        [Picture(number, "", pictures[number]["image"]) for number in unchecked[start : start + BATCH]]
        for start in range(0, len(unchecked), BATCH)
    )
    bad = {row: known[key] for row, key in enumerate(keys) if known.get(key)}
    num_workers = default_workers(len(unchecked), num_processes)
    with tqdm(total=len(unchecked), desc="Checking pictures", unit="picture", disable=not progress) as bar:
        for batch, results in process_pictures(batches, _decode, num_workers):
            found = {}
            for picture, result in zip(batch, results, strict=True):
                found[keys[picture.number]] = reason = result.reason if isinstance(result, Unreadable) else None
                if reason is not None:
                    bad[picture.number] = reason
            _keep(memory, found)
            bar.update(len(batch))
    memory.close()
    return {row: f"{pictures[row]['image']['path'] or 'embedded picture'}: {bad[row]}" for row in sorted(bad)}


def _decode(image: Mapping[str, Any]) -> None:
    reading_rules.read_picture(image)


def _keys(pictures: Dataset) -> Iterator[str | None]:
    """By which each picture is known again: a file by path, size and time, embedded bytes by a hash, which takes a
    hundredth of the time that decoding does. None if there is no such file."""
    here = os.getcwd()
    for table in pictures.with_format("arrow").iter(1000):  # ten times as fast as rows are
        columns = table.flatten()
        for data, path in zip(columns["image.bytes"].to_pylist(), columns["image.path"].to_pylist(), strict=True):
            if data is not None:
                yield hashlib.sha256(data).hexdigest()
                continue
            try:
                stat = os.stat(path or "")
                yield f"{os.path.join(here, path)}\n{stat.st_size}\n{stat.st_mtime_ns}"
            except OSError:
                yield None


def _open_memory() -> sqlite3.Connection:
    rules = f"{PIL.__version__}-{hashlib.sha256(Path(reading_rules.__file__).read_bytes()).hexdigest()[:16]}"
    path = Path(datasets.config.HF_CACHE_HOME) / "artgraph_vit" / f"checked-pictures-{rules}.sqlite"
    table = "CREATE TABLE IF NOT EXISTS checked (picture TEXT PRIMARY KEY, problem TEXT) WITHOUT ROWID"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        memory = sqlite3.connect(path, timeout=60)  # several runs may write at once
        memory.execute(table)
    except (OSError, sqlite3.Error) as error:
        logger.warning("All pictures are checked, and will be again: %s cannot be used (%s)", path, error)
        memory = sqlite3.connect(":memory:")
        memory.execute(table)
    return memory


def _keep(memory: sqlite3.Connection, found: Mapping[str | None, str | None]) -> None:
    lasting = [(key, reason) for key, reason in found.items() if key and not (reason or "").startswith(PASSING)]
    try:
        with memory:
            memory.executemany("INSERT OR REPLACE INTO checked VALUES (?, ?)", lasting)
    except sqlite3.Error as error:
        logger.warning_once(f"What the check of pictures finds is not kept ({error})")


def leave_out(rows: Dataset, bad: Mapping[int, str], on_bad_image: str, report: Path | None = None) -> Dataset:
    """Without the bad pictures that [`find_bad_pictures`] returned, which are listed in the JSON file `report`.

    Raises:
        UserError: if `on_bad_image` is `"stop"`, not `"skip"`; names the first bad picture and how many there are.
    """
    if not bad:
        return rows
    names = rows["name"][:]
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        listed = [{"name": names[index], "reason": reason} for index, reason in bad.items()]
        with atomic_write(report) as part:
            part.write_text(json.dumps({"count": len(bad), "pictures": listed}, indent=2), encoding="utf-8")
    logger.warning("%d of %d pictures cannot be read%s", len(bad), len(rows), f": see {report}" if report else "")
    if on_bad_image == "stop":
        index, reason = next(iter(bad.items()))
        raise UserError(
            f"{len(bad)} of {len(rows)} pictures cannot be read, the first is {names[index]!r} ({reason}). "
            "Mend them, or pass on_bad_image=skip to leave them out."
        )
    return rows.select([index for index in range(len(rows)) if index not in bad])
