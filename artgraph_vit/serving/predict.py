"""`predict_pictures`: labels, scores and vectors of all pictures of a source, in parquet shards.

A shard holds a fixed stretch of the pictures, so any number of processes can divide the shards among them without a
word to each other, and whoever is started again makes those that are missing: each picture stands in exactly one. A
shard gets its name only when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from datasets import Dataset, Features, Image, List, Value
from torch import Tensor
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from ..data.batches import PictureTransform, PixelNormalizer, exact_mark
from ..data.decoding import DecodedPicture, PictureDecoder, decode_ahead
from ..errors import UserError
from ..files import atomic_write, folder_lock, writing
from ..model.pipeline_artgraph_vit import RESERVED, ArtGraphPipeline, ranked_labels
from ..model.tasks import THRESHOLD
from .source import Picture, Pictures

PLAN = "plan.json"
REPORT = "report.json"
# Of a backbone's config, what says nothing of its answers, and differs by how it was loaded.
_NOTES = {"_name_or_path", "transformers_version", "dtype", "architectures", "attn_implementation"}
_NOTES |= {"_attn_implementation", "output_attentions", "output_hidden_states"}
OWN_COLUMNS = ("index", "name", "embedding", "thumbnail", *RESERVED)


def predict_pictures(
    pipe: ArtGraphPipeline,
    pictures: Pictures,
    folder: Path,
    transform: PictureTransform,
    *,
    top_k: int = 5,
    threshold: float | None = None,
    embeddings: bool = False,
    bf16: bool = False,
    batch_size: int = 32,
    num_workers: int = 0,
    shard_rows: int = 1000,
    process_index: int = 0,
    num_processes: int = 1,
    progress: bool = True,
) -> dict[str, Any] | None:
    """Writes `data/*.parquet`, a row a picture in the order of the source, and in the end `report.json`.

    A row has the picture's `index` and `name`; `error` if it cannot be read; for each task a list of labels and
    scores, as [`ArtGraphPipeline`] gives them; and with `embeddings` a vector and a thumbnail.

    Args:
        pipe ([`ArtGraphPipeline`]).
        pictures ([`Pictures`]).
        folder (`Path`): empty, or left by a run with the same model, pictures and options, which goes on.
        transform ([`PictureTransform`]): of the model's image processor.
        top_k (`int`, *optional*, defaults to 5): labels of a single-label task.
        threshold (`float`, *optional*): of multi-label tasks, in place of the model's own.
        embeddings (`bool`, *optional*, defaults to `False`): add what search needs.
        bf16 (`bool`, *optional*, defaults to `False`): autocast to bfloat16.
        batch_size (`int`, *optional*, defaults to 32).
        num_workers (`int`, *optional*, defaults to 0): processes that decode.
        shard_rows (`int`, *optional*, defaults to 1000): pictures a shard.
        process_index, num_processes (`int`, *optional*): which of how many processes this is.
        progress (`bool`, *optional*, defaults to `True`): show a progress bar over this process's part.

    Returns:
        The report; None if other processes have not written all their shards yet, of which the last writes it.

    Raises:
        UserError: if the folder holds something else, or the disk is full, or an option is wrong.
    """
    plan = {
        "pictures": pictures.fingerprint,
        "model": model_digest(pipe.model, transform.image_processor),
        "jpeg_scale": transform.jpeg_scale,
        **{"top_k": top_k, "threshold": threshold, "embeddings": embeddings, "bf16": bf16, "shard_rows": shard_rows},
    }
    decoder = PictureDecoder(transform, with_thumbnails=embeddings)
    normalizer = PixelNormalizer(transform.image_processor)
    predictor = _Predictor(pipe, normalizer, top_k, threshold, embeddings, bf16)
    lock = folder / ".locks" / str(process_index)
    with folder_lock(lock, folder):
        _begin(folder, plan, process_index)
        shards = _Shards(folder / "data", shard_rows, process_index, num_processes)
        part = f", part {process_index + 1} of {num_processes}" if num_processes > 1 else ""
        bar = tqdm(desc=f"Predicting{part}", unit="picture", disable=not progress, **shards.known(pictures.count))
        with bar:
            decoded = decode_ahead(shards.batches(pictures, batch_size), decoder, num_workers)
            for number, batches in groupby(decoded, key=lambda pair: pair[0][0].number // shard_rows):
                rows = []
                for batch in batches:
                    rows += predictor(*batch)
                    bar.update(len(batch[0]))
                shards.write(number, rows, predictor.features)
        if pictures.is_counted and pictures.count != shards.seen:
            raise UserError(
                f"The source has {shards.seen} pictures, not {pictures.count}: it has changed, start anew."
            )
        return _finish(folder, shards, plan)


def model_digest(model: Any, image_processor: BaseImageProcessor) -> str:
    """By which a model is known again: a hash of its tensors and labels, of what makes answers of its logits
    (thresholds, temperatures, offsets), of its pooling with the number of tokens that the mean leaves out, and of its
    image size and pixels."""
    config = model.config
    backbone = {
        name: value
        for name, value in config.backbone_config.to_dict().items()
        if name not in _NOTES and value is not None
    }
    settings = [[task.to_dict() for task in config.tasks], config.thresholds, config.temperatures]
    settings += [config.logit_offsets, config.pooling, model._prefix_tokens, config.image_size, backbone]
    settings += [exact_mark(image_processor).decode(), PixelNormalizer(image_processor).settings()]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class _Predictor:
    """From decoded pictures to rows."""

    def __init__(
        self,
        pipe: ArtGraphPipeline,
        normalize: PixelNormalizer,
        top_k: int,
        threshold: float | None,
        embeddings: bool,
        bf16: bool,
    ):
        self.model: Any = pipe.model
        self.device = pipe.device
        self.normalize = normalize
        self.top_k, self.embeddings, self.bf16 = top_k, embeddings, bf16
        self.tasks = self.model.config.tasks
        for task in self.tasks:
            if task.name in OWN_COLUMNS:
                raise UserError(f"The predictions have a column {task.name!r}, which is a task of this model.")
        stored = self.model.config.thresholds if threshold is None else {}
        default = THRESHOLD if threshold is None else threshold
        self.thresholds = {task.name: stored.get(task.name, default) for task in self.tasks}
        entry = {"label": Value("string"), "score": Value("float32"), "means": Value("string")}
        columns: dict[str, Any] = {"index": Value("int64"), "name": Value("string"), "error": Value("string")}
        columns |= {task.name: List(entry) for task in self.tasks}
        if embeddings:
            vector = List(Value("float32"), length=self.model.config.hidden_size)
            columns |= {"embedding": vector, "thumbnail": Image()}
        self.features = Features(columns)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Picture], decoded: Sequence[DecodedPicture]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [
            {**dict.fromkeys(self.features), "index": picture.number, "name": picture.name, "error": found.problem}
            for picture, found in zip(pictures, decoded, strict=True)
        ]
        good = [(row, found) for row, found in zip(rows, decoded, strict=True) if found.pixels is not None]
        if not good:
            return rows
        pixels: list[Any] = [found.pixels for _, found in good]
        logits, pooled = self._forward(torch.from_numpy(np.stack(pixels)))
        for task in self.tasks:
            answers = ranked_labels(logits[task.name], task, self.top_k, self.thresholds[task.name])
            for (row, _), answer in zip(good, answers, strict=True):
                row[task.name] = [{"means": None, **entry} for entry in answer]
        if self.embeddings:
            vectors = F.normalize(pooled, dim=-1).numpy()
            for (row, found), vector in zip(good, vectors, strict=True):
                row["embedding"] = vector
                row["thumbnail"] = {"bytes": found.thumbnail, "path": None}
        return rows

    def _forward(self, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Logits `(B, C)` a task and the pooled vectors `(B, hidden)`, float32, of pixels, uint8 `(B, 3, H, W)`."""
        pixel_values = self.normalize(pixels.to(self.device)).to(self.model.backbone.dtype)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.model(pixel_values=pixel_values)
        return {name: values.float().cpu() for name, values in output.logits.items()}, output.pooled.float().cpu()


