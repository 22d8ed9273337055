"""`load_artworks`: looks at a source and calls the reader that fits it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from datasets import Dataset, load_from_disk

from ...model.tasks import Task
from .artgraph_csv import ARTGRAPH_CSV, read_artgraph_csv
from .artgraph_raw import is_artgraph_raw, read_artgraph_raw
from .artseek import is_artseek, read_artseek
from .files import is_address
from .hub import read_datasets
from .loaded import read_with_load_dataset
from .picture_folder import metadata_files, read_picture_folder
from .prepared import UNFINISHED
from .rows import DataError, ReadingOptions


def load_artworks(
    source: str | Path,
    tasks: Sequence[str | Task] | None = None,
    columns: Mapping[str, str] | None = None,
    unknown_labels: Iterable[str] = (),
    image_column: str = "image",
    config_name: str | None = None,
    revision: str | None = None,
    multi_label_tasks: Iterable[str] = (),
    label_separator: str | None = None,
    missing_tasks: str = "error",
    stratify_by: str | None = None,
    image_folder: str | Path | None = None,
) -> tuple[Dataset, list[Task]]:
    """Reads a source into raw rows.

    Args:
        source (`str` or `Path`): a folder in one of these forms, which its files tell apart: ArtGraph's csv export,
            ArtGraph's raw form, ArtSeek's JSON form, pictures with a metadata file, a dataset that scripts/prepare.py
            made, one written by `datasets`' `save_to_disk`; or whatever `datasets.load_dataset` takes, as a Hub id.
        tasks (`Sequence[str | Task]`, *optional*): the tasks to read; by default those of ArtGraph's five that are
            there. A [`Task`] says itself of what type it is.
        columns (`Mapping[str, str]`, *optional*): the column of a task, where it is not called like the task.
        unknown_labels (`Iterable[str]`, *optional*): names that mean unknown, such as "Unknown Artist".
        image_column (`str`, *optional*, defaults to `"image"`): of a `datasets` source.
        config_name, revision (`str`, *optional*): of a Hub dataset.
        multi_label_tasks (`Iterable[str]`, *optional*): tasks with several labels an artwork, where neither ArtGraph
            nor the column's type says it.
        label_separator (`str`, *optional*): what joins several labels in a string; by default ", " in files, and in a
            `datasets` source such a string is refused.
        missing_tasks (`str`, *optional*, defaults to `"error"`): what becomes of a task named that the source lacks:
            `"error"`, or `"unknown"` for no label on any artwork.
        stratify_by (`str`, *optional*): a column, or the task it belongs to, that rows keep as `stratum`.
        image_folder (`str` or `Path`, *optional*): where the pictures of ArtGraph and ArtSeek are, if not in
            `images/`.

    Returns:
        The rows, and the tasks, without labels but for those given with labels or kept in a prepared dataset (see
        [`build_vocabulary`]).

    Raises:
        DataError: names the file, row or column that is wrong.
    """
    options = ReadingOptions(
        tuple(tasks) if tasks else None,
        dict(columns or {}),
        frozenset(unknown_labels),
        frozenset(multi_label_tasks),
        label_separator,
        missing_tasks,
        stratify_by,
    )
    images = Path(image_folder).expanduser() if image_folder is not None else None
    if images is not None and not images.is_dir():
        raise DataError(f"There is no folder {str(images)!r}, which image_folder names: correct it.")
    folder = Path(source).expanduser()
    is_there = _exists(folder)
    if not is_there and str(source).startswith((".", "/", "~")):
        raise DataError(f"There is no folder {str(source)!r}: give the path of a dataset, or a Hub id.")
    if is_address(str(source)):
        raise DataError(
            f"The source {str(source)!r} is an address: download it and give its folder, or give a Hub id."
        )
    if is_there and folder.is_file():
        raise DataError(f"The source {str(source)!r} is a file: give the folder that it is in.")
    is_folder = is_there and folder.is_dir()
    if is_folder:
        if (folder / ARTGRAPH_CSV).is_file():
            return read_artgraph_csv(folder, options, images)
        if is_artgraph_raw(folder):
            return read_artgraph_raw(folder, options, images)
        if is_artseek(folder, images):
            return read_artseek(folder, options, images)
    if images is not None:
        raise DataError(
            f"image_folder belongs to the sources of ArtGraph and ArtSeek, and {str(source)!r} is neither."
        )
    if is_folder:
        if (folder / UNFINISHED).exists():
            raise DataError(f"{folder} is not prepared to its end: start scripts/prepare.py again, which goes on.")
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            try:
                dataset = load_from_disk(str(folder))
            except Exception as error:  # Arrow's, JSON's and those of whatever is missing in its files
                reason = " ".join(str(error).split())
                raise DataError(f"The dataset saved in {folder} cannot be read ({reason}): save it anew.") from error
            return read_datasets(dataset, options, image_column)
        if metadata_files(folder):
            return read_picture_folder(folder, options)
    local = folder if is_folder else None
    return read_with_load_dataset(str(source), local, options, image_column, config_name, revision)


def _exists(folder: Path) -> bool:
    try:
        return folder.exists()
    except OSError:  # the name is too long
        return False
