"""The losses against closed forms, PyTorch, scikit-learn and a plain numpy implementation; no number is our own.

Everything goes through the model or the public loss functions.
"""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from sklearn.utils.class_weight import compute_class_weight

from artgraph_vit import Task
from artgraph_vit.model.losses import (
    best_log_variances,
    join_losses,
    mix_targets,
    multi_label_denominator,
    multi_label_numerator,
    single_label_denominator,
    single_label_numerator,
    soft_targets,
    task_weights,
)
from artgraph_vit.model.tasks import MULTI_LABEL, SINGLE_LABEL
from artgraph_vit.training.class_statistics import inverse_power_weights

PUBLISHED_LOSSES = [2.35425907741464, 2.991217190909951, 2.865208080331326, 0.021898770528032057, 0.06884663572904208]
EXACT = {"tolerance_grad": 1e-14, "tolerance_change": 1e-20, "line_search_fn": "strong_wolfe"}


def targets(labels, classes: int, smoothing: float = 0.0):
    kind = SINGLE_LABEL if labels.dim() == 1 else MULTI_LABEL
    return soft_targets(labels, Task("task", kind, tuple(map(str, range(classes)))), smoothing)


def joined(losses, s, weighting="uncertainty", epsilon=0.0, fixed=(), is_known=None, term_share=1.0):
    losses = torch.as_tensor(losses, dtype=torch.float64)
    is_known = torch.ones(len(losses), dtype=torch.bool) if is_known is None else is_known
    return join_losses(losses, is_known, *task_weights(weighting, s, epsilon, fixed), term_share)


def weights_of(losses, s, *options) -> list[float]:
    """What the joined loss multiplies the gradient of each loss by."""
    losses = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(joined(losses, s, *options), losses)[0].tolist()


def minimize(parameters, loss) -> None:
    optimizer = torch.optim.LBFGS(parameters, max_iter=1000, **EXACT)

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    for _ in range(5):
        optimizer.step(closure)


# ---- the loss and its gradients, against numpy ----


def numpy_loss(logits, labels, class_weights, log_variances, epsilon, reduction):
    """The joined loss and its gradients, row by row: returns loss, d loss/d logits by task, d loss/d s."""
    total, logit_gradients, s_gradients = 0.0, {}, np.zeros(len(logits))
    for position, name in enumerate(logits):
        z, y = logits[name], labels[name]
        numerator, denominator, gradient = 0.0, 0.0, np.zeros_like(z)
        for row in range(len(z)):
            if y.ndim == 1:
                if y[row] == -100:
                    continue
                weight = class_weights[name][y[row]]
                p = np.exp(z[row] - z[row].max())
                p /= p.sum()
                numerator -= weight * np.log(p[y[row]])
                denominator += weight
                gradient[row] = weight * (p - np.eye(len(p))[y[row]])
            else:
                for label in range(z.shape[1]):
                    if y[row, label] == -100:
                        continue
                    p = 1 / (1 + np.exp(-z[row, label]))
                    numerator -= np.log(p if y[row, label] == 1 else 1 - p) / z.shape[1]
                    denominator += 1 / z.shape[1]
                    gradient[row, label] = (p - y[row, label]) / z.shape[1]
        logit_gradients[name] = gradient
        if denominator == 0:
            continue
        if y.ndim == 2 and reduction == "all_rows":
            denominator = len(z)
        sigma = np.exp(log_variances[position] / 2)
        loss = numerator / denominator
        total += loss / (sigma**2 + epsilon) + np.log(sigma + epsilon)
        logit_gradients[name] = gradient / denominator / (sigma**2 + epsilon)
        s_gradients[position] = -loss * sigma**2 / (sigma**2 + epsilon) ** 2 + sigma / 2 / (sigma + epsilon)
    return total, logit_gradients, s_gradients


def relative_error(value, reference) -> float:
    return np.abs(np.asarray(value) - reference).max() / max(np.abs(reference).max(), 1e-300)


@pytest.fixture
def random_case(build_model, make_batch):
    """A model in float64 with random class weights and log variances, and a batch with unknowns."""

    def make(seed: int, rows: int = 9, **options):
        model = build_model(seed, **options).double()
        random = torch.Generator().manual_seed(seed)
        model.set_class_weights({"artist": 0.2 + 3 * torch.rand(4, generator=random, dtype=torch.float64)})
        with torch.no_grad():
            model.log_variances.copy_(torch.randn(3, generator=random))
        return model, make_batch(rows=rows, seed=seed, dtype=torch.float64)

    return make


