"""A `datasets` dataset: saved, in a folder of data files, or on the Hub; its labels stand in named columns.

A column holds strings, `ClassLabel`s or lists of either. Pictures are in the dataset, or files whose paths are in it:
those must lie where the dataset's own files may be. Scripts and pickles are not run (`datasets` itself refuses them),
and a local folder's card may not name data files that lie elsewhere: they would be fetched.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import huggingface_hub
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Image, LargeList, List, Value, concatenate_datasets

from ...errors import UserError, as_user_error
from ...model.tasks import Task
from .files import picture_inside, read_text
from .prepared import choose_kept, kept_vocabulary
from .rows import ArtworkTable, rows_of_table, split_name

if TYPE_CHECKING:
    from ..options import DataArguments


@dataclass(frozen=True)
class Preset:
    """What is known of a dataset of the Hub: its tasks, names that mean unknown, and names that are misspelt."""

    tasks: tuple[str, ...]
    unknown_labels: tuple[str, ...] = ()
    renamed_labels: Mapping[str, str] = field(default_factory=dict)


PRESETS = {
    # 81,444 paintings, one split, ClassLabels; one name was UTF-8 read as Latin-1 and then put in lower case.
    "huggan/wikiart": Preset(
        ("artist", "style", "genre"),
        ("Unknown Artist", "Unknown Genre"),
        {"joaquã\xadn-sorolla": "joaquín-sorolla"},
    ),
    # The same three as strings.
    "Artificio/WikiArt": Preset(("artist", "style", "genre")),
}


def read_with_load_dataset(
    source: str, folder: Path | None, options: DataArguments, tasks: Sequence[str | Task] | None
) -> tuple[Dataset, list[Task]]:
    """Raw rows of a dataset, in `folder` or, if that is None, on the Hub, and their tasks."""
    name = source if folder is None else str(folder)
    where = (
        f"The source {source!r} {'' if folder is not None else 'is no folder here, and '}cannot be read as a dataset"
    )
    if folder is not None:
        _refuse_data_files_elsewhere(folder)
    with as_user_error(where, kinds=(Exception,)):  # each of its many parsers has errors of its own
        dataset: Any = datasets.load_dataset(name, options.dataset_config, revision=options.dataset_revision)
    if folder is not None:  # where `load_dataset` leaves pictures: there or unpacked, or in the caches of the Hub
        roots = [folder, Path(datasets.config.EXTRACTED_DATASETS_PATH)]
    else:
        roots = [Path(huggingface_hub.constants.HF_HUB_CACHE), Path(datasets.config.DOWNLOADED_DATASETS_PATH)]
    if name in PRESETS:  # such a dataset has no vocabulary of its own
        preset = PRESETS[name]
        options = replace(options, unknown_labels=[*options.unknown_labels, *preset.unknown_labels])
        return read_datasets(dataset, options, tasks or preset.tasks, roots, preset.renamed_labels)
    kept = kept_vocabulary(name, options.dataset_revision)
    if kept is None:
        return read_datasets(dataset, options, tasks, roots)
    return read_datasets(
        dataset, options, choose_kept(kept, tasks, name, options.missing_tasks), roots, name_column="name"
    )


def read_datasets(
    dataset: Dataset | DatasetDict,
    options: DataArguments,
    tasks: Sequence[str | Task] | None = None,
    picture_folders: Sequence[Path] | None = None,
    renamed_labels: Mapping[str, str] | None = None,
    name_column: str | None = None,
) -> tuple[Dataset, list[Task]]:
    """Raw rows of a dataset, and their tasks.

    Args:
        dataset (`Dataset` or `DatasetDict`).
        options ([`DataArguments`]).
        tasks (`Sequence[str | Task]`, *optional*): as in [`load_artworks`].
        picture_folders (`Sequence[Path]`, *optional*): where pictures may be that are files; anywhere by default, for
            a dataset in whose paths the user trusts.
        renamed_labels (`Mapping[str, str]`, *optional*): the right names of `ClassLabel`s that are misspelt.
        name_column (`str`, *optional*): of a dataset whose rows know what they are called.
    """
    parts: dict[Any, Dataset] = dict(dataset) if isinstance(dataset, DatasetDict) else {None: dataset}
    places: list[str] = []
    splits: list[str | None] = []
    first = next(iter(parts.values()))
    for part_name, part in parts.items():
        where = "the dataset" if part_name is None else f"split {part_name!r} of the dataset"
        if part_name is not None and not len(part):
            raise UserError(f"{where} is empty: fill it, or leave it out to have it cut from the train split.")
        other = sorted(set(part.column_names) ^ set(first.column_names))
        if other:
            raise UserError(f"{where} and those before it do not both have {', '.join(other)}: make them alike.")
        places += [f"{where}, row {row}" for row in range(len(part))]
        if len(parts) == 1 and "split" in part.column_names:
            feature, values = part.features["split"], part["split"][:]
            if isinstance(feature, ClassLabel):
                values = [None if value is None else feature.int2str(value) for value in values]
            splits += [split_name(value, place) for value, place in zip(values, places, strict=True)]
        else:
            splits += [None if part_name is None else split_name(part_name, "the dataset")] * len(part)
    with as_user_error("The splits of the dataset cannot be joined", "give their columns the same types."):
        rows = concatenate_datasets(list(parts.values()))
    table = ArtworkTable("the dataset", places=places, splits=splits)
    renamed = renamed_labels or {}
    for column, feature in rows.features.items():
        table.columns[column] = rows[column]
        if isinstance(feature, List | LargeList):
            table.lists.add(column)
            feature = feature.feature
        if isinstance(feature, ClassLabel):
            table.classes[column] = [renamed.get(name, name) for name in feature.names]
    table.pictures = _pictures(rows, options.image_column)
    roots = None if picture_folders is None else [folder.resolve() for folder in picture_folders]
    table.names = _picture_names(table.pictures, roots)
    if name_column in rows.column_names:
        table.names = rows[name_column][:]
    return rows_of_table(table, options, tasks)


def _pictures(rows: Dataset, column: str) -> Dataset:
    """The column with the pictures, undecoded, as `image`."""
    if column not in rows.column_names:
        columns = ", ".join(rows.column_names)
        raise UserError(f"The dataset has no column {column!r}; its columns are {columns}: name one by image_column.")
    feature = rows.features[column]
    is_path = feature in (Value("string"), Value("large_string"))
    if not isinstance(feature, Image) and not is_path:
        raise UserError(f"The column {column!r} of the dataset holds {feature}, no pictures: see image_column.")
    pictures = rows.select_columns([column])
    if column != "image":
        pictures = pictures.rename_column(column, "image")
    if is_path:
        pictures = pictures.cast_column("image", Value("string"))
    return pictures.cast_column("image", Image(decode=False))


def _picture_names(pictures: Dataset, roots: Sequence[Path] | None) -> list[str]:
    """A name for each row that changes neither when rows move nor when their folder does: the path of its file below
    the folder that all share, else a hash of its bytes.
    """
    names, paths = [], {}
    for index, row in enumerate(pictures):
        image = row["image"] or {}
        if image.get("bytes"):
            names.append(hashlib.sha256(image["bytes"]).hexdigest()[:16])
        elif image.get("path"):
            path = picture_inside(Path(image["path"]), image["path"], roots, f"Row {index} of the dataset")
            paths[index] = os.path.abspath(path)
            names.append(path)
        else:
            raise UserError(f"Row {index} of the dataset has no picture: leave it out.")
    if paths:
        folder = os.path.commonpath([os.path.dirname(path) for path in paths.values()])
        for index, path in paths.items():
            names[index] = os.path.relpath(path, folder)
    return names


def _refuse_data_files_elsewhere(folder: Path) -> None:
    for path in (folder / "README.md", folder / ".huggingface.yaml"):
        if not path.is_file():
            continue
        text = read_text(path)
        with as_user_error(f"The YAML in {path} cannot be read", "correct it.", kinds=(ValueError, yaml.YAMLError)):
            if path.suffix == ".md":
                card = huggingface_hub.DatasetCard(text, ignore_metadata_errors=True).data.to_dict()
            else:
                card = yaml.safe_load(text)
        for value in _texts(card.get("configs") if isinstance(card, dict) else None):
            if "://" in value or Path(value).is_absolute() or ".." in Path(value).parts:
                raise UserError(f"{path} names the data files {value!r}, which lie outside {folder}: put them there.")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
