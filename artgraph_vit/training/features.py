"""Features of the frozen backbone, computed once: phase `heads` trains on them instead of on pictures.

With a backbone in eval mode and pictures that are neither augmented nor mixed, a pooled vector never changes, so E
epochs need one pass of the backbone instead of E. The vectors lie in one float32 file, keyed by all that they depend
on, each at the place of its row whatever the order in which it comes; a later run finds it again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset, config
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.batches import PictureTransform, picture_transform
from ..errors import as_user_error
from ..files import atomic_write
from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification

if TYPE_CHECKING:
    from .trainer import ArtGraphTrainer

logger = logging.get_logger(__name__)


class PhaseRows(torch.utils.data.Dataset):
    """The rows of a dataset, as the phase reads them: with pictures, or with their `features` once these are set.

    What a worker of a DataLoader sees: features that were set before it started, and at once whether they are read.

    Args:
        rows: the dataset.
    """

    def __init__(self, rows: Any):
        if isinstance(rows, dict):
            raise ValueError("eval_dataset is one dataset here: evaluate others with trainer.evaluate(rows).")
        self.rows = rows
        self.features: np.ndarray | None = None  # (rows, hidden)
        self._labels: Any = None
        self._reads_features = torch.zeros(1, dtype=torch.bool).share_memory_()

    def set_features(self, features: np.ndarray | None) -> None:
        self.features = features
        if features is not None:
            columns = [name for name in self.rows.column_names if name != "image"]
            self._labels = self.rows.with_format(None).select_columns(columns)

    def read_features(self, wanted: bool) -> None:
        self._reads_features[0] = wanted and self.features is not None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        if self.features is None or not self._reads_features:
            several = getattr(self.rows, "__getitems__", None)
            return several(indices) if several is not None else [self.rows[index] for index in indices]
        vectors = torch.from_numpy(self.features[indices])  # (B, hidden)
        columns = self._labels[list(indices)]
        rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        return [{"pooled": vector, **row} for vector, row in zip(vectors, rows, strict=True)]


class _NumberedRows(torch.utils.data.Dataset):
    """Rows that know their numbers."""

    def __init__(self, rows: Dataset):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.rows[index], "number": index}


def frozen_features(trainer: ArtGraphTrainer, pictures: Any) -> np.ndarray | None:
    """The features of a dataset under a trainer's model; computed, unless they are on disk already.

    Args:
        trainer ([`ArtGraphTrainer`]): in phase `heads`.
        pictures: the dataset.

    Returns:
        float32 `(rows, hidden)`, or None if the dataset is not one of `with_pixels`, of which alone it is known that a
        picture always gives the same pixels, or if its pictures are augmented, or mixed while they are trained on.

    Raises:
        UserError: if they cannot be kept.
    """
    transform = picture_transform(pictures)
    if transform is None:
        return None
    is_mixed = pictures is trainer.train_dataset and trainer.args.mixup_alpha > 0
    if is_mixed or transform.augmentation is not None:
        logger.info_once(
            "Train pictures change from epoch to epoch: phase heads takes them, not features computed once."
        )
        return None
    folder = Path(trainer.args.feature_cache_dir or Path(config.HF_CACHE_HOME) / "artgraph_vit" / "features")
    key = [_key(trainer, transform, pictures) if trainer.is_world_process_zero() else ""]
    if trainer.args.world_size > 1:
        broadcast_object_list(key)
    path = folder.expanduser() / f"{key[0]}.npy"
    shape = (len(pictures), trainer.model.config.hidden_size)
    is_here = torch.tensor(_is_whole(path, shape), dtype=torch.int64, device=trainer.args.device)
    if trainer.accelerator.reduce(is_here, "sum") < trainer.args.world_size:  # some machine lacks it
        _compute(trainer, pictures, path, shape)
    return np.load(path, mmap_mode="r")


def _is_whole(path: Path, shape: tuple[int, int]) -> bool:
    try:
        return np.load(path, mmap_mode="r").shape == shape
    except (OSError, ValueError, EOFError):
        return False


@torch.no_grad()
def _compute(trainer: ArtGraphTrainer, pictures: Dataset, path: Path, shape: tuple[int, int]) -> None:
    """One pass over the pictures; one process a machine writes."""
    advice = "free some space, choose another --feature_cache_dir, or pass --cache_frozen_features false."
    with as_user_error(f"The features of the frozen backbone cannot be kept in {path.parent}", advice, (OSError,)):
        path.parent.mkdir(parents=True, exist_ok=True)
    model: Any = trainer.model
    was_training = model.training
    model.eval()
    bar = tqdm(
        total=len(pictures),
        desc="Features of the frozen backbone",
        unit="picture",
        disable=trainer.args.disable_tqdm or not trainer.is_world_process_zero(),
    )
    writes = trainer.is_local_process_zero()
    vectors, seen = np.empty(shape if writes else 0, dtype=np.float32), np.zeros(len(pictures), dtype=bool)
    with bar:
        for batch in trainer.get_test_dataloader(_NumberedRows(pictures)):
            pixels = {"pixel_values": batch["pixel_values"].to(trainer.args.device)}
            with trainer.compute_loss_context_manager():
                pooled = model(**trainer.normalize_pixels(pixels)).pooled
            numbers = batch["numbers"].to(trainer.args.device)
            pooled, numbers = trainer.accelerator.gather_for_metrics((pooled.float(), numbers))  # without padding
            places = numbers.cpu().numpy()
            seen[places] = True
            if writes:
                vectors[places] = pooled.cpu().numpy()
            bar.update(len(pooled))
    model.train(was_training)
    if not seen.all():
        raise RuntimeError(f"{(~seen).sum()} pictures have no features; this is a mistake in artgraph_vit.")
    if writes:
        with atomic_write(path, writer=os.getpid()) as part, open(part, "wb") as file:
            np.save(file, vectors)
    trainer.accelerator.wait_for_everyone()


def _key(trainer: ArtGraphTrainer, transform: PictureTransform, pictures: Dataset) -> str:
    """A hash of the backbone's weights, the image processor, the precision and the pictures."""
    model: ArtGraphViTForImageClassification = trainer.model
    backbone_config: Any = model.config.backbone_config
    after = trainer.normalizer.settings() if trainer.normalizer is not None else None
    processor = [transform.image_processor.to_json_string(), transform.jpeg_scale, after]
    pooling = [model.config.pooling, model._prefix_tokens]  # how many tokens a mean leaves out
    precision = [trainer.args.mixed_precision, pooling, torch.__version__]
    digest = hashlib.sha256(json.dumps([backbone_config.to_dict(), processor, precision], default=str).encode())
    for name, weights in sorted(model.backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(weights.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for row in pictures.with_format(None).select_columns(["image"]):
        image = row["image"]
        if image["bytes"] is not None:
            digest.update(hashlib.sha256(image["bytes"]).digest())
        else:
            stat = os.stat(image["path"])
            digest.update(f"{image['path']}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
