"""What the readers of files share: names in the data that lead to pictures, split files, and text.

A name in the data leads to a file inside the source's own folder or is refused: neither a path, nor an absolute one,
nor a link gets out of it, and an address is never fetched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .rows import SPLIT_NAMES, DataError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")  # http, s3, hf, file ...


def is_address(name: str) -> bool:
    return _ADDRESS.match(name) is not None


class PictureFolder:
    """The folder that holds all pictures of a source.

    Args:
        folder (`Path`).
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.root = folder.resolve()

    def path_of(self, name: str, where: str) -> str:
        """The path of a picture, named relative to the folder.

        Raises:
            DataError: if it is an address or an absolute path, is not there, or lies outside, be it by its name or
                by a link.
        """
        if Path(name).is_absolute():
            raise DataError(
                f"{where}: the picture {name!r} lies outside {self.folder}, or is named as if it did: "
                "name it relative to that folder."
            )
        return picture_inside(self.folder / name, name, [self.root], where)


def picture_inside(path: Path, name: str, roots: Sequence[Path] | None, where: str) -> str:
    """The path of a picture which is a file, and lies in one of the folders `roots` (anywhere, if it is None).

    Raises:
        DataError: if it is not so; calls the picture `name`.
    """
    if is_address(name):
        raise DataError(
            f"{where}: the picture {name!r} is an address, and readers fetch nothing: "
            "download it, or unpack the archive it is in."
        )
    try:
        resolved = path.resolve()
        if roots is not None and not any(resolved.is_relative_to(root) for root in roots):
            places = " and ".join(map(str, roots))
            raise DataError(f"{where}: the picture {name!r} lies outside {places}: put it there.")
        if not path.is_file():
            raise DataError(f"{where}: there is no picture {path}.")
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a null byte, a ring of links
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: the picture {name!r} cannot be looked up ({error}): correct its name.") from error
    return str(path)


def read_split_files(folder: Path, names: Sequence[str], where: str) -> dict[str, str]:
    """Maps the name of an artwork to its split, by `{train,val,test}.txt`; empty if there is no such folder."""
    if not folder.is_dir():
        return {}
    known = set(names)
    split_of: dict[str, str] = {}
    if len(known) != len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise DataError(f"{where} names the picture {twice!r} twice: keep one line.")
    for file_name in ("train.txt", "val.txt", "test.txt"):
        path = folder / file_name
        if not path.is_file():
            raise DataError(f"There is no file {path}: a folder 'splits' holds train.txt, val.txt and test.txt.")
        listed = lines_of(path)
        if not any(listed):
            raise DataError(
                f"{path} is empty: name the artworks of the split, or take the folder away to have it made."
            )
        for line, name in enumerate(listed, start=1):
            if not name:
                continue
            if name not in known:
                raise DataError(f"{path}, line {line}: {name!r} is not in {Path(where).name}: correct or remove it.")
            if name in split_of:
                raise DataError(
                    f"{path}, line {line}: {name!r} is already in the split {split_of[name]!r}: keep it in one."
                )
            split_of[name] = SPLIT_NAMES[path.stem]
    return split_of


def lines_of(path: Path) -> list[str]:
    """The lines of a text file. `str.splitlines` would also cut at characters that a name or a label may hold."""
    return read_text(path).split("\n")


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error


def not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    return DataError(f"{path} is not in UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8.")


def json_value(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number with thousands of digits
        raise DataError(f"{where} is not valid JSON ({error}): correct it.") from error
