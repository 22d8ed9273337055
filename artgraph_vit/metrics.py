"""Streaming metrics: counters that are fed batch after batch, and equal scikit-learn's values on all of them.

Memory grows with the number of labels, not of artworks. Names are those of the source document, `artist_macro_f1`
and so on; `avg_macro_f1` is the plain mean over the tasks. Only known rows count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .decisions import THRESHOLD, predicted_labels
from .tasks import UNKNOWN, Task


class MultiTaskMetrics:
    """Accuracy or Hamming loss, and macro precision, recall and F1 of each task.

    Args:
        tasks (`Sequence[Task]`): with their labels.
        thresholds (`Mapping[str, float | Sequence[float]]`, *optional*): of multi-label tasks; 0.5 where absent.

    With `T` for true positives, `P` for predicted and `A` for actual positives of a label, precision is T/P, recall
    T/A and F1 2T/(P+A), each 0 where its divisor is 0. A macro value is the mean over the labels of a multi-label
    task, and over the labels that are actual or predicted somewhere for a single-label task (scikit-learn's choice).
    """

    def __init__(self, tasks: Sequence[Task], thresholds: Mapping[str, float | Sequence[float]] | None = None):
        self.tasks = list(tasks)
        self.thresholds = dict(thresholds or {})
        self.reset()

    def reset(self) -> None:
        self._counts = {task.name: torch.zeros(3, task.num_labels, dtype=torch.int64) for task in self.tasks}
        self._entries = dict.fromkeys(self._counts, torch.zeros((), dtype=torch.int64))
        self._rows = dict.fromkeys(self._counts, torch.zeros((), dtype=torch.int64))

    def update(self, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
        """Adds a batch.

        Args:
            logits (`dict[str, FloatTensor]` of shape `(B, C)`).
            labels (`dict[str, Tensor]`): int64 `(B,)` or float `(B, C)`, -100 where unknown.
        """
        for task in self.tasks:
            predicted = predicted_labels(logits[task.name], task, self.thresholds.get(task.name, THRESHOLD))  # (B, C)
            self.update_predictions(task, predicted, labels[task.name])

    def update_predictions(self, task: Task, predicted: Tensor, labels: Tensor) -> None:
        """Adds a batch of one task, given what was predicted: bool `(B, C)`."""
        is_known = labels != UNKNOWN  # (B,) or (B, C)
        if task.is_multi_label:
            actual = labels > 0.5
        else:
            is_known = is_known[:, None].expand_as(predicted)
            actual = torch.zeros_like(predicted).scatter_(1, labels.clamp(min=0)[:, None], True)
        predicted, actual = predicted & is_known, actual & is_known
        counts = torch.stack([(predicted & actual).sum(0), predicted.sum(0), actual.sum(0)])  # (3, C)
        self._counts[task.name] = self._counts[task.name].to(counts.device) + counts
        self._entries[task.name] = self._entries[task.name].to(counts.device) + is_known.sum()
        self._rows[task.name] = self._rows[task.name].to(counts.device) + is_known.any(-1).sum()

    def known_rows(self) -> dict[str, int]:
        """How many rows of each task have a known label."""
        return {name: int(rows) for name, rows in self._rows.items()}

    def compute(self) -> dict[str, float]:
        """The metrics of everything since the last `reset`.

        Returns:
            `{task}_accuracy` (single-label) or `{task}_hamming_loss` (multi-label), `{task}_macro_precision`,
            `{task}_macro_recall`, `{task}_macro_f1`, `{task}_absent_labels` (how many labels no known row carries)
            for each task with a known row, and `avg_macro_f1` over these tasks.
        """
        metrics: dict[str, float] = {}
        f1s = []
        for task in self.tasks:
            true, predicted, actual = self._counts[task.name].cpu().double()  # (C,) each
            rows, entries = self._rows[task.name].item(), self._entries[task.name].item()
            if rows == 0:
                continue
            counted = torch.ones_like(true, dtype=torch.bool) if task.is_multi_label else predicted + actual > 0
            precision, recall = _divide(true, predicted), _divide(true, actual)
            f1 = _divide(2 * true, predicted + actual)
            if task.is_multi_label:
                wrong = predicted.sum() + actual.sum() - 2 * true.sum()
                metrics[f"{task.name}_hamming_loss"] = (wrong / entries).item()
            else:
                metrics[f"{task.name}_accuracy"] = (true.sum() / rows).item()
            for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
                metrics[f"{task.name}_macro_{name}"] = values[counted].mean().item()
            metrics[f"{task.name}_absent_labels"] = int((actual == 0).sum())
            f1s.append(metrics[f"{task.name}_macro_f1"])
        metrics["avg_macro_f1"] = math.fsum(f1s) / len(f1s) if f1s else math.nan
        return metrics


def majority_metrics(
    tasks: Sequence[Task], priors: Mapping[str, Tensor], label_batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, float]:
    """The metrics of the guess that looks at no picture: the most frequent label of a single-label task, and the
    labels on more than half of the known artworks of a multi-label task.

    Args:
        tasks (`Sequence[Task]`).
        priors (`dict[str, FloatTensor]` of shape `(C,)`): the share of each label in the known train rows.
        label_batches (`Iterable[dict[str, Tensor]]`): the labels to judge the guess on, as in batches.
    """
    metrics = MultiTaskMetrics(tasks)
    for labels in label_batches:
        metrics.update({name: prior.logit().expand(len(labels[name]), -1) for name, prior in priors.items()}, labels)
    return metrics.compute()


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator.clamp(min=1), torch.zeros_like(numerator))
