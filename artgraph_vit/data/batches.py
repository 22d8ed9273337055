"""From encoded rows to a batch: `PictureTransform` makes pixels when a row is fetched, the collator stacks.

Rows are fetched by lists of indices, decoded and resized one after the other, so that at no time more than one
full-size picture is in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import BaseImageProcessor

from ..tasks import UNKNOWN, Task
from .pictures import read_picture


@dataclass
class PictureTransform:
    """Turns the column `image` of a batch of rows into `pixel_values`, each a float `(3, H, W)`.

    Args:
        image_processor (`BaseImageProcessor`): the one of the model's backbone.
    """

    image_processor: BaseImageProcessor

    def __call__(self, rows: dict[str, list]) -> dict[str, list]:
        others = {name: values for name, values in rows.items() if name != "image"}
        pixels = [
            self.image_processor(read_picture(image), return_tensors="pt")["pixel_values"][0]
            for image in rows["image"]
        ]
        return {"pixel_values": pixels, **others}


@dataclass
class ArtGraphCollator:
    """Stacks rows into a batch.

    Reads `pixel_values`, or `pooled` where the backbone's features were computed before, and one key a task. Returns
    `pixel_values`, float `(B, 3, H, W)`, or `pooled`, float `(B, hidden)`; and `labels`, a dict of int64 `(B,)` for
    single-label and float32 `(B, C)` for multi-label tasks; -100 where unknown.

    Args:
        tasks (`Sequence[Task]`): with their labels.
        with_names (`bool`, *optional*, defaults to `False`): return `names` too, a list of what the artworks are
            called, where rows have a `name`; for who reports on rows, since the model does not take it.
    """

    tasks: Sequence[Task]
    with_names: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        key = "pooled" if "pooled" in rows[0] else "pixel_values"
        batch = {key: torch.stack([row[key] for row in rows]), "labels": self.labels(rows)}
        if self.with_names and "name" in rows[0]:
            batch["names"] = [row["name"] for row in rows]
        return batch

    def labels(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        labels = {}
        for task in self.tasks:
            values = [row[task.name] for row in rows]
            if task.is_multi_label:
                labels[task.name] = torch.stack([self._multi_hot(value, task.num_labels) for value in values])
            else:
                labels[task.name] = torch.tensor([UNKNOWN if value is None else value for value in values])
        return labels

    @staticmethod
    def _multi_hot(value: Sequence[int] | None, num_labels: int) -> torch.Tensor:
        if not value:  # nobody recorded a label, which does not mean that none applies
            return torch.full((num_labels,), float(UNKNOWN))
        row = torch.zeros(num_labels)
        row[list(value)] = 1.0
        return row


def with_pixels(rows: Dataset, image_processor: BaseImageProcessor) -> Dataset:
    """The same rows, whose pictures are decoded and processed when they are fetched."""
    return rows.with_transform(PictureTransform(image_processor))


def picture_transform(rows: Any) -> PictureTransform | None:
    """The transform of a dataset that [`with_pixels`] made; None for any other dataset."""
    if not isinstance(rows, Dataset):
        return None
    transform = rows.format["format_kwargs"].get("transform")
    return transform if isinstance(transform, PictureTransform) else None
