"""Training from a stream: the labels of a prepared dataset are read at once, its pictures as they come.

The order of an epoch depends on (seed, epoch) alone. It is cut into batches: of each P batches process p has the p-th,
and of a process's batches worker w of W has each W-th, as a DataLoader takes them. So the rows of an optimizer step
are the same however they are divided. Every worker reads the whole stream and decodes its own rows only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset, DatasetDict, Features, load_dataset
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import UserError
from ..model.tasks import Task
from .sources.datasets_source import choose_kept, kept_vocabulary

SHUFFLE_BUFFER = 1000  # undecoded pictures, some 25 MB a worker

Columns = dict[str, list]  # as long as each other


class StreamedArtworks(IterableDataset):
    """Rows of a stream as `Trainer` takes them: with a length, so that epochs and phases are counted as ever.

    Args:
        rows (`datasets.IterableDataset`): encoded rows with an undecoded column `image`.
        transform (`Callable`): turns columns of raw rows into columns of ready ones, such as [`PictureTransform`].
        num_rows (`int`): the length of the stream, at least 1.
        shuffle_buffer (`int`, *optional*, defaults to 1000): how many undecoded rows each worker holds to draw from;
            0 keeps the stream's order, as for evaluation.
        seed (`int`, *optional*, defaults to 42): of the shuffling, together with the epoch.

    Raises:
        UserError: while iterating, if the stream holds another number of rows.

    A train set from a stream, for a model whose tasks are known:

        rows = load_dataset("parquet", data_files="*.parquet", split="train", streaming=True).decode(False)
        rows = rows.map(encode)  # yours: each task's label as its index in task.labels, or a list of them, or None
        train_dataset = StreamedArtworks(rows, PictureTransform(image_processor), num_rows=116_475)
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        transform: Callable[[Columns], Columns],
        num_rows: int,
        shuffle_buffer: int = SHUFFLE_BUFFER,
        seed: int = 42,
    ) -> None:
        self.rows = rows.decode(False) if rows.features else rows
        self.transform, self.num_rows, self.shuffle_buffer, self.seed = transform, num_rows, shuffle_buffer, seed
        self.process_index, self.num_processes, self.batch_size = 0, 1, 1
        # Epoch, batches to skip. In shared memory, for persistent workers keep the dataset of the first epoch.
        self._shared = torch.zeros(2, dtype=torch.int64).share_memory_()

    def part(self, process_index: int, num_processes: int, batch_size: int) -> StreamedArtworks:
        """What one process reads, for a DataLoader with batches of `batch_size` that nobody divides again.

        Each process gets `ceil(num_rows / (num_processes * batch_size))` batches. Where there are several processes,
        the last batch is filled up, after all of the stream's rows, with rows whose every label is unknown.
        """
        part = StreamedArtworks(self.rows, self.transform, self.num_rows, self.shuffle_buffer, self.seed)
        part.process_index, part.num_processes, part.batch_size = process_index, num_processes, batch_size
        return part

    def __len__(self) -> int:
        """How many rows are yielded, those that fill up included."""
        return self.num_rows if self.num_processes == 1 else self.num_batches * self.batch_size

    @property
    def num_batches(self) -> int:
        """Batches of each process."""
        return math.ceil(self.num_rows / (self.num_processes * self.batch_size))

    def set_epoch(self, epoch: int) -> None:
        """Reaches the workers too, from their next pass over the stream."""
        self._shared[0] = epoch

    def undivided(self, loader: Any) -> Any:
        """Keeps accelerate's loader of this part, made with `dispatch_batches=False`, from dividing it again."""
        if self.num_processes > 1:
            loader.dataset.num_processes, loader.dataset.process_index = 1, 0  # an IterableDatasetShard
            # From these two accelerate knows how many rows of the last batch that an evaluation gathers are real.
            loader.dataset.total_dataset_length = self.num_rows
            loader.batch_sampler.num_processes = self.num_processes
        return loader

    @staticmethod
    def skip(loader: Any, count: int) -> None:
        """Decodes nothing for the first `count` batches of a loader's next passes, if it is of a stream."""
        stream = getattr(loader.dataset, "dataset", loader.dataset)
        if isinstance(stream, StreamedArtworks):
            stream._shared[1] = count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch, to_skip = self._shared.tolist()
        rows = self.rows
        if self.shuffle_buffer:
            rows = rows.shuffle(seed=self.seed, buffer_size=self.shuffle_buffer)
            rows.set_epoch(epoch)
        worker = get_worker_info()
        workers, worker_index = (worker.num_workers, worker.id) if worker else (1, 0)
        seen, chunk = 0, Columns()
        for number, chunk in enumerate(rows.iter(self.batch_size)):  # not iter(rows), which divides among workers
            seen += len(chunk["image"])
            if seen > self.num_rows:
                break
            batch, process = divmod(number, self.num_processes)
            if process == self.process_index and batch % workers == worker_index:
                skipped = {**chunk, "pixel_values": [torch.empty(0)] * len(chunk["image"])}
                yield from _rows_of(skipped if batch < to_skip else self.transform(chunk))
        if seen != self.num_rows:
            found = f"more than {self.num_rows}" if seen > self.num_rows else str(seen)
            raise UserError(f"The stream holds {found} rows, not {self.num_rows}: pass the right number as num_rows.")
        rows_before = ((self.num_batches - 1) * self.num_processes + self.process_index) * self.batch_size
        missing = self.batch_size - max(self.num_rows - rows_before, 0)
        if self.num_processes > 1 and missing > 0 and (self.num_batches - 1) % workers == worker_index:
            # The last batch is filled up with the stream's last picture, again and again, without a label.
            last = {name: values[-1:] if name == "image" else [None] for name, values in chunk.items()}
            yield from _rows_of(self.transform(last)) * missing


