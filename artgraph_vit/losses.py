"""The loss of each task, masked and weighted, and how the losses are joined.

A task loss is kept as a numerator and a denominator until the whole optimizer step is known, because a mean of
means is not the mean when the known rows are spread unevenly over micro-batches and processes. The joined loss is
that of Kendall, Gal & Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018, section 3.3,
with an ε. All of it is computed in float32 or better, whatever the autocast. Travels to the Hub with the weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .tasks import UNKNOWN


def single_label_numerator(logits: Tensor, labels: Tensor, class_weights: Tensor) -> Tensor:
    """Σ w[y]·(-log softmax(z)[y]) over the known rows: 0, with zero gradient, where no row is known.

    Args:
        logits (`Tensor` of shape `(B, C)`, any float dtype): z.
        labels (`LongTensor` of shape `(B,)`): y, class indices; -100 for unknown.
        class_weights (`Tensor` of shape `(C,)`): w.

    Returns:
        A scalar.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = _at_least_float32(logits)
        return F.cross_entropy(
            logits, labels, weight=class_weights.to(logits.dtype), ignore_index=UNKNOWN, reduction="sum"
        )


def single_label_denominator(labels: Tensor, class_weights: Tensor) -> Tensor:
    """Σ w[y] over the known rows of `labels`, shape `(B,)`: what makes the numerator a weighted mean. A scalar."""
    return (class_weights[labels.clamp(min=0)] * (labels != UNKNOWN)).sum()


def multi_label_numerator(logits: Tensor, labels: Tensor) -> Tensor:
    """Σ over the known entries of their binary cross-entropy, divided by C: 0 where none is known.

    Args:
        logits (`Tensor` of shape `(B, C)`, any float dtype).
        labels (`Tensor` of shape `(B, C)`): 0 or 1; -100 for an unknown row or entry.

    Returns:
        A scalar.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = _at_least_float32(logits)
        is_known = (labels != UNKNOWN).to(logits.dtype)
        targets = labels.to(logits.dtype).clamp(min=0)
        entries = F.binary_cross_entropy_with_logits(logits, targets, weight=is_known, reduction="sum")
        return entries / labels.shape[1]


def multi_label_denominator(labels: Tensor, reduction: str) -> Tensor:
    """The known rows of `labels`, shape `(B, C)`, or B with `reduction="all_rows"`. A scalar.

    "all_rows" is how the source document's figures were made: rows without a label count in the mean as zeros.
    """
    return known_rows(labels) if reduction == "known_rows" else known_rows(labels).new_tensor(labels.shape[0])


def known_rows(labels: Tensor) -> Tensor:
    """How many rows of `labels`, shape `(B,)` or `(B, C)`, are known; known entries count 1/C each. A scalar."""
    is_known = (labels != UNKNOWN).to(_at_least_float32(labels).dtype)
    return is_known.sum() if labels.dim() == 1 else is_known.sum() / labels.shape[1]


def join_task_losses(
    task_losses: Tensor, is_known: Tensor, log_variances: Tensor, epsilon: float, log_term_share: float = 1.0
) -> Tensor:
    """L = Σ L_i / (σ_i² + ε) + Σ log(σ_i + ε) over the tasks with a known row, with σ_i = exp(s_i / 2).

    Args:
        task_losses (`Tensor` of shape `(T,)`): the L_i.
        is_known (`BoolTensor` of shape `(T,)`): a task without a known row adds nothing, not even its log term.
        log_variances (`Tensor` of shape `(T,)`): the s_i.
        epsilon (`float`): the ε.
        log_term_share (`float`, *optional*, defaults to 1): the part of the log terms that this call carries,
            where the L_i are one micro-batch's part of an optimizer step.

    Returns:
        The joined loss, a scalar.
    """
    with torch.autocast(task_losses.device.type, enabled=False):
        s = _at_least_float32(log_variances)
        terms = task_losses / (s.exp() + epsilon) + log_term_share * torch.log(torch.exp(s / 2) + epsilon)
        return torch.where(is_known, terms, torch.zeros_like(terms)).sum()


def balanced_class_weights(counts: Tensor) -> Tensor:
    """scikit-learn's `balanced`: n / (K·n_c), n rows, n_c of class c, K classes that have rows; 1 for the others.

    Args:
        counts (`LongTensor` of shape `(C,)`): the n_c.

    Returns:
        `FloatTensor` of shape `(C,)`.
    """
    has_rows = counts > 0
    weights = counts.sum() / (has_rows.sum() * counts.clamp(min=1).double())
    return torch.where(has_rows, weights, torch.ones_like(weights)).float()


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
