"""`predict_pictures`: labels, scores and vectors of all pictures of a source, in parquet shards.

A source is a folder, parquet files or a dataset of the Hub, in a fixed order. A shard holds a fixed stretch of its
pictures and gets its name only when it is whole, so any number of processes can divide the shards without a word to
each other, and whoever is started again makes those that are missing: each picture stands in exactly one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby, islice, starmap
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from datasets import Dataset, Features, Image, IterableDataset, List, Value, load_dataset, load_dataset_builder
from huggingface_hub import HfApi
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from ..data.batches import PictureTransform, PixelNormalizer, exact_mark
from ..data.decoding import Batch, Picture, Unreadable, process_pictures
from ..errors import UserError, as_user_error
from ..files import atomic_write, folder_lock
from ..model.pictures import MAX_FILE, read_picture
from ..model.pipeline_artgraph_vit import RESERVED, ArtGraphPipeline, pictures_in_folder, ranked_labels
from ..model.tasks import THRESHOLD

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
    for name, value in {"top_k": top_k, "batch_size": batch_size, "shard_rows": shard_rows}.items():
        if value < 1:
            raise UserError(f"{name}={value}: use a whole number of at least 1.")
    if threshold is not None and not 0 < threshold < 1:
        raise UserError(f"threshold={threshold}: use a number above 0 and below 1.")
    model: Any = pipe.model
    features = _features(model.config, embeddings)
    normalize = PixelNormalizer(transform.image_processor)
    seen = 0

    def path(shard: int) -> Path:
        return folder / "data" / f"part-{shard:06d}.parquet"

    def batches() -> Iterator[Batch]:
        """Of the shards to write; no batch holds pictures of two."""
        nonlocal seen
        for shard, stretch in groupby(pictures.pictures, key=lambda picture: picture.number // shard_rows):
            is_missing = shard % num_processes == process_index and not path(shard).is_file()
            while batch := list(islice(stretch, batch_size)):
                seen += len(batch)
                if is_missing:
                    yield batch

    @torch.inference_mode()
    def predicted(batch: Batch, results: Sequence[tuple | Unreadable]) -> list[dict[str, Any]]:
        """The rows of a batch."""
        rows = [{**dict.fromkeys(features), "index": picture.number, "name": picture.name} for picture in batch]
        good = []
        for row, result in zip(rows, results, strict=True):
            if isinstance(result, Unreadable):
                row["error"] = result.reason
            else:
                good.append((row, *result))
        if not good:
            return rows
        pixels = torch.from_numpy(np.stack([pixels for _, pixels, _ in good]))  # (B, 3, H, W)
        pixel_values = normalize(pixels.to(pipe.device)).to(model.backbone.dtype)
        with torch.autocast(pipe.device.type, torch.bfloat16, enabled=bf16):
            output = model(pixel_values=pixel_values)
        for task in model.config.tasks:
            at_least = threshold or model.config.thresholds.get(task.name, THRESHOLD)
            answers = ranked_labels(output.logits[task.name].float().cpu(), task, top_k, at_least)
            for (row, *_), answer in zip(good, answers, strict=True):
                row[task.name] = [{"means": None, **entry} for entry in answer]
        if embeddings:
            vectors = F.normalize(output.pooled.float().cpu(), dim=-1).numpy()
            for (row, _, thumbnail), vector in zip(good, vectors, strict=True):
                row |= {"embedding": vector, "thumbnail": {"bytes": thumbnail, "path": None}}
        return rows

    with folder_lock(folder / ".locks" / str(process_index), folder):
        _begin(folder, plan, process_index)
        with tqdm(desc="Predicting", unit="picture", disable=not progress, total=pictures.count) as bar:
            decoded = process_pictures(batches(), PictureDecoder(transform, embeddings), num_workers)
            for shard, group in groupby(decoded, key=lambda pair: pair[0][0].number // shard_rows):
                rows = []
                for batch, results in group:
                    rows += predicted(batch, results)
                    bar.update(batch[-1].number + 1 - bar.n)  # those of other processes and earlier runs too
                with atomic_write(path(shard), process_index) as unfinished:
                    Dataset.from_list(rows, features=features).to_parquet(unfinished)
        shards = [path(shard) for shard in range(math.ceil(seen / shard_rows))]
        return _report(folder, shards, seen, plan, process_index) if all(map(Path.is_file, shards)) else None


def model_digest(model: Any, image_processor: BaseImageProcessor) -> str:
    """By which a model is known again: a hash of its tensors, and of all else that changes its answers or vectors."""
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


@dataclass(frozen=True)
class PictureDecoder:
    """Gives the pixels as an image processor makes them, uint8 `(3, H, W)`, and a thumbnail (a JPEG) if asked for."""

    transform: PictureTransform
    with_thumbnails: bool = False

    def __call__(self, image: Mapping[str, Any]) -> tuple[np.ndarray, bytes | None]:
        pixels = self.transform.pixels(image).numpy()
        if not self.with_thumbnails:
            return pixels, None
        picture = read_picture(image, at_least=THUMBNAIL)
        picture.thumbnail((THUMBNAIL, THUMBNAIL), PIL.Image.Resampling.BICUBIC)
        file = BytesIO()
        picture.save(file, "JPEG", quality=85)
        return pixels, file.getvalue()


def _features(config: Any, embeddings: bool) -> Features:
    entry = {"label": Value("string"), "score": Value("float32"), "means": Value("string")}
    columns: dict[str, Any] = {"index": Value("int64"), "name": Value("string"), "error": Value("string")}
    for task in config.tasks:
        if task.name in OWN_COLUMNS:
            raise UserError(f"The predictions have a column {task.name!r}, which is a task of this model.")
        columns[task.name] = List(entry)
    if embeddings:
        columns |= {"embedding": List(Value("float32"), length=config.hidden_size), "thumbnail": Image()}
    return Features(columns)


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


# ---- sources ----


@dataclass
class Pictures:
    """The pictures of a source, to be read once; another `fingerprint` means that they may be others."""

    pictures: Iterator[Picture]
    fingerprint: str
    count: int | None  # if it is known; of the Hub, what the dataset says of itself


def open_pictures(
    source: str,
    split: str | None = None,
    image_column: str = "image",
    name_column: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
) -> Pictures:
    """The pictures to predict for.

    Args:
        source (`str`): a folder of pictures, with those of the folders in it; a folder of parquet files with the
            pictures in them, or one such file; or the Hub id of a dataset, which is streamed. No picture is read yet.
        split (`str`, *optional*): of a Hub dataset; by default its first.
        image_column (`str`, *optional*, defaults to `"image"`): of rows.
        name_column (`str`, *optional*): of rows, by which the results call a picture; by default `name` where there
            is one, else the path stored with the picture, else its number.
        config_name, revision (`str`, *optional*): of a Hub dataset.

    Raises:
        UserError: if there is no such source, or it has no such column.
    """
    path = Path(source).expanduser()
    if not path.exists():
        if source.startswith((".", "/", "~")):
            raise UserError(f"There is no {source!r}: give a folder of pictures, parquet files, or a Hub id.")
        with as_user_error(f"{source!r} is no folder here, and cannot be read from the Hub", kinds=(Exception,)):
            commit = HfApi().dataset_info(source, revision=revision).sha
            splits: Any = load_dataset_builder(source, config_name, revision=commit).info.splits or {"train": None}
            split = split or next(iter(splits))
            stream: Any = load_dataset(source, config_name, revision=commit, split=split, streaming=True)
        count = getattr(splits.get(split), "num_examples", None) or None
        fingerprint = json.dumps([source, config_name, split, commit])
        return Pictures(_pictures_of_rows(stream, source, image_column, name_column), fingerprint, count)
    if any(option is not None for option in (split, config_name, revision)):
        raise UserError(f"{source} is on this machine: split, dataset_config and dataset_revision are of the Hub.")
    files = [path] if path.suffix == ".parquet" else sorted(path.rglob("*.parquet"))
    if files:
        with as_user_error(f"{source} cannot be read as parquet"):
            count = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
        stream = load_dataset("parquet", data_files=[str(file) for file in files], streaming=True, split="train")
        pictures = _pictures_of_rows(stream, source, image_column, name_column)
        return Pictures(pictures, _fingerprint(files, path), count)
    with as_user_error(f"{source} has no parquet file and no picture"):
        files = pictures_in_folder(path)
    # A name of a file need not be UTF-8, as a string in parquet is.
    names = [os.fsencode(file.relative_to(path)).decode(errors="backslashreplace") for file in files]
    listed = (Picture(i, names[i], {"path": str(file), "bytes": None}) for i, file in enumerate(files))
    return Pictures(listed, _fingerprint(files, path), len(files))


def _pictures_of_rows(
    rows: IterableDataset, source: str, image_column: str, name_column: str | None
) -> Iterator[Picture]:
    rows = rows.decode(False)  # of a stream, datasets decodes ahead in threads, which a cast alone does not undo
    columns = list(rows.features or rows._resolve_features().features)
    for column in (image_column, name_column):
        if column is not None and column not in columns:
            raise UserError(f"{source} has no column {column!r}; its columns are {', '.join(columns)}.")
    name_column = name_column or ("name" if "name" in columns else None)

    def picture(number: int, row: Mapping[str, Any]) -> Picture:
        image = row[image_column] or {}
        data, path = image.get("bytes"), image.get("path") or ""
        called = row[name_column] if name_column else path
        # A row is from anywhere and could name any file of this machine: only files of the Hub are read.
        if data is None and path.startswith("hf://"):
            with fsspec.open(path) as file:
                data = file.read(MAX_FILE + 1)  # one more, and it is refused as too large
        return Picture(number, str(called or f"row {number}"), {"path": None, "bytes": data})

    return starmap(picture, enumerate(rows.cast_column(image_column, Image(decode=False))))


def _fingerprint(files: Sequence[Path], folder: Path) -> str:
    """Of names, sizes and dates."""
    digest = hashlib.sha256()
    for file in files:
        stat = os.stat(file)
        digest.update(os.fsencode(os.path.relpath(file, folder)) + f"\0{stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
