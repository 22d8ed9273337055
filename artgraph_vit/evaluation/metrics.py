"""Streaming metrics: counters that are fed batch after batch, and equal scikit-learn's values on all of them.

Memory grows with the number of labels, not of artworks. Names are those of the source document, `artist_macro_f1`
and so on; `avg_macro_f1` is the plain mean over the tasks. Only known rows count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..model.tasks import THRESHOLD, UNKNOWN, Task, predicted_labels

# What is measured of a task, as in `artist_macro_f1`.
SHARES = ("precision", "recall", "f1")
SINGLE_LABEL_KINDS = ("accuracy", "balanced_accuracy", "top5_accuracy", *(f"macro_{share}" for share in SHARES))
MULTI_LABEL_KINDS = ("hamming_loss", "micro_f1", "mean_average_precision", *(f"macro_{share}" for share in SHARES))
TOP = 5
CONFUSION_LABELS = 50  # the most that a picture of the confusions can show
BINS_A_LOGIT, LARGEST_LOGIT = 100, 20
BINS = 2 * LARGEST_LOGIT * BINS_A_LOGIT


class MultiTaskMetrics:
    """Accuracies, or Hamming loss and average precision, and macro precision, recall and F1 of each task.

    Args:
        tasks (`Sequence[Task]`): with their labels.
        thresholds (`Mapping[str, float | Sequence[float]]`, *optional*): of multi-label tasks; 0.5 where absent.
        keep_scores (`bool`, *optional*, defaults to `False`): keep all logits and labels, on the CPU, for [`scores`]
            and [`decisions`]: then memory does grow with the number of artworks.

    With `T` for true positives, `P` for predicted and `A` for actual positives of a label, precision is T/P, recall
    T/A and F1 2T/(P+A), each 0 where its divisor is 0. A macro value is the mean over the labels of a multi-label
    task, and over the labels that are actual or predicted somewhere for a single-label task (scikit-learn's choice).
    Balanced accuracy is the mean recall over the labels that are actual somewhere; micro F1 is that of the sums of T,
    P and A over the labels. Among equal scores the first label counts as the better one, in top-5 accuracy too.

    Mean average precision is made of two histograms of the logit a label, of its positives and its negatives, with
    bins of 0.01 from -20 to 20; what falls into one bin counts as tied. Labels without a positive are left out of the
    mean. It lies below scikit-learn's, by about .001 where a label's logits have the standard deviation 1, by .005 at
    0.2 and .05 at 0.02, as in a head that has hardly learned.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        thresholds: Mapping[str, float | Sequence[float]] | None = None,
        keep_scores: bool = False,
    ):
        self.tasks = list(tasks)
        self.thresholds = dict(thresholds or {})
        self.keep_scores = keep_scores
        self.reset()

    def reset(self) -> None:
        self._counts: dict[tuple[str, str], Tensor] = {}  # by task and what is counted
        self._kept: dict[str, list[tuple[Tensor, Tensor]]] = {task.name: [] for task in self.tasks}  # logits, labels

    def update(self, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
        """Adds a batch.

        Args:
            logits (`dict[str, FloatTensor]` of shape `(B, C)`): one that is not a number is the lowest.
            labels (`dict[str, Tensor]`): int64 `(B,)` or float `(B, C)`, -100 where unknown.
        """
        for task in self.tasks:
            scores, actual = logits[task.name], labels[task.name]
            self.update_predictions(task, self._predicted(task, scores), actual)
            if task.is_multi_label:
                key, size = (task.name, "histogram"), (2, task.num_labels, BINS)  # negatives and positives
                if key not in self._counts:
                    self._counts[key] = torch.zeros(size, dtype=torch.int32, device=scores.device)
                label = torch.arange(task.num_labels, device=scores.device)
                place = ((actual > 0.5) * task.num_labels + label) * BINS + score_bins(scores)  # (B, C)
                self._counts[key].view(-1).index_add_(0, place.flatten(), (actual != UNKNOWN).flatten().int())
            else:
                own_label = actual.clamp(min=0)[:, None]  # (B, 1)
                own = scores.gather(1, own_label)
                is_earlier = torch.arange(task.num_labels, device=scores.device) < own_label  # (B, C)
                is_better = ~(scores <= own) | ((scores == own) & is_earlier)  # ~ and <=, for what is not a number
                self._add(task, "top", ((is_better.sum(-1) < TOP) & (actual != UNKNOWN)).sum())
            if self.keep_scores:
                self._kept[task.name].append((scores.float().cpu(), actual.cpu()))

    def update_predictions(self, task: Task, predicted: Tensor, labels: Tensor) -> None:
        """Adds a batch of one task, given what was predicted, bool `(B, C)`: without scores there is neither top-5
        accuracy nor mean average precision."""
        predicted, actual, is_known = _known(task, predicted, labels)
        self._add(task, "positives", torch.stack([(predicted & actual).sum(0), predicted.sum(0), actual.sum(0)]))
        self._add(task, "entries", is_known.sum())
        self._add(task, "rows", is_known.any(-1).sum())
        if not task.is_multi_label and task.num_labels <= CONFUSION_LABELS:
            self._add(task, "confusions", (actual.float().T @ predicted.float()).long())  # (C, C), whole numbers

    def _add(self, task: Task, what: str, counts: Tensor) -> None:
        key = task.name, what
        self._counts[key] = self._counts[key] + counts if key in self._counts else counts

    def known_rows(self) -> dict[str, int]:
        """How many rows of each task have a known label."""
        return {task.name: int(self._counts.get((task.name, "rows"), 0)) for task in self.tasks}

    def compute(self) -> dict[str, float]:
        """The metrics of everything since the last `reset`.

        Returns:
            For each task with a known row `{task}_macro_precision`, `{task}_macro_recall`, `{task}_macro_f1` and
            `{task}_absent_labels` (how many labels no known row carries); for a single-label one `{task}_accuracy`,
            `{task}_balanced_accuracy` and, if it has more than 5 labels, `{task}_top5_accuracy`; for a multi-label
            one `{task}_hamming_loss`, `{task}_micro_f1` and, if a label has a positive,
            `{task}_mean_average_precision`. And `avg_macro_f1` over these tasks.
        """
        by_task = {task.name: self._measure(task) for task in self._known_tasks()}
        metrics = {f"{name}_{kind}": value for name, own in by_task.items() for kind, value in own.items()}
        f1s = [own["macro_f1"] for own in by_task.values()]
        return {**metrics, "avg_macro_f1": math.fsum(f1s) / len(f1s) if f1s else math.nan}

    def _measure(self, task: Task) -> dict[str, float]:
        true, predicted, actual, *shares = self._values(task)
        counted = torch.ones_like(true, dtype=torch.bool) if task.is_multi_label else predicted + actual > 0
        macro = {f"macro_{name}": share[counted].mean().item() for name, share in zip(SHARES, shares, strict=True)}
        measured: dict[str, float] = {}
        if task.is_multi_label:
            wrong = predicted.sum() + actual.sum() - 2 * true.sum()
            measured["hamming_loss"] = (wrong / self._counts[task.name, "entries"].item()).item()
            measured["micro_f1"] = _divide(2 * true.sum(), predicted.sum() + actual.sum()).item()
            averages = self._average_precisions(task)
            if averages is not None and actual.any():
                measured["mean_average_precision"] = averages[actual > 0].mean().item()
        else:
            rows = self._counts[task.name, "rows"].item()
            measured["accuracy"] = (true.sum() / rows).item()
            measured["balanced_accuracy"] = shares[1][actual > 0].mean().item()
            if task.num_labels > TOP and (task.name, "top") in self._counts:
                measured["top5_accuracy"] = self._counts[task.name, "top"].item() / rows
        return {**measured, **macro, "absent_labels": int((actual == 0).sum())}

    def label_rows(self) -> list[dict[str, Any]]:
        """A row for each label of each task with a known row.

        Returns:
            Its task, label, support (on how many known artworks it is), predicted (on how many), precision, recall
            and f1; for a multi-label task average_precision, None without a positive or without scores, and
            threshold, both None for a single-label task.
        """
        table: list[dict[str, Any]] = []
        for task in self._known_tasks():
            _, predicted, actual, *shares = self._values(task)
            columns = {"support": actual.int(), "predicted": predicted.int(), **dict(zip(SHARES, shares, strict=True))}
            if task.is_multi_label:
                threshold = torch.as_tensor(self.thresholds.get(task.name, THRESHOLD), dtype=torch.float64)
                columns["threshold"] = threshold.expand(task.num_labels)
                if (averages := self._average_precisions(task)) is not None:
                    columns["average_precision"] = averages
            names = ("task", "label", "support", "predicted", *SHARES, "average_precision", "threshold")
            empty = {**dict.fromkeys(names), "task": task.name}
            for label, *values in zip(task.labels, *(column.tolist() for column in columns.values()), strict=True):
                table.append({**empty, "label": label, **dict(zip(columns, values, strict=True))})
                if not table[-1]["support"]:
                    table[-1]["average_precision"] = None
        return table

    def confusions(self) -> dict[str, Tensor]:
        """Of each single-label task with a known row and at most 50 labels: int64 `(C, C)`, on how many artworks the
        label of the line is actual and that of the column predicted."""
        names = [task.name for task in self._known_tasks() if (task.name, "confusions") in self._counts]
        return {name: self._counts[name, "confusions"].cpu() for name in names}

    def scores(self) -> dict[str, tuple[Tensor, Tensor]]:
        """With `keep_scores`, the logits, float32 `(N, C)`, and labels of each task, in the order of the rows."""
        parts = {name: zip(*kept, strict=True) for name, kept in self._kept.items()}
        return {name: (torch.cat(logits), torch.cat(labels)) for name, (logits, labels) in parts.items()}

    def decisions(self) -> dict[str, tuple[Tensor, Tensor]]:
        """With `keep_scores`, what was predicted and what is actual of each task with a known row: bool `(N, C)` each,
        in the order of the rows; where the label is unknown both are false."""
        scores = self.scores()
        return {
            task.name: _known(task, self._predicted(task, scores[task.name][0]), scores[task.name][1])[:2]
            for task in self._known_tasks()
        }

    def _predicted(self, task: Task, logits: Tensor) -> Tensor:
        return predicted_labels(logits, task, self.thresholds.get(task.name, THRESHOLD))  # (B, C)

    def _known_tasks(self) -> list[Task]:
        known_rows = self.known_rows()
        return [task for task in self.tasks if known_rows[task.name]]

    def _values(self, task: Task) -> list[Tensor]:
        """True, predicted and actual positives, precision, recall and F1: float64 `(C,)` each."""
        true, predicted, actual = self._counts[task.name, "positives"].cpu().double()
        shares = [_divide(true, predicted), _divide(true, actual), _divide(2 * true, predicted + actual)]
        return [true, predicted, actual, *shares]

    def _average_precisions(self, task: Task) -> Tensor | None:
        """Σ (R_k - R_{k-1})·P_k over the bins from the highest, with the recall R and the precision P that the scores
        down to a bin reach: float64 `(C,)`, 0 for a label without a positive."""
        if (task.name, "histogram") not in self._counts:
            return None
        averages = []
        for part in self._counts[task.name, "histogram"].cpu().split(32, dim=1):  # some labels need little memory
            negatives, positives = part.flip(-1).double()  # (32, BINS) each
            found = positives.cumsum(-1)
            precision = _divide(found, found + negatives.cumsum(-1))
            averages.append(_divide((positives * precision).sum(-1), found[:, -1]))
        return torch.cat(averages)


def kinds_of(task: Task) -> tuple[str, ...]:
    """What [`MultiTaskMetrics`] can measure of a task, such as "macro_f1"."""
    if task.is_multi_label:
        return MULTI_LABEL_KINDS
    return tuple(kind for kind in SINGLE_LABEL_KINDS if kind != "top5_accuracy" or task.num_labels > TOP)


def score_bins(logits: Tensor) -> Tensor:
    """The bin of each logit, from 0 for the lowest: int64 of the same shape."""
    scaled = (logits.float().nan_to_num(nan=-math.inf) * BINS_A_LOGIT).floor()
    return scaled.clamp(-BINS // 2, BINS // 2 - 1).long() + BINS // 2


def majority_metrics(
    tasks: Sequence[Task], priors: Mapping[str, Tensor], label_batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, float]:
    """The metrics of the guess that looks at no picture: the most frequent label of a single-label task, and the
    labels on more than half of the known artworks of a multi-label task. `priors` are the share of each label in the
    known train rows, float `(C,)` a task; the guess is judged on `label_batches`."""
    metrics = MultiTaskMetrics(tasks)
    for labels in label_batches:
        metrics.update({name: prior.logit().expand(len(labels[name]), -1) for name, prior in priors.items()}, labels)
    return metrics.compute()


def _known(task: Task, predicted: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is predicted, what is actual, and of which entries that is known: bool `(B, C)` each."""
    is_known = labels != UNKNOWN  # (B,) or (B, C)
    if task.is_multi_label:
        actual = labels > 0.5
    else:
        is_known = is_known[:, None].expand_as(predicted)
        actual = torch.zeros_like(predicted).scatter_(1, labels.clamp(min=0)[:, None], True)
    return predicted & is_known, actual & is_known, is_known


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator.clamp(min=1), torch.zeros_like(numerator))
