"""An image processor in words that stand in a file's metadata, and pixels made after these words with Pillow alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from transformers import BaseImageProcessor

from ..data import PixelNormalizer
from ..errors import UserError

MAX_LEVELS = 2  # of 255: two libraries that resize with the same filter round differently, and no more


def describe_preprocessing(image_processor: BaseImageProcessor) -> dict[str, Any]:
    """An image processor in words that need no transformers.

    Returns:
        `resize`: `{"height", "width"}`, or `{"shortest_edge"}`, where the other edge keeps the ratio, rounded down;
        `resample`: the filter, as Pillow names it; `crop`: `{"height", "width"}` of the centre, the size that the
        model takes; `rescale_factor`, `mean`, `std`: pixels are multiplied by the first, then lose `mean`, then are
        divided by `std`, both three numbers.

    Raises:
        UserError: if pixels made after these words are not those of the image processor.
    """
    processor: Any = image_processor
    size: Any = getattr(processor, "size", None) or {}
    edge, crop_pct = size.get("shortest_edge"), getattr(processor, "crop_pct", None)
    resize = {"shortest_edge": edge} if edge else {name: size.get(name) for name in ("height", "width")}
    if edge and crop_pct:  # ConvNeXt's: a margin is cropped off small pictures, large ones are squeezed
        resize = {"shortest_edge": int(edge / crop_pct)} if edge < 384 else {"height": edge, "width": edge}
    factor, *mean_std = PixelNormalizer(image_processor).settings()
    try:
        resample = Image.Resampling(getattr(processor, "resample", None) or Image.Resampling.BILINEAR).name
        probes = [_noise(*sides) for sides in ((61, 97), (640, 403))]
        made = [np.asarray(processor(probe, return_tensors="pt")["pixel_values"][0]) for probe in probes]
        crop = dict(zip(("height", "width"), made[0].shape[1:], strict=True))
        description = {"resize": resize, "resample": resample, "crop": crop, "rescale_factor": factor}
        description |= {"mean": mean_std[:3], "std": mean_std[3:]}
        levels = [
            np.abs(preprocess(description, probe) - pixels) * np.reshape(mean_std[3:], (3, 1, 1)) / factor
            for probe, pixels in zip(probes, made, strict=True)
        ]
        is_described = max(difference.max() for difference in levels) <= MAX_LEVELS
    except (ValueError, TypeError):  # another shape, a size of other names, a filter that Pillow does not know
        is_described = False
    if not is_described:
        raise UserError(
            f"{type(image_processor).__name__} does more or less than to resize, crop the centre, rescale and "
            "normalise, which the file's metadata could not say: export a model with another image processor."
        )
    return description


def preprocess(description: dict[str, Any], picture: Image.Image) -> np.ndarray:
    """Pixels of an RGB picture after the words of [`describe_preprocessing`], float32 `(3, H, W)`."""
    edge, crop = description["resize"].get("shortest_edge"), description["crop"]
    width, height = description["resize"].get("width"), description["resize"].get("height")
    if edge:
        width, height = (edge * side // min(picture.size) for side in picture.size)
    resized = picture.resize((width, height), Image.Resampling[description["resample"]])
    left, top = (width - crop["width"]) // 2, (height - crop["height"]) // 2
    cropped = resized.crop((left, top, left + crop["width"], top + crop["height"]))
    pixels = np.asarray(cropped) * description["rescale_factor"]  # (H, W, 3)
    normalised = (pixels - np.asarray(description["mean"])) / np.asarray(description["std"])
    return normalised.astype(np.float32).transpose(2, 0, 1)  # (3, H, W)


def _noise(width: int, height: int) -> Image.Image:  # in which a shift or another filter shows at once
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
