"""What `datasets.load_dataset` reads: a Hub id, or a folder with data files, prepared by scripts/prepare.py or not.

Scripts and pickles are not run (`datasets` itself refuses them), and a local folder's card may not name data files
that lie elsewhere: they would be fetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import yaml
from datasets import Dataset

from ...model.tasks import Task
from .files import read_text
from .hub import read_datasets
from .prepared import with_kept_vocabulary
from .presets import PRESETS
from .rows import DataError, ReadingOptions


def read_with_load_dataset(
    source: str,
    folder: Path | None,
    options: ReadingOptions,
    image_column: str = "image",
    config_name: str | None = None,
    revision: str | None = None,
) -> tuple[Dataset, list[Task]]:
    """Raw rows of a dataset, in `folder` or, if that is None, on the Hub, and their tasks.

    Raises:
        DataError: if it cannot be loaded, or what is wrong in it.
    """
    name = source if folder is None else str(folder)
    if folder is not None:
        _refuse_data_files_elsewhere(folder)
    try:
        dataset = datasets.load_dataset(name, config_name, revision=revision)
    except Exception as error:  # each of its many parsers has errors of its own
        reason = " ".join(str(error).split())
        where = "" if folder is not None else "is no folder here, and "
        raise DataError(f"The source {source!r} {where}cannot be read as a dataset: {reason}") from error
    preset = PRESETS.get(name)
    # a preset is of a dataset that has no vocabulary of its own
    options = preset.options(options) if preset else with_kept_vocabulary(options, name, revision)
    return read_datasets(dataset, options, image_column, _picture_folders(folder))


def _picture_folders(folder: Path | None) -> list[Path]:
    """Where `load_dataset` leaves pictures: in the folder or what it unpacked of it, or in the caches of the Hub."""
    if folder is not None:
        return [folder, Path(datasets.config.EXTRACTED_DATASETS_PATH)]
    caches = huggingface_hub.constants.HF_HUB_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH
    return [Path(cache) for cache in caches]


def _refuse_data_files_elsewhere(folder: Path) -> None:
    for path in (folder / "README.md", folder / ".huggingface.yaml"):
        if not path.is_file():
            continue
        text = read_text(path)
        try:
            card = (
                huggingface_hub.DatasetCard(text, ignore_metadata_errors=True).data.to_dict()
                if path.suffix == ".md"
                else yaml.safe_load(text)
            )
        except (ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"The YAML in {path} cannot be read ({reason}): correct it.") from error
        for value in _texts(card.get("configs") if isinstance(card, dict) else None):
            if "://" in value or Path(value).is_absolute() or ".." in Path(value).parts:
                raise DataError(
                    f"{path} names the data files {value!r}, which lie outside {folder}: put them there, or take the "
                    "line out."
                )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
