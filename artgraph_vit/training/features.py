"""Features of the frozen backbone, computed once: phase `heads` trains on them instead of on pictures.

With a backbone in eval mode and pictures that are neither augmented nor mixed, a pooled vector never changes, so E
epochs need one pass of the backbone instead of E. The vectors lie in one float32 file, memory-mapped and keyed by all
that they depend on; all processes compute their share of it, and a later run finds it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset, config
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.batches import PictureTransform, picture_transform
from ..errors import UserError
from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification
from .engines import whole

if TYPE_CHECKING:
    from .trainer import ArtGraphTrainer

logger = logging.get_logger(__name__)


class FeatureRows(torch.utils.data.Dataset):
    """Rows of a dataset with `pooled`, a float `(hidden,)`, in place of the picture.

    Args:
        rows (`Dataset`): encoded rows; their pictures are not read.
        features (`np.ndarray` of shape `(rows, hidden)`): of the same rows in the same order.
    """

    def __init__(self, rows: Dataset, features: np.ndarray):
        columns = [name for name in rows.column_names if name != "image"]
        self.rows = rows.with_format(None).select_columns(columns)
        self.features = features

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        vectors = torch.from_numpy(self.features[indices])  # (B, hidden)
        columns = self.rows[list(indices)]
        rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        return [{"pooled": vector, **row} for vector, row in zip(vectors, rows, strict=True)]


def frozen_features(trainer: ArtGraphTrainer, pictures: Any) -> FeatureRows | None:
    """The features of a dataset under a trainer's model; computed, unless they are on disk already.

    Args:
        trainer ([`ArtGraphTrainer`]): in phase `heads`, its model prepared.
        pictures: the dataset.

    Returns:
        The rows, or None if the dataset is not one of `with_pixels`, of which alone it is known that a picture always
        gives the same pixels, or if its pictures are augmented, or mixed while they are trained on.
    """
    transform = picture_transform(pictures)
    if transform is None:
        return None
    is_mixed = pictures is trainer.train_dataset and trainer._mixing is not None
    if is_mixed or transform.augmentation is not None:
        logger.info("Train pictures change from epoch to epoch: phase heads takes them, not features computed once.")
        return None
    folder = Path(trainer.args.feature_cache_dir or Path(config.HF_CACHE_HOME) / "artgraph_vit" / "features")
    digest = _digest_of_backbone(trainer, transform)
    key = [_key(digest, pictures) if trainer.is_world_process_zero() else ""]
    if trainer.args.world_size > 1:
        broadcast_object_list(key)
    path = folder.expanduser() / f"{key[0]}.npy"
    shape = (len(pictures), trainer.model.config.hidden_size)
    is_here = torch.tensor(_is_whole(path, shape), dtype=torch.int64, device=trainer.args.device)
    if trainer.accelerator.reduce(is_here, "sum") < trainer.args.world_size:  # some machine lacks it
        _compute(trainer, pictures, path, shape)
    return FeatureRows(pictures, np.load(path, mmap_mode="r"))


def _is_whole(path: Path, shape: tuple[int, int]) -> bool:
    try:
        return np.load(path, mmap_mode="r").shape == shape
    except (OSError, ValueError, EOFError):
        return False


@torch.no_grad()
def _compute(trainer: ArtGraphTrainer, pictures: Dataset, path: Path, shape: tuple[int, int]) -> None:
    """One pass over the pictures; one process a machine writes."""
    model: Any = trainer.model
    was_training = model.training
    model.eval()
    done = 0
    bar = tqdm(
        total=len(pictures),
        desc="Features of the frozen backbone",
        unit="picture",
        disable=trainer.args.disable_tqdm or not trainer.is_world_process_zero(),
    )
    with bar, torch.random.fork_rng(devices=[]), _written(path, shape, trainer.is_local_process_zero()) as file:
        # The random state is forked: training draws what it draws without this pass.
        for batch in trainer.get_test_dataloader(pictures):
            pixels = {"pixel_values": batch["pixel_values"].to(trainer.args.device)}
            with trainer.compute_loss_context_manager():
                pooled = model(**trainer.normalize_pixels(pixels)).pooled
            pooled = trainer.accelerator.gather_for_metrics(pooled.float())  # in the order of the rows, no padding
            if file is not None:
                file.write(pooled.cpu().numpy().tobytes())
            done += len(pooled)
            bar.update(len(pooled))
    model.train(was_training)
    if done != len(pictures):
        raise RuntimeError(f"{done} features came of {len(pictures)} pictures; this is a mistake in artgraph_vit.")
    trainer.accelerator.wait_for_everyone()


@contextmanager
def _written(path: Path, shape: tuple[int, int], is_writer: bool) -> Iterator[BinaryIO | None]:
    """A file for the rows of a float32 array, under its name only when it is whole; None for who does not write.

    Written as it comes, not mapped: a full disk is then an error, where a mapped file would end the process.
    """
    if not is_writer:
        yield None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, suffix=".part", delete=False) as file:
            try:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                yield file  # type: ignore[misc]
                file.close()
                os.replace(file.name, path)
            finally:
                Path(file.name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"The features of the frozen backbone cannot be kept in {path.parent} ({error.strerror}): free some "
            "space, choose another --feature_cache_dir, or pass --cache_frozen_features false."
        ) from error


def _digest_of_backbone(trainer: ArtGraphTrainer, transform: PictureTransform) -> Any:
    """A hash of the backbone's weights, the image processor and the precision; all processes must ask for it."""
    model: ArtGraphViTForImageClassification = trainer.model
    backbone_config: Any = model.config.backbone_config
    digest = hashlib.sha256()
    normalizer = trainer._pixel_normalizer
    after = normalizer.settings() if normalizer is not None else None  # of the trainer's own image processor
    processor = [transform.image_processor.to_json_string(), transform.jpeg_scale, after]
    pooling = [model.config.pooling, model._prefix_tokens]  # how many tokens a mean leaves out
    precision = [trainer.args.mixed_precision, pooling, torch.__version__]
    digest.update(json.dumps([backbone_config.to_dict(), processor, precision], default=str).encode())
    for name, tensor in sorted(model.backbone.state_dict().items()):
        digest.update(name.encode())
        weights: Any = whole(tensor)  # each process may hold a part
        digest.update(weights.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest


def _key(digest: Any, pictures: Dataset) -> str:
    """The hash goes on over the pictures, which each process can see."""
    for row in pictures.with_format(None).select_columns(["image"]):
        image = row["image"]
        if image["bytes"] is not None:
            digest.update(hashlib.sha256(image["bytes"]).digest())
        else:
            stat = os.stat(image["path"])
            digest.update(f"{image['path']}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
