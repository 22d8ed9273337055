"""What label counts do to a model: class weights and log variances, against scikit-learn, counts and gradients."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from artgraph_vit.data import encode_labels
from artgraph_vit.training.class_statistics import (
    CLASS_WEIGHTS,
    inverse_power_weights,
    label_batches,
    set_label_statistics,
    start_log_variances_at_prior,
)


@pytest.fixture
def rows(tasks) -> Dataset:
    """90 artworks: artists 54, 27, 9 and none; a third of the genres unknown; tags from on most to on none."""
    random = np.random.default_rng(0)
    shares = list(zip(tasks[2].labels, (0.7, 0.3, 0.1, 0.02, 0.0), strict=True))
    values = {
        "name": [str(index) for index in range(90)],
        "artist": ["ada"] * 54 + ["bea"] * 27 + ["cleo"] * 9,
        "genre": [None if index % 3 == 0 else ("landscape", "portrait")[index % 2] for index in range(90)],
        "tags": [[tag for tag, share in shares if random.random() < share] or None for _ in range(90)],
    }
    return encode_labels(Dataset.from_dict(values), tasks)


def test_class_weights_have_the_ratios_of_their_papers_and_a_mean_of_one():
    counts = torch.tensor([5000, 40, 8, 0])
    ratios = {"none": 1, "sqrt": math.sqrt(625), "balanced": 625}
    for name, ratio in ratios.items():
        weights = inverse_power_weights(counts, CLASS_WEIGHTS[name])
        assert (weights[2] / weights[0]).item() == pytest.approx(ratio, rel=1e-5), name
        assert ((weights * counts).sum() / counts.sum()).item() == pytest.approx(1, rel=1e-6)
        assert weights[3] == 1  # a class without a row


@pytest.mark.parametrize(
    ("class_weights", "options"),
    [
        ("balanced", {}),
        ("none", {}),
        ("sqrt", {"max_positive_weight": 5.0}),
        ("balanced", {"multilabel_reduction": "all_rows"}),
    ],
)
def test_log_variances_at_the_prior_are_at_the_loss_of_the_best_blind_model(build_model, rows, class_weights, options):
    """Which an optimizer finds: heads of zero weight, whose biases are trained to the minimum. s = log(2L)."""
    model = build_model(head_dropout=0.0, **options)
    set_label_statistics(model, rows, class_weights)
    start_log_variances_at_prior(model, rows)
    started = model.log_variances.tolist()
    model.double()
    biases = [head.bias for head in model.heads.values()]
    for head in model.heads.values():
        torch.nn.init.zeros_(head.weight)
    batches = list(label_batches(rows, model.config.tasks, size=7))
    labels = {name: torch.cat([batch[name] for batch in batches]) for name in model.heads}
    assert len(labels["artist"]) == 90
    optimizer = torch.optim.LBFGS(biases, max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        output = model(pooled=torch.zeros(90, 16, dtype=torch.float64), labels=labels)
        output.loss.backward(inputs=biases)
        closure.losses = [2 * loss.item() for loss in output.task_losses.values()]
        return output.loss

    for _ in range(3):
        optimizer.step(closure)
    assert np.exp(started) == pytest.approx(closure.losses, rel=0.03)  # a label without a row counts as half a row
    if class_weights == "balanced":  # uniform over the classes with rows: the entropy of 3 and 2 classes, times 2
        assert np.exp(started[:2]) == pytest.approx([2 * math.log(3), 2 * math.log(2)], rel=0.03)


def test_weights_of_positives_are_bounded_and_equal_a_lower_threshold(build_model, rows):
    """A weight w of positives moves the best logit of a blind model by log w: as a threshold of 1/(1+w) does."""
    model = build_model(max_positive_weight=5.0)
    set_label_statistics(model, rows, "balanced")
    weights = model.heads["tags"].positive_weights
    values = [value for value in rows["tags"] if value]
    positives = [sum(label in value for value in values) for label in range(5)]
    expected = [min(max((len(values) - n) / max(n, 1), 1), 5) for n in positives]
    assert weights.tolist() == pytest.approx(expected, rel=1e-6)
    assert weights.min() == 1
    assert weights.max() == 5


def test_heads_on_frozen_features_are_scikit_learns_logistic_regressions(build_model, tasks):
    """With balanced weights, masks and a little weight decay, each head has the coefficients of its own regression."""
    random = np.random.default_rng(1)
    n, hidden = 300, 16
    x = random.normal(size=(n, hidden))
    scores = x @ random.normal(size=(hidden, 12)) + random.normal(size=(n, 12))
    artist = np.where(scores[:, :4].argmax(1) == 3, 0, scores[:, :4].argmax(1))
    artist = np.where(random.random(n) < 0.3, -100, np.where(artist == 0, 3, artist))
    artist[:4] = [0, 1, 2, 3]
    genre = scores[:, 4:7].argmax(1)
    tags = (scores[:, 7:12] > [0, 1, 2, 3, 4]).astype(float)
    tags[random.random(n) < 0.2] = -100
    labels = {"artist": torch.tensor(artist), "genre": torch.tensor(genre), "tags": torch.tensor(tags)}
    values = {"artist": [None if v < 0 else int(v) for v in artist], "genre": genre.tolist()}
    values["tags"] = [None if row[0] < 0 else np.flatnonzero(row).tolist() or None for row in tags]
    model = build_model(head_dropout=0.0, task_weighting="equal").double()
    set_label_statistics(model, Dataset.from_dict(values), "balanced")

    decay = 1e-2  # λ/2·|W|² beside a mean loss is C = 1/(λ·Σw) beside scikit-learn's sum
    model.freeze_backbone()
    heads = [model.heads[task.name] for task in tasks]
    optimizer = torch.optim.LBFGS(
        list(model.heads.parameters()),
        max_iter=5000,
        tolerance_grad=1e-12,
        tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = model(pooled=torch.tensor(x), labels=labels).loss
        loss = loss + decay / 2 * sum((head.weight**2).sum() for head in heads)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)

    for name, y in (("artist", artist), ("genre", genre)):
        known = y >= 0
        reference = LogisticRegression(
            class_weight="balanced", C=1 / (decay * known.sum()), tol=1e-12, max_iter=20_000
        ).fit(x[known], y[known])
        weight = model.heads[name].weight.detach().numpy()
        np.testing.assert_allclose(weight, reference.coef_, atol=2e-5)
        bias = model.heads[name].bias.detach().numpy()  # of a softmax only differences count
        intercept = reference.intercept_ - reference.intercept_.mean()
        np.testing.assert_allclose(bias - bias.mean(), intercept, atol=5e-5)
    known = tags[:, 0] >= 0
    reference = OneVsRestClassifier(
        LogisticRegression(C=1 / (decay * 5 * known.sum()), tol=1e-12, max_iter=20_000)
    ).fit(x[known], tags[known])
    coefficients = np.concatenate([estimator.coef_ for estimator in reference.estimators_])
    np.testing.assert_allclose(model.heads["tags"].weight.detach().numpy(), coefficients, atol=2e-5)
    intercepts = np.concatenate([estimator.intercept_ for estimator in reference.estimators_])
    np.testing.assert_allclose(model.heads["tags"].bias.detach().numpy(), intercepts, atol=5e-5)
