"""Layer-wise learning-rate decay: the nearer a layer of the backbone to the picture, the smaller its steps.

With n blocks, block i (from 0) learns at `layer_decay`^(n - i) times the learning rate, and what comes before the
first block, such as the embeddings, at `layer_decay`^(n + 1); what follows the last block, the heads and the log
variances learn at the full rate. From Clark et al., ELECTRA (2020), with the numbers of BEiT (Bao et al. 2022).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..errors import UserError
from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification


def layer_scales(model: ArtGraphViTForImageClassification, layer_decay: float) -> dict[str, float]:
    """By what the learning rate of each parameter of the backbone is multiplied.

    What stands between two blocks, such as the downsampling of some convolutional backbones, goes with the second.

    Args:
        model ([`ArtGraphViTForImageClassification`]): not sharded yet, for that renames its classes.
        layer_decay (`float`): from 0 to 1.

    Returns:
        The factors by the names of the parameters in the model.

    Raises:
        UserError: if the backbone says of no repeated module that it is a block.
    """
    blocks = _blocks(model.backbone)
    scales, layer = {}, 0  # layer 0 is before the blocks, block i is layer i + 1, and len(blocks) + 1 is after them
    for name, _ in model.backbone.named_parameters():
        inside = [number for number, block in enumerate(blocks) if name.startswith(f"{block}.")]
        layer = inside[0] + 1 if inside else layer
        own = layer + 1 if layer and not inside else layer
        scales[f"{model.base_model_prefix}.{name}"] = layer_decay ** (len(blocks) + 1 - own)
    return scales


def _blocks(backbone: PreTrainedModel) -> list[str]:
    """The names of the outermost modules of a class that must not be divided and that occurs more than once."""
    classes = set(backbone._no_split_modules or ())
    found: dict[str, str] = {}  # the class by name
    for name, module in backbone.named_modules():
        if type(module).__name__ in classes and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = type(module).__name__
    occurs = Counter(found.values())
    blocks = [name for name, kind in found.items() if occurs[kind] > 1]
    if not blocks:
        raise UserError(
            f"layer_decay: the backbone {backbone.config.model_type!r} names no blocks, so its layers cannot be "
            "counted: leave layer_decay out, or choose another backbone."
        )
    return blocks


def parameter_groups(
    model: nn.Module,
    scales: Mapping[str, float],
    decayed: Collection[str],
    learning_rate: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """The groups of an optimizer: each parameter that learns once, those of the full learning rate first.

    Args:
        model (`nn.Module`).
        scales (`Mapping[str, float]`): by what `learning_rate` is multiplied, by name; 1 where there is none.
        decayed (`Collection[str]`): the names of the parameters that get `weight_decay`.
        learning_rate, weight_decay (`float`).
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale, is_decayed = scales.get(name, 1.0), name in decayed
            group = groups.setdefault(
                (scale, is_decayed),
                {"params": [], "lr": learning_rate * scale, "weight_decay": weight_decay if is_decayed else 0.0},
            )
            group["params"].append(parameter)
    return [groups[key] for key in sorted(groups, reverse=True)]
