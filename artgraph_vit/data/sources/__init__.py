"""Where artworks come from: each reader fills the same table (rows.py), and `load_artworks` finds the reader."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset, load_from_disk

from ...errors import UserError, as_user_error
from ...model.tasks import Task
from .artgraph import is_artgraph, read_artgraph
from .datasets_source import UNFINISHED, read_datasets, read_with_load_dataset
from .picture_folder import metadata_files, read_picture_folder

if TYPE_CHECKING:
    from ..options import DataArguments


def load_artworks(options: DataArguments, tasks: Sequence[str | Task] | None = None) -> tuple[Dataset, list[Task]]:
    """Reads a source into raw rows.

    Args:
        options ([`DataArguments`]): its `source` is a folder in one of these forms: one of ArtGraph's three, pictures
            with a metadata file, a dataset that scripts/prepare.py made, one written by `datasets`' `save_to_disk`; or
            whatever `datasets.load_dataset` takes, as a Hub id.
        tasks (`Sequence[str | Task]`, *optional*, defaults to `options.tasks`): the tasks to read; those of ArtGraph's
            five that are there, if neither names any.

    Returns:
        The rows, and the tasks, without labels but for those given with labels or kept in a prepared dataset.

    Raises:
        UserError: names the file, row or column that is wrong.
    """
    tasks = tasks or options.tasks
    source, images = options.source, options.image_folder
    if images is not None and not Path(images).expanduser().is_dir():
        raise UserError(f"There is no folder {images!r}, which image_folder names: correct it.")
    if "://" in source:
        raise UserError(f"The source {source!r} is an address: download it and give its folder, or give a Hub id.")
    folder = Path(source).expanduser()
    is_folder = os.path.isdir(folder)  # pathlib's own raises for a name that is too long
    if not is_folder and source.startswith((".", "/", "~")):
        raise UserError(f"There is no folder {source!r}: give the folder of a dataset, or a Hub id.")
    if is_folder and is_artgraph(folder, options):
        return read_artgraph(folder, options, tasks)
    if images is not None:
        raise UserError(f"image_folder belongs to the sources of ArtGraph and ArtSeek, and {source!r} is neither.")
    if not is_folder:
        return read_with_load_dataset(source, None, options, tasks)
    if (folder / UNFINISHED).exists():
        raise UserError(f"{folder} is not prepared to its end: start scripts/prepare.py again, which goes on.")
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        # Errors of Arrow, of JSON, and of whatever is missing in its files:
        with as_user_error(f"The dataset saved in {folder} cannot be read", "save it anew.", kinds=(Exception,)):
            dataset = load_from_disk(str(folder))
        return read_datasets(dataset, options, tasks)
    if metadata_files(folder):
        return read_picture_folder(folder, options, tasks)
    return read_with_load_dataset(source, folder, options, tasks)
