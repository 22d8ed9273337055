"""Intervals of macro F1: against scipy's bootstrap, and what a pair of models shows."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap as scipy_bootstrap
from sklearn.metrics import f1_score

from artgraph_vit import Task
from artgraph_vit.errors import UserError
from artgraph_vit.evaluation import intervals as bootstrap
from artgraph_vit.evaluation.intervals import intervals_table, macro_f1_intervals
from artgraph_vit.evaluation.metrics import MultiTaskMetrics
from artgraph_vit.model.tasks import MULTI_LABEL, SINGLE_LABEL

GENRE = Task("genre", SINGLE_LABEL, ("landscape", "portrait", "still life"))
TAGS = Task("tags", MULTI_LABEL, ("Tree", "boat"))
TASKS = [GENRE, TAGS]


def artworks(random: np.random.Generator, rows: int) -> tuple[dict, dict]:
    """Predicted and actual labels: indices `(N,)` and 0/1 `(N, C)`."""
    genre = random.choice(3, size=rows, p=[0.5, 0.35, 0.15])
    tags = random.random((rows, 2)) < [0.3, 0.12]
    guess = np.where(random.random(rows) < 0.7, genre, random.integers(3, size=rows))
    guesses = random.random((rows, 2)) < np.where(tags, 0.65, 0.08)
    return {"genre": guess, "tags": guesses}, {"genre": genre, "tags": tags}


def kept(predicted: dict, actual: dict) -> dict:
    """The same as `MultiTaskMetrics.decisions()` gives it."""
    return {
        "genre": tuple(torch.tensor(np.eye(3)[side["genre"]] == 1) for side in (predicted, actual)),
        "tags": tuple(torch.tensor(side["tags"]) for side in (predicted, actual)),
    }


def width(metric: dict) -> float:
    return metric["high"] - metric["low"]


def test_intervals_are_those_of_scipy():
    predicted, actual = artworks(np.random.default_rng(0), 120)
    found = macro_f1_intervals(TASKS, kept(predicted, actual), resamples=4000)["metrics"]

    def average(index: np.ndarray) -> float:
        return np.mean(
            [f1_score(actual[name][index], predicted[name][index], average="macro") for name in ("genre", "tags")]
        )

    expected = scipy_bootstrap(
        (np.arange(120),), average, n_resamples=300, method="percentile", vectorized=False, rng=1
    )
    assert found["avg_macro_f1"]["value"] == pytest.approx(average(np.arange(120)), rel=1e-12)
    # An end of 300 resamples is off by some .16 standard deviations, which the interval is four of.
    tolerance = 0.1 * width(found["avg_macro_f1"])
    assert found["avg_macro_f1"]["low"] == pytest.approx(expected.confidence_interval.low, abs=tolerance)
    assert found["avg_macro_f1"]["high"] == pytest.approx(expected.confidence_interval.high, abs=tolerance)


def test_values_are_those_of_the_metrics():
    """On streamed rows of which some are unknown; what is unknown does not count in the draws either."""
    random = np.random.default_rng(5)
    labels = {
        "genre": torch.tensor(random.choice([-100, 0, 1, 2], size=90)),
        "tags": torch.tensor(random.choice([-100.0, 0, 1], size=(90, 2))),
    }
    logits = {"genre": torch.tensor(random.normal(size=(90, 3))), "tags": torch.tensor(random.normal(size=(90, 2)))}
    metrics = MultiTaskMetrics(TASKS, keep_scores=True)
    for rows in torch.arange(90).split(40):
        metrics.update({k: v[rows] for k, v in logits.items()}, {k: v[rows] for k, v in labels.items()})
    for name, (scores, actual) in metrics.scores().items():  # in the order of the rows
        assert scores.equal(logits[name].float())
        assert actual.equal(labels[name])
    expected = metrics.compute()
    found = macro_f1_intervals(TASKS, metrics.decisions())
    assert (found["resamples"], found["seed"], found["confidence"]) == (1000, 42, 0.95)
    assert list(found["metrics"]) == ["genre_macro_f1", "tags_macro_f1", "avg_macro_f1"]
    for name, metric in found["metrics"].items():
        assert metric["value"] == pytest.approx(expected[name], rel=1e-12)
        assert metric["low"] < metric["value"] < metric["high"]


def test_draws_depend_on_the_seed_alone(monkeypatch):
    rows = kept(*artworks(np.random.default_rng(1), 50))
    first = macro_f1_intervals(TASKS, rows, resamples=100)
    assert macro_f1_intervals(TASKS, rows, resamples=100, seed=7)["metrics"] != first["metrics"]
    monkeypatch.setattr(bootstrap, "BLOCK", 7 * 50 + 1)  # draws come in blocks of 7, the last smaller
    assert macro_f1_intervals(TASKS, rows, resamples=100) == first


def test_a_paired_interval_is_narrower_than_an_unpaired_one():
    """Of two models that mostly agree; it shows the difference, which two intervals by themselves do not."""
    random = np.random.default_rng(2)
    predicted, actual = artworks(random, 1000)
    is_worse = random.random(1000) < 0.04
    worse = {
        "genre": np.where(is_worse, (actual["genre"] + 1) % 3, predicted["genre"]),
        "tags": np.where(is_worse[:, None], ~actual["tags"], predicted["tags"]),
    }
    rows, other_rows = kept(predicted, actual), kept(worse, actual)
    own, other = (macro_f1_intervals(TASKS, side)["metrics"] for side in (rows, other_rows))
    for name, metric in macro_f1_intervals(TASKS, rows, other_rows)["metrics"].items():
        assert (metric["value"], metric["other"]) == (own[name]["value"], other[name]["value"])
        assert metric["difference"] == metric["value"] - metric["other"]
        assert 0 < metric["low"] < metric["difference"] < metric["high"]
        assert width(metric) < math.hypot(width(own[name]), width(other[name])) / 2
        assert own[name]["low"] < other[name]["high"]
    for metric in macro_f1_intervals(TASKS, rows, rows, resamples=100)["metrics"].values():
        assert (metric["difference"], metric["low"], metric["high"]) == (0, 0, 0)


def test_a_draw_without_a_known_row_of_a_task_says_nothing_of_it():
    rows = kept(*artworks(np.random.default_rng(3), 200))
    genre = torch.zeros(200, 3, dtype=torch.bool)
    genre[:2, 0] = True  # of all artworks two are known, and both are right
    found = macro_f1_intervals(TASKS, {**rows, "genre": (genre, genre)})["metrics"]
    assert found["genre_macro_f1"] == {"value": 1, "low": 1, "high": 1}
    only = macro_f1_intervals(TASKS, {"tags": rows["tags"]})["metrics"]
    assert list(only) == ["tags_macro_f1", "avg_macro_f1"]
    assert only["avg_macro_f1"] == only["tags_macro_f1"] == found["tags_macro_f1"]
    with pytest.raises(UserError, match="No artwork of the split has a known label"):
        macro_f1_intervals(TASKS, {})


def test_tables_hold_value_and_interval():
    interval = {"low": -0.01, "high": 0.0456}
    found = {
        "resamples": 1000,
        "metrics": {name: {"value": 0.5, **interval} for name in ("a_macro_f1", "avg_macro_f1")},
    }
    lines = intervals_table(found).splitlines()
    assert lines[0] == "Macro F1, with 95% intervals of 1,000 resamples"
    assert lines[1:] == ["a_macro_f1    0.500  [-0.010, 0.046]", "avg_macro_f1  0.500  [-0.010, 0.046]"]
    for metric in found["metrics"].values():
        metric.update(other=0.4871, difference=0.0129)
    assert intervals_table(found).splitlines()[2] == "avg_macro_f1  +0.013  [-0.010, +0.046]  (0.500 and 0.487)"
