"""Which pictures count as nearly the same: the changes a copy has seen do not matter, other pictures do."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from artgraph_vit.preparing.duplicates import exact_duplicates, near_duplicates
from artgraph_vit.preparing.encoding import PictureEncoder


def encoded(picture: Image.Image):
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=0)
    return PictureEncoder(256)({"bytes": file.getvalue(), "path": None})


def found(train: list[Image.Image], test: list[Image.Image]) -> list[tuple[int, int]]:
    """The pairs (number in train, number in test)."""
    pictures = [encoded(picture) for picture in (*train, *test)]
    names = [*(f"train {i}" for i in range(len(train))), *(f"test {i}" for i in range(len(test)))]
    artworks = [
        {"name": name, "split": name.split()[0], "digest": picture.digest, "thumbnail": picture.thumbnail.hex()}
        for name, picture in zip(names, pictures, strict=True)
    ]
    pairs = near_duplicates(artworks, progress=False)
    return sorted(tuple(int(artwork["name"].split()[1]) for artwork in pair["artworks"]) for pair in pairs)


def landscape(seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    large = Image.fromarray(random.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((420, 330), 3)
    fine = Image.fromarray(random.integers(0, 256, (60, 70, 3), dtype=np.uint8)).resize((420, 330), 3)
    return Image.blend(large, fine, 0.2)


def saved(picture: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file)


def cut(picture: Image.Image, share: float) -> Image.Image:
    width, height = picture.size
    return picture.crop((int(width * share), int(height * share), int(width * (1 - share)), int(height * (1 - share))))


COPIES = {
    "quality 30": lambda picture: saved(picture, 30),
    "half the size": lambda picture: picture.resize((picture.width // 2, picture.height // 2)),
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.2),
    "grey": lambda picture: picture.convert("L"),
    "cut by 1 %": lambda picture: cut(picture, 0.01),
}


@pytest.mark.parametrize("change", COPIES)
def test_a_changed_copy_is_found_and_other_pictures_are_not(change):
    train = [landscape(seed) for seed in range(12)]
    test = [landscape(100), COPIES[change](train[3]), landscape(101), COPIES[change](train[8])]
    assert found(train, test) == [(3, 1), (8, 3)]


def drawing(number: int) -> Image.Image:
    picture = Image.new("RGB", (300, 300), "white")
    draw = ImageDraw.Draw(picture)
    shapes = [
        lambda: draw.ellipse((60, 60, 240, 240), outline="black", width=6),
        lambda: draw.rectangle((90, 90, 210, 210), fill="black"),
        lambda: (draw.line((0, 0, 300, 300), "black", 8), draw.line((0, 300, 300, 0), "black", 8)),
        lambda: draw.text((30, 140), "a line of text on a sheet", "black"),
        lambda: draw.rectangle((0, 0, 70, 70), fill="black"),
        lambda: None,
    ]
    shapes[number % len(shapes)]()
    return picture


def test_drawings_on_white_are_not_each_other():
    drawings = [drawing(number) for number in range(6)]
    assert found(drawings[:3], drawings[3:]) == []
    assert found(drawings[3:], drawings[:3]) == []


def test_blank_pictures_do_not_flood_the_report():
    blanks = [Image.new("RGB", (64, 64), (200 + number,) * 3) for number in range(20)]
    assert found(blanks, blanks) == []


def test_the_very_same_picture_is_a_duplicate_and_no_near_one():
    picture = landscape(1)
    assert found([picture, picture], [picture]) == []
    digest = encoded(picture).digest
    rows = (("a", "train", digest), ("b", "test", "x"), ("c", "train", "y"), ("d", "test", digest))
    groups = exact_duplicates([{"name": name, "split": split, "digest": of} for name, split, of in rows])
    assert groups == [[{"name": "a", "split": "train"}, {"name": "d", "split": "test"}]]


@pytest.mark.skipif("ARTGRAPH_SHARED" not in os.environ, reason="needs ARTGRAPH_SHARED, the folder with paintings/")
def test_real_paintings_are_found_again_and_not_taken_for_others():
    paths = sorted((Path(os.environ["ARTGRAPH_SHARED"]) / "paintings" / "images").glob("*.jpg"))
    paintings = [Image.open(path).convert("RGB") for path in paths]
    assert found(paintings[::2], paintings[1::2]) == []
    some = paintings[::12]
    for name, change in COPIES.items():
        if name == "grey":
            continue  # some of them are, and then it is the very same picture
        assert found(some, [change(picture) for picture in some]) == [(i, i) for i in range(len(some))], name
    halves = found(some, [cut(picture, 0.02) for picture in some])
    assert len(halves) >= 0.8 * len(some)
