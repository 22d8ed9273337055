"""What the readers of files share: names that lead to pictures, text, csv and JSON.

A name in the data leads to a file inside the source's own folder or is refused: neither a path, nor an absolute one,
nor a link gets out of it, and an address is never fetched.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError, as_user_error


def picture_in(folder: Path, name: str, place: str) -> str:
    """The path of a picture that is named relative to the folder of all pictures."""
    if Path(name).is_absolute():
        raise UserError(f"{place}: the picture {name!r} lies outside {folder}: name it relative to that folder.")
    return picture_inside(folder / name, name, [folder.resolve()], place)


def picture_inside(path: Path, name: str, roots: Sequence[Path] | None, place: str) -> str:
    """The path of a picture which is a file, and lies in one of the folders `roots` (anywhere, if it is None)."""
    if "://" in name:
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


def read_csv(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, str]]]:
    """Of each line of a csv file with a header, or these columns: how errors call it, and a string a column."""
    end = 0  # of the last line that was read
    # Without a header the file is of a graph's exporter, whose own page writes "0, name".
    reader = csv.DictReader(io.StringIO(read_text(path)), columns, skipinitialspace=columns is not None)
    try:
        header = [name for name in reader.fieldnames or () if name]
        if len(set(header)) < len(header):
            raise UserError(f"{path} has a column twice, of {', '.join(header)}: rename or remove one.")
        end = reader.line_num
        for record in reader:
            end, place = reader.line_num, f"{path}, line {reader.line_num}"
            if None in record or None in record.values():
                raise UserError(f"{place}: the row does not have one value for each column; quote one with a comma.")
            if any("\n" in cell for cell in record.values()):
                raise UserError(f"{place}: a cell goes over several lines; close its quotation mark.")
            yield place, record
    except csv.Error as error:
        unclosed = "look for an unclosed quotation mark"
        raise UserError(f"{path}, line {end + 1} cannot be read ({error}): {unclosed}.") from error


def read_text(path: Path) -> str:
    with as_user_error(f"{path} cannot be read as text in UTF-8", kinds=(OSError, UnicodeDecodeError)):
        return path.read_text(encoding="utf-8-sig")


def json_value(text: str, where: str) -> Any:
    # ValueError is also of a number with thousands of digits.
    with as_user_error(f"{where} is not valid JSON", "correct it.", kinds=(ValueError, RecursionError)):
        return json.loads(text)
