"""Another image size than a backbone's own: the image processor that makes it, and whether the backbone takes it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from PIL import Image
from transformers import BaseImageProcessor

from ..errors import UserError
from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification


def refuse_unfit_size(image_size: int, backbone_config: Any) -> None:
    """Raises:
    UserError: if the size, in pixels, does not divide into the backbone's patches.
    """
    patch = getattr(backbone_config, "patch_size", None)
    if isinstance(patch, int) and image_size % patch:
        below = image_size // patch * patch
        near = f"{below} or {below + patch}" if below else f"{patch}"
        raise UserError(f"image_size={image_size} is no multiple of the backbone's patches of {patch}: use {near}.")


def with_image_size(image_processor: BaseImageProcessor, image_size: int) -> BaseImageProcessor:
    """An image processor that makes square pictures.

    Args:
        image_processor (`BaseImageProcessor`): is left as it is. If it resizes and then crops, it crops the same part.
        image_size (`int`): pixels a side.

    Raises:
        UserError: if it cannot.
    """
    resized: Any = copy.deepcopy(image_processor)
    sides = {name: side for name, side in dict(resized.size).items() if side}
    share = 1.0
    if getattr(resized, "do_center_crop", False):
        crop = dict(resized.crop_size)
        share = min(sides.values()) / min(side for side in crop.values() if side)
        resized.crop_size = type(resized.crop_size)(height=image_size, width=image_size)
    resized.size = type(resized.size)(**dict.fromkeys(sides, round(share * image_size)))
    made = resized(Image.new("RGB", (30, 20)), return_tensors="pt")["pixel_values"][0]
    if made.shape != (3, image_size, image_size):
        raise UserError(
            f"{type(image_processor).__name__} does not make pictures of image_size={image_size}: leave it out, or "
            "choose another backbone."
        )
    return resized


@torch.no_grad()
def refuse_fixed_size(model: ArtGraphViTForImageClassification, image_size: int, name: str) -> None:
    """Shows the model one black picture.

    Raises:
        UserError: if its backbone, called `name`, takes pictures of its own size only.
    """
    was_training = model.training
    try:
        model.eval()(pixel_values=torch.zeros(1, 3, image_size, image_size))
    except torch.OutOfMemoryError:  # a RuntimeError that says nothing of the backbone
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"The backbone {name!r} takes no pictures of image_size={image_size}: leave it out, or choose another "
            f"backbone ({' '.join(str(error).split())})."
        ) from error
    finally:
        model.train(was_training)
