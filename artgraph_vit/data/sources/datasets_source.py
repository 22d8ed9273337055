"""A `datasets` dataset: saved, in a folder of data files, or on the Hub; its labels stand in named columns.

A column holds strings, `ClassLabel`s or lists of either. Pictures are in the dataset, or files whose paths are in it:
those must lie where the dataset's own files may be. Scripts and pickles are not run (`datasets` itself refuses them),
and a local folder's card may not name data files that lie elsewhere: they would be fetched. A dataset that
scripts/prepare.py made has a `vocabulary.json`: its labels were chosen from all artworks and are not counted again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import huggingface_hub
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Image, LargeList, List, Value, concatenate_datasets
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers.utils import logging

from ...errors import UserError, as_user_error
from ...files import atomic_write
from ...model.tasks import Task
from .files import json_value, picture_inside, read_text
from .rows import ArtworkTable, rows_of_table, split_name

if TYPE_CHECKING:
    from ..options import DataArguments

logger = logging.get_logger(__name__)

VOCABULARY = "vocabulary.json"
UNFINISHED = ".unfinished"  # a folder that is there while scripts/prepare.py is at work
_MAKER = "artgraph_vit"  # others have files called vocabulary.json too
UNKNOWN_LABELS = {"huggan/wikiart": ["Unknown Artist", "Unknown Genre"]}
MISSPELT = {"joaquã\xadn-sorolla": "joaquín-sorolla"}  # there too: UTF-8 read as Latin-1 and then put in lower case


def read_with_load_dataset(
    source: str, folder: Path | None, options: DataArguments, tasks: Sequence[str | Task] | None
) -> tuple[Dataset, list[Task]]:
    """Raw rows of a dataset, in `folder` or, if that is None, on the Hub, and their tasks."""
    if folder is not None:  # `load_dataset` leaves pictures there or unpacked, else in the caches of the Hub
        _refuse_data_files_elsewhere(folder)
        name, where = str(folder), f"The source {source!r} cannot be read as a dataset"
        roots = [folder, Path(datasets.config.EXTRACTED_DATASETS_PATH)]
    else:
        name, where = source, f"The source {source!r} is no folder here, and cannot be read as a dataset"
        roots = [Path(huggingface_hub.constants.HF_HUB_CACHE), Path(datasets.config.DOWNLOADED_DATASETS_PATH)]
    with as_user_error(where, kinds=(Exception,)):  # each of its many parsers has errors of its own
        dataset: Any = datasets.load_dataset(name, options.dataset_config, revision=options.dataset_revision)
    if name in UNKNOWN_LABELS:
        options = replace(options, unknown_labels=[*options.unknown_labels, *UNKNOWN_LABELS[name]])
    kept = kept_vocabulary(name, options.dataset_revision)
    if kept is not None:
        tasks = choose_kept(kept, tasks, name, options.missing_tasks)
    return read_datasets(dataset, options, tasks, roots, is_prepared=kept is not None)


def read_datasets(
    dataset: Dataset | DatasetDict,
    options: DataArguments,
    tasks: Sequence[str | Task] | None = None,
    picture_folders: Sequence[Path] | None = None,
    is_prepared: bool = False,
) -> tuple[Dataset, list[Task]]:
    """Raw rows of a dataset, and their tasks; its picture files lie in `picture_folders`, or anywhere if that is None.
    Only the rows of a prepared dataset know what they are called."""
    parts: dict[Any, Dataset] = dict(dataset) if isinstance(dataset, DatasetDict) else {None: dataset}
    table = ArtworkTable("the dataset")
    for part_name, part in parts.items():
        where = "the dataset" if part_name is None else f"split {part_name!r} of the dataset"
        if part_name is not None and not len(part):
            raise UserError(f"{where} is empty: fill it, or leave it out to have it cut from the train split.")
        table.places += [f"{where}, row {row}" for row in range(len(part))]
        if len(parts) == 1 and "split" in part.column_names:
            feature, values = part.features["split"], part["split"][:]
            if isinstance(feature, ClassLabel):
                values = [None if value is None else feature.int2str(value) for value in values]
            table.splits = [split_name(value, place) for value, place in zip(values, table.places, strict=True)]
        else:
            table.splits += [None if part_name is None else split_name(part_name, "the dataset")] * len(part)
    if len({tuple(sorted(part.column_names)) for part in parts.values()}) > 1:  # else filled with None
        raise UserError("The splits of the dataset do not have the same columns: make them alike.")
    with as_user_error("The splits of the dataset cannot be joined", "give their columns the same types."):
        rows = concatenate_datasets(list(parts.values()))
    for column, feature in rows.features.items():
        table.columns[column] = rows[column]
        if isinstance(feature, List | LargeList):
            table.lists.add(column)
            feature = feature.feature
        if isinstance(feature, ClassLabel):
            table.classes[column] = [MISSPELT.get(name, name) for name in feature.names]
    table.pictures = _pictures(rows, options.image_column)
    table.names = _picture_names(table.pictures, picture_folders)
    if is_prepared and "name" in rows.column_names:
        table.names = rows["name"][:]
    return rows_of_table(table, options, tasks)


def _pictures(rows: Dataset, column: str) -> Dataset:
    """The column with the pictures, undecoded, as `image`."""
    if column not in rows.column_names:
        columns = ", ".join(rows.column_names)
        raise UserError(f"The dataset has no column {column!r}; its columns are {columns}: name one by image_column.")
    feature = rows.features[column]
    pictures = rows.select_columns([column]).rename_columns({column: "image"})
    if feature in (Value("string"), Value("large_string")):
        pictures = pictures.cast_column("image", Value("string"))
    elif not isinstance(feature, Image):
        raise UserError(f"The column {column!r} of the dataset holds {feature}, no pictures: see image_column.")
    return pictures.cast_column("image", Image(decode=False))


def _picture_names(pictures: Dataset, folders: Sequence[Path] | None) -> list[str]:
    """Of each row the path of its picture below the folder that all share, else a hash of the picture's bytes."""
    names, paths = [], {}
    roots = None if folders is None else [folder.resolve() for folder in folders]
    for index, row in enumerate(pictures):
        image = row["image"] or {}
        if image.get("bytes"):
            names.append(hashlib.sha256(image["bytes"]).hexdigest()[:16])
        elif image.get("path"):
            names.append(image["path"])
            path = picture_inside(Path(image["path"]), image["path"], roots, f"Row {index} of the dataset")
            paths[index] = os.path.abspath(path)
        else:
            raise UserError(f"Row {index} of the dataset has no picture: leave it out.")
    if paths:
        folder = os.path.commonpath([os.path.dirname(path) for path in paths.values()])
        for index, path in paths.items():
            names[index] = os.path.relpath(path, folder)
    return names


