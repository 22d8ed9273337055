"""Temperatures and thresholds against scikit-learn, brute force, the theory of F1 and scores of known models."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from sklearn.metrics import f1_score, log_loss
from torch import Tensor

from artgraph_vit import Task
from artgraph_vit.evaluation.tuning import best_temperature, choose_thresholds, expected_calibration_error
from artgraph_vit.model.tasks import MULTI_LABEL, SINGLE_LABEL


def evenly(rows: int, prevalence: float, separation: float) -> tuple[Tensor, Tensor]:
    """The log odds of a label given a score that is normal for those without it and shifted for those with it, at
    quantiles instead of at random: nothing is left to chance."""
    parts = []
    for label, count in ((1.0, round(rows * prevalence)), (0.0, rows - round(rows * prevalence))):
        scores = torch.from_numpy(norm.ppf((torch.arange(count).double() + 0.5) / count)) + separation * label
        logits = separation * scores - separation**2 / 2 + math.log(prevalence / (1 - prevalence))
        parts.append((logits.float(), torch.full((count,), label)))
    logits, labels = (torch.cat(part)[:, None] for part in zip(*parts, strict=True))
    return logits, labels


def expected_f1(threshold: float, prevalence: float, separation: float) -> float:
    """Of infinitely many rows."""
    score = (math.log(threshold / (1 - threshold)) - math.log(prevalence / (1 - prevalence))) / separation
    score += separation / 2
    found = prevalence * norm.sf(score - separation)
    return 2 * found / (found + (1 - prevalence) * norm.sf(score) + prevalence)


def macro_f1(logits: Tensor, labels: Tensor, thresholds: float | list[float]) -> float:
    predicted = logits.double().sigmoid() > torch.tensor(thresholds, dtype=torch.float64)
    return f1_score(labels.bool(), predicted, average="macro", zero_division=0)


@pytest.mark.parametrize(("prevalence", "separation"), [(0.0063, 2.76), (0.05, 1.5), (0.3, 1.0), (0.3, 3.0)])
def test_the_best_threshold_of_calibrated_scores_is_half_the_f1_it_reaches(prevalence, separation):
    """Lipton, Elkan & Naryanaswamy 2014; and it is the one that their formula has."""
    logits, labels = evenly(200_000, prevalence, separation)
    threshold, of_all, positives = choose_thresholds(logits, labels, "global")
    assert (threshold, positives) == (of_all, [round(200_000 * prevalence)])
    best = minimize_scalar(lambda at: -expected_f1(at, prevalence, separation), bounds=(0.01, 0.99), method="bounded")
    assert of_all == pytest.approx(best.x, abs=0.003)
    assert of_all == pytest.approx(expected_f1(of_all, prevalence, separation) / 2, abs=0.003)


def few_scores(seed: int, rows: int = 40) -> tuple[Tensor, Tensor]:
    """With many ties, among labels too."""
    random = torch.Generator().manual_seed(seed)
    labels = (torch.rand(rows, 4, generator=random) < torch.tensor([0.1, 0.3, 0.5, 0.9])).float()
    return (torch.randn(rows, 4, generator=random) + labels).mul(3).round() / 3, labels


@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_is_better_on_the_rows_it_was_chosen_on(seed):
    logits, labels = few_scores(seed)
    candidates = torch.cat([logits.unique() - 0.01, torch.tensor([9.0])]).sigmoid().tolist()
    of_all = choose_thresholds(logits, labels, "global")[0]
    best = max(macro_f1(logits, labels, candidate) for candidate in candidates)
    assert macro_f1(logits, labels, of_all) == pytest.approx(best, abs=1e-12)
    own = choose_thresholds(logits, labels, "per_label")[0]
    for label in range(4):
        one = logits[:, label : label + 1], labels[:, label : label + 1]
        best = max(f1_score(one[1], one[0].sigmoid() > candidate, zero_division=0) for candidate in candidates)
        assert f1_score(one[1], one[0].sigmoid() > own[label]) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("method", ["shrunk", "global", "per_label"])
def test_unknown_entries_count_for_nothing(method):
    logits, labels = few_scores(1)
    found = choose_thresholds(logits, labels, method)
    other_logits, other_labels = few_scores(2)
    rows = torch.cat([logits, 5 * other_logits]), torch.cat([labels, torch.full_like(other_labels, -100.0)])
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    assert choose_thresholds(rows[0][order], rows[1][order], method) == found
    is_known = torch.rand(40, generator=torch.Generator().manual_seed(0)) < 0.6  # of the second label
    labels[~is_known, 1] = -100.0
    own = choose_thresholds(logits, labels, "per_label")[0][1]
    assert own == choose_thresholds(logits[is_known], labels[is_known], "per_label")[0][1]


def test_a_label_is_shrunk_by_its_positives():
    """Half-way at 20 positives, hardly at 2,000, to the global threshold without one."""
    random = torch.Generator().manual_seed(0)
    labels = torch.zeros(4000, 6)
    labels[:20, 0] = labels[:2000, 1:5] = 1
    logits = torch.randn(labels.shape, generator=random) + 2 * labels - torch.tensor([3.0, 0.5, 0.0, 0.0, 0.0, 1.0])
    of_all, own, shrunk = (
        torch.tensor(choose_thresholds(logits, labels, method)[0], dtype=torch.float64).logit()
        for method in ("global", "per_label", "shrunk")
    )
    assert shrunk[0] == pytest.approx((of_all + own[0]).item() / 2)
    assert abs(own[0] - of_all) > 0.5
    assert abs(shrunk[1] - own[1]) < 0.011 * abs(own[1] - of_all)
    assert abs(own[1] - of_all) > 0.2
    assert shrunk[5] == own[5] == of_all


def test_scores_that_separate_all_rows_give_thresholds_that_a_config_takes():
    logits = torch.tensor([[90.0], [80.0], [-90.0], [-95.0]])
    for labels in ([1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]):
        (threshold,) = choose_thresholds(logits, torch.tensor(labels)[:, None].float())[0]
        assert 0 < threshold < 1
        assert torch.tensor(threshold).logit().isfinite()
    with pytest.raises(ValueError, match="method='best': use one of shrunk, global, per_label"):
        choose_thresholds(logits, torch.ones(4, 1), "best")


# ---- calibration ----

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
    always_right = 9 * (2 * labels - 1) if task.is_multi_label else 9 * torch.eye(3)[labels]
    assert best_temperature(always_right, labels, task) == pytest.approx(1 / 20)  # the first
    assert best_temperature(-always_right, labels, task) == pytest.approx(20)  # and the last


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

    # Probabilities of 0 and 1 are in the outermost bins, of which half is wrong.
    logits, labels = torch.tensor([[-200.0, 200.0, 200.0, -200.0]]), torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    assert expected_calibration_error(logits, labels, TAGS) == 0.5
