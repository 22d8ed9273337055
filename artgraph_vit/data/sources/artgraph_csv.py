"""ArtGraph's csv export: `artgraph_dataset.csv`, `images/`, and `splits/{train,val,test}.txt` or a column `split`.

The csv has a column `image` (a file name in `images/`) and one a task. Several labels stand in one cell, joined by
", "; an empty cell is unknown.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset
from transformers.utils import logging

from ...model.tasks import Task
from .files import PictureFolder, not_utf8, read_split_files
from .rows import ArtworkTable, DataError, ReadingOptions, rows_of_table, split_name

logger = logging.get_logger(__name__)

ARTGRAPH_CSV = "artgraph_dataset.csv"


def read_artgraph_csv(folder: Path, options: ReadingOptions, images: Path | None = None) -> tuple[Dataset, list[Task]]:
    """Raw rows of the export in `folder`, and their tasks.

    Raises:
        DataError: names the file and line that is wrong.
    """
    path = folder / ARTGRAPH_CSV
    header, lines = read_csv(path)
    if "image" not in header:
        raise DataError(f"{path} has no column 'image'; its columns are {', '.join(header) or 'none'}.")
    pictures = PictureFolder(images or folder / "images")
    table = ArtworkTable(str(path), [], [], [], {name: [] for name in header})
    numbers = []
    for number, record in lines:
        name = record["image"]
        if not name:
            raise DataError(f"{path}, line {number}: the cell 'image' is empty: name the picture or remove the line.")
        table.names.append(name)
        table.pictures.append(pictures.path_of(name, f"{path}, line {number}"))
        table.splits.append(record.get("split"))
        numbers.append(number)
        for column, cell in record.items():
            table.columns[column].append(cell)

    split_of = read_split_files(folder / "splits", table.names, str(path))
    if "split" in header:
        if split_of:
            raise DataError(
                f"{path} has a column 'split' and there is a folder {folder / 'splits'}: keep one of them."
            )
        table.splits = [
            split_name(split, f"{path}, line {number}") for split, number in zip(table.splits, numbers, strict=True)
        ]
    elif split_of:
        table = in_a_split(table, split_of)
    return rows_of_table(table, options)


def read_csv(path: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """The columns of a csv file with a header, and its lines: their number, and one string for each column.

    Raises:
        DataError: here or while reading, if the header or a line is not of that form.
    """
    lines = csv_lines(path)
    header = next(lines, (0, []))[1]
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has the column {twice!r} twice: rename or remove one.")
    return header, _records(path, header, lines)


def _records(
    path: Path, header: list[str], lines: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, dict[str, str]]]:
    for number, cells in lines:
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {number}: the row does not have one value for each column, but {len(cells)} for "
                f"{len(header)}; a value that holds a comma stands in quotation marks."
            )
        yield number, dict(zip(header, cells, strict=True))


def csv_lines(path: Path, skipinitialspace: bool = False) -> Iterator[tuple[int, list[str]]]:
    """The cells of each line that is not blank, and the line's number.

    Raises:
        DataError: while reading, if a line is no csv.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, skipinitialspace=skipinitialspace)
        try:
            for cells in reader:
                if any("\n" in cell for cell in cells):
                    raise DataError(
                        f"{path}, line {reader.line_num}: a cell goes over several lines; close its quotation mark."
                    )
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise DataError(
                f"{path}, line {reader.line_num + 1}: {error}; look for an unclosed quotation mark."
            ) from error
        except UnicodeDecodeError as error:
            raise not_utf8(path, error) from error


def in_a_split(table: ArtworkTable, split_of: dict[str, str]) -> ArtworkTable:
    """The artworks that the split files name; the others are left out, with a warning."""
    kept = [index for index, name in enumerate(table.names) if name in split_of]
    if len(kept) < len(table.names):
        logger.warning("%s: %d artworks are in no split and are left out.", table.where, len(table.names) - len(kept))
    return ArtworkTable(
        table.where,
        [table.names[index] for index in kept],
        [table.pictures[index] for index in kept],
        [split_of[table.names[index]] for index in kept],
        {column: [cells[index] for index in kept] for column, cells in table.columns.items()},
    )
