"""From stored bytes to a collated batch: rows a second and core of our input, against the plain path.

How: each way reads the same pictures, batches of 32, in one process and thread, after one batch that is not counted;
interleaved, medians, CPU time. The plain path is `Image.open().convert("RGB")`, the image processor of ViT-B/16 row by
row, float32, and torch's default collator. Ours fetches a list of indices of a `datasets` dataset and collates it; a
raw JPEG is decoded at twice or once the size that is needed or in full, a prepared one comes from what
scripts/prepare.py writes. Pixels are compared as bytes, before they are normalised. "Through 2 workers" is wall time
of a DataLoader against the same DataLoader over the plain path. Memory is what the process grows by from the first
epoch to the third, and with 4 times the rows.

The large JPEGs, of 1,000 to 1,500 pixels, and the small ones, of 500 to 650, are made: noise at all scales, which has
about as many bytes a pixel as a painting. `--pictures FOLDER` measures the JPEGs of a folder in place of the small.

Expect: 2.3x with twice, 3x with once, 10x prepared, 40x and more at the exact size; with small pictures the decoder
has little to leave out. About 6 minutes.

.venv/bin/python benchmarks/input_pipeline.py [--quick] [--out FILE] [--pictures FOLDER]
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import datasets
import numpy as np
import torch
from measure import arguments, compare, interleave, ratios, write_table
from PIL import Image
from torch.utils.data import DataLoader, default_collate
from transformers import ViTImageProcessorPil
from workload import RandomRows

from artgraph_vit import Task
from artgraph_vit.data import ArtGraphCollator, PictureTransform, with_pixels
from artgraph_vit.model.tasks import SINGLE_LABEL
from artgraph_vit.preparing import DatasetCardOptions, PictureEncoder, prepare_dataset

BATCH = 32
TASK = Task("genre", SINGLE_LABEL, ("landscape", "portrait"))
PROCESSOR = ViTImageProcessorPil()


def made_jpegs(count: int, shortest: int, longest: int) -> list[bytes]:
    """Noise whose contrast falls with its scale, as that of photographs does."""
    files = []
    for index in range(count):
        random = np.random.default_rng(index)
        width, height = (int(side) for side in random.integers(shortest, longest + 1, 2))
        picture = np.zeros((height, width, 3))
        for cells in (4, 8, 16, 32, 64, 128, 256, 512, 1024):
            noise = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            noise = noise.resize((width, height), Image.Resampling.BICUBIC)
            picture += (np.asarray(noise, float) - 128) * 2 / cells**0.65
        file = io.BytesIO()
        Image.fromarray((picture + 128).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def rows_of(jpegs: list[bytes]) -> datasets.Dataset:
    splits = ["train"] * (len(jpegs) - 2) + ["validation", "test"]
    labels = RandomRows(0, 0, {"genre": 2})
    values = {
        "image": [{"bytes": data, "path": None} for data in jpegs],
        "name": [f"{index}.jpg" for index in range(len(jpegs))],
        "split": splits,
        "genre": [labels.labels(index)["genre"] for index in range(len(jpegs))],
    }
    features = {"image": datasets.Image(decode=False), "name": datasets.Value("string")}
    features |= {"split": datasets.Value("string"), "genre": datasets.ClassLabel(names=list(TASK.labels))}
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


class PlainRows(torch.utils.data.Dataset):
    """The plain path."""

    def __init__(self, rows: datasets.Dataset):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        picture = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        pixels = PROCESSOR(picture, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "genre": -100 if row["genre"] is None else row["genre"]}


def prepared(rows: datasets.Dataset, folder: Path, encoder: PictureEncoder) -> datasets.Dataset:
    """The train split of what prepare.py writes, with the two rows of the other splits."""
    prepare_dataset(rows, [TASK], folder, encoder, DatasetCardOptions(), num_processes=1, progress=False)
    splits = datasets.load_dataset(str(folder), cache_dir=str(folder / "cache"))
    stored = datasets.concatenate_datasets(list(splits.values())).cast_column("image", datasets.Image(decode=False))
    return with_pixels(stored, PROCESSOR)


def seconds_a_row(dataset, collate: Callable, batch: int) -> float:
    """CPU seconds."""
    indices = [list(range(start, start + batch)) for start in range(0, len(dataset) - batch + 1, batch)]
    fetch = getattr(dataset, "__getitems__", lambda several: [dataset[index] for index in several])
    collate(fetch(indices[0]))
    start = process_time()
    for several in indices:
        collate(fetch(several))
    return (process_time() - start) / (len(indices) * batch)


def seconds_through_workers(dataset, collate: Callable, batch: int, epochs: int) -> float:
    """Wall seconds a row, without the start of the workers and the first batch of each."""
    loader = DataLoader(dataset, batch, num_workers=2, collate_fn=collate, persistent_workers=True, drop_last=True)
    for _ in loader:
        pass
    start = perf_counter()
    for _ in range(epochs):
        for _ in loader:
            pass
    return (perf_counter() - start) / (epochs * len(loader) * batch)


def pixels(dataset) -> np.ndarray:
    return torch.stack([row["pixel_values"] for row in dataset.__getitems__(list(range(len(dataset))))]).numpy()


def difference(ours: np.ndarray, plain: np.ndarray) -> str:
    """Mean and 99th percentile, of 255."""
    absolute = np.abs(ours.astype(np.int16) - plain)
    return f"{absolute.mean():.2f} (p99 {np.percentile(absolute, 99):.0f})"


def resident() -> float:
    """MB of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def measured(kind: str, rows: datasets.Dataset, folder: Path, rounds: int, batch: int) -> list[tuple[str, ...]]:
    raw = rows.remove_columns(["name", "split"])
    ways = {
        "raw, jpeg_scale=twice": with_pixels(raw, PROCESSOR, "twice"),
        "raw, jpeg_scale=once": with_pixels(raw, PROCESSOR, "once"),
        "raw, jpeg_scale=full": with_pixels(raw, PROCESSOR, "full"),
        "prepared, shorter side 256": prepared(rows, folder / "256", PictureEncoder(256)),
        "prepared, exact size": prepared(
            rows, folder / "exact", PictureEncoder(256, PictureTransform(PROCESSOR, "full"))
        ),
    }
    targets = dict(zip(ways, (">= 2.3", "an option", "none", ">= 10", ">= 40"), strict=True))
    collate = ArtGraphCollator([TASK])
    plain = PlainRows(raw)
    cases = {name: lambda way=way: seconds_a_row(way, collate, batch) for name, way in ways.items()}
    found = interleave({"plain": lambda: seconds_a_row(plain, default_collate, batch), **cases}, rounds)
    rate = {name: [1 / value for value in values] for name, values in found.items()}
    table = [
        compare(f"{kind}: {name}, rows a second, against plain", rate[name], rate["plain"], targets[name], ".0f")
        for name in ways
    ]
    exact = pixels(ways["raw, jpeg_scale=full"])
    expected = np.stack([as_bytes(plain[index]["pixel_values"]) for index in range(len(plain))])
    allowed = {"raw, jpeg_scale=twice": "<= 0.5", "raw, jpeg_scale=once": "1.2", "prepared, exact size": "0"}
    for name, limit in allowed.items():
        ours = pixels(ways[name])
        table.append((f"{kind}: {name}, pixels against plain, of 255", difference(ours, expected), "0", "-", limit))
    assert (exact == expected).all(), "jpeg_scale=full is not the plain path"
    return table


