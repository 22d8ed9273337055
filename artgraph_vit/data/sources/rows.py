"""What every reader gives: raw rows, with the names of the labels and nothing decided yet.

A raw row holds `image` (not decoded), `name`, by which errors call the artwork, `split` ("train", "validation", "test"
or None), one column a task (a name, a list of names, or None for unknown), and perhaps `stratum`. A reader fills an
[`ArtworkTable`] with what it found, and [`rows_of_table`] makes rows of it by the rules that all sources share.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, Image, List, Value, concatenate_datasets
from transformers.utils import logging

from ...errors import UserError, as_user_error
from ...model.tasks import ARTGRAPH_TASKS, MULTI_LABEL, SINGLE_LABEL, Task

if TYPE_CHECKING:
    from ..options import DataArguments

logger = logging.get_logger(__name__)

OWN_COLUMNS = ("image", "name", "split", "stratum", "pixels")
SPLIT_NAMES = {"train": "train", **dict.fromkeys(("val", "valid", "validation"), "validation"), "test": "test"}


@dataclass
class ArtworkTable:
    """What a reader found, an entry an artwork; `columns` hold strings, numbers, None, or lists of these."""

    where: str  # how errors call the source
    names: list[str] = field(default_factory=list)  # they change neither when rows move nor when their folder does
    places: list[str] = field(default_factory=list)  # how errors call the rows, such as a file and line
    pictures: Any = field(default_factory=list)  # paths of files, or a `Dataset` with an undecoded column `image`
    splits: list[str | None] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)
    lists: set[str] = field(default_factory=set)  # the columns that hold lists
    classes: dict[str, list[str]] = field(default_factory=dict)  # the names that indices in a column lead to

    def add(self, place: str, name: str, picture: str, split: str | None, cells: Mapping[str, Any]) -> None:
        """One artwork; its cells may lack columns that others have."""
        for column in {**self.columns, **cells}:
            cell = cells.get(column)
            self.columns.setdefault(column, [None] * len(self.names)).append(cell)
            if isinstance(cell, list):
                self.lists.add(column)
        self.places.append(place)
        self.names.append(name)
        self.pictures.append(picture)
        self.splits.append(split)


def rows_of_table(
    table: ArtworkTable, options: DataArguments, tasks: Sequence[str | Task] | None
) -> tuple[Dataset, list[Task]]:
    """Raw rows, and their tasks, without labels but for those given with labels."""
    if not table.names:
        raise UserError(f"{table.where} has no rows: name an artwork in it.")
    chosen = _choose_tasks(table, options, tasks)
    values: dict[str, list] = {"name": table.names, "split": table.splits}
    features: dict[str, Any] = {"name": Value("string"), "split": Value("string")}
    for task in chosen:
        column = options.column_of(task.name)
        cells = table.columns[column][:] if column in table.columns else [None] * len(table.names)
        values[task.name] = [
            _labels_of_cell(cell, task, options, table.classes.get(column), place)
            for cell, place in zip(cells, table.places, strict=True)
        ]
        features[task.name] = List(Value("string")) if task.is_multi_label else Value("string")
    pictures, stratum = table.pictures, options.column_of(options.stratify_by)
    is_dataset = isinstance(pictures, Dataset)
    if stratum in table.columns:
        # The strings' order decides which splits are made, so what stands for an unknown must stay what it was.
        values["stratum"] = [str(cell if is_dataset else cell or "") for cell in table.columns[stratum][:]]
        features["stratum"] = Value("string")
    elif options.stratify_by != "genre":
        raise UserError(f"{table.where} has no column {stratum!r} to stratify the split by: see stratify_by.")
    if not is_dataset:
        images = {"image": [{"path": path, "bytes": None} for path in pictures]}
        pictures = Dataset.from_dict(images, features=Features({"image": Image(decode=False)}))
    # JSON can write half a surrogate pair, which no table of strings can hold.
    with as_user_error(f"{table.where} holds half a character", "correct it.", kinds=(UnicodeError,)):
        rows = Dataset.from_dict(values, features=Features(features))
    return concatenate_datasets([pictures, rows], axis=1), chosen


def _choose_tasks(table: ArtworkTable, options: DataArguments, tasks: Sequence[str | Task] | None) -> list[Task]:
    defaults = [task.name for task in ARTGRAPH_TASKS]
    wanted = {task if isinstance(task, str) else task.name: task for task in tasks or defaults}
    for option, names in (("multi_label_tasks", options.multi_label_tasks), ("columns", options.column_of_task)):
        for name in set(names) - wanted.keys():
            raise UserError(f"{option} names {name!r}, which is not one of the tasks {', '.join(wanted)}.")
    chosen, lacking = [], []
    for name, given in wanted.items():
        if name in OWN_COLUMNS:
            raise UserError(f"A task cannot be called {name!r}, as the rows' own columns are: choose another name.")
        column = options.column_of(name)
        if column in table.columns or (tasks and options.missing_tasks == "unknown"):
            is_multi_label = name in options.multi_label_tasks
            chosen.append(given if isinstance(given, Task) else _task(name, is_multi_label, column in table.lists))
        elif tasks or name in options.column_of_task:
            found = ", ".join(table.columns)
            raise UserError(f"{table.where} has no column {column!r} for the task {name!r}; its columns are {found}.")
        else:
            lacking.append(name)
    if not chosen:
        raise UserError(f"{table.where} has none of the columns {', '.join(defaults)}: see the option columns.")
    if lacking:
        others = sorted(set(table.columns) - set(OWN_COLUMNS) - {options.column_of(task.name) for task in chosen})
        unused = f", and the columns {', '.join(others)} are not read" if others else ""
        logger.warning("%s has no %s%s: see the option columns.", table.where, ", ".join(lacking), unused)
    return chosen


def _task(name: str, is_multi_label: bool, has_lists: bool) -> Task:
    """A task of which only the name is known: ArtGraph's own of that name, or a new one."""
    known = next((task for task in ARTGRAPH_TASKS if task.name == name), None)
    if known is None:
        with as_user_error(f"The task {name!r} cannot be", "its column may have any name, see columns."):
            return Task(name, MULTI_LABEL if is_multi_label or has_lists else SINGLE_LABEL)
    if is_multi_label and not known.is_multi_label:
        return replace(known, problem_type=MULTI_LABEL, rare="drop" if known.rare == "other" else known.rare)
    return known


