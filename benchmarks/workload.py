"""What the benchmarks work on: models, rows and batches of any size, with random weights and labels; and the clock.

On a CPU all work is done by one thread, and the clock is the CPU time of the process: it does not see what other jobs
take. On a GPU it is wall time, and the GPU is waited for.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from PIL import Image
from transformers import PrinterCallback, Trainer, ViTConfig, ViTImageProcessorPil

from artgraph_vit import ArtGraphViTConfig, ArtGraphViTForImageClassification, Task
from artgraph_vit.data import ArtGraphCollator, with_pixels
from artgraph_vit.model.tasks import MULTI_LABEL, SINGLE_LABEL
from artgraph_vit.training.arguments import ArtGraphTrainingArguments
from artgraph_vit.training.trainer import ArtGraphTrainer

transformers.logging.set_verbosity_error()
datasets.disable_progress_bars()
if not torch.cuda.is_available():
    torch.set_num_threads(1)

ARTGRAPH = {"artist": 243, "style": 32, "genre": 18, "tags": 429, "media": 31}
VIT_B: dict[str, int] = {}  # the defaults of ViTConfig are ViT-B/16 at 224
TINY = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 16, "patch_size": 8}
IS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if IS_GPU else "cpu"
ONLY_TRAIN = {"eval_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
ONLY_TRAIN |= {"dataloader_pin_memory": IS_GPU}


def make_tasks(sizes: Mapping[str, int] = ARTGRAPH) -> list[Task]:
    """Tasks with so many labels; those whose names begin with tags or media are multi-label."""
    kinds = {name: MULTI_LABEL if name.startswith(("tags", "media")) else SINGLE_LABEL for name in sizes}
    return [Task(name, kinds[name], tuple(f"{name}-{i}" for i in range(size))) for name, size in sizes.items()]


def make_model(vit: Mapping[str, int], sizes: Mapping[str, int] = ARTGRAPH) -> ArtGraphViTForImageClassification:
    """The same random weights each time; `vit` are options of `ViTConfig`."""
    torch.manual_seed(0)
    config = ArtGraphViTConfig(backbone_config=ViTConfig(**vit), tasks=make_tasks(sizes))
    return ArtGraphViTForImageClassification(config)


class RandomRows(torch.utils.data.Dataset):
    """Rows that are made when they are fetched, and never stored; a third of the labels is unknown."""

    def __init__(self, count: int, image_size: int, sizes: Mapping[str, int] = ARTGRAPH):
        self.count, self.image_size, self.tasks = count, image_size, make_tasks(sizes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        pixels = torch.randn(3, self.image_size, self.image_size, generator=generator)
        return {"pixel_values": pixels, **self.labels(index)}

    def labels(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        labels: dict[str, Any] = {}
        for task in self.tasks:
            unknown, *drawn = torch.randint(0, 2**30, (4,), generator=generator).tolist()
            drawn = sorted({label % task.num_labels for label in drawn})
            labels[task.name] = None if unknown % 3 == 0 else drawn if task.is_multi_label else drawn[0]
        return labels


def make_batches(count: int, rows: int, image_size: int, sizes: Mapping[str, int] = ARTGRAPH) -> list[dict[str, Any]]:
    """So many batches of so many rows."""
    source = RandomRows(count * rows, image_size, sizes)
    collator = ArtGraphCollator(source.tasks)
    return [collator([source[index] for index in range(i * rows, (i + 1) * rows)]) for i in range(count)]


class Preloaded(torch.utils.data.Dataset):
    """Whole batches in the place of rows, as many as there are steps; `take` is their collator."""

    def __init__(self, batches: list[dict[str, Any]], steps: int):
        self.batches, self.steps = batches, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.batches[index % len(self.batches)]


def take(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return rows[0]


def jpeg_rows(count: int, first: int = 0, edge: int = 320) -> datasets.Dataset:
    """Rows as the library reads them: JPEGs, decoded and processed to 224 pixels when they are fetched."""
    source = RandomRows(0, 0)
    indices = range(first, first + count)
    rows = [{"image": {"bytes": _jpeg(index, edge), "path": None}, **source.labels(index)} for index in indices]
    return with_pixels(datasets.Dataset.from_list(rows), ViTImageProcessorPil())


def _jpeg(seed: int, edge: int) -> bytes:
    colours = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize((edge, edge), Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    return file.getvalue()


def make_trainer(folder: str | Path, model, train=None, evaluation=None, collator=None, callbacks=(), **options):
    """Ours, which trains and does nothing else unless told so."""
    options = ONLY_TRAIN | {"load_best_model_at_end": False, "frozen_epochs": 0} | options
    return quiet(
        ArtGraphTrainer(
            model=model,
            args=ArtGraphTrainingArguments(output_dir=str(folder), **options),
            data_collator=collator or ArtGraphCollator(model.config.tasks),
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=ViTImageProcessorPil(),
            callbacks=list(callbacks),
        )
    )


def quiet(trainer: Trainer) -> Trainer:
    """Stdout is for the table."""
    trainer.remove_callback(PrinterCallback)
    return trainer


def now() -> float:
    """Seconds of the clock described above."""
    if not IS_GPU:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()
