"""Where artworks come from: each reader gives the same rows, with the names of the labels and nothing decided yet.

`load_artworks` looks at the source and calls the reader that fits: the ArtGraph csv export, or any Hub or local
dataset with named columns. A raw row holds `image` (not decoded), one column a task (a name, a list of names, or
None for unknown), `split` ("train", "validation", "test" or None) and `name`, by which errors call the artwork.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    List,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetsError
from transformers.utils import logging

from ..errors import UserError
from ..tasks import ARTGRAPH_TASKS, MULTI_LABEL, SINGLE_LABEL, Task

logger = logging.get_logger(__name__)

ARTGRAPH_CSV = "artgraph_dataset.csv"
_TOO_MANY = "\0"  # the key of cells beyond the last column; no column can be called so
_OWN_COLUMNS = ("image", "name", "split", "stratum")
DEFAULT_STRATUM = "genre"
SPLIT_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


class DataError(UserError):
    """Something in the user's data is wrong; the message says what, where, and what to do."""


def load_artworks(
    source: str | Path,
    tasks: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    unknown_labels: Iterable[str] = (),
    image_column: str = "image",
    config_name: str | None = None,
    revision: str | None = None,
    multi_label_tasks: Iterable[str] = (),
    stratify_by: str | None = None,
) -> tuple[Dataset, list[Task]]:
    """Reads a source into raw rows.

    Args:
        source (`str` or `Path`): a folder with an ArtGraph csv export, a folder written by `datasets`'
            `save_to_disk`, or whatever `datasets.load_dataset` takes: a Hub id, a folder of pictures with metadata.
        tasks (`Sequence[str]`, *optional*): the tasks to read; by default those of ArtGraph's five that are there.
        columns (`Mapping[str, str]`, *optional*): the column of a task, where it is not called like the task.
        unknown_labels (`Iterable[str]`, *optional*): names that mean unknown, such as "Unknown Artist".
        image_column (`str`, *optional*, defaults to `"image"`): of a `datasets` source.
        config_name, revision (`str`, *optional*): of a Hub dataset.
        multi_label_tasks (`Iterable[str]`, *optional*): tasks of a csv export, beside ArtGraph's own, whose cells hold
            several labels; in a `datasets` source the column's type says it.
        stratify_by (`str`, *optional*): a column, or the task it belongs to, that rows keep as `stratum`.

    Returns:
        The rows, and the tasks without labels yet (see [`build_vocabulary`]).

    Raises:
        DataError: names the file, row or column that is wrong.
    """
    folder = Path(source).expanduser()
    columns = dict(columns or {})
    unknown = frozenset(unknown_labels)
    if (folder / ARTGRAPH_CSV).is_file():
        return read_artgraph_csv(folder, tasks, columns, unknown, frozenset(multi_label_tasks), stratify_by)
    if folder.is_dir() and ((folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()):
        return read_datasets(load_from_disk(str(folder)), tasks, columns, unknown, image_column, stratify_by)
    if not folder.exists() and str(source).startswith((".", "/", "~")):
        raise DataError(f"There is no folder {str(source)!r}: give the path of a dataset, or a Hub id.")
    try:
        dataset = load_dataset(str(folder) if folder.is_dir() else str(source), config_name, revision=revision)
    except (DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        where = "" if folder.exists() else "is no folder here, and "
        raise DataError(f"The source {str(source)!r} {where}cannot be read as a dataset: {reason}") from error
    return read_datasets(dataset, tasks, columns, unknown, image_column, stratify_by)


def read_artgraph_csv(
    folder: Path,
    tasks: Sequence[str] | None,
    columns: Mapping[str, str],
    unknown: frozenset[str],
    multi_label_tasks: frozenset[str] = frozenset(),
    stratify_by: str | None = None,
) -> tuple[Dataset, list[Task]]:
    """Reads `artgraph_dataset.csv`, `images/` and the splits: `splits/{train,val,test}.txt` or a column `split`.

    The csv has a column `image` (a file name in `images/`) and one a task. Several labels stand in one cell, joined
    by ", "; an empty cell is unknown.
    """
    table = folder / ARTGRAPH_CSV
    records, lines = [], []
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey=_TOO_MANY)
            header = list(reader.fieldnames or [])
            if "image" not in header:
                raise DataError(f"{table} has no column 'image'; its columns are {', '.join(header) or 'none'}.")
            chosen = _choose_tasks(tasks, columns, header, str(table), multi_label_tasks=multi_label_tasks)
            for record in reader:
                if not record["image"] or _TOO_MANY in record or None in record.values():
                    raise DataError(
                        f"{table}, line {reader.line_num}: the row does not have one value for each column."
                    )
                if any("\n" in value for value in record.values()):
                    raise DataError(
                        f"{table}, line {reader.line_num}: a cell goes over several lines; close its quotation mark."
                    )
                records.append(record)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(
            f"{table}, line {reader.line_num + 1}: {error}; look for an unclosed quotation mark."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{table} is not in UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8."
        ) from error
    if not records:
        raise DataError(f"{table} has no rows.")
    paths = [
        _image_path(folder / "images", record["image"], table, line)
        for record, line in zip(records, lines, strict=True)
    ]
    split_of = _read_split_files(folder / "splits", [record["image"] for record in records])
    if "split" in header:
        if split_of:
            raise DataError(
                f"{table} has a column 'split' and there is a folder {folder / 'splits'}: keep one of them."
            )
        split_of = _read_split_column(table, records, lines)
    if split_of and len(split_of) < len(records):
        logger.warning("%s: %d artworks are in no split and are left out.", table, len(records) - len(split_of))
        chosen_rows = [index for index, record in enumerate(records) if record["image"] in split_of]
        records, paths = [records[index] for index in chosen_rows], [paths[index] for index in chosen_rows]
    labels = {
        task.name: [_names_in_cell(record[columns.get(task.name, task.name)], task, unknown) for record in records]
        for task in chosen
    }
    stratum_column = _stratum_column(stratify_by, columns, header, str(table))
    stratum = {"stratum": [record[stratum_column] for record in records]} if stratum_column else {}
    rows = Dataset.from_dict(
        {
            "image": [{"path": path, "bytes": None} for path in paths],
            "name": [record["image"] for record in records],
            "split": [split_of.get(record["image"]) for record in records],
            **labels,
            **stratum,
        },
        features=Features({"image": Image(decode=False), **_raw_features(chosen), **_as_strings(stratum)}),
    )
    return rows, chosen


def read_datasets(
    dataset: Dataset | DatasetDict,
    tasks: Sequence[str] | None,
    columns: Mapping[str, str],
    unknown: frozenset[str],
    image_column: str = "image",
    stratify_by: str | None = None,
) -> tuple[Dataset, list[Task]]:
    """Reads a `datasets` dataset whose labels stand in named columns: strings, `ClassLabel`s, or lists of either."""
    parts = dict(dataset) if isinstance(dataset, DatasetDict) else {None: dataset}
    raw_parts: list[Dataset] = []
    chosen: list[Task] = []
    for part_name, part in parts.items():
        where = "the dataset" if part_name is None else f"split {part_name!r} of the dataset"
        if not len(part) and part_name is not None:
            raise DataError(f"{where} is empty: fill it, or leave it out to have it cut from the train split.")
        if image_column not in part.column_names:
            raise DataError(
                f"{where} has no column {image_column!r}; its columns are {', '.join(part.column_names)}. "
                "Name the one with the pictures by image_column."
            )
        if not isinstance(part.features[image_column], Image) and part.features[image_column] != Value("string"):
            raise DataError(
                f"The column {image_column!r} of {where} holds {part.features[image_column]}, no pictures: "
                "name the one with the pictures by image_column."
            )
        task_types = {name: MULTI_LABEL if isinstance(f, List) else SINGLE_LABEL for name, f in part.features.items()}
        found = _choose_tasks(tasks, columns, part.column_names, where, task_types)
        if raw_parts and found != chosen:
            raise DataError(
                f"{where} has the label columns {', '.join(task.name for task in found)}, the splits before it "
                f"{', '.join(task.name for task in chosen)}: make them alike, or name the tasks to read."
            )
        chosen = found
        labels = {task.name: _label_names(part, columns.get(task.name, task.name), task, unknown) for task in chosen}
        added = {"split": _split_of_part(part, part_name, is_alone=len(parts) == 1), **labels}
        stratum_column = _stratum_column(stratify_by, columns, part.column_names, where)
        stratum = {"stratum": [str(value) for value in part[stratum_column][:]]} if stratum_column else {}
        pictures = part.select_columns([image_column])
        if image_column != "image":
            pictures = pictures.rename_column(image_column, "image")
        pictures = pictures.cast_column("image", Image(decode=False))
        features = Features({name: feature for name, feature in _raw_features(chosen).items() if name != "name"})
        features = Features({**features, **_as_strings(stratum)})
        raw_parts.append(
            concatenate_datasets([pictures, Dataset.from_dict({**added, **stratum}, features=features)], axis=1)
        )
    rows = concatenate_datasets(raw_parts)
    if not len(rows):
        raise DataError("The dataset has no rows.")
    names = Dataset.from_dict({"name": _picture_names(rows)})
    return concatenate_datasets([rows, names], axis=1), chosen


def _choose_tasks(
    wanted: Sequence[str] | None,
    columns: Mapping[str, str],
    header: Sequence[str],
    where: str,
    task_types: Mapping[str, str] | None = None,
    multi_label_tasks: frozenset[str] = frozenset(),
) -> list[Task]:
    defaults = {task.name: task for task in ARTGRAPH_TASKS}
    for name in multi_label_tasks:
        if name not in (wanted or ()):
            raise DataError(f"multi_label_tasks names {name!r}, which is not among the tasks: add it to tasks.")
    for name in columns:
        if name not in (wanted or defaults):
            raise DataError(f"columns names {name!r}, which is not one of the tasks {', '.join(wanted or defaults)}.")
    chosen = []
    for name in wanted or defaults:
        if name in _OWN_COLUMNS:
            raise DataError(f"A task cannot be called {name!r}, as the rows' own columns are: choose another name.")
        column = columns.get(name, name)
        if column not in header:
            if wanted or name in columns:
                raise DataError(
                    f"{where} has no column {column!r} for the task {name!r}; its columns are {', '.join(header)}."
                )
            continue
        declared = MULTI_LABEL if name in multi_label_tasks else SINGLE_LABEL
        problem_type = (task_types or {}).get(column, declared)
        task = defaults.get(name) or Task(name, problem_type)
        if task_types and task.problem_type != problem_type:
            raise DataError(
                f"{where}: the column {column!r} of the task {name!r} should hold "
                f"{'a list of labels' if task.is_multi_label else 'one label'} a row."
            )
        chosen.append(task)
    if not chosen:
        raise DataError(
            f"{where} has none of the columns {', '.join(defaults)}; name its label columns by tasks or columns."
        )
    return chosen


def _raw_features(tasks: Sequence[Task]) -> dict:
    labels = {task.name: List(Value("string")) if task.is_multi_label else Value("string") for task in tasks}
    return {"name": Value("string"), "split": Value("string"), **labels}


def _as_strings(columns: Mapping[str, list]) -> dict[str, Value]:
    return dict.fromkeys(columns, Value("string"))


def _stratum_column(
    stratify_by: str | None, columns: Mapping[str, str], header: Sequence[str], where: str
) -> str | None:
    column = columns.get(stratify_by or "", stratify_by)
    if column in header:
        return column
    if stratify_by not in (None, DEFAULT_STRATUM):
        raise DataError(
            f"{where} has no column {column!r} to stratify the split by; its columns are {', '.join(header)}."
        )
    return None


def _read_split_column(table: Path, records: Sequence[Mapping[str, str]], lines: Sequence[int]) -> dict[str, str]:
    for record, line in zip(records, lines, strict=True):
        if record["split"] not in SPLIT_NAMES:
            raise DataError(
                f"{table}, line {line}: the split {record['split']!r} is none of {', '.join(SPLIT_NAMES)}."
            )
    return {record["image"]: SPLIT_NAMES[record["split"]] for record in records}


def _names_in_cell(cell: str, task: Task, unknown: frozenset[str]) -> str | list[str] | None:
    if not task.is_multi_label:
        return cell if cell and cell not in unknown else None
    names = dict.fromkeys(name for name in cell.split(", ") if name and name not in unknown)
    return list(names) or None


def _image_path(images: Path, name: str, table: Path, line: int) -> str:
    path = images / name
    if not path.resolve().is_relative_to(images.resolve()):
        raise DataError(f"{table}, line {line}: the picture {name!r} lies outside {images}.")
    if not path.is_file():
        raise DataError(f"{table}, line {line}: there is no picture {path}.")
    return str(path)


def _read_split_files(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Maps a file name to its split; empty if there is no folder `splits`."""
    if not folder.is_dir():
        return {}
    known = set(names)
    split_of: dict[str, str] = {}
    if len(known) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{folder.parent / ARTGRAPH_CSV} names the picture {twice!r} twice.")
    for file_name in ("train.txt", "val.txt", "test.txt"):
        path = folder / file_name
        if not path.is_file():
            raise DataError(f"There is no file {path}: a folder 'splits' holds train.txt, val.txt and test.txt.")
        split = SPLIT_NAMES[path.stem]
        try:
            listed = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not in UTF-8: save it as UTF-8.") from error
        if not any(listed):
            raise DataError(
                f"{path} is empty: name the artworks of the split, or take the folder away to have it made."
            )
        for line, name in enumerate(listed, start=1):
            if not name:
                continue
            if name not in known:
                raise DataError(f"{path}, line {line}: {name!r} is not in {ARTGRAPH_CSV}.")
            if name in split_of:
                raise DataError(f"{path}, line {line}: {name!r} is already in the split {split_of[name]!r}.")
            split_of[name] = split
    return split_of


def _split_of_part(part: Dataset, part_name: str | None, is_alone: bool) -> list[str | None]:
    if "split" in part.column_names and is_alone:
        feature = part.features["split"]
        names = [feature.int2str(v) if isinstance(feature, ClassLabel) else v for v in part["split"][:]]
        wrong = [name for name in names if name not in SPLIT_NAMES]
        if wrong:
            raise DataError(f"The column 'split' holds {wrong[0]!r}; splits are called {', '.join(SPLIT_NAMES)}.")
        return [SPLIT_NAMES[name] for name in names]
    if part_name is None:
        return [None] * len(part)
    if part_name not in SPLIT_NAMES:
        raise DataError(f"The dataset has a split {part_name!r}; splits are called {', '.join(SPLIT_NAMES)}.")
    return [SPLIT_NAMES[part_name]] * len(part)


def _label_names(part: Dataset, column: str, task: Task, unknown: frozenset[str]) -> list:
    feature = part.features[column]
    inner = feature.feature if isinstance(feature, List) else feature
    if not (isinstance(inner, ClassLabel) or (isinstance(inner, Value) and inner.dtype in ("string", "large_string"))):
        raise DataError(f"The column {column!r} holds {inner}, not the names of labels or a ClassLabel.")

    def name_of(label) -> str | None:
        if isinstance(inner, ClassLabel) and label is not None:
            label = inner.int2str(label) if label >= 0 else None  # -1 is how the Hub writes a missing ClassLabel
        return label if label and label not in unknown else None

    if not task.is_multi_label:
        return [name_of(label) for label in part[column][:]]
    named = ([name_of(label) for label in labels or ()] for labels in part[column][:])
    return [list(dict.fromkeys(name for name in names if name)) or None for names in named]


def _picture_names(rows: Dataset) -> list[str]:
    """A name for each row that changes neither when rows move nor when their folder does: the path of its file below
    the folder that all share, else a hash of its bytes.
    """
    names, paths = [], {}
    for index, row in enumerate(rows):
        image = row["image"] or {}
        if image.get("bytes"):
            names.append(hashlib.sha256(image["bytes"]).hexdigest()[:16])
        elif image.get("path"):
            paths[index] = image["path"]
            names.append(image["path"])
        else:
            raise DataError(f"Row {index} of the dataset has no picture.")
    if paths:
        folder = os.path.commonpath([os.path.dirname(path) for path in paths.values()])
        for index, path in paths.items():
            names[index] = os.path.relpath(path, folder)
    return names
