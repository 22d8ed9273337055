"""From rows to a batch: shapes, types, -100 for unknown, and pixels made when a row is fetched."""

import io

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    ConvNextImageProcessor,
    EfficientNetImageProcessor,
    ViTImageProcessor,
)

from artgraph_vit.data import (
    ArtGraphCollator,
    Augmentation,
    PictureTransform,
    PixelNormalizer,
    batches,
    read_picture,
    with_pixels,
)
from artgraph_vit.data.batches import encode_exact, exact_mark
from artgraph_vit.errors import UserError
from tests.made_pictures import encoded


def painting(width: int, height: int, **options) -> dict:
    """An undecoded JPEG with large shapes, edges and some grain."""
    random = np.random.default_rng(width + height)
    shapes = Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize((width, height), 3)
    edges = Image.fromarray(random.integers(0, 256, (20, 20, 3), dtype=np.uint8)).resize((width, height), 0)
    grain = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return encoded(Image.blend(Image.blend(shapes, edges, 0.3), grain, 0.1), "JPEG", quality=90, **options)


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


@pytest.fixture
def rows() -> Dataset:
    """A large red picture and a small grey one, with labels."""
    pictures = [encoded(Image.new("RGB", (50, 30), (255, 0, 0)), "PNG"), encoded(Image.new("L", (3, 5), 51), "PNG")]
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


def test_pixels_are_resized_bytes_and_normalised_as_the_image_processor_says(rows):
    processor = ViTImageProcessor(size={"height": 8, "width": 6}, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    fetched = with_pixels(rows, processor)[:]
    assert [pixels.dtype for pixels in fetched["pixel_values"]] == [torch.uint8] * 2
    red, grey = PixelNormalizer(processor)(torch.stack(fetched["pixel_values"]))
    assert red.shape == (3, 8, 6)
    np.testing.assert_allclose(red[:, 4, 3], [2, -2, -2], atol=1e-6)  # (1 - .5)/.25 and (0 - .5)/.25
    np.testing.assert_allclose(grey, (51 / 255 - 0.5) / 0.25, atol=1e-6)
    assert fetched["genre"] == [1, None]
    assert fetched["tags"] == [[0], None]


PROCESSORS = [
    ViTImageProcessor(),
    ViTImageProcessor(size={"height": 96, "width": 64}, do_rescale=False, do_normalize=False),
    ViTImageProcessor(do_normalize=False, rescale_factor=1 / 127.5),
    BitImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}),
]


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("size", [(700, 500), (300, 900), (40, 30)])
def test_without_draft_the_pixels_are_those_of_the_image_processor(processor, size):
    image = painting(*size)
    expected = processor(Image.open(io.BytesIO(image["bytes"])).convert("RGB"), return_tensors="pt")["pixel_values"]
    pixels = PictureTransform(processor, "full").pixels(image)
    torch.testing.assert_close(PixelNormalizer(processor)(pixels[None]), expected.float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("jpeg_scale", "mean", "top"), [("twice", 0.7, 6), ("once", 2.0, 20)])
def test_a_jpeg_decoded_smaller_gives_nearly_the_same_pixels(jpeg_scale, mean, top):
    processor = ViTImageProcessor()
    image = painting(1400, 1000)
    full, small = (PictureTransform(processor, s).pixels(image).float() for s in ("full", jpeg_scale))
    difference = (full - small).abs()
    assert 0 < difference.mean() <= mean
    assert difference.quantile(0.99) <= top


@pytest.mark.parametrize("processor", PROCESSORS)
def test_jpeg_scale_says_how_large_a_jpeg_is_decoded(processor, monkeypatch):
    """Twice what the model takes, of 2,000 pixels, in the scales a JPEG has: an eighth and its multiples."""
    sizes = []

    def recorded(*args, **options):
        picture = read_picture(*args, **options)
        sizes.append(picture.width)
        return picture

    monkeypatch.setattr(batches, "read_picture", recorded)
    image = painting(2000, 2000)
    largest = max(processor.size.get(side) or 0 for side in ("height", "width", "shortest_edge"))
    quarter = Augmentation(crop_scale=0.25)  # of the area, for which a side must be twice as long
    for jpeg_scale, needed, augmentation in (
        ("twice", 2 * largest, None),
        ("once", largest, None),
        ("full", 2000, None),
        ("once", 2 * largest, quarter),
    ):
        PictureTransform(processor, jpeg_scale, augmentation).pixels(image)
        assert sizes[-1] == min(side for side in (250, 500, 1000, 2000) if side >= needed)


def test_a_turned_jpeg_is_decoded_smaller_and_turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = painting(1600, 800, exif=exif)
    pixels = PictureTransform(ViTImageProcessor(), "twice").pixels(image).float()
    whole = PictureTransform(ViTImageProcessor(), "full").pixels(image).float()
    assert (pixels - whole).abs().mean() < 1


def test_prepared_pixels_are_taken_as_they_are():
    processor = BitImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})
    picture = Image.open(io.BytesIO(painting(300, 200)["bytes"]))
    pixels = processor(picture, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    data = encode_exact(pixels.transpose(1, 2, 0), exact_mark(processor))
    taken = PictureTransform(processor).pixels({"bytes": data, "path": None})
    assert (taken.numpy() == pixels).all()
    assert (np.asarray(read_picture({"bytes": data})) == pixels.transpose(1, 2, 0)).all()  # a picture like any other
    with pytest.raises(UserError, match="prepared for an image processor that resizes otherwise"):
        PictureTransform(ViTImageProcessor()).pixels({"bytes": data, "path": None})


def test_prepared_pixels_know_their_processor_again_after_it_was_saved(tmp_path):
    for processor in PROCESSORS:
        processor.save_pretrained(tmp_path)
        assert exact_mark(AutoImageProcessor.from_pretrained(tmp_path)) == exact_mark(processor)


def test_prepared_pixels_of_other_settings_have_another_mark():
    """Also settings that one processor alone has."""
    marks = [exact_mark(ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=share)) for share in (0.875, 0.5)]
    marks += [exact_mark(processor) for processor in PROCESSORS]
    assert len(set(marks)) == 5  # the processors that only normalise otherwise make the same bytes
    assert exact_mark(ViTImageProcessor(image_mean=[0.1] * 3, rescale_factor=0.5)) == exact_mark(ViTImageProcessor())


def test_one_number_for_the_three_colours_is_taken():
    normalizer = PixelNormalizer(ViTImageProcessor(image_mean=0.25, image_std=0.5))
    values = normalizer(torch.full((1, 3, 2, 2), 51, dtype=torch.uint8))
    torch.testing.assert_close(values, torch.full((1, 3, 2, 2), (0.2 - 0.25) / 0.5))


def test_an_image_processor_that_does_more_than_normalise_is_refused():
    """EfficientNet's normalises twice, which nobody could do again on the device."""
    with pytest.raises(UserError, match=r"EfficientNetImageProcessor.* does more than to resize, crop, rescale"):
        PictureTransform(EfficientNetImageProcessor())
