"""A saved tiny model, and sixty pictures in a folder and in parquet files, three of them bad."""

import io
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import ViTImageProcessor

from artgraph_vit import ArtGraphPipeline

ROOT = Path(__file__).parents[2]
BAD = (7, 20, 41)
COUNT = 60
TUNED = {
    "pooling": "cls_mean",
    "thresholds": {"tags": [0.9, 0.2, 0.5, 0.05, 0.7]},
    "temperatures": {"genre": 3.0, "tags": 1.5},
}


def run_script(name: str, *arguments: object) -> None:
    """In this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / "scripts" / name), run_name="script")["main"]()


@pytest.fixture
def model_folder(tmp_path, build_model) -> Path:
    build_model(seed=1, **TUNED).save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def pipe(model_folder) -> ArtGraphPipeline:
    return ArtGraphPipeline.from_pretrained(model_folder, device="cpu")


@pytest.fixture(scope="session")
def encoded_pictures() -> list[bytes]:
    random = np.random.default_rng(0)
    pictures = []
    for number in range(COUNT):
        file = io.BytesIO()
        colours = random.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((40, 30), Image.Resampling.NEAREST).save(file, "PNG")
        pictures.append(b"no picture" if number in BAD else file.getvalue())
    return pictures


@pytest.fixture
def picture_folder(tmp_path, encoded_pictures) -> Path:
    folder = tmp_path / "pictures"
    for number, data in enumerate(encoded_pictures):
        file = folder / f"room {number // 20}" / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    (folder / "notes.txt").write_text("These are no pictures.")
    return folder


@pytest.fixture
def parquet_folder(tmp_path, encoded_pictures) -> Path:
    """The same pictures, in two files of 25 and 35 rows."""
    features = Features({"name": Value("string"), "image": ImageFeature(decode=False)})
    for part, numbers in enumerate((range(25), range(25, COUNT))):
        rows = {
            "name": [f"artwork {number}" for number in numbers],
            "image": [{"bytes": encoded_pictures[number], "path": None} for number in numbers],
        }
        folder = tmp_path / "parquet"
        folder.mkdir(exist_ok=True)
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{part}.parquet")
    return folder
