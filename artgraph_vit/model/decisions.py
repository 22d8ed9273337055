"""From logits to labels: which labels a task predicts. Travels to the Hub with the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .tasks import Task

THRESHOLD = 0.5  # of a multi-label task for which the config holds none


def predicted_labels(logits: Tensor, task: Task, threshold: float | Sequence[float] = THRESHOLD) -> Tensor:
    """Which labels a task predicts.

    Args:
        logits (`FloatTensor` of shape `(B, C)`).
        task (`Task`).
        threshold (`float` or `Sequence[float]`, *optional*, defaults to 0.5): of a multi-label task; a label is
            predicted if its probability is above it.

    Returns:
        `BoolTensor` of shape `(B, C)`, one true entry a row for a single-label task.
    """
    if not task.is_multi_label:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, best, True)
    thresholds = torch.as_tensor(threshold, dtype=torch.float32, device=logits.device)
    return logits.float() > torch.logit(thresholds)


def label_scores(logits: Tensor, task: Task) -> Tensor:
    """The probability of each label, float32 of the shape of `logits`, `(B, C)`: of one among all for a single-label
    task, of each by itself for a multi-label task."""
    return logits.float().sigmoid() if task.is_multi_label else logits.float().softmax(-1)
