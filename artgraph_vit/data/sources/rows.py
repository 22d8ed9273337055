"""What every reader gives: raw rows, with the names of the labels and nothing decided yet.

A raw row holds `image` (not decoded), one column a task (a name, a list of names, or None for unknown), `split`
("train", "validation", "test" or None), `name`, by which errors call the artwork, and perhaps `stratum`. A reader of
files fills an [`ArtworkTable`] with what it found, and [`rows_of_table`] makes rows of it by the rules all share.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets import Dataset, Features, Image, List, Value

from ...errors import UserError
from ...tasks import ARTGRAPH_TASKS, MULTI_LABEL, SINGLE_LABEL, Task

OWN_COLUMNS = ("image", "name", "split", "stratum", "pixels")
DEFAULT_STRATUM = "genre"
SPLIT_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}

Cell = str | Sequence[str | None] | None  # what a source says of one artwork and task


class DataError(UserError):
    """Something in the user's data is wrong; the message says what, where, and what to do."""


@dataclass(frozen=True)
class ReadingOptions:
    """How a source is read; [`load_artworks`] describes each."""

    tasks: tuple[str | Task, ...] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    unknown_labels: frozenset[str] = frozenset()
    multi_label_tasks: frozenset[str] = frozenset()
    label_separator: str | None = None
    missing_tasks: str = "error"
    stratify_by: str | None = None

    def column_of(self, task: Task) -> str:
        return self.columns.get(task.name, task.name)


@dataclass
class ArtworkTable:
    """What a reader found, a list entry an artwork.

    Args:
        where (`str`): how errors call the source.
        names (`list[str]`): of the artworks.
        pictures (`list[str]`): paths of files, as [`picture_path`] gives them.
        splits (`list[str | None]`).
        columns (`dict[str, list]`): what the source says: for each artwork a string, a list of strings, or None.
    """

    where: str
    names: list[str]
    pictures: list[str]
    splits: list[str | None]
    columns: dict[str, list]


def rows_of_table(table: ArtworkTable, options: ReadingOptions) -> tuple[Dataset, list[Task]]:
    """Raw rows, and their tasks without labels."""
    if not table.names:
        raise DataError(f"{table.where} has no rows.")
    holds_lists = {name for name, cells in table.columns.items() if any(isinstance(cell, list) for cell in cells)}
    tasks = choose_tasks(table.columns, table.where, options, dict.fromkeys(holds_lists, MULTI_LABEL))
    labels: dict[str, list] = {}
    for task in tasks:
        cells = table.columns.get(options.column_of(task), [None] * len(table.names))
        labels[task.name] = [
            labels_of_cell(cell, task, options, f"{table.where}: {name!r}")
            for cell, name in zip(cells, table.names, strict=True)
        ]
    stratum_column = find_stratum_column(table.columns, table.where, options)
    stratum = {"stratum": [str(cell or "") for cell in table.columns[stratum_column]]} if stratum_column else {}
    rows = Dataset.from_dict(
        {
            "image": [{"path": path, "bytes": None} for path in table.pictures],
            "name": table.names,
            "split": table.splits,
            **labels,
            **stratum,
        },
        features=Features({"image": Image(decode=False), **raw_features(tasks), **as_strings(stratum)}),
    )
    return rows, tasks


def choose_tasks(
    columns: Mapping | Sequence[str], where: str, options: ReadingOptions, found_types: Mapping[str, str]
) -> list[Task]:
    """The tasks to read from columns, of which `found_types` says what their values show them to be."""
    defaults = {task.name: task for task in ARTGRAPH_TASKS}
    wanted = {task if isinstance(task, str) else task.name: task for task in options.tasks or defaults}
    for name in options.multi_label_tasks - wanted.keys():
        raise DataError(f"multi_label_tasks names {name!r}, which is not among the tasks: add it to tasks.")
    for name in options.columns:
        if name not in wanted:
            raise DataError(f"columns names {name!r}, which is not one of the tasks {', '.join(wanted)}.")
    chosen = []
    for name, given in wanted.items():
        if name in OWN_COLUMNS:
            raise DataError(f"A task cannot be called {name!r}, as the rows' own columns are: choose another name.")
        column = options.columns.get(name, name)
        if column in columns:
            found = MULTI_LABEL if name in options.multi_label_tasks else found_types.get(column, SINGLE_LABEL)
        elif options.missing_tasks == "unknown" and (options.tasks or isinstance(given, Task)):
            found = MULTI_LABEL if name in options.multi_label_tasks else ""
        elif options.tasks or name in options.columns:
            raise DataError(
                f"{where} has no column {column!r} for the task {name!r}; its columns are {', '.join(columns)}."
            )
        else:
            continue
        chosen.append(given.with_labels(()) if isinstance(given, Task) else _task(name, found, options))
    if not chosen:
        raise DataError(
            f"{where} has none of the columns {', '.join(defaults)}; name its label columns by tasks or columns."
        )
    return chosen