def _refuse_data_files_elsewhere(folder: Path) -> None:
    for path in (folder / "README.md", folder / ".huggingface.yaml"):
        if path.is_file():
            text = read_text(path) if path.suffix == ".md" else f"---\n{read_text(path)}\n---\n"
            with as_user_error(f"The YAML in {path} cannot be read", "correct it.", (ValueError, yaml.YAMLError)):
                card = huggingface_hub.DatasetCard(text, ignore_metadata_errors=True).data.to_dict()
            if re.search(r'://|"/|"\.\./|/\.\./', json.dumps(card.get("configs"), default=str)):
                raise UserError(f"{path} names data files that lie outside {folder}, in its configs: put them there.")


# ---- datasets that scripts/prepare.py made ----


def kept_vocabulary(source: str, revision: str | None = None) -> list[Task] | None:
    """The tasks of a prepared dataset, in a folder or on the Hub, with their labels; None of any other dataset."""
    folder = Path(source).expanduser()
    path = folder / VOCABULARY if folder.is_dir() else _downloaded(source, revision)
    if path is None or not path.is_file():
        return None
    content = json_value(read_text(path), str(path))
    if not isinstance(content, dict) or content.get("made_by") != _MAKER:
        return None
    kinds = (ValueError, KeyError, TypeError)
    with as_user_error(f"{path} does not hold the tasks of a prepared dataset", "prepare it anew.", kinds):
        return [Task.from_dict(task) for task in content["tasks"]]


def choose_kept(
    kept: Sequence[Task], tasks: Sequence[str | Task] | None, source: str, missing_tasks: str = "error"
) -> list[str | Task]:
    """The tasks to read of a prepared dataset: by default all, and those named with its labels."""
    by_name = {task.name: task for task in kept}
    wanted = tasks or list(by_name)
    missing = [task for task in wanted if isinstance(task, str) and task not in by_name]
    if missing and missing_tasks == "error":
        names = ", ".join(by_name)
        raise UserError(f"{source} was prepared without the task {missing[0]!r}, with {names}: prepare it anew.")
    return [by_name.get(task, task) if isinstance(task, str) else task for task in wanted]


def write_vocabulary(folder: Path, tasks: Sequence[Task]) -> None:
    content = {"made_by": _MAKER, "tasks": [task.to_dict() for task in tasks]}
    with atomic_write(folder / VOCABULARY) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _downloaded(name: str, revision: str | None) -> Path | None:
    where: dict[str, Any] = {"repo_id": name, "filename": VOCABULARY, "repo_type": "dataset", "revision": revision}
    with as_user_error(f"{VOCABULARY} of {name} cannot be read from the Hub", "try again."):
        try:
            return Path(huggingface_hub.hf_hub_download(**where))
        except LocalEntryNotFoundError:  # offline, and not in the cache, which may know that there is none
            if huggingface_hub.try_to_load_from_cache(**where) is None:
                logger.warning(
                    "Offline it is not known whether %s was prepared and has a vocabulary; it is counted anew.", name
                )
        except (EntryNotFoundError, RepositoryNotFoundError):  # not prepared, or not on the Hub
            pass
    return None