@pytest.mark.parametrize("reduction", ["known_rows", "all_rows"])
@pytest.mark.parametrize(("seed", "epsilon"), [(0, 0.0), (1, 1e-8), (2, 1e-6)])
def test_loss_and_gradients_equal_a_numpy_implementation(random_case, seed, epsilon, reduction):
    model, batch = random_case(seed, loss_epsilon=epsilon, multilabel_reduction=reduction)
    output = model(**batch)
    gradients = torch.autograd.grad(output.loss, [*output.logits.values(), model.log_variances])

    loss, logit_gradients, s_gradients = numpy_loss(
        {name: logits.detach().numpy() for name, logits in output.logits.items()},
        {name: labels.numpy() for name, labels in batch["labels"].items()},
        {name: model.heads[name].class_weights.numpy() for name in ("artist", "genre")},
        model.log_variances.detach().numpy(),
        epsilon,
        reduction,
    )
    assert relative_error(output.loss.item(), loss) < 1e-10
    for name, gradient in zip(output.logits, gradients, strict=False):
        assert relative_error(gradient, logit_gradients[name]) < 1e-10, name
    assert relative_error(gradients[-1], s_gradients) < 1e-10


@pytest.mark.parametrize("name", ["artist", "tags"])
@pytest.mark.parametrize("reduction", ["known_rows", "all_rows"])
def test_a_task_without_a_known_row_adds_nothing(random_case, name, reduction):
    model, batch = random_case(seed=1, multilabel_reduction=reduction)
    position = list(model.heads).index(name)
    with torch.no_grad():
        model.log_variances[position] = 3.0
    batch["labels"][name].fill_(-100)
    output = model(**batch)
    output.loss.backward()
    assert output.task_losses[name] == 0
    assert not model.heads[name].weight.grad.any()
    assert not model.heads[name].bias.grad.any()
    assert model.log_variances.grad[position] == 0
    assert model.heads["genre"].weight.grad.any()
    others = [i for i in range(3) if i != position]
    losses = torch.stack(list(output.task_losses.values()))[others].numpy()
    s = model.log_variances.detach().numpy()[others]
    expected = (losses / (np.exp(s) + 1e-8) + np.log(np.exp(s / 2) + 1e-8)).sum()
    assert output.loss.item() == pytest.approx(expected, rel=1e-12)

    for labels in batch["labels"].values():  # and where no row is known at all
        labels.fill_(-100)
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    assert loss.item() == 0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_extreme_logits_give_finite_losses_and_gradients():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    single = single_label_numerator(logits, targets(torch.tensor([1, -100]), 2), torch.ones(2))
    multi = multi_label_numerator(logits, targets(torch.tensor([[0.0, 1.0], [-100, -100]]), 2))
    gradient = torch.autograd.grad(single + multi, logits)[0]
    assert single.item() == pytest.approx(2e4)
    assert multi.item() == pytest.approx(1e4)
    assert gradient.isfinite().all()
    assert not gradient[1].any()


def test_balanced_class_weights_are_scikit_learns_and_one_for_absent_classes():
    labels = np.random.default_rng(0).choice([0, 1, 3, 4, 6], size=200, p=[0.6, 0.2, 0.1, 0.07, 0.03])
    weights = inverse_power_weights(torch.bincount(torch.tensor(labels), minlength=8), power=1.0).numpy()
    present = np.unique(labels)
    expected = np.ones(8)
    expected[present] = compute_class_weight("balanced", classes=present, y=labels)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


# ---- a step in parts ----


def gradients_of(model) -> torch.Tensor:
    parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return torch.cat(parts)


