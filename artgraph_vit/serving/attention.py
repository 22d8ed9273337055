"""Where the model looks for a label: gradient-weighted attention rollout, and its heat map over the picture.

Attention alone is the same for all labels; weighted with the gradient of one label's logit it tells which patches
count for that label (Chefer, Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and
Encoder-Decoder Transformers", ICCV 2021). A backbone that does not give its attentions is refused.
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
        model ([`ArtGraphViTForImageClassification`]): in eval mode, not frozen, with eager attention: load it with
            `attn_implementation="eager"` or call `model.set_attn_implementation("eager")`. Its pooling is "cls",
            "mean" or "cls_mean".
        pixel_values (`FloatTensor` of shape `(1, 3, H, W)`): of one picture.
        task (`str`), label (`str`): for which label.

    Returns:
        float32 of shape `(h, w)`, one number a patch: its relevance as a share of that of the most relevant patch,
        from 0 to 1. All are 0 if none speaks for the label.

    Raises:
        ValueError: if there is no such label, or the model is in training mode or gives no attentions between patches.
    """
    rollout = relevance_rollout(*attention_gradients(model, pixel_values, task, label))  # (tokens, tokens)
    first_patch = model._prefix_tokens  # CLS, distillation and registers come first
    # (tokens,) each, of what the heads see. A sum over the patches, since their gradients hold the mean's 1/n already.
    of_cls, of_mean = rollout[0], rollout[first_patch:].sum(0)
    row = {"cls": of_cls, "mean": of_mean, "cls_mean": of_cls + of_mean}[model.config.pooling]
    height, width = pixel_values.shape[-2:]
    across = round(((len(row) - first_patch) * width / height) ** 0.5)  # patches; they are square
    heat = row[first_patch:].view(-1, across).cpu()
    # The paper also stretches the least relevant patch to 0, which would draw a flat map as full of contrast.
    return heat / heat.max() if heat.max() > 0 else heat


def attention_gradients(
    model: ArtGraphViTForImageClassification, pixel_values: Tensor, task: str, label: str
) -> tuple[list[Tensor], list[Tensor]]:
    """The attentions of each layer and the gradients of a label's logit by them, float32 `(heads, tokens, tokens)`."""
    if model.training:
        raise ValueError("This model is in training mode, in which dropout changes the map: call model.eval() first.")
    labels = {known.name: known.labels for known in model.config.tasks}.get(task, ())
    if label not in labels:
        raise ValueError(f"This model has no label {label!r} of a task {task!r}.")
    # Other kinds of attention are faster since they never make the matrices; transformers then returns none of them.
    implementation = model.backbone.config._attn_implementation
    if implementation != "eager":
        raise ValueError(
            f"This model's attention is {implementation!r}, which gives no attentions: load it with "
            "attn_implementation='eager'."
        )
    with torch.enable_grad():
        output = model(pixel_values=pixel_values, output_attentions=True)
        attentions = [attention for attention in output.attentions or () if attention is not None]
        # Of one picture, square, and of one size in all layers: not of windows, nor of pooled keys.
        shapes = {tuple(attention.shape) for attention in attentions}  # (1, heads, tokens, tokens)
        is_whole = len(shapes) == 1 and all(shape[0] == 1 and shape[-2] == shape[-1] for shape in shapes)
        if not is_whole or model.config.pooling == "pooler":
            raise ValueError(
                f"This model ({model.config.backbone_config.model_type}, pooling {model.config.pooling!r}) gives no "
                "attentions between all its patches and what its heads see: there is no map of it."
            )
        # Of the attentions alone: nothing is added to the gradients of parameters.
        gradients = torch.autograd.grad(output.logits[task][0, labels.index(label)], attentions)
    return [attention[0].detach().float() for attention in attentions], [gradient[0].float() for gradient in gradients]


def relevance_rollout(attentions: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """What each token has received from each other one over all layers: R - 1, where R is the paper's.

    R starts at the identity; each layer with attentions A and gradients G adds mean((G ⊙ A)⁺) · R, the mean being that
    of the heads. Row i of the result, `(tokens, tokens)`, holds the relevance of each token for token i, at least 0,
    without what a token is to itself from the start.
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
    laid = Image.new("F", picture.size)  # 0 where the model was shown nothing
    laid.paste(seen, (left, top))
    heights = np.asarray(laid)  # (H, W)
    colours = matplotlib.colormaps[COLOURS](heights)[..., :3] * 255  # (H, W, 3)
    opacity = MOST_OPAQUE * heights[..., None].clip(0, 1) ** 0.5  # (H, W, 1)
    mixed = np.asarray(picture) * (1 - opacity) + colours * opacity  # (H, W, 3)
    return Image.fromarray(mixed.round().astype(np.uint8))


def seen_box(size: tuple[int, int], image_processor: Any) -> tuple[float, float, float, float]:
    """The part of a picture of `size` (width, height) that the model is shown: left, top, right and bottom in pixels
    of the picture, outside of it where the image processor adds a rim.

    Raises:
        ValueError: if it is not known how the image processor resizes.
    """
    width, height = resized_width, resized_height = size
    sides = {name: side for name, side in dict(image_processor.size).items() if side}
    if image_processor.do_resize and sides.keys() == {"height", "width"}:
        resized_width, resized_height = sides["width"], sides["height"]
    elif image_processor.do_resize and sides.keys() == {"shortest_edge"} and not hasattr(image_processor, "crop_pct"):
        resized_width, resized_height = (sides["shortest_edge"] * side // min(size) for side in size)
    elif image_processor.do_resize:
        name = type(image_processor).__name__
        raise ValueError(f"It is not known how a {name} resizes to {sides}: no map can be laid.")
    if not getattr(image_processor, "do_center_crop", None):
        return 0, 0, width, height
    crop = image_processor.crop_size
    left, top = (resized_width - crop["width"]) // 2, (resized_height - crop["height"]) // 2
    across, down = width / resized_width, height / resized_height
    return left * across, top * down, (left + crop["width"]) * across, (top + crop["height"]) * down
