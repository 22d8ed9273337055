"""Temperatures and calibration errors against scikit-learn, scores of known temperature and sums by hand."""

import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss
from torch import Tensor

from artgraph_vit import Task
from artgraph_vit.evaluation.calibration import best_temperature, expected_calibration_error
from artgraph_vit.model.tasks import MULTI_LABEL, SINGLE_LABEL

GENRE = Task("genre", SINGLE_LABEL, ("landscape", "portrait", "still life"))
TAGS = Task("tags", MULTI_LABEL, ("Tree", "boat", "moon", "sea"))


def calibrated(task: Task, rows: int = 60_000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and labels that are drawn with their probabilities."""
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, task.num_labels, generator=random) - 1.0 * task.is_multi_label
    if task.is_multi_label:
        return logits, (torch.rand(logits.shape, generator=random) < logits.sigmoid()).float()
    return logits, torch.multinomial(logits.softmax(-1), 1, generator=random)[:, 0]


def with_unknown(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same among rows whose label nobody recorded."""
    return torch.cat([-9 * logits, logits]), torch.cat([torch.full_like(labels, -100), labels])


@pytest.mark.parametrize("task", [GENRE, TAGS], ids=lambda task: task.name)
def test_the_temperature_of_overconfident_scores_is_found(task):
    logits, labels = calibrated(task)
    temperature = best_temperature(2.5 * logits, labels, task)
    assert temperature == pytest.approx(2.5, rel=0.02)
    assert best_temperature(*with_unknown(2.5 * logits, labels), task) == pytest.approx(temperature, rel=1e-9)
    assert expected_calibration_error(2.5 * logits, labels, task) > 0.05
    assert expected_calibration_error(2.5 * logits / temperature, labels, task) < 0.008
    assert best_temperature(logits / 3, labels, task) == pytest.approx(1 / 3, rel=0.02)


@pytest.mark.parametrize("task", [GENRE, TAGS], ids=lambda task: task.name)
def test_no_temperature_has_a_smaller_cross_entropy(task):
    logits, labels = calibrated(task, rows=300, seed=1)
    logits = 3 * logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))

    def cross_entropy(temperature: float) -> float:
        scaled = logits.double() / temperature
        if task.is_multi_label:
            return log_loss(labels.flatten(), scaled.sigmoid().flatten())
        return log_loss(labels, scaled.softmax(-1))

    best = minimize_scalar(cross_entropy, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-9})
    assert best_temperature(logits, labels, task) == pytest.approx(best.x, rel=1e-4)


def test_scores_that_are_always_or_never_right_get_the_last_temperature():
    logits, labels = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 1])
    assert best_temperature(logits, labels, GENRE) == pytest.approx(1 / 20)
    assert best_temperature(-logits, labels, GENRE) == pytest.approx(20)


def test_the_calibration_error_by_hand():
    # Confidences .62 and .65, one of them right, share a bin (9/15 to 10/15); .9 is right, and alone in its own.
    probabilities = torch.tensor([[0.62, 0.2, 0.18], [0.65, 0.2, 0.15], [0.05, 0.05, 0.9]])
    labels = torch.tensor([0, 1, 2])
    by_hand = 2 / 3 * abs(0.5 - 0.635) + 1 / 3 * abs(1 - 0.9)
    assert expected_calibration_error(probabilities.log(), labels, GENRE) == pytest.approx(by_hand, abs=1e-6)
    unknown = with_unknown(probabilities.log(), labels)
    assert expected_calibration_error(*unknown, GENRE) == pytest.approx(by_hand, abs=1e-6)

    # Of labels by themselves: .01 and .03, neither there, share the first bin; .7 and .72, one there, another; -100.
    probabilities = torch.tensor([[0.01, 0.7, 0.3, 0.03], [0.5, 0.72, 0.5, 0.5]])
    labels = torch.tensor([[0.0, 1.0, 1.0, 0.0], [-100.0, 0.0, -100.0, -100.0]])
    by_hand = 2 / 5 * 0.02 + 2 / 5 * abs(0.5 - 0.71) + 1 / 5 * (1 - 0.3)
    assert expected_calibration_error(probabilities.logit(), labels, TAGS) == pytest.approx(by_hand, abs=1e-6)


def test_probabilities_of_zero_and_one_are_in_the_outermost_bins():
    logits, labels = torch.tensor([[-200.0, 200.0, 200.0, -200.0]]), torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    assert expected_calibration_error(logits, labels, TAGS) == 0.5  # half of each bin is wrong
    assert expected_calibration_error(logits, torch.tensor([[0.0, 1.0, 1.0, 0.0]]), TAGS) == 0
