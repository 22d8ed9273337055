"""A folder of pictures with `metadata.csv`, `.jsonl` or `.parquet`, in the manner of `datasets`' `imagefolder`.

A line names its picture by `file_name`, relative to the metadata file; several labels are a list (JSON in a csv) or
joined by a separator. Splits are a column `split`, or folders called after them, each with a metadata file of its own
or below one that all share. Read here and not by `imagefolder`, which takes the words train, test and val anywhere in
a file's name for its split, and leaves lists in a csv as strings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import Dataset

from ...model.tasks import Task
from .artgraph_csv import read_csv
from .files import PictureFolder, is_address, json_value, lines_of
from .rows import SPLIT_NAMES, ArtworkTable, DataError, ReadingOptions, rows_of_table, split_name

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def metadata_files(folder: Path) -> list[Path]:
    """The metadata file of a folder, or those of its split folders."""
    places = [folder, *_split_folders(folder)]
    return [path for place in places for path in (place / name for name in METADATA) if path.is_file()]


def _split_folders(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.name in SPLIT_NAMES and path.is_dir()]


def read_picture_folder(folder: Path, options: ReadingOptions) -> tuple[Dataset, list[Task]]:
    """Raw rows of the folder, and their tasks.

    Raises:
        DataError: names the file and line that is wrong.
    """
    files = metadata_files(folder)
    if len({path.parent for path in files}) < len(files) or (len(files) > 1 and files[0].parent == folder):
        raise DataError(f"{folder} has the metadata files {', '.join(map(str, files))}: keep one for each picture.")
    described = {path.parent for path in files}
    bare = next((place for place in _split_folders(folder) if not {folder, place} & described), None)
    if bare is not None:
        raise DataError(f"{bare} has no metadata file, and other splits have one: add it, or take the folder away.")
    table = ArtworkTable(str(folder), [], [], [], {})
    pictures = PictureFolder(folder)
    for path in files:
        below = path.parent.relative_to(folder)
        for number, record in _records(path):
            where = f"{path}, line {number}"
            name = record.pop("file_name", None)
            if not isinstance(name, str) or not name:
                raise DataError(f"{where}: there is no 'file_name', which names the picture: add it.")
            name = name if is_address(name) else os.path.normpath(below / name)
            table.pictures.append(pictures.path_of(name, where))
            table.names.append(name)
            split = record.pop("split", None)
            place, _, _ = name.rpartition(os.sep)
            in_folder = SPLIT_NAMES.get(place.split(os.sep)[0])
            table.splits.append(split_name(split, where) if split is not None else in_folder)
            for column in {**table.columns, **record}:
                cells = table.columns.setdefault(column, [None] * (len(table.names) - 1))
                cells.append(_cell(record.get(column)))
    if len({split is None for split in table.splits}) > 1:
        outside = table.names[table.splits.index(None)]
        raise DataError(f"{folder}: some pictures are in a split, and {outside!r} is in none; name one for each.")
    return rows_of_table(table, options)


def _cell(value: Any) -> Any:
    """A list as it is, None, or a string: titles and years are no labels, but may be asked for as such."""
    if isinstance(value, list):
        return [str(item) for item in value if not _is_missing(item)]
    return None if _is_missing(value) else str(value)


def _is_missing(value: Any) -> bool:
    return value is None or value != value  # NaN, as which pandas writes a missing string


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix == ".csv":
        yield from read_csv(path)[1]
    elif path.suffix == ".jsonl":
        for number, line in enumerate(lines_of(path), start=1):
            if line.strip():
                yield number, _json_object(line, f"{path}, line {number}")
    else:
        try:
            records = pyarrow.parquet.read_table(path).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{path} is no parquet file that can be read ({error}): write it anew.") from error
        yield from enumerate(records, start=1)


def _json_object(line: str, where: str) -> dict[str, Any]:
    record = json_value(line, where)
    if not isinstance(record, dict):
        raise DataError(f"{where}: there should be an object with 'file_name' and labels.")
    return record
