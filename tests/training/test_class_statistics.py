"""What label counts do to a model: class weights, priors and starts, against scikit-learn, counts and gradients."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.multiclass import OneVsRestClassifier
from transformers import ViTConfig

from artgraph_vit import ArtGraphViTConfig, ArtGraphViTForImageClassification, Task
from artgraph_vit.data import encode_labels
from artgraph_vit.training.arguments import ModelArguments
from artgraph_vit.training.class_statistics import (
    CLASS_WEIGHTS,
    label_batches,
    set_label_statistics,
    start_biases_at_prior,
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
    ratios["effective_number"] = (1 - 0.999**5000) / (1 - 0.999**8)
    for name, ratio in ratios.items():
        weights = CLASS_WEIGHTS[name](counts)
        assert (weights[2] / weights[0]).item() == pytest.approx(ratio, rel=1e-5), name
        assert ((weights * counts).sum() / counts.sum()).item() == pytest.approx(1, rel=1e-6)
        assert weights[3] == 1  # a class without a row


def test_the_effective_size_of_a_batch_of_the_long_tail_grows():
    """Kish's effective size n (Σw)²/(n Σw²): what weights of 588x cost, and the gentler ones less."""
    counts = torch.tensor(np.geomspace(50_000, 85, 243).astype(int))
    sizes = {}
    for name, weigh in CLASS_WEIGHTS.items():
        weights = weigh(counts).double()
        sizes[name] = (32 * (weights * counts).sum() ** 2 / (weights**2 * counts).sum() / counts.sum()).item()
    assert sizes["none"] == pytest.approx(32)
    assert sizes["balanced"] < 10 < sizes["sqrt"]
    assert sizes["balanced"] < sizes["effective_number"] < 32


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_weights": "none"},
        {"class_weights": "none", "logit_adjustment": 1.0},
        {"class_weights": "sqrt", "max_positive_weight": 5.0},
        {"label_smoothing": 0.0, "multilabel_reduction": "all_rows"},
    ],
)
def test_biases_at_the_prior_are_where_the_loss_of_a_blind_model_is_smallest(build_model, rows, options):
    class_weights = options.pop("class_weights", "balanced")
    model = build_model(head_dropout=0.0, **options)
    set_label_statistics(model, rows, class_weights)
    start_biases_at_prior(model, rows)
    batches = list(label_batches(rows, model.config.tasks, size=7))
    labels = {name: torch.cat([batch[name] for batch in batches]) for name in model.heads}
    assert len(labels["artist"]) == 90
    logits = {name: head.bias.expand(90, -1) for name, head in model.heads.items()}
    denominators, _ = model.loss_denominators(labels)
    losses = model.loss_numerators(logits, labels) / denominators
    gradients = torch.autograd.grad(losses.sum(), [head.bias for head in model.heads.values()])
    for name, gradient, counted in zip(model.heads, gradients, ([0, 1, 2], [0, 1], [0, 1, 2, 3]), strict=True):
        # A label without a row counts as half a row or one, so its own gradient is not 0, and others' but nearly.
        assert gradient[counted].abs().max() < 0.02, name
        assert gradient.norm() < 0.03


def test_log_variances_at_the_prior_have_no_gradient_at_the_start(build_model, rows):
    model = build_model(head_dropout=0.0)
    set_label_statistics(model, rows, "balanced")
    before = {name: head.bias.clone() for name, head in model.heads.items()}
    start_log_variances_at_prior(model, rows)
    assert all(torch.equal(model.heads[name].bias, bias) for name, bias in before.items())
    # Balanced: the prior is uniform over the classes with rows. The entropy of 3 and 2 classes, times 2.
    assert model.log_variances[:2].exp().tolist() == pytest.approx([2 * math.log(3), 2 * math.log(2)], rel=0.03)
    start_biases_at_prior(model, rows)
    (labels,) = label_batches(rows, model.config.tasks)
    for head in model.heads.values():
        torch.nn.init.zeros_(head.weight)
    output = model(torch.zeros(90, 3, 16, 16), labels)
    assert torch.autograd.grad(output.loss, model.log_variances)[0].abs().max() < 1e-5
    torch.nn.init.zeros_(model.log_variances)
    output = model(torch.zeros(90, 3, 16, 16), labels)
    expected = [0.5 - loss.item() for loss in output.task_losses.values()]
    assert torch.autograd.grad(output.loss, model.log_variances)[0].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_adjustment": 1.0}, "with class_weights='balanced' would correct for rare classes twice"),
        (
            {"log_variance_init": "auto", "task_weighting": "equal"},
            "log_variance_init='auto' is for a task_weighting that learns log variances",
        ),
        ({"log_variance_init": "prior"}, "log_variance_init='prior': use a number, or auto"),
        ({"log_variance_init": "nan"}, "log_variance_init='nan': use a number, or auto"),
        ({"task_weights": "artist=1"}, "is not JSON like"),
    ],
)
def test_options_that_cannot_be_meant(options, message):
    with pytest.raises(ValueError, match=message):
        ModelArguments(**options)


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


def test_logit_adjustment_in_the_loss_reaches_the_bayes_balanced_accuracy():
    """Two unit Gaussians in the plane and one on the line between, priors .90, .08 and .02.

    Plain cross-entropy decides for the common class; the adjusted loss reaches what Bayes' rule with equal priors
    reaches, which scikit-learn's linear discriminant gives when it is told the true means and equal priors.
    """
    random = np.random.default_rng(3)
    means = np.array([[0.0, 0.0], [1.5, 0.0], [0.75, 1.3]])
    priors = np.array([0.90, 0.08, 0.02])
    y = random.choice(3, size=60_000, p=priors)
    x = means[y] + random.normal(size=(60_000, 2))
    test_y = np.repeat(np.arange(3), 40_000)
    test_x = means[test_y] + random.normal(size=(len(test_y), 2))
    bayes = balanced_accuracy_score(test_y, ((test_x[:, None] - means) ** 2).sum(-1).argmin(1))

    task = Task("genre", "single_label_classification", ("a", "b", "c"))
    backbone = ViTConfig(
        hidden_size=2, num_hidden_layers=1, num_attention_heads=1, intermediate_size=2, image_size=8, patch_size=8
    )
    scores = {}
    for adjustment in (0.0, 1.0):
        options = {"head_dropout": 0.0, "task_weighting": "equal", "logit_adjustment": adjustment}
        config = ArtGraphViTConfig(backbone_config=backbone, tasks=[task], **options)
        model = ArtGraphViTForImageClassification(config).double()
        rows = Dataset.from_dict({"genre": y.tolist()})
        set_label_statistics(model, rows, "none")
        train(model, torch.tensor(x), {"genre": torch.tensor(y)})
        predicted = model(pooled=torch.tensor(test_x)).logits["genre"].argmax(-1).numpy()
        scores[adjustment] = balanced_accuracy_score(test_y, predicted)
    assert scores[0.0] < bayes - 0.2
    assert scores[1.0] == pytest.approx(bayes, abs=0.003)


def train(model, pooled, labels) -> None:
    """To the minimum: with fixed features the problem is convex."""
    model.freeze_backbone()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=2000, tolerance_grad=1e-10, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = model(pooled=pooled, labels=labels).loss
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)


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
