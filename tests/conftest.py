"""Shared fixtures: small tasks, a tiny ViT, batches with unknown labels and ArtGraph folders, without a download."""

import csv
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from transformers import ViTConfig

from artgraph_vit import ArtGraphViTConfig, ArtGraphViTForImageClassification, Task
from artgraph_vit.model.tasks import MULTI_LABEL, SINGLE_LABEL

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
torch.set_num_threads(1)  # tiny models are not worth more, and two test processes share two cores

COLUMNS = ("image", "artist", "style", "genre", "tags", "media")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """Where checked pictures and frozen features are kept, in this process and those it starts: not the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", folder)
    monkeypatch.setenv("HF_HOME", str(folder))
    return folder


@pytest.fixture
def tiny() -> dict:
    """The sizes of a tiny transformer for pictures of 16x16 pixels."""
    return dict(TINY)


@pytest.fixture
def tasks() -> list[Task]:
    return [
        Task("artist", SINGLE_LABEL, ("ada", "bea", "cleo", "other"), rare="other"),
        Task("genre", SINGLE_LABEL, ("landscape", "portrait", "still life")),
        Task("tags", MULTI_LABEL, ("Tree", "boat", "female-portraits", "sea", "sky"), rare="drop"),
    ]


@pytest.fixture
def build_model(tasks):
    """`build_model(**config_options)`: a tiny ViT whose heads are large enough for the losses to differ."""

    def build(seed: int = 0, **options) -> ArtGraphViTForImageClassification:
        torch.manual_seed(seed)
        options = {"backbone_config": ViTConfig(**TINY), "tasks": tasks, **options}
        model = ArtGraphViTForImageClassification(ArtGraphViTConfig(**options)).eval()
        with torch.no_grad():
            for head in model.heads.values():
                head.weight.normal_()
                head.bias.normal_()
        return model

    return build


@pytest.fixture
def make_batch(tasks):
    """`make_batch(rows, seed, unknown)`: random pictures and labels, a share of the rows and entries unknown."""

    def make(rows: int = 6, seed: int = 0, unknown: float = 0.3, dtype: torch.dtype = torch.float32) -> dict:
        random = torch.Generator().manual_seed(seed)
        labels = {}
        for task in tasks:
            shape = (rows, task.num_labels) if task.is_multi_label else (rows,)
            top = 2 if task.is_multi_label else task.num_labels
            values = torch.randint(0, top, shape, generator=random)
            values[torch.rand(rows, generator=random) < unknown] = -100
            if task.is_multi_label:
                values[torch.rand(shape, generator=random) < unknown / 2] = -100
                values = values.to(dtype)
            labels[task.name] = values
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=random).to(dtype), "labels": labels}

    return make


@pytest.fixture
def artgraph_folder(tmp_path):
    """`artgraph_folder(rows or text, splits)`: writes an ArtGraph export with one small picture a row."""

    def write(
        rows: list[dict] | None = None, text: str | None = None, splits: dict | None = None, pictures=()
    ) -> Path:
        folder = tmp_path / "artgraph"
        (folder / "images").mkdir(parents=True)
        with open(folder / "artgraph_dataset.csv", "w", newline="", encoding="utf-8") as file:
            if text is not None:
                file.write(text)
            else:
                writer = csv.DictWriter(file, COLUMNS, restval="")
                writer.writeheader()
                writer.writerows(rows)
        for name in pictures or [row["image"] for row in rows or ()]:
            Image.new("RGB", (4, 4), "teal").save(folder / "images" / name)
        for name, names in (splits or {}).items():
            (folder / "splits").mkdir(exist_ok=True)
            (folder / "splits" / f"{name}.txt").write_text("".join(f"{n}\n" for n in names), encoding="utf-8")
        return folder

    return write