@pytest.mark.parametrize("weighting", ["uncertainty", "equal", "fixed"])
@pytest.mark.parametrize("reduction", ["known_rows", "all_rows"])
@pytest.mark.parametrize("shares", [[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])
def test_micro_batches_give_the_gradient_of_the_whole_batch(random_case, weighting, reduction, shares):
    options = {"task_weights": {"artist": 2.0, "genre": 0.5, "tags": 3.0}} if weighting == "fixed" else {}
    model, batch = random_case(seed=7, rows=12, task_weighting=weighting, multilabel_reduction=reduction, **options)
    parts = [slice(0, 1), slice(1, 6), slice(6, 10), slice(10, 12)]
    batch["labels"]["artist"][parts[2]] = -100  # unknown in the whole of one micro-batch
    batch["labels"]["tags"][1:5] = -100
    model(**batch).loss.backward()
    whole = gradients_of(model)

    def divided(**options) -> torch.Tensor:
        for part, share in zip(parts, shares, strict=True):
            labels = {name: values[part] for name, values in batch["labels"].items()}
            step_options = {"log_term_share": share, **options} if options else {}
            loss = model(batch["pixel_values"][part], labels, **step_options).loss
            (loss if options else loss / len(parts)).backward()
        return gradients_of(model)

    denominators, known = model.loss_denominators(model.make_targets(batch["labels"]))
    assert (known > 0).all()
    assert ((divided(denominators=denominators) - whole).norm() / whole.norm()).item() < 1e-12
    assert ((divided() - whole).norm() / whole.norm()).item() > 0.01  # the mean of means is another gradient


def test_a_denominator_of_zero_leaves_the_task_out_of_the_step(random_case):
    model, batch = random_case(seed=2)
    batch["labels"]["genre"].fill_(-100)
    model(**batch).loss.backward()
    expected = gradients_of(model)
    denominators, known = model.loss_denominators(model.make_targets(batch["labels"]))
    model(**batch, denominators=denominators * (known > 0)).loss.backward()
    assert torch.equal(gradients_of(model), expected)


# ---- soft targets: smoothing, weights of positives, mixing ----


@pytest.fixture
def random_labels():
    """Logits and labels of a task of one label and of one of several, 40 rows of 6 classes with unknowns."""
    random = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(40, 6, generator=random, dtype=torch.float64)
    several = (torch.rand(40, 6, generator=random) < 0.3).double()
    several[torch.rand(40, 6, generator=random) < 0.2] = -100
    one = torch.randint(0, 6, (40,), generator=random)
    one[torch.rand(40, generator=random) < 0.3] = -100
    return logits, one, several


WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)


def test_weights_of_positives_and_smoothing_are_pytorchs(random_labels):
    logits, one, several = random_labels
    soft = (several == 1).double() * 0.9 + 0.05  # smoothing of .1
    entries = torch.nn.BCEWithLogitsLoss(reduction="none", pos_weight=WEIGHTS)(logits, soft)
    value = multi_label_numerator(logits, targets(several, 6, 0.1), WEIGHTS)
    assert value.item() == pytest.approx(entries[several >= 0].sum().item() / 6, rel=1e-6)
    expected = torch.nn.functional.cross_entropy(logits, one, label_smoothing=0.1)
    target, equal = targets(one, 6, 0.1), torch.ones(6)
    value = single_label_numerator(logits, target, equal) / single_label_denominator(target, equal)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_smoothed_labels_of_several_class_weights_are_divided_by_the_weights_of_all_classes(random_labels):
    """-Σ w_c·y_c·log p_c over Σ w_c·y_c, both with the smoothed y, entry by entry."""
    logits, one, _ = random_labels
    numerator = denominator = 0.0
    for row, label in enumerate(one.tolist()):
        p = np.exp(logits[row].numpy()) / np.exp(logits[row].numpy()).sum()
        for c in range(6 if label >= 0 else 0):
            y = (0.9 if c == label else 0.0) + 0.1 / 6
            numerator -= WEIGHTS[c].item() * y * np.log(p[c])
            denominator += WEIGHTS[c].item() * y
    target = targets(one, 6, 0.1)
    assert single_label_numerator(logits, target, WEIGHTS).item() == pytest.approx(numerator, rel=1e-6)
    assert single_label_denominator(target, WEIGHTS).item() == pytest.approx(denominator, rel=1e-6)


def test_of_two_mixed_rows_each_label_keeps_its_mask_and_its_class_weight(random_labels):
    logits, one, several = random_labels
    partners = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    mixed = mix_targets({"one": targets(one, 6), "several": targets(several, 6)}, partners, 0.75)
    sums = np.zeros(4)  # numerator and denominator of each
    for row in range(40):
        z = logits[row].numpy()
        p, q = np.exp(z) / np.exp(z).sum(), 1 / (1 + np.exp(-z))
        for other, share in ((row, 0.75), (int(partners[row]), 0.25)):
            label = int(one[other])
            if label >= 0:
                sums[0] -= share * WEIGHTS[label].item() * np.log(p[label])
                sums[1] += share * WEIGHTS[label].item()
            for c, y in enumerate(several[other].tolist()):
                if y >= 0:
                    sums[2] -= share * (WEIGHTS[c].item() * np.log(q[c]) if y else np.log(1 - q[c])) / 6
                    sums[3] += share / 6
    values = [
        single_label_numerator(logits, mixed["one"], WEIGHTS),
        single_label_denominator(mixed["one"], WEIGHTS),
        multi_label_numerator(logits, mixed["several"], WEIGHTS),
        multi_label_denominator(mixed["several"], "known_rows"),
    ]
    assert [value.item() for value in values] == pytest.approx(sums.tolist(), rel=1e-6)
    assert multi_label_denominator(mixed["several"], "all_rows").item() == 40


