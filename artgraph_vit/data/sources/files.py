"""What the readers of files share: names in the data that lead to pictures, split files, csv and JSON.

A name in the data leads to a file inside the source's own folder or is refused: neither a path, nor an absolute one,
nor a link gets out of it, and an address is never fetched.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ...errors import UserError, as_user_error
from .rows import ArtworkTable, split_name

logger = logging.get_logger(__name__)

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")  # http, s3, hf, file ...


def is_address(name: str) -> bool:
    return _ADDRESS.match(name) is not None


class PictureFolder:
    """The folder that holds all pictures of a source."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.root = folder.resolve()

    def path_of(self, name: str, place: str) -> str:
        """The path of a picture, named relative to the folder; it lies inside, by its name and by its links."""
        if Path(name).is_absolute():
            raise UserError(
                f"{place}: the picture {name!r} lies outside {self.folder}: name it relative to that folder."
            )
        return picture_inside(self.folder / name, name, [self.root], place)


def picture_inside(path: Path, name: str, roots: Sequence[Path] | None, place: str) -> str:
    """The path of a picture which is a file, and lies in one of the folders `roots` (anywhere, if it is None)."""
    if is_address(name):
        raise UserError(f"{place}: the picture {name!r} is an address, and readers fetch nothing: unpack it.")
    # A name too long, with a null byte, a ring of links:
    kinds = (OSError, ValueError, RuntimeError)
    with as_user_error(f"{place}: the picture {name!r} cannot be looked up", "correct its name.", kinds):
        resolved = path.resolve()
        if roots is not None and not any(resolved.is_relative_to(root) for root in roots):
            raise UserError(f"{place}: the picture {name!r} lies outside {' and '.join(map(str, roots))}.")
        if not path.is_file():
            raise UserError(f"{place}: there is no picture {path}.")
    return str(path)


def in_split_files(table: ArtworkTable, folder: Path) -> ArtworkTable:
    """The artworks that `{train,val,test}.txt` in a folder name, each in its split; the others are left out, with a
    warning. The table as it is, if there is no such folder.
    """
    if not folder.is_dir():
        return table
    if any(table.splits):
        raise UserError(f"{table.where} has a column 'split' and there is a folder {folder}: keep one of them.")
    row_of = {name: row for row, name in enumerate(table.names)}
    if len(row_of) < len(table.names):
        twice = next(name for row, name in enumerate(table.names) if row_of[name] != row)
        raise UserError(f"{table.where} names the picture {twice!r} twice: keep one line.")
    for split in ("train", "val", "test"):
        path = folder / f"{split}.txt"
        if not path.is_file():
            raise UserError(f"There is no file {path}: a folder 'splits' holds train.txt, val.txt and test.txt.")
        listed = lines_of(path)
        if not any(listed):
            raise UserError(f"{path} is empty: name the artworks of the split, or take the folder away.")
        for line, name in enumerate(listed, start=1):
            row = row_of.get(name)
            if row is None and name:
                raise UserError(f"{path}, line {line}: {name!r} is not in {Path(table.where).name}: remove it.")
            if row is not None:
                if table.splits[row] is not None:
                    other = table.splits[row]
                    raise UserError(f"{path}, line {line}: {name!r} is already in the split {other!r}: keep one.")
                table.splits[row] = split_name(split, str(path))
    kept = [row for row, split in enumerate(table.splits) if split is not None]
    if len(kept) < len(table.names):
        logger.warning("%s: %d artworks are in no split and are left out.", table.where, len(table.names) - len(kept))
    return table.select(kept)


def read_csv(path: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """The columns of a csv file with a header, and its lines: their number, and one string for each column."""
    lines = csv_lines(path)
    header = next(lines, (0, []))[1]
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path} has the column {twice!r} twice: rename or remove one.")

    def records() -> Iterator[tuple[int, dict[str, str]]]:
        for number, cells in lines:
            if len(cells) != len(header):
                raise UserError(
                    f"{path}, line {number}: the row does not have one value for each column, but {len(cells)} for "
                    f"{len(header)}; a value that holds a comma stands in quotation marks."
                )
            yield number, dict(zip(header, cells, strict=True))

    return header, records()


def csv_lines(path: Path, skipinitialspace: bool = False) -> Iterator[tuple[int, list[str]]]:
    """The cells of each line that is not blank, and the line's number."""
    with open(path, newline="", encoding="utf-8-sig") as file, _in_utf8(path):
        reader = csv.reader(file, skipinitialspace=skipinitialspace)
        while True:
            where = f"{path}, line {reader.line_num + 1}"
            with as_user_error(f"{where} cannot be read", "look for an unclosed quotation mark.", kinds=(csv.Error,)):
                cells = next(reader, None)
            if cells is None:
                return
            if any("\n" in cell for cell in cells):
                number = reader.line_num
                raise UserError(f"{path}, line {number}: a cell goes over several lines; close its quotation mark.")
            if cells:
                yield reader.line_num, cells


def lines_of(path: Path) -> list[str]:
    """The lines of a text file. `str.splitlines` would also cut at characters that a name or a label may hold."""
    return read_text(path).split("\n")


def read_text(path: Path) -> str:
    with _in_utf8(path):
        return path.read_text(encoding="utf-8-sig")


def _in_utf8(path: Path) -> Any:
    return as_user_error(f"{path} is not in UTF-8", "save it as UTF-8.", kinds=(UnicodeDecodeError,))


def json_value(text: str, where: str) -> Any:
    # ValueError is also of a number with thousands of digits.
    with as_user_error(f"{where} is not valid JSON", "correct it.", kinds=(ValueError, RecursionError)):
        return json.loads(text)
