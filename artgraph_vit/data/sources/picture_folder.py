"""A folder of pictures with `metadata.csv`, `.jsonl` or `.parquet`, in the manner of `datasets`' `imagefolder`.

A line names its picture by `file_name`, relative to the metadata file; several labels are a list (JSON in a csv) or
joined by a separator. Splits are a column `split`, or folders called after them, each with a metadata file of its own
or below one that all share. Read here and not by `imagefolder`, which takes the words train, test and val anywhere in
a file's name for its split, and leaves lists in a csv as strings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import pyarrow.parquet
from datasets import Dataset

from ...errors import UserError, as_user_error
from ...model.tasks import Task
from .files import json_value, picture_in, read_csv, read_text
from .rows import SPLIT_NAMES, ArtworkTable, rows_of_table, split_name

if TYPE_CHECKING:
    from ..options import DataArguments


def metadata_files(folder: Path) -> list[Path]:
    """The metadata file of a folder, or those of its split folders."""
    names = [f"metadata.{kind}" for kind in ("csv", "jsonl", "parquet")]
    return [path for place in [folder, *_split_folders(folder)] for name in names if (path := place / name).is_file()]


def _split_folders(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.name in SPLIT_NAMES and path.is_dir()]


def read_picture_folder(
    folder: Path, options: DataArguments, tasks: Sequence[str | Task] | None
) -> tuple[Dataset, list[Task]]:
    """Raw rows of the folder, and their tasks."""
    files = metadata_files(folder)
    described = {path.parent for path in files}
    if len(described) < len(files) or (len(files) > 1 and folder in described):
        raise UserError(f"{folder} has the metadata files {', '.join(map(str, files))}: keep one for each picture.")
    bare = next((place for place in _split_folders(folder) if not {folder, place} & described), None)
    if bare is not None:
        raise UserError(f"{bare} has no metadata file, and other splits have one: add it, or take the folder away.")
    table = ArtworkTable(str(folder))
    for path in files:
        for place, record in _records(path):
            name = record.pop("file_name", None) if isinstance(record, dict) else None
            if not isinstance(name, str) or not name:
                raise UserError(f"{place}: there is no 'file_name', which names the picture: add it.")
            if "://" not in name:
                name = os.path.normpath(path.parent.relative_to(folder) / name)
            split = record.pop("split", None)
            folder_split = SPLIT_NAMES.get(name.split(os.sep)[0]) if os.sep in name else None
            split = folder_split if split is None else split_name(split, place)
            table.add(place, name, picture_in(folder, name, place), split, record)
    if len({split is None for split in table.splits}) > 1:
        outside = table.names[table.splits.index(None)]
        raise UserError(f"{folder}: some pictures are in a split, and {outside!r} is in none; name one for each.")
    return rows_of_table(table, options, tasks)


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".csv":
        yield from read_csv(path)
    elif path.suffix == ".jsonl":
        # Not str.splitlines, which would also cut at characters that a label may hold.
        for number, line in enumerate(read_text(path).split("\n"), start=1):
            if line.strip():
                yield (place := f"{path}, line {number}"), json_value(line, place)
    else:
        with as_user_error(f"{path} cannot be read", "write it anew.", (OSError, pyarrow.ArrowException)):
            records = pyarrow.parquet.read_table(path).to_pylist()
        yield from ((f"{path}, line {number}", record) for number, record in enumerate(records, start=1))
