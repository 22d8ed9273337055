"""The losses against closed forms, scikit-learn and a plain numpy implementation written without looking at ours.

Everything goes through the model or the public loss functions; the numbers to reach come from elsewhere.
"""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from artgraph_vit.model.losses import (
    asymmetric_numerator,
    multi_label_denominator,
    multi_label_numerator,
    single_label_denominator,
    single_label_numerator,
)
from artgraph_vit.model.task_weighting import TaskWeighting, join_task_losses
from artgraph_vit.training.class_statistics import balanced_class_weights

PUBLISHED_LOSSES = [2.35425907741464, 2.991217190909951, 2.865208080331326, 0.021898770528032057, 0.06884663572904208]


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
@pytest.mark.parametrize(("seed", "epsilon"), [(0, 0.0), (1, 1e-8), (2, 1e-6), (3, 1e-6)])
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


def test_gradients_equal_central_finite_differences(random_case):
    model, batch = random_case(seed=5)
    parameters = [model.log_variances, model.heads["artist"].bias, model.heads["tags"].bias]
    gradients = torch.autograd.grad(model(**batch).loss, parameters)
    step = 1e-5
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for index in range(parameter.numel()):
            losses = []
            for change in (step, -2 * step):
                with torch.no_grad():
                    parameter[index] += change
                    losses.append(model(**batch).loss.item())
            with torch.no_grad():
                parameter[index] += step
            assert gradient[index].item() == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-6, abs=1e-9)


def gradient_of_s(loss: float, s: float, epsilon: float) -> float:
    s = torch.tensor([s], dtype=torch.float64, requires_grad=True)
    weighting = TaskWeighting(epsilon=epsilon)
    joined = join_task_losses(torch.tensor([loss], dtype=torch.float64), torch.tensor([True]), s, weighting)
    return torch.autograd.grad(joined, s)[0].item()


@pytest.mark.parametrize("loss", [0.02, 1.0, 5.5])
def test_without_epsilon_the_best_variance_is_twice_the_loss(loss):
    s = math.log(2 * loss)
    assert gradient_of_s(loss, s, epsilon=0.0) == pytest.approx(0, abs=1e-12)
    assert gradient_of_s(loss, s - 0.1, epsilon=0.0) < -0.01 < 0.01 < gradient_of_s(loss, s + 0.1, epsilon=0.0)


@pytest.mark.parametrize(("loss", "epsilon"), [(0.02, 1e-6), (1.0, 0.05), (3.0, 0.2)])
def test_with_epsilon_the_best_variance_solves_its_closed_form(loss, epsilon):
    low, high = math.log(2 * loss) - 1, math.log(2 * loss) + 1
    assert gradient_of_s(loss, low, epsilon) < 0 < gradient_of_s(loss, high, epsilon)
    for _ in range(80):  # bisection
        middle = (low + high) / 2
        low, high = (middle, high) if gradient_of_s(loss, middle, epsilon) < 0 else (low, middle)
    sigma = math.exp(low / 2)
    assert (sigma**2 + epsilon) ** 2 == pytest.approx(2 * loss * sigma * (sigma + epsilon), rel=1e-10)


def test_total_and_weights_at_the_optimum_for_the_published_losses():
    losses = torch.tensor(PUBLISHED_LOSSES, dtype=torch.float64, requires_grad=True)
    s = torch.log(2 * losses.detach())
    total = join_task_losses(losses, torch.ones(5, dtype=torch.bool), s, TaskWeighting())
    assert total.item() == pytest.approx(2.4865423144574037, rel=1e-14)
    weights = torch.autograd.grad(total, losses)[0].tolist()
    assert weights == pytest.approx([0.21238104, 0.16715603, 0.1745074, 22.83233204, 7.262519], rel=1e-7)


def test_epsilon_zero_is_the_plain_log_variance_form():
    losses, s = np.array([0.3, 2.0, 7.0]), np.array([-1.5, 0.0, 2.5])
    joined = join_task_losses(torch.tensor(losses), torch.ones(3, dtype=torch.bool), torch.tensor(s), TaskWeighting())
    assert joined.item() == pytest.approx(np.sum(np.exp(-s) * losses + s / 2), rel=1e-14)


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
    expected = join_task_losses(
        torch.stack(list(output.task_losses.values()))[others],
        torch.tensor([True, True]),
        model.log_variances[others],
        model.config.weighting,
    )
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-14)