def test_labels_are_smoothed_in_training_only(build_model, make_batch):
    smoothed, plain = build_model(label_smoothing=0.2, head_dropout=0.0), build_model(head_dropout=0.0)
    batch = make_batch()
    assert smoothed.eval()(**batch).loss.item() == plain.eval()(**batch).loss.item()
    assert smoothed.train()(**batch).loss.item() != pytest.approx(plain.train()(**batch).loss.item(), rel=1e-3)


def test_temperatures_of_the_config_divide_the_logits(build_model, make_batch):
    pixels = make_batch()["pixel_values"]
    plain = build_model()(pixels).logits
    tuned = build_model(temperatures={"artist": 2.0, "tags": 0.5})(pixels).logits
    torch.testing.assert_close(tuned["artist"], plain["artist"] / 2)
    torch.testing.assert_close(tuned["tags"], plain["tags"] * 2)
    assert torch.equal(tuned["genre"], plain["genre"])


# ---- how the losses of the tasks are joined ----


def test_uncertainty_ends_at_weights_of_half_the_inverse_loss():
    """At the published losses; with ε = 0 it is e^-s·L + s/2, whose minimum is at σ² = 2L."""
    s = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    minimize([s], lambda: joined(PUBLISHED_LOSSES, s))
    s = s.detach()
    assert s.exp().tolist() == pytest.approx([2 * loss for loss in PUBLISHED_LOSSES], rel=1e-6)
    assert joined(PUBLISHED_LOSSES, s).item() == pytest.approx(2.4865423144574037, rel=1e-12)
    expected = [0.21238104, 0.16715603, 0.1745074, 22.83233204, 7.262519]
    assert weights_of(PUBLISHED_LOSSES, s) == pytest.approx(expected, rel=1e-6)
    assert best_log_variances(torch.tensor(PUBLISHED_LOSSES)).tolist() == pytest.approx(s.tolist(), abs=1e-6)
    losses, s = np.array([0.3, 2.0, 7.0]), np.array([-1.5, 0.0, 2.5])
    assert joined(losses, torch.tensor(s)).item() == pytest.approx(np.sum(np.exp(-s) * losses + s / 2), rel=1e-14)


@pytest.mark.parametrize(("loss", "epsilon"), [(0.02, 1e-6), (1.0, 0.05), (3.0, 0.2)])
def test_with_epsilon_the_best_variance_solves_its_closed_form(loss, epsilon):
    def gradient(value: float) -> float:
        s = torch.tensor([value], dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(joined([loss], s, epsilon=epsilon), s)[0].item()

    sigma = math.exp(brentq(gradient, math.log(2 * loss) - 1, math.log(2 * loss) + 1, xtol=1e-14) / 2)
    assert (sigma**2 + epsilon) ** 2 == pytest.approx(2 * loss * sigma * (sigma + epsilon), rel=1e-10)


@pytest.mark.parametrize(("weighting", "fixed"), [("fixed", (0.5, 10.0)), ("equal", (1.0, 1.0))])
def test_fixed_and_equal_weights(weighting, fixed):
    s = torch.tensor([3.0, -2.0], dtype=torch.float64)  # which they do not look at
    assert weights_of([3.0, 0.2], s, weighting, 0.0, fixed) == list(fixed)
    assert joined([3.0, 0.2], s, weighting, fixed=fixed).item() == pytest.approx(3 * fixed[0] + 0.2 * fixed[1])


@pytest.mark.parametrize(("log_form", "factor"), [("regression", 1.0), ("classification", math.sqrt(2))])
def test_two_regressions_with_different_noise_learn_their_noise(log_form, factor):
    """Kendall's toy: L/(2σ²) + log σ ends at σ = the root mean square error, L/σ² + log σ at √2 times that."""
    random = np.random.default_rng(0)
    x = random.normal(size=400)
    wanted = np.stack([2 * x + 8 + 10 * random.normal(size=400), 3 * x + 3 + random.normal(size=400)])
    fits = [np.polyfit(x, y, 1) for y in wanted]
    rmse = np.array([np.sqrt(np.mean((np.polyval(fit, x) - y) ** 2)) for fit, y in zip(fits, wanted, strict=True)])
    lines = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    s = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    scale = 0.5 if log_form == "regression" else 1.0

    def loss():
        errors = lines[:, :1] * torch.tensor(x) + lines[:, 1:] - torch.tensor(wanted)
        return joined(scale * (errors**2).mean(1), s)

    minimize([lines, s], loss)
    assert torch.exp(s / 2).tolist() == pytest.approx(factor * rmse, rel=1e-5)
    assert lines.detach().numpy() == pytest.approx(np.stack(fits), rel=1e-4)
