"""The options by which artworks are read, and the rows they lead to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset

from ..errors import UserError, as_user_error
from ..model.configuration_artgraph_vit import ArtGraphViTConfig
from ..model.tasks import Task
from .augmentation import Augmentation
from .demo import SETTINGS, paint_artgraph
from .sources import load_artworks
from .splits import assign_splits
from .vocabulary import build_vocabulary, encode_labels

EMBEDDED = "embedded"


def option(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


def choice(default: str, choices: tuple[str, ...], help: str) -> str:
    return option(default, help, choices=choices)


@dataclass
class DataArguments:
    """Which artworks it is trained on."""

    _argument_group_name: ClassVar[str] = "data"

    source: str = option(
        "",
        "Folder of ArtGraph (csv or raw form), of ArtSeek, of pictures with metadata, or of a prepared "
        "dataset; a Hub id; or 'embedded' for the dataset that comes with the library.",
    )
    dataset_config: str | None = option(None, "Configuration name of a Hub dataset.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of a Hub dataset.")
    tasks: list[str] | None = field(
        default=None, metadata={"help": "Tasks to learn; by default those of ArtGraph's five that the source has."}
    )
    columns: dict | str | None = field(
        default=None, metadata={"help": 'Columns not called like their task, as JSON: {"tags": "subjects"}.'}
    )
    image_column: str = option("image", "Column with the pictures, of a datasets source.")
    unknown_labels: list[str] = field(
        default_factory=list, metadata={"help": "Names that mean unknown, such as 'Unknown Artist'."}
    )
    min_count: int = option(100, "Artworks that an artist, tag or medium needs to be a label of its own.")
    multi_label_tasks: list[str] = field(
        default_factory=list, metadata={"help": "Tasks beside tags and media with several labels, not in lists."}
    )
    label_separator: str | None = option(None, "What joins several labels in a cell; by default a comma and a space.")
    missing_tasks: str = choice(
        "error", ("error", "unknown"), "What to do about a task that the source lacks; unknown keeps its head."
    )
    labels_from: str | None = option(None, "Model whose tasks and labels are used, instead of counting labels.")
    image_folder: str | None = option(None, "Where the pictures of ArtGraph or ArtSeek are, if not in images/.")
    stratify_by: str = option("genre", "Column by which a split is stratified, if one is made; it need not be a task.")
    split_seed: int = option(42, "Seed of the split, if one is made.")
    streaming: bool = option(False, "Read a prepared dataset as a stream: nothing of it is stored as a whole.")
    jpeg_scale: str = choice(
        "twice",
        ("twice", "once", "full"),
        "Decode JPEGs at no less than twice (once) what the model takes, or in full.",
    )
    crop_scale: float = option(
        1.0,
        "Train on random crops of at least this share of a picture's area, from 3:4 to 4:3; 1 takes whole pictures.",
    )
    horizontal_flip: bool = option(False, "Mirror every other train picture, at random.")
    color_jitter: float = option(
        0.0, "Change brightness, contrast and saturation of train pictures by up to this share, at random."
    )
    on_bad_image: str = choice("stop", ("stop", "skip"), "What to do if pictures cannot be read.")
    embedded_folder: str = option("runs/embedded-dataset", "Where the embedded dataset is painted.")
    embedded_artworks: int = option(1600, "How many pictures the embedded dataset has.")
    embedded_setting: str = choice(
        "plain", tuple(SETTINGS), "How hard the embedded dataset is; hard has long tails, wrong labels and noise."
    )

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("There is no source: pass --source FOLDER_OR_HUB_ID, or --source embedded.")
        if isinstance(self.columns, str):
            with as_user_error(f'columns={self.columns!r} is not JSON such as {{"tags": "subjects"}}'):
                self.columns = json.loads(self.columns)
        if not isinstance(self.columns, dict | None):
            raise ValueError("columns maps tasks to columns, such as {tags: subjects}.")
        if self.min_count < 1:
            raise ValueError(f"min_count={self.min_count}: use a whole number of at least 1.")
        for name, choices in [(option.name, option.metadata.get("choices")) for option in fields(self)]:
            if choices and getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: use one of {', '.join(choices)}.")
        self.augmentation(seed=0)  # looks at its options

    @property
    def column_of_task(self) -> dict[str, str]:
        return self.columns if isinstance(self.columns, dict) else {}

    def column_of(self, task: str) -> str:
        """The column that a task is read from."""
        return self.column_of_task.get(task, task)

    def augmentation(self, seed: int) -> Augmentation | None:
        """What is done with train pictures; None if nothing is."""
        augmentation = Augmentation(self.crop_scale, self.horizontal_flip, self.color_jitter, seed)
        return augmentation if augmentation != Augmentation(seed=seed) else None

    def paint_embedded(self, progress: bool) -> Path:
        """Paints the embedded dataset, unless its folder holds it already."""
        setting = self.embedded_setting
        return paint_artgraph(self.embedded_folder, self.embedded_artworks, progress=progress, setting=setting)


def read_artworks(
    data: DataArguments, tasks: Sequence[Task] | None = None, progress: bool = True
) -> tuple[Dataset, list[Task]]:
    """Reads the source, builds the vocabulary and assigns the splits; pictures are not looked at.

    Args:
        data ([`DataArguments`]): the source and its options.
        tasks (`Sequence[Task]`, *optional*): the tasks of a trained model; by default a vocabulary is built.
        progress (`bool`, *optional*, defaults to `True`): show a bar while the embedded dataset is painted.

    Returns:
        Encoded rows with a column `split`, and the tasks with their labels.

    Raises:
        UserError: says what is wrong in the data, and where.
    """
    if tasks is None and data.labels_from is not None:
        tasks = _tasks_of(data.labels_from, data.tasks)
    if data.source == EMBEDDED:
        data = replace(data, source=str(data.paint_embedded(progress)))
    rows, found = load_artworks(data, tasks)
    tasks = build_vocabulary(rows, found, data.min_count)
    return assign_splits(encode_labels(rows, tasks), data.split_seed), tasks


def _tasks_of(model: str, wanted: Sequence[str] | None) -> list[Task]:
    with as_user_error(f"labels_from={model!r} is no model of artgraph_vit"):
        tasks = {task.name: task for task in ArtGraphViTConfig.from_pretrained(model).tasks}
    unknown = [name for name in wanted or () if name not in tasks]
    if unknown:
        raise UserError(f"labels_from={model!r} has no task {unknown[0]!r}; its tasks are {', '.join(tasks)}.")
    return [tasks[name] for name in wanted or tasks]
