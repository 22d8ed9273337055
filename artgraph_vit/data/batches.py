"""From encoded rows to a batch: `PictureTransform` makes pixels when a row is fetched, the collator stacks.

Pixels stay bytes until they are on the device, where [`PixelNormalizer`] makes floats of them. A picture that
scripts/prepare.py made for the image processor is taken as it is: a PPM file of pixels resized and cropped already,
with a comment in its header that says by which processor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from ..errors import UserError
from ..model.pictures import decoding_side, read_picture
from ..model.tasks import UNKNOWN, Task
from .augmentation import Augmentation
from .streaming import StreamedArtworks

JPEG_SCALES = {"twice": 2, "once": 1, "full": None}
_MARK = b"P6\n# artgraph_vit "
# What does not change the bytes: it comes after them, or says nothing of pixels.
_AFTER = {"do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "return_tensors", "data_format"}
_AFTER |= {"image_processor_type", "processor_class", "_processor_class", "_name_or_path", "device"}


def size_to_decode(jpeg_scale: str, side: int) -> int | None:
    """The pixels that a side of a JPEG must at least be decoded to, for a picture that becomes `side` pixels."""
    times = JPEG_SCALES[jpeg_scale]
    return times * side if times else None


@dataclass
class PictureTransform:
    """Turns the column `image` of a batch of rows into `pixel_values`, each uint8 `(3, H, W)`.

    Args:
        image_processor (`BaseImageProcessor`): the one of the model's backbone; it resizes and crops.
        jpeg_scale (`str`, *optional*, defaults to `"twice"`): decode JPEGs at the smallest of their scales that is
            still at least `"twice"` (pictures of 1,000 to 1,500 pixels then differ by 0.6 of 255 in the mean) or
            `"once"` (1.3 of 255, faster) the size that the model takes, or in `"full"`.
        augmentation ([`Augmentation`], *optional*): for train pictures.

    Raises:
        UserError: if a picture was prepared for another image processor.
    """

    image_processor: BaseImageProcessor
    jpeg_scale: str = "twice"
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        self.exact_mark = exact_mark(self.image_processor)
        # Resizing first and normalising later must be what the image processor does at once.
        picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5)
        at_once = self.image_processor(picture, return_tensors="pt")["pixel_values"]
        pixels = self._resized(picture)[None]
        later = PixelNormalizer(self.image_processor)(pixels)
        if pixels.dtype != torch.uint8 or not torch.allclose(later, at_once.float(), atol=1e-4):
            does = f"{type(self.image_processor).__name__} does more than to resize, crop, rescale and normalise"
            raise UserError(f"{does}, in this order: choose another backbone.")

    def __call__(self, rows: dict[str, list]) -> dict[str, list]:
        others = {name: values for name, values in rows.items() if name != "image"}
        return {"pixel_values": [self.pixels(image) for image in rows["image"]], **others}

    def pixels(self, image: Mapping[str, Any]) -> Tensor:
        """One undecoded picture as the model sees it, uint8 `(3, H, W)`."""
        prepared, augmentation = exact_pixels(image, self.exact_mark), self.augmentation
        if augmentation is None:
            if prepared is not None:
                return torch.from_numpy(prepared).permute(2, 0, 1)
            return self._resized(read_picture(image, self._size_to_decode()))
        random = augmentation.generator(image)
        picture = read_picture(image, self._size_to_decode()) if prepared is None else Image.fromarray(prepared)
        box = augmentation.box(picture.size, random)
        if prepared is None:
            pixels = self._resized(picture.crop(box))
        else:  # of the final size, which its crops get too
            resized = picture.resize(picture.size, Image.Resampling.BICUBIC, box=box)
            pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
        return augmentation.finish(pixels, random)

    def _resized(self, picture: Image.Image) -> Tensor:
        resized = self.image_processor(picture, do_rescale=False, do_normalize=False, return_tensors="pt")
        return resized["pixel_values"][0]

    def _size_to_decode(self) -> int | None:
        times = JPEG_SCALES[self.jpeg_scale]
        side = decoding_side(self.image_processor, times) if times else None
        return self.augmentation.side_before_crop(side) if side and self.augmentation else side


class PixelNormalizer:
    """Pixels as the backbone takes them: rescaled and normalised as its `image_processor` says, where they are."""

    def __init__(self, image_processor: BaseImageProcessor):
        does = image_processor.to_dict()
        self.factor = float(does["rescale_factor"]) if does.get("do_rescale") else 1.0
        mean, std = (does["image_mean"], does["image_std"]) if does.get("do_normalize") else (0.0, 1.0)
        three = torch.zeros(3)
        self.mean_std = torch.stack([three + torch.tensor(mean), three + torch.tensor(std)])[..., None, None]

    def settings(self) -> list[float]:
        return [self.factor, *self.mean_std.flatten().tolist()]

    def __call__(self, pixels: Tensor) -> Tensor:
        """From uint8 `(B, 3, H, W)` to float32 of the same shape."""
        if self.mean_std.device != pixels.device:  # once: a copy at each batch would make the host wait for a GPU
            self.mean_std = self.mean_std.to(pixels.device)
        mean, std = self.mean_std
        return (pixels.float() * self.factor - mean) / std


@dataclass
class ArtGraphCollator:
    """Stacks rows into a batch.

    Reads `pixel_values`, or `pooled` where the backbone's features were computed before, and one key a task. Returns
    `pixel_values`, `(B, 3, H, W)`, bytes (see [`PixelNormalizer`]) or floats as the rows have them, or `pooled`, float
    `(B, hidden)`; `labels`, a dict of int64 `(B,)` for single-label and float32 `(B, C)` for multi-label tasks, -100
    where unknown; and `numbers`, int64 `(B,)`, of rows that know their `number`.

    Args:
        tasks (`Sequence[Task]`): with their labels.
        with_names (`bool`, *optional*, defaults to `False`): return `names` too, a list of what the artworks are
            called, where rows have a `name`; for who reports on rows, since the model does not take it.
    """

    tasks: Sequence[Task]
    with_names: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        key = "pooled" if "pooled" in rows[0] else "pixel_values"
        batch = {key: torch.stack([row[key] for row in rows]), "labels": self.labels(rows)}
        if self.with_names and "name" in rows[0]:
            batch["names"] = [row["name"] for row in rows]
        if "number" in rows[0]:
            batch["numbers"] = torch.tensor([row["number"] for row in rows])
        return batch

    def labels(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        labels = {}
        for task in self.tasks:
            values = [row[task.name] for row in rows]
            if task.is_multi_label:
                labels[task.name] = torch.zeros(len(rows), task.num_labels)
                for target, value in zip(labels[task.name], values, strict=True):
                    # Where nobody recorded a label, that does not mean that none applies.
                    target[value or slice(None)] = 1 if value else UNKNOWN
            else:
                labels[task.name] = torch.tensor([UNKNOWN if value is None else value for value in values])
        return labels


def with_pixels(
    rows: Dataset,
    image_processor: BaseImageProcessor,
    jpeg_scale: str = "twice",
    augmentation: Augmentation | None = None,
) -> Dataset:
    """The same rows, whose pictures are decoded and resized, and augmented if asked, when they are fetched."""
    return rows.with_transform(PictureTransform(image_processor, jpeg_scale, augmentation))


def picture_transform(rows: Any) -> PictureTransform | None:
    """The transform of a dataset that [`with_pixels`] made; None for any other dataset."""
    transform = rows.format["format_kwargs"].get("transform") if isinstance(rows, Dataset) else None
    return transform if isinstance(transform, PictureTransform) else None


def augmentation_of(rows: Any) -> Augmentation | None:
    """The augmentation of a dataset that [`with_pixels`] made, or of a stream; None if it has none."""
    transform = rows.transform if isinstance(rows, StreamedArtworks) else picture_transform(rows)
    return getattr(transform, "augmentation", None)


# ---- pictures stored at the very size a model takes ----


def exact_mark(image_processor: BaseImageProcessor) -> bytes:
    """The beginning of the files that are prepared for an image processor; it names how that resizes and crops."""
    settings = {name: value for name, value in image_processor.to_dict().items() if name not in _AFTER}
    settings = {name: value for name, value in settings.items() if value is not None}
    settings["processor"] = type(image_processor).__name__.removesuffix("Fast").removesuffix("Pil")
    geometry = json.dumps(settings, default=dict, sort_keys=True)
    return _MARK + hashlib.sha256(geometry.encode()).hexdigest()[:16].encode() + b"\n"


def encode_exact(pixels: np.ndarray, mark: bytes) -> bytes:
    """A PPM file of pixels, uint8 `(H, W, 3)`, that an image processor has resized and cropped."""
    height, width, _ = pixels.shape
    return mark + f"{width} {height}\n255\n".encode() + pixels.tobytes()


def exact_pixels(image: Mapping[str, Any], mark: bytes) -> np.ndarray | None:
    """The pixels of an undecoded picture, uint8 `(H, W, 3)`, if it was prepared for the image processor that has the
    mark, which it must have been if for any; None for any other picture."""
    data = image.get("bytes")
    if data is None or not data.startswith(_MARK):
        return None
    if not data.startswith(mark):
        raise UserError(
            "The pictures were prepared for an image processor that resizes otherwise than this backbone's: prepare "
            "them anew."
        )
    size, _, pixels = data[len(mark) :].split(b"\n", 2)
    width, height = map(int, size.split())
    return np.frombuffer(bytearray(pixels), np.uint8).reshape(height, width, 3)  # a copy, which may be written to
