"""What every reader gives: raw rows, with the names of the labels and nothing decided yet.

A raw row holds `image` (not decoded), one column a task (a name, a list of names, or None for unknown), `split`
("train", "validation", "test" or None), `name`, by which errors call the artwork, and perhaps `stratum`. A reader of
files fills an [`ArtworkTable`] with what it found, and [`rows_of_table`] makes rows of it by the rules all share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from datasets import Dataset, Features, Image, List, Value
from transformers.utils import logging

from ...errors import UserError
from ...model.tasks import ARTGRAPH_TASKS, MULTI_LABEL, SINGLE_LABEL, Task

logger = logging.get_logger(__name__)

OWN_COLUMNS = ("image", "name", "split", "stratum", "pixels")
DEFAULT_STRATUM = "genre"
MISSING_TASKS = ("error", "unknown")
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
    renamed_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by column; a preset gives them
    name_column: str | None = None  # of a dataset whose rows know what they are called

    def __post_init__(self) -> None:
        if self.missing_tasks not in MISSING_TASKS:
            raise DataError(f"missing_tasks is {self.missing_tasks!r}: use {' or '.join(map(repr, MISSING_TASKS))}.")

    def column_of(self, task: Task) -> str:
        return self.columns.get(task.name, task.name)


@dataclass
class ArtworkTable:
    """What a reader found, a list entry an artwork.

    Args:
        where (`str`): how errors call the source.
        names (`list[str]`): of the artworks.
        pictures (`list[str]`): paths of files, as [`PictureFolder`] gives them.
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
        raise DataError(f"{table.where} has no rows: name an artwork in it.")
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
    values: dict[str, list] = {"name": table.names, "split": table.splits, **labels, **stratum}
    _refuse_half_characters(values, table)
    rows = Dataset.from_dict(
        {"image": [{"path": path, "bytes": None} for path in table.pictures], **values},
        features=Features({"image": Image(decode=False), **raw_features(tasks), **as_strings(stratum)}),
    )
    return rows, tasks


def _refuse_half_characters(values: Mapping[str, list], table: ArtworkTable) -> None:
    """JSON can write half a surrogate pair, which no file and no table of strings can hold."""
    for column, cells in values.items():
        for cell, name in zip(cells, table.names, strict=True):
            for text in cell if isinstance(cell, list) else [cell or ""]:
                if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
                    raise DataError(
                        f"{table.where}: {name!r} has the {column} {text!r}, which holds half a character: correct it."
                    )


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
        chosen.append(given if isinstance(given, Task) else _task(name, found, options))
    lacking = [name for name in wanted if name not in {task.name for task in chosen}]
    if chosen and lacking:
        others = sorted(set(columns) - set(OWN_COLUMNS) - {options.column_of(task) for task in chosen})
        unused = f", and the columns {', '.join(others)} are not read" if others else ""
        logger.warning("%s has no %s%s: name what is called otherwise by columns.", where, ", ".join(lacking), unused)
    if not chosen:
        raise DataError(
            f"{where} has none of the columns {', '.join(defaults)}; name its label columns by tasks or columns."
        )
    return chosen


def _task(name: str, found: str, options: ReadingOptions) -> Task:
    """A task of which only the name is known: ArtGraph's own of that name, or a new one of the type found."""
    known = next((task for task in ARTGRAPH_TASKS if task.name == name), None)
    if known is None:
        try:
            return Task(name, found or SINGLE_LABEL)
        except ValueError as error:  # a name that no head can have
            raise DataError(f"{error} The column that it is read from may have any name: see columns.") from error
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
        names = cell.split(options.label_separator or ", ")
    stripped = (name.strip() for name in names if name is not None)
    known = list(dict.fromkeys(name for name in stripped if name and name not in options.unknown_labels))
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
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: the {task.name} {cell!r} begin like a JSON list and are none ({error}): correct them."
        ) from error
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: the {task.name} {cell!r} hold something that is not a string: put it in quotes.")
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


def split_name(value: object, where: str) -> str:
    if not isinstance(value, str) or value not in SPLIT_NAMES:
        raise DataError(f"{where}: the split {value!r} is none of {', '.join(SPLIT_NAMES)}: use one of these.")
    return SPLIT_NAMES[value]