def test_a_batch_without_any_known_row_gives_zero_loss_and_zero_gradients(random_case):
    model, batch = random_case(seed=1)
    for labels in batch["labels"].values():
        labels.fill_(-100)
    loss = model(**batch).loss
    loss.backward()
    assert loss.item() == 0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_the_all_rows_reduction_counts_unknown_rows_in_the_mean():
    logits = torch.zeros(4, 2, dtype=torch.float64)
    labels = torch.tensor([[1.0, 0.0], [-100, -100], [-100, -100], [-100, -100]])
    numerator = multi_label_numerator(logits, labels)
    assert (numerator / multi_label_denominator(labels, "known_rows")).item() == pytest.approx(math.log(2))
    assert (numerator / multi_label_denominator(labels, "all_rows")).item() == pytest.approx(math.log(2) / 4)


def test_extreme_logits_give_finite_losses_and_gradients():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    single = single_label_numerator(logits, torch.tensor([1, -100]), torch.ones(2))
    multi = multi_label_numerator(logits, torch.tensor([[0.0, 1.0], [-100, -100]]))
    gradient = torch.autograd.grad(single + multi, logits)[0]
    assert single.item() == pytest.approx(2e4)
    assert multi.item() == pytest.approx(1e4)
    assert gradient.isfinite().all()
    assert not gradient[1].any()


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_logits_give_float32_losses(autocast):
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    single, weights = torch.tensor([0, 3, -100, 1, 1]), torch.tensor([0.5, 1.0, 2.0, 3.0])
    multi = torch.tensor([[1.0, 0, 0, 1]] * 4 + [[-100.0] * 4])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values = [single_label_numerator(logits, single, weights), multi_label_numerator(logits, multi)]
        s = torch.tensor([0.3, 0.1])
        joined = join_task_losses(torch.stack(values), torch.tensor([True, True]), s, TaskWeighting())
    exact = [single_label_numerator(logits.double(), single, weights), multi_label_numerator(logits.double(), multi)]
    assert [value.dtype for value in (*values, joined)] == [torch.float32] * 3
    assert [value.item() for value in values] == pytest.approx([value.item() for value in exact], rel=1e-6)


def test_loss_of_a_model_under_autocast_is_float32(build_model, make_batch):
    with torch.autocast("cpu", torch.bfloat16):
        output = build_model()(**make_batch())
    assert output.logits["artist"].dtype == torch.bfloat16  # or the test would say nothing
    assert {output.loss.dtype, *(loss.dtype for loss in output.task_losses.values())} == {torch.float32}


def test_balanced_class_weights_are_scikit_learns_and_one_for_absent_classes():
    labels = np.random.default_rng(0).choice([0, 1, 3, 4, 6], size=200, p=[0.6, 0.2, 0.1, 0.07, 0.03])
    weights = balanced_class_weights(torch.bincount(torch.tensor(labels), minlength=8)).numpy()
    present = np.unique(labels)
    expected = np.ones(8)
    expected[present] = compute_class_weight("balanced", classes=present, y=labels)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_the_weighted_mean_is_divided_by_the_weights_of_the_known_rows():
    weights = torch.tensor([0.5, 4.0])
    assert single_label_denominator(torch.tensor([0, 1, -100, 1, -100]), weights).item() == 8.5


def gradients_of(model) -> torch.Tensor:
    parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return torch.cat(parts)


