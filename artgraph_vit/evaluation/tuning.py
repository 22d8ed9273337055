"""All that is tuned of a trained model, from its scores on validation rows: first temperatures, then thresholds.

A temperature a head, by which its logits are divided, makes probabilities mean what they say (Guo, Pleiss, Sun &
Weinberger, "On Calibration of Modern Neural Networks", ICML 2017). Thresholds of multi-label tasks maximise F1: of
calibrated scores the best one is F*/2, half the F1 that it reaches (Lipton, Elkan & Naryanaswamy, "Optimal
Thresholding of Classifiers to Maximize F1 Measure", ECML 2014), so 0.5 is too high for rare labels. A label with few
positives is better off with what suits all labels: its own best threshold is mostly chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..model.tasks import UNKNOWN, Task, label_scores
from .metrics import MultiTaskMetrics

TUNED = ("thresholds", "temperatures", "tuning")  # fields of the config
METHODS = SHRUNK, GLOBAL, PER_LABEL = "shrunk", "global", "per_label"
SHRINKAGE = 20  # positives at which a label's own threshold counts as much as the global one
FURTHEST = 1e-6  # a threshold is at least this far from 0 and from 1
LARGEST = 20.0  # temperatures are between 1/20 and 20: scores that separate all rows would have none
BINS = 15


def choose_tuning(
    tasks: Sequence[Task], scores: Mapping[str, tuple[Tensor, Tensor]], method: str = SHRUNK
) -> dict[str, dict[str, Any]]:
    """Chooses temperatures and, on the scores that they calibrate, thresholds.

    Args:
        tasks (`Sequence[Task]`): one without a known label in the split stays as it is.
        scores (`dict[str, tuple[FloatTensor, Tensor]]`): of the validation split, as `MultiTaskMetrics.scores()`
            returns them, before anything is tuned.
        method (`str`, *optional*, defaults to `"shrunk"`): as for [`choose_thresholds`].

    Returns:
        The fields `TUNED` of the config; "tuning" is the record of what was found.

    Raises:
        UserError: if no row of the split has a known label.
    """
    thresholds: dict[str, Any] = {}
    temperatures: dict[str, float] = {}
    records: dict[str, dict[str, Any]] = {}
    for task in tasks:
        logits, labels = scores[task.name]
        if not ((labels > 0.5) if task.is_multi_label else (labels >= 0)).any():
            continue
        temperature = temperatures[task.name] = best_temperature(logits, labels, task)
        records[task.name] = {}
        if task.is_multi_label:
            thresholds[task.name], of_all, positives = choose_thresholds(logits / temperature, labels, method)
            records[task.name] = {"global_threshold": of_all, "positives": positives}
    if not records:
        raise UserError("No artwork of the validation split has a known label, so nothing can be tuned on it.")
    measured = compare_tuned(tasks, scores, thresholds, temperatures)
    for name, record in records.items():
        record |= {key: measured[key][name] for key in ("known_rows", "calibration_error")}
        record["macro_f1_at_half"] = measured["metrics_at_half"][f"{name}_macro_f1"]
        record["macro_f1"] = measured["metrics"][f"{name}_macro_f1"]
    tuning = {"split": "validation", "method": method, "shrinkage": SHRINKAGE, "tasks": records}
    return {"thresholds": thresholds, "temperatures": temperatures, "tuning": tuning}


def compare_tuned(
    tasks: Sequence[Task],
    scores: Mapping[str, tuple[Tensor, Tensor]],
    thresholds: Mapping[str, Any],
    temperatures: Mapping[str, float],
) -> dict[str, Any]:
    """How much tuning changes on the split of the scores: "known_rows"; "metrics_at_half", those of the model as it
    was trained, by p > 0.5, and "metrics", those of the tuned one; and "calibration_error", for each task with a known
    row "before" and "after"."""
    labels = {name: own for name, (_, own) in scores.items()}
    before = {name: logits for name, (logits, _) in scores.items()}
    after = {name: logits / temperatures.get(name, 1.0) for name, logits in before.items()}
    at_half, tuned = MultiTaskMetrics(tasks), MultiTaskMetrics(tasks, thresholds)
    at_half.update(before, labels)
    tuned.update(after, labels)
    known_rows = at_half.known_rows()
    errors = {
        task.name: {
            name: expected_calibration_error(logits[task.name], labels[task.name], task)
            for name, logits in (("before", before), ("after", after))
        }
        for task in tasks
        if known_rows[task.name]
    }
    measured = {"metrics_at_half": at_half.compute(), "metrics": tuned.compute()}
    return {"known_rows": known_rows, **measured, "calibration_error": errors}


def best_temperature(logits: Tensor, labels: Tensor, task: Task) -> float:
    """The T, from 1/20 to 20, that minimises the mean (binary) cross-entropy of logits/T over the known rows
    (entries): of logits `(N, C)` and labels, int64 `(N,)` or float `(N, C)`, -100 where unknown."""
    is_known = labels != UNKNOWN
    if task.is_multi_label:
        scores, actual = logits[is_known].double(), (labels[is_known] > 0.5).double()
    else:
        known = logits[is_known].double()
        scores = known - known.gather(1, labels[is_known][:, None])  # how far the others are above the actual one

    def slope(inverse: float) -> float:
        """Of the cross-entropy, along 1/T, in which it is convex."""
        share = (inverse * scores).sigmoid() - actual if task.is_multi_label else (inverse * scores).softmax(-1)
        return (share * scores).sum().item()

    low, high = -math.log(LARGEST), math.log(LARGEST)  # of log 1/T
    for _ in range(40):  # halved until they are 5e-12 apart
        middle = (low + high) / 2
        if slope(math.exp(middle)) < 0:
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)


def expected_calibration_error(logits: Tensor, labels: Tensor, task: Task) -> float:
    """Guo et al. 2017, equation 3: the mean distance between probability and frequency, over 15 bins of equal width,
    weighted by what is in them; of the predicted label of a single-label task, of each label of a multi-label task.
    The arguments are as for [`best_temperature`]."""
    is_known = labels != UNKNOWN
    probabilities = label_scores(logits, task)[is_known]
    if task.is_multi_label:
        is_so = labels[is_known] > 0.5
    else:
        probabilities, predicted = probabilities.max(-1)
        is_so = predicted == labels[is_known]
    place = (probabilities * BINS).ceil().clamp(1, BINS).long() - 1
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, place, is_so.double() - probabilities.double())
    return gaps.abs().sum().item() / len(probabilities)


def choose_thresholds(
    logits: Tensor, labels: Tensor, method: str = SHRUNK
) -> tuple[float | list[float], float, list[int]]:
    """The thresholds that maximise F1, of calibrated logits and labels 0, 1 or -100, `(N, C)` each, found by trying
    every score: "global" is that of the best macro F1, "per_label" that of the best F1 of each label, and "shrunk" the
    latter drawn to the former, the more so the fewer positives n a label has: global + n/(n + 20)·(own - global). A
    label without a positive always gets the global one.

    Returns:
        Probabilities: one for the task, or one a label; the global one; and the number of positives of each label.

    Raises:
        ValueError: on another method.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: use one of {', '.join(METHODS)}.")
    of_all, own, positives = _best_cuts(logits, labels)
    weight = (positives > 0).double()
    if method == SHRUNK:  # between logits: on simulated scores better than between probabilities, in 30 of 36 draws
        weight = positives / (positives + SHRINKAGE)
    cuts = of_all + weight * (own - of_all)
    one = _probabilities(of_all).item()
    values = one if method == GLOBAL else _probabilities(cuts).tolist()
    return values, one, positives.tolist()