def _rows_of(columns: Columns) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


# ---- a dataset that scripts/prepare.py made, in a folder or on the Hub, of which nothing is stored ----


def stream_labels(
    source: str, tasks: Sequence[str | Task] | None = None, revision: str | None = None
) -> tuple[DatasetDict, list[Task]]:
    """The splits as encoded rows without pictures, whose columns are not read, and the tasks: by default all.

    Raises:
        UserError: if the dataset is not prepared, or its labels are not those of the tasks.
    """
    kept = kept_vocabulary(source, revision)
    if kept is None:
        raise UserError(
            f"{source} cannot be streamed: vocabulary and splits must be known before. Use scripts/prepare.py first."
        )
    labels_of = {task.name: task.labels for task in kept}
    chosen = [task for task in choose_kept(kept, tasks, source) if isinstance(task, Task)]
    for task in chosen:
        if task.labels != labels_of.get(task.name):
            raise UserError(f"The labels of {task.name} in {source} are not those of the model: do not stream it.")
    names = ["name", *(task.name for task in chosen)]
    parts = DatasetDict()
    for split, rows in _open(source, revision, names).items():
        features = Features({name: rows.features[name] for name in names})
        parts[str(split)] = Dataset.from_list(list(rows), features=features)
    return parts, chosen


def stream_pictures(
    source: str,
    revision: str | None,
    transforms: Mapping[str, Callable[[Columns], Columns]],
    labels: DatasetDict,
    seed: int,
) -> dict[str, StreamedArtworks]:
    """The splits as a trainer takes them, the train split shuffled; `labels` are those that [`stream_labels`]
    returned, and `transforms` the [`PictureTransform`] of each split."""
    streams = _open(source, revision, ["image", *labels["train"].column_names])
    buffers = dict.fromkeys(labels, 0) | {"train": SHUFFLE_BUFFER}
    return {
        split: StreamedArtworks(streams[split], transforms[split], len(rows), buffers[split], seed)
        for split, rows in labels.items()
    }


def _open(source: str, revision: str | None, columns: list[str]) -> Any:
    folder = Path(source).expanduser()
    return load_dataset(str(folder) if folder.is_dir() else source, streaming=True, revision=revision, columns=columns)
