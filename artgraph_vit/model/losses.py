"""The loss of each task, masked and weighted.

A task loss is kept as a numerator and a denominator until the whole optimizer step is known, because a mean of
means is not the mean when the known rows are spread unevenly over micro-batches and processes. All of it is computed
in float32 or better, whatever the autocast. Travels to the Hub with the weights.

Of mixed pictures a row has two sets of labels, and `share`, float `(B,)`, is the part of the row that those given
carry; numerator and denominator are linear in it, so each set keeps its own mask and class weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .tasks import UNKNOWN


def single_label_numerator(
    logits: Tensor, labels: Tensor, class_weights: Tensor, label_smoothing: float = 0.0, share: Tensor | None = None
) -> Tensor:
    """Σ w[y]·(-log softmax(z)[y]) over the known rows: 0, with zero gradient, where no row is known.

    Args:
        logits (`Tensor` of shape `(B, C)`, any float dtype): z.
        labels (`LongTensor` of shape `(B,)`): y, class indices; -100 for unknown.
        class_weights (`Tensor` of shape `(C,)`): w.
        label_smoothing (`float`, *optional*, defaults to 0): the part of each label that is spread over all classes,
            as in PyTorch.
        share (`Tensor` of shape `(B,)`, *optional*): of each row.

    Returns:
        A scalar.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = _at_least_float32(logits)
        losses = F.cross_entropy(
            *(logits, labels),
            weight=class_weights.to(logits.dtype),
            ignore_index=UNKNOWN,
            reduction="sum" if share is None else "none",
            label_smoothing=label_smoothing,
        )
        return losses if share is None else (losses * share.to(losses.dtype)).sum()


def single_label_denominator(labels: Tensor, class_weights: Tensor, share: Tensor | None = None) -> Tensor:
    """Σ w[y] over the known rows of `labels`, shape `(B,)`: what makes the numerator a weighted mean. A scalar."""
    weights = class_weights[labels.clamp(min=0)] * (labels != UNKNOWN)
    return (weights if share is None else weights * share).sum()


def multi_label_numerator(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    positive_weights: Tensor | None = None,
    share: Tensor | None = None,
) -> Tensor:
    """Σ over the known entries of their binary cross-entropy, divided by C: 0 where none is known.

    Args:
        logits (`Tensor` of shape `(B, C)`, any float dtype).
        labels (`Tensor` of shape `(B, C)`): 0 or 1; -100 for an unknown row or entry.
        label_smoothing (`float`, *optional*, defaults to 0): 0 and 1 become half of it, and 1 less half of it.
        positive_weights (`Tensor` of shape `(C,)`, *optional*, defaults to 1): the weight of a label's positives.
        share (`Tensor` of shape `(B,)`, *optional*): of each row.

    Returns:
        A scalar.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = _at_least_float32(logits)
        entries = F.binary_cross_entropy_with_logits(
            *(logits, _targets(labels, logits.dtype, label_smoothing)),
            weight=_known_share(labels, logits.dtype, share),
            pos_weight=None if positive_weights is None else positive_weights.to(logits.dtype),
            reduction="sum",
        )
        return entries / labels.shape[1]


def asymmetric_numerator(
    logits: Tensor,
    labels: Tensor,
    gamma_negative: float,
    gamma_positive: float,
    margin: float,
    label_smoothing: float = 0.0,
    positive_weights: Tensor | None = None,
    share: Tensor | None = None,
) -> Tensor:
    """As [`multi_label_numerator`], of the asymmetric loss, in which easy negatives count for little:

    -y·(1-p)^γ₊·log p - (1-y)·q^γ₋·log(1-q), with q = max(p - margin, 0).

    Ben-Baruch et al., "Asymmetric Loss For Multi-Label Classification", ICCV 2021, equations 4 to 7.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = _at_least_float32(logits)
        p = logits.sigmoid()
        q = (p - margin).clamp(min=0)
        positive = -((1 - p) ** gamma_positive) * F.logsigmoid(logits)
        # Without a margin the logarithm comes from the logit, for 1 - p rounds to 0 at a logit of 17.
        log_rest = F.logsigmoid(-logits) if margin == 0 else torch.log1p(-q)
        negative = -(q**gamma_negative) * log_rest
        if positive_weights is not None:
            positive = positive * positive_weights.to(logits.dtype)
        targets = _targets(labels, logits.dtype, label_smoothing)
        entries = targets * positive + (1 - targets) * negative
        return (entries * _known_share(labels, logits.dtype, share)).sum() / labels.shape[1]


def multi_label_denominator(labels: Tensor, reduction: str, share: Tensor | None = None) -> Tensor:
    """The known rows of `labels`, shape `(B, C)`, or B with `reduction="all_rows"`. A scalar.

    "all_rows" is how the source document's figures were made: rows without a label count in the mean as zeros.
    """
    known = known_rows(labels, share)
    if reduction == "known_rows":
        return known
    return known.new_tensor(labels.shape[0]) if share is None else share.sum()


def known_rows(labels: Tensor, share: Tensor | None = None) -> Tensor:
    """How many rows of `labels`, shape `(B,)` or `(B, C)`, are known; known entries count 1/C each. A scalar."""
    is_known = (labels != UNKNOWN).to(_at_least_float32(labels).dtype)
    if share is not None:
        is_known = is_known * share.view(-1, *[1] * (labels.dim() - 1))
    return is_known.sum() if labels.dim() == 1 else is_known.sum() / labels.shape[1]


def _targets(labels: Tensor, dtype: torch.dtype, label_smoothing: float) -> Tensor:
    targets = labels.to(dtype).clamp(min=0)
    return targets * (1 - label_smoothing) + label_smoothing / 2 if label_smoothing else targets


def _known_share(labels: Tensor, dtype: torch.dtype, share: Tensor | None) -> Tensor:
    is_known = (labels != UNKNOWN).to(dtype)
    return is_known if share is None else is_known * share.to(dtype)[:, None]


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
