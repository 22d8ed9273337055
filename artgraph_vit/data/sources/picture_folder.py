"""A folder of pictures with `metadata.csv`, `.jsonl` or `.parquet`, in the manner of `datasets`' `imagefolder`.

A line names its picture by `file_name`, relative to the metadata file; several labels are a list (JSON in a csv) or
joined by a separator. Splits are a column `split`, or folders called after them, each with a metadata file of its own
or below one that all share. Read here and not by `imagefolder`, which takes the words train, test and val anywhere in
a file's name for its split, and leaves lists in a csv as strings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import Dataset

from ...tasks import Task
from .artgraph_csv import read_csv
from .rows import (
    SPLIT_NAMES,
    ArtworkTable,
    DataError,
    PictureFolder,
    ReadingOptions,
    read_text,
    rows_of_table,
    split_name,
)

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def metadata_files(folder: Path) -> list[Path]:
    """The metadata file of a folder, or those of its split folders."""
    folders = [folder, *(path for path in sorted(folder.iterdir()) if path.name in SPLIT_NAMES and path.is_dir())]
    return [path for place in folders for path in (place / name for name in METADATA) if path.is_file()]


def read_picture_folder(folder: Path, options: ReadingOptions) -> tuple[Dataset, list[Task]]:
    """Raw rows of the folder, and their tasks.

    Raises:
        DataError: names the file and line that is wrong.
    """
    files = metadata_files(folder)
    if len({path.parent for path in files}) < len(files) or (len(files) > 1 and files[0].parent == folder):
        raise DataError(f"{folder} has the metadata files {', '.join(map(str, files))}: keep one for each picture.")
    table = ArtworkTable(str(folder), [], [], [], {})
    pictures = PictureFolder(folder)
    for path in files:
        below = path.parent.relative_to(folder)
        for number, record in _records(path):
            where = f"{path}, line {number}"
            name = record.pop("file_name", None)
            if not isinstance(name, str) or not name:
                raise DataError(f"{where}: there is no 'file_name', which names the picture.")
            picture = pictures.path_of(name if "://" in name else str(below / name), where)
            split = record.pop("split", None)
            place = Path(picture).relative_to(folder).parts[0]
            table.names.append(str(Path(picture).relative_to(folder)))
            table.pictures.append(picture)
            table.splits.append(split_name(split, where) if split is not None else SPLIT_NAMES.get(place))
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
        return [str(item) for item in value if item is not None]
    return value if value is None or isinstance(value, str) else str(value)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix == ".csv":
        yield from read_csv(path)[1]
    elif path.suffix == ".jsonl":
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if line.strip():
                yield number, _json_object(line, f"{path}, line {number}")
    else:
        try:
            records = pyarrow.parquet.read_table(path).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{path} is no parquet file that can be read: {error}.") from error
        yield from enumerate(records, start=1)


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where} is not valid JSON: {error}.") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: there should be an object with 'file_name' and labels.")
    return record
