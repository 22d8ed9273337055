"""Logit adjustment after training: how much of the classes' prior is taken out of the scores of a single-label task.

Menon et al., "Long-tail Learning via Logit Adjustment", ICLR 2021, equation 9: z - τ·log π. At τ = 1 it maximises
balanced accuracy, which macro F1 is not; so τ is chosen.
"""

from __future__ import annotations

from torch import Tensor

from ..model.tasks import Task
from .metrics import MultiTaskMetrics

TAUS = tuple(step / 10 for step in range(11))


def best_tau(logits: Tensor, labels: Tensor, task: Task, log_prior: Tensor) -> float:
    """The τ of 0, 0.1, ..., 1 with the best macro F1; of equals the smallest.

    Args:
        logits (`FloatTensor` of shape `(N, C)`): calibrated.
        labels (`LongTensor` of shape `(N,)`): -100 where unknown.
        task (`Task`).
        log_prior (`FloatTensor` of shape `(C,)`): log π, π the classes' shares of the train rows.
    """
    return max(TAUS, key=lambda tau: _macro_f1(logits - tau * log_prior, labels, task))


def _macro_f1(logits: Tensor, labels: Tensor, task: Task) -> float:
    metrics = MultiTaskMetrics([task])
    metrics.update({task.name: logits}, {task.name: labels})
    return metrics.compute()[f"{task.name}_macro_f1"]