def _labels_of_cell(
    cell: Any, task: Task, options: DataArguments, classes: Sequence[str] | None, place: str
) -> str | list[str] | None:
    """The names that a cell holds, or None; several labels in a string are a JSON list, or joined by a separator."""
    values: Iterable[Any] = cell if isinstance(cell, list) else [cell]
    if isinstance(cell, str) and task.is_multi_label:
        if cell.startswith("["):
            failed = f"{place}: the {task.name} begin like a JSON list and are none"
            with as_user_error(failed, "correct them.", (ValueError, RecursionError)):
                values = json.loads(cell)
        else:
            values = cell.split(options.label_separator or ", ")
    names = (_name_of(value, task, classes, place) for value in values)
    known = list(dict.fromkeys(name for name in names if name and name not in options.unknown_labels))
    if task.is_multi_label:
        return known or None
    if len(known) > 1:
        several = f"{place} has {len(known)} labels for the task {task.name!r}, which has one: {', '.join(known)}"
        raise UserError(f"{several}; keep one, or name it in multi_label_tasks.")
    return known[0] if known else None


def _name_of(value: Any, task: Task, classes: Sequence[str] | None, place: str) -> str | None:
    """The name of one label as a source has it: text, a number, or an index of `classes`."""
    if value is None or value != value:  # NaN, as which pandas writes a missing string
        return None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{place}: the {task.name} {value!r:.99} is no text, nor a list of texts: give names.")
    if classes is not None:
        if value >= len(classes):
            raise UserError(f"{place}: the label {value} is none of the {len(classes)} names: correct the dataset.")
        return classes[int(value)].strip() if value >= 0 else None  # -1 is how the Hub writes a missing ClassLabel
    return str(int(value)) if float(value).is_integer() else str(value)  # 3.0 is 3 where another row is missing


def split_name(value: object, place: str) -> str:
    """ "train", "validation" or "test", by a name that it has in a source."""
    if not isinstance(value, str) or value not in SPLIT_NAMES:
        raise UserError(f"{place}: the split {value!r} is none of {', '.join(SPLIT_NAMES)}: use one of these.")
    return SPLIT_NAMES[value]