@pytest.mark.parametrize("reduction", ["known_rows", "all_rows"])
@pytest.mark.parametrize("shares", [[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])
def test_micro_batches_give_the_gradient_of_the_whole_batch(random_case, reduction, shares):
    model, batch = random_case(seed=7, rows=12, multilabel_reduction=reduction)
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

    denominators, is_known = model.loss_denominators(batch["labels"])
    assert is_known.all()
    assert ((divided(denominators=denominators) - whole).norm() / whole.norm()).item() < 1e-12
    assert ((divided() - whole).norm() / whole.norm()).item() > 0.01  # the mean of means is another gradient


def test_a_denominator_of_zero_leaves_the_task_out_of_the_step(random_case):
    model, batch = random_case(seed=2)
    batch["labels"]["genre"].fill_(-100)
    model(**batch).loss.backward()
    expected = gradients_of(model)
    denominators, is_known = model.loss_denominators(batch["labels"])
    model(**batch, denominators=denominators * is_known).loss.backward()
    assert torch.equal(gradients_of(model), expected)


def test_two_regressions_with_different_noise_learn_their_noise():
    """Kendall's toy: with L / σ² + log σ, σ becomes sqrt(2) times the root mean square error of least squares."""
    random = np.random.default_rng(0)
    x = random.normal(size=300)
    targets = [2 * x + 8 + 10 * random.normal(size=300), 3 * x + 3 + random.normal(size=300)]
    errors = [np.sqrt(np.mean((np.polyval(np.polyfit(x, y, 1), x) - y) ** 2)) for y in targets]

    lines = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    s = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    inputs, outputs = torch.tensor(x), torch.tensor(np.stack(targets))
    options = {"max_iter": 500, "tolerance_grad": 1e-12, "tolerance_change": 1e-15, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([lines, s], **options)

    def closure():
        optimizer.zero_grad()
        losses = (lines[:, :1] * inputs + lines[:, 1:] - outputs).square().mean(1)
        loss = join_task_losses(losses, torch.tensor([True, True]), s, TaskWeighting())
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.exp(s / 2).tolist() == pytest.approx([math.sqrt(2) * error for error in errors], rel=1e-6)
    assert lines.detach().numpy() == pytest.approx(np.stack([np.polyfit(x, y, 1) for y in targets]), rel=1e-5)


def random_multi_label(seed: int = 0, rows: int = 40):
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, 6, generator=random, dtype=torch.float64)
    labels = (torch.rand(rows, 6, generator=random) < 0.3).double()
    labels[torch.rand(rows, 6, generator=random) < 0.2] = -100
    return logits, labels


def test_the_asymmetric_loss_without_focusing_is_the_binary_cross_entropy():
    logits, labels = random_multi_label()
    plain = asymmetric_numerator(logits, labels, gamma_negative=0, gamma_positive=0, margin=0)
    assert plain.item() == pytest.approx(multi_label_numerator(logits, labels).item(), rel=1e-12)


def test_the_asymmetric_loss_equals_its_papers_formula_entry_by_entry():
    logits, labels = random_multi_label(1)
    total = 0.0
    for row, label in np.ndindex(*logits.shape):
        y, p = labels[row, label].item(), 1 / (1 + math.exp(-logits[row, label].item()))
        shifted = max(p - 0.05, 0)
        if y == 1:
            total += (1 - p) ** 1 * -math.log(p)
        elif y == 0:
            total += shifted**4 * -math.log(1 - shifted)
    value = asymmetric_numerator(logits, labels, gamma_negative=4, gamma_positive=1, margin=0.05)
    assert value.item() == pytest.approx(total / 6, rel=1e-12)


@pytest.mark.parametrize("gammas", [(0.0, 0.0), (4.0, 1.0), (1.0, 2.0)])
@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_the_asymmetric_loss_is_finite_far_out(gammas, margin):
    logits = torch.tensor([[-200.0, -40.0, 0.0, 17.5, 40.0, 200.0]] * 2, requires_grad=True)
    labels = torch.tensor([[0.0] * 6, [1.0] * 6])
    loss = asymmetric_numerator(logits, labels, *gammas, margin)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_weights_of_positives_and_smoothing_are_pytorchs():
    logits, labels = random_multi_label(2)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    known = labels >= 0
    soft = (labels == 1).double() * 0.9 + 0.05  # smoothing of .1
    expected = torch.nn.BCEWithLogitsLoss(reduction="none", pos_weight=weights)(logits, soft)[known].sum() / 6
    assert multi_label_numerator(logits, labels, 0.1, weights).item() == pytest.approx(expected.item(), rel=1e-12)

    single, class_weights = torch.tensor([0, 5, -100, 2] * 10), weights
    expected = torch.nn.CrossEntropyLoss(class_weights, label_smoothing=0.1)(logits, single)  # its weighted mean
    value = single_label_numerator(logits, single, class_weights, 0.1)
    assert (value / single_label_denominator(single, class_weights)).item() == pytest.approx(
        expected.item(), rel=1e-12
    )


def test_labels_are_smoothed_in_training_only(build_model, make_batch):
    smoothed, plain = build_model(label_smoothing=0.2, head_dropout=0.0), build_model(head_dropout=0.0)
    batch = make_batch()
    assert smoothed.eval()(**batch).loss.item() == plain.eval()(**batch).loss.item()
    assert smoothed.train()(**batch).loss.item() != pytest.approx(plain.train()(**batch).loss.item(), rel=1e-3)


def test_offsets_and_temperatures_of_the_config_change_the_logits(build_model, make_batch):
    pixels = make_batch()["pixel_values"]
    plain = build_model()(pixels).logits
    offsets = [0.5, -1.0, 0.0, 2.0]
    tuned = build_model(temperatures={"artist": 2.0, "tags": 0.5}, logit_offsets={"artist": offsets})(pixels).logits
    torch.testing.assert_close(tuned["artist"], (plain["artist"] + torch.tensor(offsets)) / 2)
    torch.testing.assert_close(tuned["tags"], plain["tags"] * 2)
    assert torch.equal(tuned["genre"], plain["genre"])
