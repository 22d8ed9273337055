"""Which labels a task has, and rows whose labels are numbers.

The labels of a task are counted over all splits before anything is split. What becomes of a label that stands on
fewer than `min_count` artworks is the task's own rule (`Task.rare`); labels are in sorted order and keep their case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, List, concatenate_datasets
from transformers.utils import logging

from ..errors import UserError
from ..model.tasks import OTHER, Task

logger = logging.get_logger(__name__)


def build_vocabulary(rows: Dataset, tasks: Sequence[Task], min_count: int = 100) -> list[Task]:
    """Gives each task its labels.

    Args:
        rows (`Dataset`): raw rows, of all splits.
        tasks (`Sequence[Task]`): as [`load_artworks`] returns them; one that has labels keeps them.
        min_count (`int`, *optional*, defaults to 100): how many artworks a label needs where its task's rule is
            `"other"` or `"drop"`.

    Raises:
        UserError: if a task is left with too few labels to tell apart.
    """
    built = []
    for task in tasks:
        if task.labels:
            built.append(task)
            continue
        counts = Counter(_labels(rows, task))
        kept = {label for label, count in counts.items() if task.rare == "keep" or count >= min_count}
        joined = sorted(label for label in kept if task.is_multi_label and set(label) & set(",;|"))
        if joined:
            warning = "%d labels of %s hold a comma, a semicolon or a bar, such as %r: see label_separator."
            logger.warning(warning, len(joined), task.name, joined[0])
        if task.rare == "other" and len(kept) < len(counts):
            kept.add(OTHER)
        if len(kept) < (1 if task.is_multi_label else 2):
            needed = 1 if task.rare == "keep" else min_count
            raise UserError(
                f"The task {task.name!r} has {len(kept)} label(s) on at least {needed} of the {len(rows)} artworks: "
                "lower min_count, leave it out of tasks, or take the labels of a model by labels_from."
            )
        built.append(task.with_labels(sorted(kept)))
    return built


def encode_labels(rows: Dataset, tasks: Sequence[Task]) -> Dataset:
    """Turns the names of raw rows into numbers, leaving the pictures where they are.

    Returns:
        Rows with `image`, `name`, `split`, single-label tasks as `ClassLabel` and multi-label tasks as
        `List(ClassLabel)`; None for unknown, as for an artwork none of whose labels is in the vocabulary.

    Raises:
        UserError: names the artwork and the label that a task with `rare="keep"` does not know.
    """
    encoded: dict[str, list] = {}
    features: dict[str, ClassLabel | List] = {}
    names = rows["name"][:]
    for task in tasks:
        index_of = {label: index for index, label in enumerate(task.labels)}
        class_label = ClassLabel(names=list(task.labels))
        features[task.name] = List(class_label) if task.is_multi_label else class_label
        values = zip(rows[task.name][:], names, strict=True)
        encoded[task.name] = [_encode(value, task, index_of, name) for value, name in values]
    rest = rows.select_columns([name for name in ("image", "name", "split", "stratum") if name in rows.column_names])
    return concatenate_datasets([rest, Dataset.from_dict(encoded, features=Features(features))], axis=1)


def label_counts(rows: Dataset, task: Task) -> torch.Tensor:
    """How many of the encoded rows carry each label of a task: int64 `(C,)`."""
    labels = torch.tensor(list(_labels(rows, task)), dtype=torch.int64)
    return torch.bincount(labels, minlength=task.num_labels)


def known_row_count(rows: Dataset, task: Task) -> int:
    """How many of the encoded rows have a label of a task."""
    return sum(value not in (None, []) for value in rows.with_format(None)[task.name][:])


def _labels(rows: Dataset, task: Task) -> Iterator:
    """All labels of a task, row after row."""
    return chain.from_iterable(map(_as_list, rows.with_format(None)[task.name][:]))


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def _encode(value: str | list[str] | None, task: Task, index_of: dict[str, int], name: str) -> int | list[int] | None:
    other = index_of.get(OTHER) if task.rare == "other" else None
    indices = []
    for label in _as_list(value):
        index = index_of.get(label, other)
        if index is not None:
            indices.append(index)
        elif task.rare != "drop":
            raise UserError(
                f"The artwork {name!r} has the {task.name} {label!r}, which is not among the {task.num_labels} labels "
                f"of the model: correct it, leave the artwork out, or list {label!r} in unknown_labels."
            )
    if not indices:
        return None
    return sorted(indices) if task.is_multi_label else indices[0]
