"""The pictures to predict for: a folder, parquet files or a dataset of the Hub, in a fixed order and not decoded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
from datasets import Image, IterableDataset, load_dataset, load_dataset_builder
from huggingface_hub import HfApi

from ..data.decoding import Picture
from ..errors import UserError, as_user_error
from ..model.pictures import MAX_FILE
from ..model.pipeline_artgraph_vit import pictures_in_folder


@dataclass
class Pictures:
    """The pictures of a source, one after the other.

    Args:
        rows (`list[Path]` or `IterableDataset`): the files of a folder, or undecoded rows.
        fingerprint (`str`): another one means that the pictures may be others.
        count (`int`, *optional*): how many they are, if that is known; of the Hub, what the dataset says of itself.
        folder (`Path`, *optional*): to which the names of files are relative.
        image_column (`str`, *optional*), name_column (`str`, *optional*): of rows.
    """

    rows: list[Path] | IterableDataset
    fingerprint: str
    count: int | None = None
    folder: Path = Path()
    image_column: str = "image"
    name_column: str | None = None

    def __iter__(self) -> Iterator[Picture]:
        for number, row in enumerate(self.rows):
            if isinstance(row, Path):
                # A name of a file need not be UTF-8, as a string in parquet is.
                name = os.fsencode(row.relative_to(self.folder)).decode(errors="backslashreplace")
                yield Picture(number, name, {"path": str(row), "bytes": None})
            else:
                image = row[self.image_column] or {}
                data, path = image.get("bytes"), image.get("path") or ""
                called = row[self.name_column] if self.name_column else path
                # A row is from anywhere and could name any file of this machine: only files of the Hub are read.
                if data is None and path.startswith("hf://"):
                    with fsspec.open(path) as file:
                        data = file.read(MAX_FILE + 1)  # one more, and it is refused as too large
                yield Picture(number, str(called or f"row {number}"), {"path": None, "bytes": data})


def open_pictures(
    source: str,
    split: str | None = None,
    image_column: str = "image",
    name_column: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
) -> Pictures:
    """Looks at a source and lists what is in it; no picture is read.

    Args:
        source (`str`): a folder of pictures, with those of the folders in it; a folder of parquet files with the
            pictures in them, or one such file; or the Hub id of a dataset, which is streamed.
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
        rows, name_column = _undecoded(stream, source, image_column, name_column)
        return Pictures(rows, fingerprint, count, image_column=image_column, name_column=name_column)
    if any(option is not None for option in (split, config_name, revision)):
        raise UserError(f"{source} is on this machine: split, dataset_config and dataset_revision are of the Hub.")
    files = [path] if path.suffix == ".parquet" else sorted(path.rglob("*.parquet"))
    if files:
        with as_user_error(f"{source} cannot be read as parquet"):
            count = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
        stream = load_dataset("parquet", data_files=[str(file) for file in files], streaming=True, split="train")
        rows, name_column = _undecoded(stream, source, image_column, name_column)
        return Pictures(rows, _fingerprint(files, path), count, image_column=image_column, name_column=name_column)
    with as_user_error(f"{source} has no parquet file and no picture"):
        files = pictures_in_folder(path)
    return Pictures(files, _fingerprint(files, path), len(files), folder=path)


def _undecoded(
    rows: IterableDataset, source: str, image_column: str, name_column: str | None
) -> tuple[IterableDataset, str | None]:
    """The rows, and their column with names, if there is one."""
    rows = rows.decode(False)  # of a stream, datasets decodes ahead in threads, which a cast alone does not undo
    columns = list(rows.features or rows._resolve_features().features)
    for column in (image_column, name_column):
        if column is not None and column not in columns:
            raise UserError(f"{source} has no column {column!r}; its columns are {', '.join(columns)}.")
    name_column = name_column or ("name" if "name" in columns else None)
    return rows.cast_column(image_column, Image(decode=False)), name_column


def _fingerprint(files: Sequence[Path], folder: Path) -> str:
    """Of names, sizes and dates."""
    digest = hashlib.sha256()
    for file in files:
        stat = os.stat(file)
        digest.update(os.fsencode(os.path.relpath(file, folder)) + f"\0{stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
