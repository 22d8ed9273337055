"""A prepared dataset that is read as a stream: its labels at once, its pictures as they come, none of them stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, IterableDatasetDict, load_dataset

from ..model.tasks import Task
from .batches import PictureTransform
from .sources import DataError
from .sources.prepared import is_prepared, with_kept_vocabulary
from .sources.rows import ReadingOptions
from .streaming import StreamedArtworks

SHUFFLE_BUFFER = 1000  # undecoded pictures, some 25 MB a worker


class StreamedSource:
    """A dataset that scripts/prepare.py made, in a folder or on the Hub.

    Args:
        source (`str`): the folder or Hub id.
        tasks (`Sequence[str | Task]`, *optional*): by default all that it has; a [`Task`] with labels must have those
            of the dataset.
        revision (`str`, *optional*): branch, tag or commit on the Hub.

    Raises:
        DataError: if it is not prepared, or its labels are not those of the tasks.
    """

    def __init__(self, source: str, tasks: Sequence[str | Task] | None = None, revision: str | None = None):
        if not is_prepared(source, revision):
            raise DataError(
                f"{source} cannot be streamed: vocabulary and splits must be known before. Prepare it with "
                "scripts/prepare.py, or leave streaming out."
            )
        folder = Path(source).expanduser()
        self.name = str(folder) if folder.is_dir() else source
        self.revision = revision
        kept: Any = with_kept_vocabulary(ReadingOptions(), self.name, revision).tasks
        wanted: Any = with_kept_vocabulary(ReadingOptions(tasks=tuple(tasks) if tasks else None), self.name, revision)
        self.tasks: list[Task] = list(wanted.tasks)
        for task in self.tasks:
            if task.labels not in [found.labels for found in kept if found.name == task.name]:
                raise DataError(f"The labels of {task.name} in {source} are not those of the model: do not stream it.")

    def _open(self, columns: list[str]) -> IterableDatasetDict:
        stream: Any = load_dataset(self.name, streaming=True, revision=self.revision, columns=columns)
        return stream

    def labels(self) -> DatasetDict:
        """The splits as encoded rows without pictures, of which the columns with pictures are not read."""
        names = ["name", *(task.name for task in self.tasks)]
        parts = {}
        for split, rows in self._open(names).items():
            features = Features({name: rows.features[name] for name in names})
            parts[str(split)] = Dataset.from_list(list(rows), features=features)
        return DatasetDict(parts)

    def pictures(self, transforms: Mapping[str, PictureTransform], labels: DatasetDict) -> dict[str, StreamedArtworks]:
        """The splits as a trainer takes them; the train split is shuffled.

        Args:
            transforms (`Mapping[str, PictureTransform]`): of each split.
            labels (`DatasetDict`): as [`labels`] returns them; they say how many rows there are.
        """
        stream = self._open(["image", *labels["train"].column_names])
        return {
            split: StreamedArtworks(
                *(stream[split], transforms[split], len(rows)),
                shuffle_buffer=SHUFFLE_BUFFER if split == "train" else 0,
            )
            for split, rows in labels.items()
        }
