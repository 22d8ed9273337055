"""Writes rows as parquet shards with their pictures in them; a run that was stopped goes on after the last whole one.

A shard is a fixed stretch of the rows of a split; its bytes depend on these rows and the encoder alone. Beside the
shards the work folder keeps, for each, what became of its rows. Both get their names only when they are whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Image, concatenate_datasets
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.bad_pictures import DEADLY, find_bad_pictures
from ..data.splits import divide_by_split
from ..data.workers import end_with_parent
from ..errors import UserError
from ..files import atomic_write
from .encoding import EncodedPicture, PictureEncoder

CHUNK = 16  # pictures that a worker gets at a time


@dataclass(frozen=True)
class Shard:
    """A file of a split, and the rows that it is made of."""

    split: str
    number: int
    count: int
    rows: Dataset

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}-of-{self.count:05d}"


def plan_shards(rows: Dataset, shard_rows: int) -> list[Shard]:
    """The shards of all splits, of at most `shard_rows` rows each, whether or not their pictures can be read."""
    shards = []
    for split, part in divide_by_split(rows).items():
        starts = range(0, len(part), shard_rows)
        for number, start in enumerate(starts):
            stretch = part.select(range(start, min(start + shard_rows, len(part))))
            shards.append(Shard(str(split), number, len(starts), stretch))
    return shards


def write_shards(
    shards: Iterable[Shard],
    encoder: PictureEncoder,
    folder: Path,
    work: Path,
    num_processes: int | None = None,
    on_bad_image: str = "skip",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Writes the shards that are not there yet.

    Args:
        shards (`Iterable[Shard]`).
        encoder ([`PictureEncoder`]).
        folder (`Path`): where the shards are written.
        work (`Path`): where it is kept what became of their rows.
        num_processes (`int`, *optional*): by default one a core, but no more than one for 256 pictures.
        on_bad_image (`str`, *optional*, defaults to `"skip"`): `"stop"` at the first picture that cannot be read.
        progress (`bool`, *optional*, defaults to `True`): show a progress bar, with the rate and what remains.

    Returns:
        For each row of each shard `name`, `split`, and either `problem`, or `digest` and `thumbnail` (in hex).

    Raises:
        UserError: if a picture cannot be read and that shall stop the run, or the disk is full.
    """
    shards = list(shards)
    folder.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    missing = [shard for shard in shards if not (_path(folder, shard).is_file() and _record(work, shard).is_file())]
    total, remaining = (sum(len(shard.rows) for shard in some) for some in (shards, missing))
    bar = tqdm(total=total, initial=total - remaining, desc="Preparing", unit="picture", disable=not progress)
    with bar:
        pictures = _encoded(missing, encoder, num_processes)
        for shard in missing:
            _write_shard(shard, pictures, encoder.suffix, folder, work, on_bad_image, bar)
    return [outcome for shard in shards for outcome in json.loads(_record(work, shard).read_text(encoding="utf-8"))]


def _path(folder: Path, shard: Shard) -> Path:
    return folder / f"{shard.name}.parquet"


def _record(work: Path, shard: Shard) -> Path:
    return work / f"{shard.name}.json"


class _Encoding(torch.utils.data.Dataset):
    """Encoded pictures of rows, but of those known to end the process that decodes them."""

    def __init__(self, pictures: Dataset, encoder: PictureEncoder, deadly: Mapping[int, str]):
        self.pictures = pictures
        self.encoder = encoder
        self.deadly = deadly

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> EncodedPicture:
        if index in self.deadly:
            return EncodedPicture(problem=self.deadly[index])
        return self.encoder(self.pictures[index]["image"])


def _encoded(shards: Sequence[Shard], encoder: PictureEncoder, num_processes: int | None) -> Iterator[EncodedPicture]:
    """The pictures of the shards one after the other, encoded by several processes."""
    if not shards:
        return
    rows = concatenate_datasets([shard.rows.select_columns(["image"]) for shard in shards])
    # Processes take seconds to start, so few pictures get one, and that one is this.
    num_processes = num_processes or min(os.cpu_count() or 1, max(1, len(rows) // 256))
    done = 0
    deadly: dict[int, str] = {}
    while done < len(rows):
        try:
            for chunk in _loader(rows.select(range(done, len(rows))), encoder, num_processes, deadly):
                yield from chunk
                done += len(chunk)
        except RuntimeError:  # a worker died, at one of the pictures next in turn
            near = rows.select(range(done, min(done + 8 * CHUNK * num_processes, len(rows))))
            found = find_bad_pictures(near, num_processes=2, progress=False)
            deadly = {row: reason for row, reason in found.items() if reason == DEADLY}
            if not deadly:
                raise


def _loader(rows: Dataset, encoder: PictureEncoder, num_processes: int, deadly: Mapping[int, str]) -> DataLoader:
    return DataLoader(
        _Encoding(rows, encoder, deadly),  # type: ignore[arg-type]
        batch_size=CHUNK if num_processes > 1 else 1,
        collate_fn=list,
        num_workers=num_processes if num_processes > 1 else 0,
        worker_init_fn=end_with_parent,
        # "spawn": a fork of a process that already runs torch's threads can hang.
        multiprocessing_context="spawn" if num_processes > 1 else None,
        prefetch_factor=4 if num_processes > 1 else None,
    )


def _write_shard(
    shard: Shard,
    pictures: Iterator[EncodedPicture],
    suffix: str,
    folder: Path,
    work: Path,
    on_bad_image: str,
    bar: tqdm,
) -> None:
    stored: list[dict[str, Any]] = []
    outcomes: list[dict[str, Any]] = []
    kept = []
    for index, (name, encoded) in enumerate(zip(shard.rows["name"][:], pictures, strict=False)):
        bar.update()
        outcomes.append({"name": name, "split": shard.split, **_outcome(encoded)})
        if encoded.problem is None:
            kept.append(index)
            stored.append({"bytes": encoded.data, "path": f"{Path(name).stem}{suffix}"})
        elif on_bad_image == "stop":
            raise UserError(
                f"The picture {name!r} cannot be read ({encoded.problem}): mend it, or pass on_bad_image=skip to "
                "leave such pictures out."
            )
    if len(outcomes) != len(shard.rows):
        raise RuntimeError(f"{len(outcomes)} pictures came of {len(shard.rows)}; this is a mistake in artgraph_vit.")
    labels = shard.rows.select(kept).remove_columns("image")
    features = Features({"image": Image(), **labels.features})
    with atomic_write(_path(folder, shard)) as part:
        Dataset.from_dict({"image": stored, **labels.to_dict()}, features=features).to_parquet(part)
    with atomic_write(_record(work, shard)) as part:
        part.write_text(json.dumps(outcomes, ensure_ascii=False), encoding="utf-8")


def _outcome(encoded: EncodedPicture) -> dict[str, str]:
    if encoded.problem is not None:
        return {"problem": encoded.problem}
    return {"digest": encoded.digest, "thumbnail": encoded.thumbnail.hex()}