def as_bytes(values: torch.Tensor) -> np.ndarray:
    """The bytes that the image processor rescaled and normalised."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PROCESSOR.image_mean, PROCESSOR.image_std))
    return ((values * std + mean) * 255).round().to(torch.uint8).numpy()


def main() -> None:
    given = arguments(__doc__, pictures="")
    count, rounds, batch, epochs = (8, 1, 4, 1) if given.quick else (98, 5, BATCH, 3)
    large = made_jpegs(count, *((200, 300) if given.quick else (1000, 1500)))
    small_kind, small = "500-650 pixels", []
    if given.pictures:
        paths = sorted(Path(given.pictures).glob("*.jpg"))
        small = [path.read_bytes() for path in paths if Image.open(path).mode == "RGB"][:count]
        small_kind = f"{len(small)} JPEGs of {Path(given.pictures).resolve().parent.name}"
    small = small or made_jpegs(count, *((100, 150) if given.quick else (500, 650)))
    with TemporaryDirectory() as folder:
        table = measured("1,000-1,500 pixels", rows_of(large), Path(folder, "large"), rounds, batch)
        table += measured(small_kind, rows_of(small), Path(folder, "small"), rounds, batch)
        collate = ArtGraphCollator([TASK])
        raw = rows_of(large).remove_columns(["name", "split"])
        exact = prepared(rows_of(large), Path(folder, "exact"), PictureEncoder(256, PictureTransform(PROCESSOR)))
        many = datasets.concatenate_datasets([exact] * (1 if given.quick else 20)).with_transform(
            exact.format["format_kwargs"]["transform"]
        )
        workers = interleave(
            {
                "exact": lambda: seconds_through_workers(many, collate, batch, epochs),
                "plain": lambda: seconds_through_workers(PlainRows(raw), default_collate, batch, 1),
            },
            rounds=1 if given.quick else 3,
        )
        rate = {name: [1 / value for value in values] for name, values in workers.items()}
        what = "1,000-1,500 pixels: prepared, exact size, through 2 workers, rows a second, against plain"
        table.append(compare(what, rate["exact"], rate["plain"], ">= 40", ".0f", ratios(rate["exact"], rate["plain"])))
        ways = {"raw": with_pixels(raw, PROCESSOR), "prepared, exact size": exact}
        for name, way in ways.items():
            growth = []
            for _ in range(3):
                seconds_a_row(way, collate, batch)
                growth.append(resident())
            more = datasets.concatenate_datasets([way] * 4).with_transform(way.format["format_kwargs"]["transform"])
            seconds_a_row(more, collate, batch)
            table.append(
                (
                    f"memory, {name}: MB more in the third epoch than in the first, and with 4 times the rows",
                    f"{growth[2] - growth[0]:.1f}, {resident() - growth[2]:.1f}",
                    f"{growth[0]:.0f} in all",
                    "-",
                    "0",
                )
            )
    write_table(table, given.out)


if __name__ == "__main__":
    main()