class _Shards:
    """Which shards there are, and which of them this process has still to write."""

    def __init__(self, folder: Path, shard_rows: int, process_index: int, num_processes: int):
        self.folder = folder
        self.shard_rows = shard_rows
        self.process_index, self.num_processes = process_index, num_processes
        self.seen = 0  # pictures of the source so far

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"

    def is_mine(self, number: int) -> bool:
        return number % self.num_processes == self.process_index

    def known(self, count: int | None) -> dict[str, int]:
        """How many pictures are this process's part, and how many of them are done, for a progress bar."""
        if count is None:
            return {}
        mine = [number for number in range(math.ceil(count / self.shard_rows)) if self.is_mine(number)]
        sizes = {number: min(self.shard_rows, count - number * self.shard_rows) for number in mine}
        done = sum(size for number, size in sizes.items() if self.path(number).is_file())
        return {"total": sum(sizes.values()), "initial": done}

    def batches(self, pictures: Pictures, batch_size: int) -> Iterator[list[Picture]]:
        """The pictures of the shards to write; no batch holds pictures of two."""
        for number, stretch in groupby(self._counted(pictures), key=lambda picture: picture.number // self.shard_rows):
            if self.is_mine(number) and not self.path(number).is_file():
                while batch := list(islice(stretch, batch_size)):
                    yield batch

    def _counted(self, pictures: Pictures) -> Iterator[Picture]:
        for picture in pictures:
            self.seen = picture.number + 1
            yield picture

    def write(self, number: int, rows: list[dict[str, Any]], features: Features) -> None:
        with atomic_write(self.path(number), self.process_index) as part:
            Dataset.from_list(rows, features=features).to_parquet(part)

    def paths(self) -> list[Path]:
        """Of all shards, whoever writes them."""
        return [self.path(number) for number in range(math.ceil(self.seen / self.shard_rows))]


def _begin(folder: Path, plan: dict[str, Any], process_index: int) -> None:
    """Writes the plan, or checks that it is this one; processes that begin together write the same."""
    with writing(folder):
        (folder / "data").mkdir(parents=True, exist_ok=True)
    path = folder / PLAN
    if not path.is_file():
        ours = ("data", ".locks", PLAN, f"{PLAN}.")
        others = [child for child in folder.iterdir() if not child.name.startswith(ours)]
        if others or any((folder / "data").iterdir()):
            raise UserError(f"{folder} is not empty and no predictions were begun there: choose another folder.")
        with atomic_write(path, process_index) as part:
            part.write_text(json.dumps(plan), encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != plan:
        changed = ", ".join(name for name in plan if found.get(name) != plan[name])
        raise UserError(
            f"{folder} holds predictions that were begun with other values of {changed}: choose another folder, or "
            "delete it."
        )


def _finish(folder: Path, shards: _Shards, plan: dict[str, Any]) -> dict[str, Any] | None:
    if not all(path.is_file() for path in shards.paths()):
        return None
    bad = []
    for path in shards.paths():
        rows = pq.read_table(path, columns=["name", "error"]).to_pylist()
        bad += [{"name": row["name"], "reason": row["error"]} for row in rows if row["error"] is not None]
    report = {"pictures": shards.seen, "model": plan["model"], "embeddings": plan["embeddings"], "bad_pictures": bad}
    with atomic_write(folder / REPORT, shards.process_index) as part:
        part.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return report
