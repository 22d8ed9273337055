"""Where the model looks for a label: gradient-weighted attention rollout, and its heat map over the picture.

Attention alone is the same for all labels; weighted with the gradient of one label's logit it tells which patches
count for that label (Chefer, Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and
Encoder-Decoder Transformers", ICCV 2021). All is read from the model's own attentions: a backbone that does not give
them is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification

COLOURS = "turbo"  # dark blue for nothing, over green and yellow to dark red; told apart on any painting
MOST_OPAQUE = 0.65


def attention_map(model: ArtGraphViTForImageClassification, pixel_values: Tensor, task: str, label: str) -> Tensor:
    """How much each patch counts for a label.

    Changes nothing in the model, not even gradients, so that several threads may share it.

    Args:
        model ([`ArtGraphViTForImageClassification`]): in eval mode, with eager attention: load it with
            `attn_implementation="eager"` or call `model.set_attn_implementation("eager")`. Its pooling is "cls",
            "mean" or "cls_mean".
        pixel_values (`FloatTensor` of shape `(1, 3, H, W)`): of one picture.
        task (`str`), label (`str`): for which label.

    Returns:
        float32 of shape `(h, w)`, one number a patch: its relevance as a share of that of the most relevant patch,
        from 0 to 1. All are 0 if none speaks for the label.

    Raises:
        ValueError: if there is no such label, or the model gives no attentions between patches.
    """
    attentions, gradients = attention_gradients(model, pixel_values, task, label)
    height, width = _patch_grid(model, pixel_values)
    tokens = attentions[0].shape[-1]
    if tokens < height * width:
        raise ValueError(
            f"This backbone ({model.config.backbone_config.model_type}) has {tokens} tokens for {height * width} "
            "patches, so its attentions are not between all patches: there is no map of it."
        )
    rollout = relevance_rollout(attentions, gradients)  # (tokens, tokens)
    # Whatever tokens there are besides patches (CLS, distillation, registers) come first.
    first_patch = tokens - height * width
    # (tokens,) each, of what the heads see. A sum over the patches, since their gradients hold the mean's 1/n already.
    of_cls, of_mean = rollout[0], rollout[first_patch:].sum(0)
    row = {"cls": of_cls, "mean": of_mean, "cls_mean": of_cls + of_mean}[model.config.pooling]
    heat = row[first_patch:].view(height, width).cpu()
    # The paper also stretches the least relevant patch to 0, which would draw a flat map as full of contrast.
    return heat / heat.max() if heat.max() > 0 else heat


def attention_gradients(
    model: ArtGraphViTForImageClassification, pixel_values: Tensor, task: str, label: str
) -> tuple[list[Tensor], list[Tensor]]:
    """The attentions of each layer, and the gradients of a label's logit with respect to them.

    Args:
        as of [`attention_map`].

    Returns:
        Two lists of float32 `(heads, tokens, tokens)`, one for each layer; a row holds what a token attends to.

    Raises:
        ValueError: as of [`attention_map`].
    """
    index = _label_index(model, task, label)
    _refuse_unsuitable(model, pixel_values)
    with torch.enable_grad():
        output = model(pixel_values=pixel_values, output_attentions=True)
        attentions = tuple(output.attentions or ())
        # Square, of one size in all layers, and of this one picture: not of windows, nor of pooled keys.
        shapes = {tuple(attention.shape[-2:]) for attention in attentions if attention is not None}
        if (
            not attentions
            or any(attention is None or attention.dim() != 4 or len(attention) != 1 for attention in attentions)
            or len(shapes) != 1
            or len(set(*shapes)) != 1
        ):
            raise ValueError(
                f"This backbone ({model.config.backbone_config.model_type}) gives no attentions between all its "
                "tokens: there is no map of it."
            )
        if not attentions[0].requires_grad:
            raise ValueError("The backbone is frozen and gives no gradients: call model.unfreeze_backbone() first.")
        # Of the attentions alone: nothing is added to the gradients of parameters.
        gradients = torch.autograd.grad(output.logits[task][0, index], attentions)
    return [attention[0].detach().float() for attention in attentions], [gradient[0].float() for gradient in gradients]


def relevance_rollout(attentions: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """What each token has received from each other one over all layers: R - 1, where R is the paper's.

    R starts at the identity; each layer with attentions A and gradients G adds mean((G ⊙ A)⁺) · R, the mean being that
    of the heads.

    Args:
        attentions, gradients (`Sequence[FloatTensor]` of shape `(heads, tokens, tokens)`): of each layer, from the
            first on.

    Returns:
        Of shape `(tokens, tokens)`: row i holds the relevance of each token for token i, at least 0, without what a
        token is to itself from the start.
    """
    identity = torch.eye(attentions[0].shape[-1], device=attentions[0].device)  # (tokens, tokens)
    relevance = identity
    for attention, gradient in zip(attentions, gradients, strict=True):
        relevance = relevance + (gradient * attention).clamp(min=0).mean(0) @ relevance
    return relevance - identity


def overlay(picture: Image.Image, heat: Tensor, image_processor: Any) -> Image.Image:
    """Lays a heat map over the picture it was made of; what the model was not shown keeps its colours.

    Args:
        picture (`PIL.Image`): in mode RGB, of any size.
        heat (`FloatTensor` of shape `(h, w)`): of [`attention_map`], from 0 to 1.
        image_processor (`BaseImageProcessor`): which made the `pixel_values`.

    Returns:
        A PIL picture in mode RGB, of the size of `picture`. The stronger the heat, the less of the picture shows.
    """
    left, top, right, bottom = (round(side) for side in seen_box(picture.size, image_processor))
    patches = Image.fromarray(heat.numpy().astype(np.float32))  # mode F
    seen = patches.resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.BILINEAR)
    laid = Image.new("F", picture.size, -1)  # -1 where the model was shown nothing
    laid.paste(seen, (left, top))
    heights = np.asarray(laid)[..., None]  # (H, W, 1)
    colours = matplotlib.colormaps[COLOURS](heights[..., 0].clip(0, 1))[..., :3] * 255  # (H, W, 3)
    opacity = np.where(heights < 0, 0, MOST_OPAQUE * heights.clip(0, 1) ** 0.5)
    mixed = np.asarray(picture) * (1 - opacity) + colours * opacity  # (H, W, 3)
    return Image.fromarray(mixed.round().astype(np.uint8))


def seen_box(size: tuple[int, int], image_processor: Any) -> tuple[float, float, float, float]:
    """The part of a picture that the model is shown.

    Args:
        size (`tuple[int, int]`): width and height of the picture.
        image_processor (`BaseImageProcessor`): resizes to a size, or to a shorter side, and may then take the centre.

    Returns:
        left, top, right and bottom in pixels of the picture, outside of it where the image processor adds a rim.

    Raises:
        ValueError: if it is not known how the image processor resizes.
    """
    width, height = size
    resized_width, resized_height = _resized(width, height, image_processor)
    if not getattr(image_processor, "do_center_crop", None):
        return 0, 0, width, height
    crop = image_processor.crop_size
    left, top = (resized_width - crop["width"]) // 2, (resized_height - crop["height"]) // 2
    across, down = width / resized_width, height / resized_height
    return left * across, top * down, (left + crop["width"]) * across, (top + crop["height"]) * down


def _resized(width: int, height: int, image_processor: Any) -> tuple[int, int]:
    if not image_processor.do_resize:
        return width, height
    sides = {name: side for name, side in dict(image_processor.size).items() if side}
    if sides.keys() == {"height", "width"}:
        return sides["width"], sides["height"]
    if sides.keys() == {"shortest_edge"} and not hasattr(image_processor, "crop_pct"):
        short = sides["shortest_edge"]
        longer = int(short * max(width, height) / min(width, height))
        return (short, longer) if width <= height else (longer, short)
    raise ValueError(f"It is not known how a {type(image_processor).__name__} resizes to {sides}: no map can be laid.")


def _label_index(model: ArtGraphViTForImageClassification, task: str, label: str) -> int:
    labels = next((known.labels for known in model.config.tasks if known.name == task), None)
    if labels is None:
        raise ValueError(f"This model has no task {task!r}: its tasks are {', '.join(model.heads)}.")
    if label not in labels:
        raise ValueError(f"The task {task!r} has no label {label!r}.")
    return labels.index(label)


def _refuse_unsuitable(model: ArtGraphViTForImageClassification, pixel_values: Tensor) -> None:
    if pixel_values.dim() != 4 or len(pixel_values) != 1:
        raise ValueError(f"pixel_values of shape {tuple(pixel_values.shape)}: give one picture, (1, 3, H, W).")
    if model.training:
        raise ValueError("The model is in training mode, where dropout blurs the map: call model.eval() first.")
    if model.config.pooling not in ("cls", "mean", "cls_mean"):
        raise ValueError(
            f"This model's pooling is {model.config.pooling!r}, which hides what the heads see: only of a model with "
            "pooling 'cls', 'mean' or 'cls_mean' there is a map."
        )
    # Other kinds of attention are faster since they never make the matrices; transformers then returns none of them.
    implementation = model.backbone.config._attn_implementation
    if implementation != "eager":
        raise ValueError(
            f"This model's attention is {implementation!r}, which gives no attentions: load it with "
            "attn_implementation='eager'."
        )


def _patch_grid(model: ArtGraphViTForImageClassification, pixel_values: Tensor) -> tuple[int, int]:
    patch = getattr(model.config.backbone_config, "patch_size", None)
    if isinstance(patch, int):
        patch = (patch, patch)
    if not isinstance(patch, (list, tuple)) or len(patch) != 2:
        raise ValueError(
            f"This backbone ({model.config.backbone_config.model_type}) has no patches of one size: there is no map "
            "of it."
        )
    return pixel_values.shape[-2] // patch[0], pixel_values.shape[-1] // patch[1]