def _best_cuts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best logit for all labels, `()`, and for each, `(C,)`, and the positives of each, int64 `(C,)`."""
    # Unknown entries come last, where no cut is made.
    scores, order = logits.float().masked_fill(labels == UNKNOWN, -math.inf).sort(0, descending=True)  # (N, C)
    found = (labels > 0.5).gather(0, order).cumsum(0)
    positives = found[-1]
    predicted = torch.arange(1, len(scores) + 1)[:, None]
    f1 = 2 * found.double() / (predicted + positives)  # of a label, if it is predicted down to this row
    # Going down through the scores of all labels, macro F1 changes by what the label of each score gains.
    gains = f1.diff(dim=0, prepend=f1.new_zeros(1, f1.shape[1]))
    all_scores, all_order = scores.flatten().sort(descending=True)  # (N·C,)
    macro_f1 = gains.flatten()[all_order].cumsum(0)
    of_all = _best_cut(all_scores[:, None], macro_f1[:, None])[0]
    own = torch.where(positives > 0, _best_cut(scores, f1), of_all)
    return of_all, own, positives


def _best_cut(scores: Tensor, values: Tensor) -> Tensor:
    """Half-way between the score down to which a value is largest and the next one, of `(N, C)` each from the highest
    score down: float64 `(C,)`. Equal scores are never divided."""
    below = torch.cat([scores[1:], torch.full_like(scores[:1], -math.inf)])
    best = values.masked_fill(scores == below, -1).argmax(0, keepdim=True)
    last, following = scores.gather(0, best).double(), below.gather(0, best).double()
    following = torch.where(following.isinf(), last - 1, following)  # nothing known is below
    return ((last + following) / 2)[0]


def _probabilities(cuts: Tensor) -> Tensor:
    return cuts.sigmoid().clamp(FURTHEST, 1 - FURTHEST)
