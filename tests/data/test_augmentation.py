"""Random crops, flips and colours: how they are distributed, and that only seed, epoch and picture decide."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import DataLoader
from transformers import BitImageProcessor, ViTImageProcessor

from artgraph_vit.data import PictureTransform, StreamedArtworks, with_pixels
from artgraph_vit.data.augmentation import Augmentation
from artgraph_vit.data.batches import augmentation_of, encode_exact, exact_mark
from artgraph_vit.data.options import DataArguments
from artgraph_vit.training.build import load_pictures
from tests import made_pictures

PROCESSOR = ViTImageProcessor(size={"height": 32, "width": 32})


def encoded(pixels: np.ndarray) -> dict:
    return made_pictures.encoded(Image.fromarray(pixels), "PNG")


def coordinates(width: int, height: int) -> np.ndarray:
    """A picture whose red says the column, its green the row, each from 0 to 250."""
    columns, rows = np.meshgrid(np.linspace(0, 250, width), np.linspace(0, 250, height))
    return np.stack([columns, rows, np.zeros_like(rows)], -1).astype(np.uint8)


def named(number: int) -> dict:
    return {"bytes": None, "path": f"/somewhere/{number}.jpg"}


def boxes(augmentation: Augmentation, size: tuple[int, int], count: int) -> np.ndarray:
    """The crops of many pictures of one size, `(count, 4)`."""
    return np.array([augmentation.box(size, augmentation.generator(named(number))) for number in range(count)])


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (500, 500), (350, 300)])
@pytest.mark.parametrize("scale", [0.08, 0.5])
def test_crops_keep_their_share_and_shape_and_lie_everywhere(size, scale):
    left, top, right, bottom = boxes(Augmentation(crop_scale=scale), size, 1500).T
    widths, heights = right - left, bottom - top
    shares = widths * heights / (size[0] * size[1])
    ratios = widths / heights
    rounding = 0.5 / heights.min() + 0.5 / widths.min()
    assert shares.min() > scale * (1 - 2 * rounding)
    assert shares.min() < scale + 0.05
    assert 0.75 * (1 - 2 * rounding) < ratios.min() < 0.78
    assert 1.28 < ratios.max() < 4 / 3 * (1 + 2 * rounding)
    assert left.min() == top.min() == 0
    assert right.max() == size[0]
    assert bottom.max() == size[1]
    for start, room in ((left, size[0] - widths), (top, size[1] - heights)):
        where = start[room > 20] / room[room > 20]  # uniform on [0, 1]
        assert abs(where.mean() - 0.5) < 4 / math.sqrt(12 * len(where))


def test_the_share_of_a_square_is_uniform_among_the_crops_that_fit():
    """A crop of share s fits a square if its ratio is within [s, 1/s]; log-uniform, that is -log s/log(4/3) of all."""
    assert {tuple(box) for box in boxes(Augmentation(crop_scale=0.9), (900, 100), 20)} == {(0, 0, 900, 100)}
    left, top, right, bottom = boxes(Augmentation(crop_scale=0.5), (1000, 1000), 4000).T
    shares = (right - left) * (bottom - top) / 1e6
    s = np.linspace(0.5, 1, 100_001)
    density = np.minimum(1, -np.log(s) / math.log(4 / 3))
    mean = (s * density).sum() / density.sum()
    deviation = math.sqrt((s**2 * density).sum() / density.sum() - mean**2)
    assert abs(shares.mean() - mean) < 4 * deviation / math.sqrt(len(shares))


def test_half_of_the_pictures_are_mirrored():
    augmentation = Augmentation(horizontal_flip=True)
    pixels = torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2)
    flips = 0
    for number in range(1000):
        finished = augmentation.finish(pixels, augmentation.generator(named(number)))
        mirrored = torch.equal(finished[:, :, 0], pixels[:, :, 1]) and torch.equal(finished[:, :, 1], pixels[:, :, 0])
        assert mirrored or torch.equal(finished, pixels)
        flips += mirrored
    assert abs(flips - 500) < 4 * math.sqrt(250)


def test_colours_change_by_no_more_than_the_share():
    """Grey stays grey, as bright as the factor says, for contrast and saturation leave an even grey alone."""
    augmentation = Augmentation(color_jitter=0.2)
    grey = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    values = [augmentation.finish(grey, augmentation.generator(named(number))) for number in range(400)]
    assert all((value == value[0, 0, 0]).all() for value in values)
    levels = np.array([int(value[0, 0, 0]) for value in values])
    assert 79 <= levels.min() < 83
    assert 117 < levels.max() <= 120
    assert abs(levels.mean() - 99.5) < 4 * 20 / math.sqrt(3 * 400) + 0.5
    red = torch.tensor([200, 50, 50], dtype=torch.uint8)[:, None, None].expand(3, 4, 4).contiguous()
    spans = []
    for number in range(100):
        r, g, b = augmentation.finish(red, augmentation.generator(named(number)))[:, 0, 0].tolist()
        assert r > g == b
        spans.append(r - g)
    assert min(spans) < 120  # 150 times a factor of brightness and one of saturation
    assert max(spans) > 180


def test_only_seed_epoch_and_picture_decide():
    pixels = coordinates(80, 60)

    def crop(image: dict, epoch: int = 0, seed: int = 42, augmentation: Augmentation | None = None) -> tuple:
        augmentation = augmentation or Augmentation(crop_scale=0.3, seed=seed)
        augmentation.set_epoch(epoch)
        return augmentation.box((800, 600), augmentation.generator(image))

    image = encoded(pixels)
    assert crop(image) == crop({**image, "path": "elsewhere.png"})
    assert crop({"bytes": None, "path": "/a/b/1.jpg"}) == crop({"bytes": None, "path": "c/1.jpg"})
    others = {crop(other) for other in (encoded(pixels[:, ::-1]), named(1), named(2))}
    assert len({crop(image), crop(image, epoch=1), crop(image, seed=1), *others}) == 6
    augmentation = Augmentation(crop_scale=0.3)
    assert crop(image, 5, augmentation=augmentation) == crop(image, 5)
    assert crop(image, 0, augmentation=augmentation) == crop(image)
    for other in (pickle.loads(pickle.dumps(augmentation)), copy.deepcopy(augmentation)):
        assert crop(image, 3, augmentation=other) == crop(image, 3)


@pytest.mark.parametrize(
    "processor", [PROCESSOR, BitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})]
)
def test_the_model_is_shown_the_crop_as_if_it_were_the_picture(processor):
    augmentation = Augmentation(crop_scale=0.3)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image = encoded(pixels)
    left, top, right, bottom = augmentation.box((80, 60), augmentation.generator(image))
    assert (right - left) * (bottom - top) < 80 * 60
    shown = PictureTransform(processor, augmentation=augmentation).pixels(image)
    assert torch.equal(shown, PictureTransform(processor).pixels(encoded(pixels[top:bottom, left:right])))


def test_prepared_pictures_are_cropped_and_mirrored_at_their_final_size():
    processor = BitImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})
    pixels = coordinates(64, 64)
    image = {"bytes": encode_exact(pixels, exact_mark(processor)), "path": None}
    mirrored = PictureTransform(processor, augmentation=Augmentation(horizontal_flip=True))
    seen = set()
    for epoch in range(8):
        mirrored.augmentation.set_epoch(epoch)
        columns = mirrored.pixels(image).permute(1, 2, 0).numpy()
        seen.add(bool((columns == pixels[:, ::-1]).all()))
        assert (columns == pixels).all() or (columns == pixels[:, ::-1]).all()
    assert seen == {True, False}
    cropped = PictureTransform(processor, augmentation=Augmentation(crop_scale=0.3))
    shares = []
    for epoch in range(40):
        cropped.augmentation.set_epoch(epoch)
        found = cropped.pixels(image)
        assert found.shape == (3, 64, 64)
        red, green = found[0, 32].int(), found[1, :, 32].int()
        shares.append(int(red[-1] - red[0]) * int(green[-1] - green[0]) / 250**2)
    assert 0.25 < min(shares) < 0.5
    assert max(shares) > 0.7


# ---- through datasets, streams and workers ----


def rows(count: int) -> Dataset:
    random = np.random.default_rng(3)
    images = [encoded(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(count)]
    features = Features({"image": ImageFeature(decode=False), "number": Value("int64")})
    return Dataset.from_dict({"image": images, "number": list(range(count))}, features=features)


def passes(dataset, workers: int, epochs=(0, 1, 0)) -> list[torch.Tensor]:
    """The pixels of several epochs, from the same persistent workers."""

    def collate(rows: list[dict]) -> torch.Tensor:
        return torch.stack([row["pixel_values"] for row in rows])

    loader = DataLoader(dataset, 4, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate)
    found = []
    for epoch in epochs:
        augmentation_of(dataset).set_epoch(epoch)
        found.append(torch.cat(list(loader)))
    loader._iterator = None  # ends the workers
    return found


@pytest.mark.parametrize("streamed", [False, True])
def test_the_epoch_reaches_workers_and_all_see_the_same(streamed):
    def build():
        augmentation = Augmentation(crop_scale=0.4, horizontal_flip=True)
        if not streamed:
            return with_pixels(rows(12), PROCESSOR, augmentation=augmentation)
        transform = PictureTransform(PROCESSOR, augmentation=augmentation)
        return StreamedArtworks(rows(12).to_iterable_dataset(), transform, 12, 0).part(0, 1, 4)

    first, second, again = passes(build(), workers=0)
    assert torch.equal(first, again)
    assert all(not torch.equal(one, other) for one, other in zip(first, second, strict=True))
    for one, other in zip((first, second, again), passes(build(), workers=2), strict=True):
        assert torch.equal(one, other)
    flat = passes(with_pixels(rows(12), PROCESSOR, augmentation=Augmentation(0.4, True)), workers=0)
    assert torch.equal(flat[1], second)  # read as a stream or not


def test_only_the_train_split_is_augmented():
    splits = DatasetDict({split: rows(3) for split in ("train", "validation", "test")})
    data = DataArguments(source="somewhere", crop_scale=0.3, horizontal_flip=True, color_jitter=0.1)
    assert DataArguments(source="somewhere").augmentation(seed=1) is None
    plain = load_pictures(splits, [], data, PROCESSOR)
    assert augmentation_of(plain["train"]) is augmentation_of([]) is None
    augmented = load_pictures(splits, [], data, PROCESSOR, data.augmentation(seed=7))
    assert augmentation_of(augmented["train"]) == Augmentation(0.3, True, 0.1, seed=7)
    for split in splits:
        for one, other in zip(plain[split], augmented[split], strict=True):
            assert torch.equal(one["pixel_values"], other["pixel_values"]) == (split != "train")


@pytest.mark.parametrize(
    ("option", "value"), [("crop_scale", 0.0), ("crop_scale", 1.1), ("color_jitter", -0.1), ("color_jitter", math.nan)]
)
def test_a_number_out_of_its_range_is_an_error(option, value):
    with pytest.raises(ValueError, match=f"{option}=.*: use a number"):
        DataArguments(source="somewhere", **{option: value})
