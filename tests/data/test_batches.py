"""From rows to a batch: shapes, types, -100 for unknown, and pixels made when a row is fetched."""

import io

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import ViTImageProcessor

from artgraph_vit.data import ArtGraphCollator, with_pixels


def test_a_batch_has_the_agreed_shapes_and_types(tasks):
    rows = [
        {"pixel_values": torch.full((3, 8, 8), float(i)), "artist": artist, "genre": genre, "tags": tags}
        for i, (artist, genre, tags) in enumerate([(3, 0, [0, 4]), (None, 2, None), (0, None, [])])
    ]
    batch = ArtGraphCollator(tasks)(rows)
    assert batch.keys() == {"pixel_values", "labels"}
    assert batch["pixel_values"].shape == (3, 3, 8, 8)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [0, 1, 2]
    labels = batch["labels"]
    assert labels["artist"].tolist() == [3, -100, 0]
    assert labels["genre"].tolist() == [0, 2, -100]
    assert labels["tags"].tolist() == [[1, 0, 0, 0, 1], [-100] * 5, [-100] * 5]  # no tag recorded: unknown
    assert {name: label.dtype for name, label in labels.items()} == {
        "artist": torch.int64,
        "genre": torch.int64,
        "tags": torch.float32,
    }


def test_a_batch_of_unknown_labels_only_keeps_its_types(tasks):
    labels = ArtGraphCollator(tasks).labels([{"artist": None, "genre": None, "tags": None}] * 2)
    assert labels["artist"].dtype == torch.int64
    assert labels["tags"].shape == (2, 5)
    assert all((label == -100).all() for label in labels.values())


@pytest.fixture
def rows() -> Dataset:
    """A large red picture and a small grey one, with labels."""
    pictures = []
    for picture in (Image.new("RGB", (50, 30), (255, 0, 0)), Image.new("L", (3, 5), 51)):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        pictures.append({"bytes": buffer.getvalue(), "path": None})
    features = Features(
        {
            "image": ImageFeature(decode=False),
            "name": Value("string"),
            "genre": ClassLabel(names=["a", "b"]),
            "tags": List(ClassLabel(names=["x", "y"])),
        }
    )
    values = {"image": pictures, "name": ["red", "grey"], "genre": [1, None], "tags": [[0], None]}
    return Dataset.from_dict(values, features=features)


def test_pixels_are_resized_and_normalised_as_the_image_processor_says(rows):
    processor = ViTImageProcessor(size={"height": 8, "width": 6}, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    fetched = with_pixels(rows, processor)[:]
    red, grey = fetched["pixel_values"]
    assert red.shape == (3, 8, 6)
    np.testing.assert_allclose(red[:, 4, 3], [2, -2, -2], atol=1e-6)  # (1 - .5)/.25 and (0 - .5)/.25
    np.testing.assert_allclose(grey, (51 / 255 - 0.5) / 0.25, atol=1e-6)
    assert fetched["genre"] == [1, None]
    assert fetched["tags"] == [[0], None]


def test_fetched_rows_go_straight_into_a_batch(rows, tasks):
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    fetched = with_pixels(rows, processor).__getitems__([1, 0])
    wanted = [task.with_labels(("a", "b")) for task in tasks if task.name in ("genre", "tags")]
    batch = ArtGraphCollator(wanted)(fetched)
    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    assert batch["labels"]["genre"].tolist() == [-100, 1]
    assert batch["labels"]["tags"].tolist() == [[-100, -100], [1, 0]]