def _task(name: str, found: str, options: ReadingOptions) -> Task:
    """A task of which only the name is known: ArtGraph's own of that name, or a new one of the type found."""
    known = next((task for task in ARTGRAPH_TASKS if task.name == name), None)
    if known is None:
        return Task(name, found or SINGLE_LABEL)
    if name in options.multi_label_tasks and not known.is_multi_label:
        return replace(known, problem_type=MULTI_LABEL, rare="drop" if known.rare == "other" else known.rare)
    return known


def labels_of_cell(cell: Cell, task: Task, options: ReadingOptions, where: str) -> str | list[str] | None:
    """The names that a cell holds, or None; several labels in a string are a JSON list, or joined by a separator."""
    names: Sequence[str | None]
    if cell is None:
        return None
    if not isinstance(cell, str):
        names = cell
    elif not task.is_multi_label:
        names = [cell]
    elif cell.startswith("["):
        names = _json_list(cell, task, where)
    else:
        names = [name.strip() for name in cell.split(options.label_separator or ", ")]
    known = list(dict.fromkeys(name for name in names if name and name not in options.unknown_labels))
    if task.is_multi_label:
        return known or None
    if len(known) > 1:
        raise DataError(
            f"{where} has {len(known)} labels for the task {task.name!r}, which has one: {', '.join(known)}; "
            f"keep one, or name {task.name!r} in multi_label_tasks."
        )
    return known[0] if known else None


def _json_list(cell: str, task: Task, where: str) -> list[str]:
    try:
        names = json.loads(cell)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: the {task.name} {cell!r} begin like a JSON list and are none: {error}.") from error
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: the {task.name} {cell!r} hold something that is not a string.")
    return names


def raw_features(tasks: Sequence[Task]) -> dict:
    labels = {task.name: List(Value("string")) if task.is_multi_label else Value("string") for task in tasks}
    return {"name": Value("string"), "split": Value("string"), **labels}


def as_strings(columns: Mapping[str, list]) -> dict[str, Value]:
    return dict.fromkeys(columns, Value("string"))


def find_stratum_column(columns: Mapping | Sequence[str], where: str, options: ReadingOptions) -> str | None:
    column = options.columns.get(options.stratify_by or "", options.stratify_by)
    if column is not None and column in columns:
        return column
    if options.stratify_by not in (None, DEFAULT_STRATUM):
        raise DataError(
            f"{where} has no column {column!r} to stratify the split by; its columns are {', '.join(columns)}."
        )
    return None


def split_name(value: str | None, where: str) -> str:
    if value not in SPLIT_NAMES:
        raise DataError(f"{where}: the split {value!r} is none of {', '.join(SPLIT_NAMES)}.")
    return SPLIT_NAMES[value]


class PictureFolder:
    """The folder that holds all pictures of a source: a name in the data leads to a file in it or is refused.

    Args:
        folder (`Path`).
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.root = folder.resolve()

    def path_of(self, name: str, where: str) -> str:
        """The path of a picture.

        Raises:
            DataError: if it is a URL, is not there, or lies outside, be it by its name or by a link.
        """
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name):
            raise DataError(f"{where}: the picture {name!r} is an address, and readers fetch nothing: download it.")
        path = self.folder / name
        try:
            if not path.resolve().is_relative_to(self.root):
                raise DataError(f"{where}: the picture {name!r} lies outside {self.folder}.")
            if not path.is_file():
                raise DataError(f"{where}: there is no picture {path}.")
        except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a null byte, a ring of links
            if isinstance(error, DataError):
                raise
            raise DataError(f"{where}: the picture {name!r} cannot be looked up: {error}.") from error
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
        raise DataError(f"{where} names the picture {twice!r} twice.")
    for file_name in ("train.txt", "val.txt", "test.txt"):
        path = folder / file_name
        if not path.is_file():
            raise DataError(f"There is no file {path}: a folder 'splits' holds train.txt, val.txt and test.txt.")
        listed = read_text(path).splitlines()
        if not any(listed):
            raise DataError(
                f"{path} is empty: name the artworks of the split, or take the folder away to have it made."
            )
        for line, name in enumerate(listed, start=1):
            if not name:
                continue
            if name not in known:
                raise DataError(f"{path}, line {line}: {name!r} is not in {Path(where).name}.")
            if name in split_of:
                raise DataError(f"{path}, line {line}: {name!r} is already in the split {split_of[name]!r}.")
            split_of[name] = SPLIT_NAMES[path.stem]
    return split_of


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8.") from error
