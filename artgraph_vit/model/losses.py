"""The loss: labels -> soft targets -> masked, weighted sums of each task -> the joined loss.

Labels become soft targets once, and everything that mixes, smooths or masks is done to these: an unknown row or entry
carries no weight because it is zero. Both losses are linear in the target, so the mean of two pictures' targets gives
the mean of their losses, each with its own mask and class weight. A task's loss is kept as a numerator and a
denominator until the whole optimizer step is known, because a mean of means is not the mean where known rows are
spread unevenly over micro-batches and processes. All of it is computed in float32 or better. Travels to the Hub with
the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .tasks import UNKNOWN, Task

Target = tuple[Tensor, Tensor]  # of a task: (B, C) and its weight, (B, 1) for a single label and (B, C) for several
WEIGHTINGS = ("uncertainty", "equal", "fixed")
MULTILABEL_REDUCTIONS = ("known_rows", "all_rows")
_LEAST_LOSS = 1e-8  # below it a loss counts as this much, where a log variance is set from it


def soft_targets(labels: Tensor, task: Task, label_smoothing: float = 0.0) -> Target:
    """What a task's loss is taken against.

    Args:
        labels (`Tensor`): int64 `(B,)`, or float `(B, C)` of 0 and 1; -100 for an unknown row or entry.
        task (`Task`).
        label_smoothing (`float`, *optional*, defaults to 0): the part of each known label that is spread evenly over
            the classes, or of each known entry over 0 and 1.

    Returns:
        `target`, float32 `(B, C)`: for one label a distribution a row, for several labels how far each applies; all 0
        where unknown. And its `weight`, which is 1 where known and 0 where not: `(B, 1)` or `(B, C)`.
    """
    if task.is_multi_label:
        weight = (labels != UNKNOWN).float()  # (B, C)
        target, spread = labels.float() * weight, 0.5
    else:
        weight = (labels != UNKNOWN).float()[:, None]  # (B, 1)
        target, spread = F.one_hot(labels.clamp(min=0), task.num_labels).float() * weight, 1 / task.num_labels
    return target * (1 - label_smoothing) + label_smoothing * spread * weight, weight


def mix_targets(targets: Mapping[str, Target], partners: Tensor, share: float) -> dict[str, Target]:
    """The targets of rows that are mixed with their `partners`, int64 `(B,)`; a row keeps the `share` of its own.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """
    return {
        name: (share * target + (1 - share) * target[partners], share * weight + (1 - share) * weight[partners])
        for name, (target, weight) in targets.items()
    }


def known_rows(target: Target, dtype: torch.dtype = torch.float32) -> Tensor:
    """How many rows are known, a known entry of C counting 1/C: a scalar."""
    return target[1].to(dtype).mean(-1).sum()


def single_label_numerator(logits: Tensor, target: Target, class_weights: Tensor) -> Tensor:
    """-Σ w_c·y_c·log softmax(z)_c over the rows: a scalar, 0 with zero gradient where no row is known.

    Args:
        logits (`Tensor` of shape `(B, C)`, any float dtype): z.
        target ([`Target`]): y.
        class_weights (`Tensor` of shape `(C,)`): w.
    """
    logits = _at_least_float32(logits)
    return -(target[0].to(logits.dtype) * class_weights.to(logits.dtype) * logits.log_softmax(-1)).sum()


def single_label_denominator(target: Target, class_weights: Tensor) -> Tensor:
    """Σ w_c·y_c over the rows: what makes the numerator a weighted mean. A scalar."""
    return (target[0].to(class_weights.dtype) * class_weights).sum()


def multi_label_numerator(logits: Tensor, target: Target, positive_weights: Tensor | None = None) -> Tensor:
    """The binary cross-entropy of the known entries, summed and divided by C: a scalar, 0 where none is known.

    Args:
        logits (`Tensor` of shape `(B, C)`, any float dtype).
        target ([`Target`]).
        positive_weights (`Tensor` of shape `(C,)`, *optional*, defaults to 1): the weight of a label's positives.
    """
    logits = _at_least_float32(logits)
    positive, known = (part.to(logits.dtype) for part in target)
    weighted = positive if positive_weights is None else positive * positive_weights.to(logits.dtype)
    entries = weighted * F.logsigmoid(logits) + (known - positive) * F.logsigmoid(-logits)  # (B, C)
    return -entries.sum() / logits.shape[-1]


def multi_label_denominator(target: Target, reduction: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """The known rows, or all rows with `reduction="all_rows"`: a scalar.

    "all_rows" is how the source document's figures were made: rows without a label count in the mean as zeros.
    """
    return (
        known_rows(target, dtype) if reduction == "known_rows" else target[0].new_tensor(len(target[0]), dtype=dtype)
    )


def task_weights(
    weighting: str, log_variances: Tensor, epsilon: float = 0.0, fixed: Sequence[float] = ()
) -> tuple[Tensor, Tensor]:
    """By what each task's loss is multiplied, and what is added for it: w and r of shape `(T,)` each.

    `"uncertainty"`: w = 1/(σ²+ε), r = log(σ+ε), at whose minimum w = 1/(2L). Kendall, Gal & Cipolla, "Multi-Task
    Learning Using Uncertainty to Weigh Losses", CVPR 2018, section 3.3, with an ε. `"equal"`: w = 1, r = 0. `"fixed"`:
    w as given, r = 0.

    Args:
        weighting (`str`): one of `WEIGHTINGS`.
        log_variances (`Tensor` of shape `(T,)`): the s_i; σ_i² = exp(s_i).
        epsilon (`float`, *optional*, defaults to 0): ε.
        fixed (`Sequence[float]`, *optional*): the weights of `"fixed"`, one a task.
    """
    if weighting == "uncertainty":
        s = _at_least_float32(log_variances)
        return 1 / (s.exp() + epsilon), torch.log(torch.exp(s / 2) + epsilon)
    weights = torch.ones_like(log_variances) if weighting == "equal" else log_variances.new_tensor(fixed)
    return weights, torch.zeros_like(log_variances)


def join_losses(losses: Tensor, is_known: Tensor, weights: Tensor, terms: Tensor, term_share: float = 1.0) -> Tensor:
    """L = Σ w_i·L_i + Σ r_i over the tasks with a known row: a scalar.

    Args:
        losses (`Tensor` of shape `(T,)`): the L_i.
        is_known (`BoolTensor` of shape `(T,)`): a task without a known row adds nothing, not even its term.
        weights, terms (`Tensor` of shape `(T,)`): of [`task_weights`].
        term_share (`float`, *optional*, defaults to 1): the part of the terms that this call carries, where the L_i
            are one micro-batch's part of an optimizer step.
    """
    joined = losses * weights + term_share * terms
    return torch.where(is_known, joined, torch.zeros_like(joined)).sum()


def best_log_variances(losses: Tensor) -> Tensor:
    """The s_i at which the joined loss of `"uncertainty"` is smallest for given L_i, `(T,)`: σ² = 2L."""
    return (2 * losses.double().clamp(min=_LEAST_LOSS)).log()


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
