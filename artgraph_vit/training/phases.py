"""The two phases of one training, as parameter groups: `heads` with a frozen backbone, then `full`.

One optimizer holds all parameters, heads and log variances first. A learning-rate function a group knows the step at
which phase `full` begins; until then the backbone's rate is 0 and its forward pass runs without gradients, so nothing
of it moves and the optimizer keeps no state for it. The model is wrapped for several processes once, and no flag of a
parameter changes. When phase `full` begins the optimizer's state is cleared: it starts as an optimizer of its own.

Layer-wise decay makes a layer of the backbone learn the slower, the nearer it is to the picture: with n blocks, block
i (from 0) learns at `layer_decay`^(n - i) times the learning rate, what comes before the first block, such as the
embeddings, at `layer_decay`^(n + 1), and all else at the full rate. From Clark et al., ELECTRA (2020), with the
numbers of BEiT (Bao et al. 2022).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, SchedulerType, get_scheduler

from ..errors import UserError, as_user_error
from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification
from .arguments import ArtGraphTrainingArguments

HEADS, FULL = "heads", "full"
_SCALE = "scale"  # key of a parameter group: by what its learning rate is multiplied in phase full
_IS_BACKBONE = "is_backbone"


def phase_of(epoch: float, args: ArtGraphTrainingArguments) -> str:
    """The phase in which an epoch, from 0 on, is trained."""
    return HEADS if epoch < args.frozen_epochs else FULL


def parameter_groups(
    model: ArtGraphViTForImageClassification, decayed: Collection[str], weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """The groups of the optimizer: heads, log variances, then the backbone's layers, the fastest first.

    Args:
        model ([`ArtGraphViTForImageClassification`]).
        decayed (`Collection[str]`): the names of the parameters that get `weight_decay`.
        weight_decay (`float`), layer_decay (`float`, from 0 to 1).
    """
    scales = layer_scales(model, layer_decay) if layer_decay < 1 else {}
    groups: dict[tuple, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        is_backbone, is_decayed = name.startswith(f"{model.base_model_prefix}."), name in decayed
        scale = scales.get(name, 1.0)
        values = {"weight_decay": weight_decay if is_decayed else 0.0, _SCALE: scale, _IS_BACKBONE: is_backbone}
        group = groups.setdefault((is_backbone, -scale, not is_decayed), {"params": [], "lr": 1.0, **values})
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def layer_scales(model: ArtGraphViTForImageClassification, layer_decay: float) -> dict[str, float]:
    """By what the learning rate of each parameter of the backbone is multiplied, by its name in the model.

    What stands between two blocks, such as the downsampling of some convolutional backbones, goes with the second.

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


def phase_schedule(
    optimizer: torch.optim.Optimizer, args: ArtGraphTrainingArguments, steps: int, frozen_steps: int
) -> LambdaLR:
    """Learning rates of an optimizer with the groups of [`parameter_groups`]; the schedule starts anew in each phase.

    Args:
        optimizer (`Optimizer`).
        args ([`ArtGraphTrainingArguments`]).
        steps (`int`), frozen_steps (`int`): of both phases, and of phase `heads`.

    Raises:
        UserError: if the warm-up is longer than a phase.
    """
    frozen_steps = min(frozen_steps, steps)
    heads = _factor(args, args.frozen_learning_rate, HEADS, frozen_steps)
    full = _factor(args, args.learning_rate, FULL, steps - frozen_steps)

    def rate(scale: float, is_backbone: bool) -> Callable[[int], float]:
        def at(step: int) -> float:
            if step < frozen_steps:
                return 0.0 if is_backbone else args.frozen_learning_rate * heads(step)
            return args.learning_rate * scale * full(step - frozen_steps)

        return at

    return LambdaLR(optimizer, [rate(group[_SCALE], group[_IS_BACKBONE]) for group in optimizer.param_groups])


def _factor(args: ArtGraphTrainingArguments, rate: float, phase: str, steps: int) -> Callable[[int], float]:
    """By what the rate of a phase is multiplied at each of its steps, as transformers' schedule of that name says."""
    warmup = args.get_warmup_steps(steps)
    if 0 < steps < warmup:
        raise UserError(
            f"warmup_steps={args.warmup_steps:g} is longer than phase {phase}, which has {steps} steps: give fewer, "
            "or a part of each phase, such as 0.1."
        )
    alone = torch.optim.SGD([torch.zeros(())], lr=rate or 1.0)
    given: Any = args.lr_scheduler_kwargs
    name = SchedulerType(args.lr_scheduler_type).value
    wrong = f"lr_scheduler_type={name!r} cannot be used with lr_scheduler_kwargs={given!r}"
    with as_user_error(wrong, "give what this schedule takes.", (TypeError, ValueError)):
        schedule: Any = get_scheduler(name, alone, warmup, max(1, steps), given)
    return schedule.lr_lambdas[0]
