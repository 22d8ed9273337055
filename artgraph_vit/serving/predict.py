"""`predict_pictures`: labels, scores and vectors of all pictures of a source, in parquet shards.

A shard holds a fixed stretch of the pictures, so any number of processes can divide the shards among them without a
word to each other, and whoever is started again makes those that are missing: each picture stands in exactly one. A
shard gets its name only when it is whole. Nothing is fetched: a picture is bytes, or a file that stood in a folder.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from datasets import Dataset, Features, Image, List, Value
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from ..data.batches import PictureTransform, PixelNormalizer, exact_mark
from ..data.decoding import Batch, Unreadable, process_pictures
from ..errors import UserError
from ..files import atomic_write, folder_lock
from ..model.pictures import read_picture
from ..model.pipeline_artgraph_vit import RESERVED, ArtGraphPipeline, ranked_labels
from ..model.tasks import THRESHOLD
from .source import Pictures

PLAN = "plan.json"
REPORT = "report.json"
OWN_COLUMNS = ("index", "name", "embedding", "thumbnail", *RESERVED)
THUMBNAIL = 128  # pixels of the longer side
# Of a backbone's config, what says nothing of its answers, and differs by how it was loaded.
_NOTES = {"_name_or_path", "transformers_version", "dtype", "architectures", "attn_implementation"}
_NOTES |= {"_attn_implementation", "output_attentions", "output_hidden_states"}


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
        folder (`Path`): empty, or left by a run with the same model, pictures and options, which goes on.
        transform ([`PictureTransform`]): of the model's image processor.
        top_k (`int`, *optional*, defaults to 5): labels of a single-label task.
        threshold (`float`, *optional*): of multi-label tasks, in place of the model's own.
        embeddings (`bool`, *optional*, defaults to `False`): add what search needs.
        bf16 (`bool`, *optional*, defaults to `False`): autocast to bfloat16.
        num_workers (`int`, *optional*, defaults to 0): processes that decode.
        shard_rows (`int`, *optional*, defaults to 1000): pictures a shard.
        process_index, num_processes (`int`, *optional*): which of how many processes this is.
        progress (`bool`, *optional*, defaults to `True`): show a progress bar over all pictures.

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
    predictor = _Predictor(pipe, PixelNormalizer(transform.image_processor), top_k, threshold, embeddings, bf16)

    seen = 0

    def path(shard: int) -> Path:
        return folder / "data" / f"part-{shard:06d}.parquet"

    def batches() -> Iterator[Batch]:
        """Of the shards to write; no batch holds pictures of two."""
        nonlocal seen
        for shard, stretch in groupby(pictures, key=lambda picture: picture.number // shard_rows):
            is_missing = shard % num_processes == process_index and not path(shard).is_file()
            while batch := list(islice(stretch, batch_size)):
                seen += len(batch)
                if is_missing:
                    yield batch

    with folder_lock(folder / ".locks" / str(process_index), folder):
        _begin(folder, plan, process_index)
        with tqdm(desc="Predicting", unit="picture", disable=not progress, total=pictures.count) as bar:
            decoded = process_pictures(batches(), PictureDecoder(transform, embeddings), num_workers)
            for shard, group in groupby(decoded, key=lambda pair: pair[0][0].number // shard_rows):
                rows = []
                for batch, results in group:
                    rows += predictor(batch, results)
                    bar.update(batch[-1].number + 1 - bar.n)  # those of other processes and earlier runs too
                with atomic_write(path(shard), process_index) as unfinished:
                    Dataset.from_list(rows, features=predictor.features).to_parquet(unfinished)
        shards = [path(shard) for shard in range(math.ceil(seen / shard_rows))]
        return _report(folder, shards, seen, plan, process_index) if all(map(Path.is_file, shards)) else None


def model_digest(model: Any, image_processor: BaseImageProcessor) -> str:
    """By which a model is known again: a hash of its tensors and labels, of what makes answers of its logits
    (thresholds, temperatures), of its pooling with the number of tokens that the mean leaves out, and of its image
    size and pixels."""
    config = model.config
    backbone = {
        name: value
        for name, value in config.backbone_config.to_dict().items()
        if name not in _NOTES and value is not None
    }
    settings = [[task.to_dict() for task in config.tasks], config.thresholds, config.temperatures]
    settings += [{}, config.pooling, model._prefix_tokens, config.image_size, backbone]  # {} was an option once
    settings += [exact_mark(image_processor).decode(), PixelNormalizer(image_processor).settings()]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class DecodedPicture(NamedTuple):
    """`pixels`, uint8 `(3, H, W)`, and a thumbnail (a JPEG) if asked for."""

    pixels: np.ndarray
    thumbnail: bytes | None = None


@dataclass(frozen=True)
class PictureDecoder:
    """Makes a [`DecodedPicture`] as the model of an image processor takes it; raises `BadPictureError`."""

    transform: PictureTransform
    with_thumbnails: bool = False

    def __call__(self, image: Mapping[str, Any]) -> DecodedPicture:
        pixels = self.transform.pixels(image).numpy()
        if not self.with_thumbnails:
            return DecodedPicture(pixels)
        picture = read_picture(image, at_least=THUMBNAIL)
        picture.thumbnail((THUMBNAIL, THUMBNAIL), PIL.Image.Resampling.BICUBIC)
        file = BytesIO()
        picture.save(file, "JPEG", quality=85)
        return DecodedPicture(pixels, file.getvalue())


@dataclass
class _Predictor:
    """From decoded pictures to rows."""

    pipe: ArtGraphPipeline
    normalize: PixelNormalizer
    top_k: int
    threshold: float | None
    embeddings: bool
    bf16: bool

    @cached_property
    def features(self) -> Features:
        config: Any = self.pipe.model.config
        entry = {"label": Value("string"), "score": Value("float32"), "means": Value("string")}
        columns: dict[str, Any] = {"index": Value("int64"), "name": Value("string"), "error": Value("string")}
        for task in config.tasks:
            if task.name in OWN_COLUMNS:
                raise UserError(f"The predictions have a column {task.name!r}, which is a task of this model.")
            columns[task.name] = List(entry)
        if self.embeddings:
            columns |= {"embedding": List(Value("float32"), length=config.hidden_size), "thumbnail": Image()}
        return Features(columns)

    @torch.inference_mode()
    def __call__(self, batch: Batch, results: Sequence[DecodedPicture | Unreadable]) -> list[dict[str, Any]]:
        nothing = dict.fromkeys(self.features)
        rows: list[dict[str, Any]] = [{**nothing, "index": picture.number, "name": picture.name} for picture in batch]
        good = []
        for row, result in zip(rows, results, strict=True):
            if isinstance(result, DecodedPicture):
                good.append((row, result))
            else:
                row["error"] = result.reason
        if not good:
            return rows
        model: Any = self.pipe.model
        pixels = torch.from_numpy(np.stack([result.pixels for _, result in good]))  # (B, 3, H, W)
        pixel_values = self.normalize(pixels.to(self.pipe.device)).to(model.backbone.dtype)
        with torch.autocast(self.pipe.device.type, torch.bfloat16, enabled=self.bf16):
            output = model(pixel_values=pixel_values)
        for task in model.config.tasks:
            threshold = self.threshold or model.config.thresholds.get(task.name, THRESHOLD)
            answers = ranked_labels(output.logits[task.name].float().cpu(), task, self.top_k, threshold)
            for (row, _), answer in zip(good, answers, strict=True):
                row[task.name] = [{"means": None, **entry} for entry in answer]
        if self.embeddings:
            vectors = F.normalize(output.pooled.float().cpu(), dim=-1).numpy()
            for (row, result), vector in zip(good, vectors, strict=True):
                row |= {"embedding": vector, "thumbnail": {"bytes": result.thumbnail, "path": None}}
        return rows


def _begin(folder: Path, plan: dict[str, Any], process_index: int) -> None:
    """Writes the plan, or checks that it is this one; processes that begin together write the same."""
    path = folder / PLAN
    if not path.is_file():
        ours = ("data", ".locks", PLAN, f"{PLAN}.")
        if any(not child.name.startswith(ours) for child in folder.iterdir()) or any(folder.glob("data/*")):
            raise UserError(f"{folder} is not empty and no predictions were begun there: choose another folder.")
        with atomic_write(path, process_index) as part:
            part.write_text(json.dumps(plan), encoding="utf-8")
            (folder / "data").mkdir(exist_ok=True)
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != plan:
        changed = ", ".join(name for name in plan if found.get(name) != plan[name])
        raise UserError(
            f"{folder} holds predictions that were begun with other values of {changed}: choose another folder, or "
            "delete it."
        )


def _report(
    folder: Path, shards: Sequence[Path], pictures: int, plan: dict[str, Any], process_index: int
) -> dict[str, Any]:
    bad = []
    for path in shards:
        rows = pq.read_table(path, columns=["name", "error"]).to_pylist()
        bad += [{"name": row["name"], "reason": row["error"]} for row in rows if row["error"] is not None]
    report = {"pictures": pictures, "model": plan["model"], "embeddings": plan["embeddings"], "bad_pictures": bad}
    with atomic_write(folder / REPORT, process_index) as part:
        part.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return report
