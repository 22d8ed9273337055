"""A `datasets` dataset, of the Hub or local, whose labels stand in named columns.

A column holds strings, `ClassLabel`s, lists of either, or strings of several labels joined by a separator. Pictures
are in the dataset, or files whose paths are in it: those must lie where the dataset's own files may be.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, LargeList, List, Value, concatenate_datasets

from ...model.tasks import MULTI_LABEL, Task
from .files import picture_inside
from .rows import (
    SPLIT_NAMES,
    DataError,
    ReadingOptions,
    as_strings,
    choose_tasks,
    find_stratum_column,
    labels_of_cell,
    raw_features,
)

_LISTS = (List, LargeList)
_STRINGS = (Value("string"), Value("large_string"))


def read_datasets(
    dataset: Dataset | DatasetDict,
    options: ReadingOptions,
    image_column: str = "image",
    picture_folders: Sequence[Path] | None = None,
) -> tuple[Dataset, list[Task]]:
    """Raw rows of a dataset, and their tasks.

    Args:
        dataset (`Dataset` or `DatasetDict`).
        options ([`ReadingOptions`]).
        image_column (`str`, *optional*, defaults to `"image"`).
        picture_folders (`Sequence[Path]`, *optional*): where pictures may be that are files; anywhere by default, for
            a dataset in whose paths the user trusts.

    Raises:
        DataError: names the split, column or row that is wrong.
    """
    parts = dict(dataset) if isinstance(dataset, DatasetDict) else {None: dataset}
    raw_parts: list[Dataset] = []
    chosen: list[Task] = []
    for part_name, part in parts.items():
        where = "the dataset" if part_name is None else f"split {part_name!r} of the dataset"
        if not len(part) and part_name is not None:
            raise DataError(f"{where} is empty: fill it, or leave it out to have it cut from the train split.")
        _refuse_no_pictures(part, image_column, where)
        found = _choose_tasks(part, where, options)
        if raw_parts and found != chosen:
            raise DataError(
                f"{where} has the label columns {', '.join(task.name for task in found)}, the splits before it "
                f"{', '.join(task.name for task in chosen)}: make them alike, or name the tasks to read."
            )
        chosen = found
        labels = {task.name: _labels(part, task, options, where) for task in chosen}
        added = {"split": _split_of_part(part, part_name, is_alone=len(parts) == 1), **labels}
        stratum_column = find_stratum_column(part.column_names, where, options)
        stratum = {"stratum": [str(value) for value in part[stratum_column][:]]} if stratum_column else {}
        pictures = part.select_columns([image_column])
        if image_column != "image":
            pictures = pictures.rename_column(image_column, "image")
        if isinstance(pictures.features["image"], Value):
            pictures = pictures.cast_column("image", Value("string"))  # it may be a large_string
        pictures = pictures.cast_column("image", Image(decode=False))
        if options.name_column in part.column_names:
            added["name"] = part[options.name_column][:]
        features = {name: feature for name, feature in raw_features(chosen).items() if name in added}
        features = Features({**features, **as_strings(stratum)})
        raw_parts.append(
            concatenate_datasets([pictures, Dataset.from_dict({**added, **stratum}, features=features)], axis=1)
        )
    rows = concatenate_datasets(raw_parts)
    if not len(rows):
        raise DataError("The dataset has no rows: read one that has.")
    roots = None if picture_folders is None else [folder.resolve() for folder in picture_folders]
    names = _picture_names(rows, roots)
    if "name" in rows.column_names:
        return rows, chosen
    return concatenate_datasets([rows, Dataset.from_dict({"name": names})], axis=1), chosen


def _refuse_no_pictures(part: Dataset, image_column: str, where: str) -> None:
    if image_column not in part.column_names:
        raise DataError(
            f"{where} has no column {image_column!r}; its columns are {', '.join(part.column_names)}. "
            "Name the one with the pictures by image_column."
        )
    feature = part.features[image_column]
    if not isinstance(feature, Image) and feature not in _STRINGS:
        raise DataError(
            f"The column {image_column!r} of {where} holds {feature}, no pictures: "
            "name the one with the pictures by image_column."
        )


def _choose_tasks(part: Dataset, where: str, options: ReadingOptions) -> list[Task]:
    lists = {name: MULTI_LABEL for name, feature in part.features.items() if isinstance(feature, _LISTS)}
    chosen = choose_tasks(part.column_names, where, options, lists)
    for task in chosen:
        column = options.column_of(task)
        is_joined = task.is_multi_label and options.label_separator is not None
        if column in part.column_names and task.is_multi_label != (column in lists) and not is_joined:
            wanted = "a list of labels" if task.is_multi_label else "one label"
            hint = "; if its labels are joined in a string, pass label_separator" if task.is_multi_label else ""
            raise DataError(
                f"{where}: the column {column!r} of the task {task.name!r} should hold {wanted} a row{hint}."
            )
    return chosen


def _split_of_part(part: Dataset, part_name: str | None, is_alone: bool) -> list[str | None]:
    if "split" in part.column_names and is_alone:
        feature = part.features["split"]
        names = [_name_of(value, feature, "The column 'split'") for value in part["split"][:]]
        wrong = [name for name in names if not isinstance(name, str) or name not in SPLIT_NAMES]
        if wrong:
            raise DataError(f"The column 'split' holds {wrong[0]!r}; splits are called {', '.join(SPLIT_NAMES)}.")
        return [SPLIT_NAMES[name] for name in names]
    if part_name is None:
        return [None] * len(part)
    if part_name not in SPLIT_NAMES:
        raise DataError(f"The dataset has a split {part_name!r}; splits are called {', '.join(SPLIT_NAMES)}.")
    return [SPLIT_NAMES[part_name]] * len(part)


def _labels(part: Dataset, task: Task, options: ReadingOptions, where: str) -> list:
    column = options.column_of(task)
    if column not in part.column_names:  # asked for all the same, by missing_tasks
        return [None] * len(part)
    feature = part.features[column]
    inner = feature.feature if isinstance(feature, _LISTS) else feature
    if not isinstance(inner, ClassLabel) and inner not in _STRINGS:
        raise DataError(f"The column {column!r} holds {inner}, not the names of labels or a ClassLabel.")

    renamed = options.renamed_labels.get(column, {})
    labels = []
    for row, cell in enumerate(part[column][:]):
        place = f"{where}, row {row}"
        found = [_name_of(label, inner, place) for label in (cell if isinstance(cell, list) else [cell])]
        names = [renamed.get(name, name) for name in found]
        labels.append(labels_of_cell(names if isinstance(cell, list) else names[0], task, options, place))
    return labels


def _name_of(label, feature, place: str):
    if not isinstance(feature, ClassLabel) or label is None:
        return label
    if label >= feature.num_classes:
        raise DataError(f"{place}: the label {label} is none of the {feature.num_classes} names: correct the dataset.")
    return feature.int2str(label) if label >= 0 else None  # -1 is how the Hub writes a missing ClassLabel


def _picture_names(rows: Dataset, roots: Sequence[Path] | None) -> list[str]:
    """A name for each row that changes neither when rows move nor when their folder does: the path of its file below
    the folder that all share, else a hash of its bytes.
    """
    names, paths = [], {}
    for index, row in enumerate(rows.select_columns(["image"])):
        image = row["image"] or {}
        if image.get("bytes"):
            names.append(hashlib.sha256(image["bytes"]).hexdigest()[:16])
        elif image.get("path"):
            path = picture_inside(Path(image["path"]), image["path"], roots, f"Row {index} of the dataset")
            paths[index] = os.path.abspath(path)
            names.append(path)
        else:
            raise DataError(f"Row {index} of the dataset has no picture: leave it out.")
    if paths:
        folder = os.path.commonpath([os.path.dirname(path) for path in paths.values()])
        for index, path in paths.items():
            names[index] = os.path.relpath(path, folder)
    return names
