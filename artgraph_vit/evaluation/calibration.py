"""One temperature a head, by which its logits are divided so that probabilities mean what they say.

Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017. The σ that a task's loss is
weighted by in training is no such temperature.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..model.tasks import UNKNOWN, Task, label_scores

BINS = 15
LARGEST = 20.0  # temperatures are between 1/20 and 20: scores that separate all rows would have none


def best_temperature(logits: Tensor, labels: Tensor, task: Task) -> float:
    """The T that minimises the mean (binary) cross-entropy of logits/T over the known rows (entries).

    Args:
        logits (`FloatTensor` of shape `(N, C)`).
        labels (`Tensor`): int64 `(N,)` or float `(N, C)`, -100 where unknown.
        task (`Task`).

    Returns:
        From 1/20 to 20.
    """
    is_known = labels != UNKNOWN
    if task.is_multi_label:
        scores, actual = logits[is_known].double(), (labels[is_known] > 0.5).double()
    else:
        known = logits[is_known].double()
        scores = known - known.gather(1, labels[is_known][:, None])  # how far the others are above the actual one

    def slope(inverse: float) -> float:
        """Of the cross-entropy, along 1/T, in which it is convex."""
        scaled = inverse * scores
        share = scaled.sigmoid() - actual if task.is_multi_label else scaled.softmax(-1)
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
    """The mean distance between probability and frequency, over 15 bins of equal width, weighted by what is in them.

    Of a single-label task the probability is that of the predicted label, and the frequency how often it is right; of
    a multi-label task they are those of each label by itself. Naeini, Cooper & Hauskrecht, "Obtaining Well Calibrated
    Probabilities Using Bayesian Binning", AAAI 2015, by way of Guo et al. 2017, equation 3.

    Args:
        logits (`FloatTensor` of shape `(N, C)`), labels (`Tensor`), task (`Task`): as for [`best_temperature`].
    """
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
