"""How task losses are joined: each rule against the closed form of its fixed point, and against other implementations.

The closed forms and the figures of the published losses come from outside the library.
"""

import math

import numpy as np
import pytest
import torch

from artgraph_vit.model.task_weighting import RULES, TaskWeighting, best_log_variances, join_task_losses

PUBLISHED_LOSSES = [2.35425907741464, 2.991217190909951, 2.865208080331326, 0.021898770528032057, 0.06884663572904208]

EXACT = {"tolerance_grad": 1e-14, "tolerance_change": 1e-20, "line_search_fn": "strong_wolfe"}


def joined(losses, weighting, s=None, is_known=None, **options):
    losses = torch.as_tensor(losses, dtype=torch.float64)
    s = torch.zeros(len(losses), dtype=torch.float64) if s is None else s
    is_known = torch.ones(len(losses), dtype=torch.bool) if is_known is None else is_known
    return join_task_losses(losses, is_known, s, weighting, **options)


def weights_of(losses, weighting, s=None, **options) -> list[float]:
    """What the joined loss multiplies the gradient of each loss by."""
    losses = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(joined(losses, weighting, s, **options), losses)[0].tolist()


def minimum(losses, weighting) -> torch.Tensor:
    """The log variances that the joined loss leads to, found by an optimizer."""
    s = torch.zeros(len(losses), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([s], max_iter=500, **EXACT)

    def closure():
        optimizer.zero_grad()
        loss = joined(losses, weighting, s)
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    return s.detach()


def test_uncertainty_ends_at_weights_of_half_the_inverse_loss():
    s = minimum(PUBLISHED_LOSSES, TaskWeighting())
    assert s.exp().tolist() == pytest.approx([2 * loss for loss in PUBLISHED_LOSSES], rel=1e-6)
    assert joined(PUBLISHED_LOSSES, TaskWeighting(), s).item() == pytest.approx(2.4865423144574037, rel=1e-12)
    expected = [0.21238104, 0.16715603, 0.1745074, 22.83233204, 7.262519]
    assert weights_of(PUBLISHED_LOSSES, TaskWeighting(), s) == pytest.approx(expected, rel=1e-6)


def test_liebel_ends_where_its_closed_form_says_and_is_never_negative():
    weighting = TaskWeighting("uncertainty_liebel")
    s = minimum(PUBLISHED_LOSSES, weighting)
    expected = [(loss + math.sqrt(loss**2 + 8 * loss)) / 4 for loss in PUBLISHED_LOSSES]
    assert s.exp().tolist() == pytest.approx(expected, rel=1e-6)
    assert weights_of(PUBLISHED_LOSSES, weighting, s) == pytest.approx([1 / (2 * v) for v in expected], rel=1e-6)
    for log_variance in np.linspace(-30, 10, 41):
        assert joined([0.0], weighting, torch.tensor([log_variance], dtype=torch.float64)) >= 0


def test_log_is_the_logarithm_of_the_losses_and_has_its_gradient():
    weighting = TaskWeighting("log")
    assert joined(PUBLISHED_LOSSES, weighting).item() == pytest.approx(sum(map(math.log, PUBLISHED_LOSSES)), rel=1e-12)
    assert weights_of(PUBLISHED_LOSSES, weighting) == pytest.approx([1 / loss for loss in PUBLISHED_LOSSES], rel=1e-12)
    scaled = [7 * PUBLISHED_LOSSES[0], *PUBLISHED_LOSSES[1:]]  # no task counts more because its loss is larger
    assert [w * loss for w, loss in zip(weights_of(scaled, weighting), scaled, strict=True)] == pytest.approx([1] * 5)


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_soft_uncertainty_is_the_softmax_of_the_inverse_losses(temperature):
    shares = np.exp([1 / loss / temperature for loss in PUBLISHED_LOSSES])
    weights = weights_of(PUBLISHED_LOSSES, TaskWeighting("soft_uncertainty", temperature=temperature))
    assert weights == pytest.approx(shares / shares.sum(), rel=1e-9)


def test_soft_uncertainty_shares_among_the_known_tasks():
    is_known = torch.tensor([True, False, True])
    weights = weights_of([1.0, 0.0, 1.0], TaskWeighting("soft_uncertainty"), is_known=is_known)
    assert weights == pytest.approx([0.5, 0, 0.5])
    none = torch.zeros(3, dtype=torch.bool)
    assert joined([0.0, 0.0, 0.0], TaskWeighting("soft_uncertainty"), is_known=none).item() == 0


def test_fixed_and_equal():
    assert weights_of([3.0, 0.2], TaskWeighting("fixed", fixed=(0.5, 10.0))) == [0.5, 10.0]
    assert joined([3.0, 0.2], TaskWeighting("fixed", fixed=(0.5, 10.0))).item() == pytest.approx(3.5)
    assert weights_of([3.0, 0.2], TaskWeighting("equal")) == [1, 1]


@pytest.mark.parametrize("rule", RULES)
def test_no_weight_is_above_the_cap(rule):
    weighting = TaskWeighting(rule, max_weight=8.0, fixed=(2.0, 30.0, 1.0))
    for log_variance in (-80.0, -5.0, 0.0, 3.0):
        s = torch.full((3,), log_variance, dtype=torch.float64)
        weights = weights_of([2.0, 0.001, 0.0], weighting, s)
        assert max(weights) <= 8.0
        assert joined([2.0, 0.001, 0.0], weighting, s).isfinite()


@pytest.mark.parametrize("rule", ["uncertainty", "uncertainty_liebel"])
def test_under_a_cap_a_task_ends_at_its_own_weight_or_at_the_cap(rule):
    losses, cap = [2.0, 0.3, 0.01], 5.0
    free = weights_of(losses, TaskWeighting(rule), minimum(losses, TaskWeighting(rule)))
    assert max(free) > cap
    capped = TaskWeighting(rule, max_weight=cap)
    weights = weights_of(losses, capped, minimum(losses, capped))
    assert weights[:2] == pytest.approx([min(weight, cap) for weight in free[:2]], rel=1e-6)
    assert weights[2] == pytest.approx(cap, rel=1e-3)


def test_a_capped_weight_comes_back_when_the_loss_grows():
    """Under Adam, from far below the floor of the variance: it must not be stuck there."""
    weighting = TaskWeighting(max_weight=8.0)
    s = torch.tensor([-6.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([s], lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        joined([3.0], weighting, s).backward()
        optimizer.step()
    assert weights_of([3.0], weighting, s.detach()) == pytest.approx([1 / 6], rel=1e-3)


@pytest.mark.parametrize("rule", ["uncertainty", "uncertainty_liebel"])
@pytest.mark.parametrize("cap", [None, 100.0])
def test_best_log_variances_are_where_the_gradient_vanishes(rule, cap):
    weighting = TaskWeighting(rule, max_weight=cap)
    s = best_log_variances(torch.tensor(PUBLISHED_LOSSES), weighting).requires_grad_()
    gradient = torch.autograd.grad(joined(torch.tensor(PUBLISHED_LOSSES).double(), weighting, s), s)[0]
    assert gradient.abs().max() < 1e-7


def test_where_the_cap_binds_the_start_is_at_the_cap():
    weighting = TaskWeighting(max_weight=8.0)
    s = best_log_variances(torch.tensor([0.01]), weighting)
    assert weights_of([0.01], weighting, s) == pytest.approx([8.0], rel=0.02)


@pytest.mark.parametrize(("log_form", "factor"), [("regression", 1.0), ("classification", math.sqrt(2))])
def test_two_regressions_with_different_noise_learn_their_noise(log_form, factor):
    """Kendall's toy: L/(2σ²) + log σ ends at σ = the root mean square error, L/σ² + log σ at √2 times that."""
    random = np.random.default_rng(0)
    x = random.normal(size=400)
    targets = np.stack([2 * x + 8 + 10 * random.normal(size=400), 3 * x + 3 + random.normal(size=400)])
    residuals = [np.polyval(np.polyfit(x, y, 1), x) - y for y in targets]
    rmse = np.array([np.sqrt(np.mean(residual**2)) for residual in residuals])
    lines = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    s = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([lines, s], max_iter=1000, **EXACT)
    scale = 0.5 if log_form == "regression" else 1.0

    def closure():
        optimizer.zero_grad()
        errors = lines[:, :1] * torch.tensor(x) + lines[:, 1:] - torch.tensor(targets)
        loss = joined(scale * (errors**2).mean(1), TaskWeighting(), s)
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    assert torch.exp(s / 2).tolist() == pytest.approx(factor * rmse, rel=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_parts_of_a_step_have_the_gradient_of_the_whole(rule):
    weighting = TaskWeighting(rule, epsilon=1e-8, max_weight=20.0, fixed=(1.0, 2.0, 3.0))
    parts = torch.tensor([[1.0, 0.0, 0.02], [0.4, 0.5, 0.0], [0.1, 0.2, 0.01]], dtype=torch.float64)
    whole_losses = parts.sum(0).requires_grad_()
    s = torch.tensor([0.3, -1.0, -2.0], dtype=torch.float64, requires_grad=True)
    whole = joined(whole_losses, weighting, s)
    whole.backward()
    expected_s, s.grad = s.grad, None
    total = 0.0
    for part in parts:
        part = part.clone().requires_grad_()
        loss = joined(part, weighting, s, term_share=1 / 3, step_losses=whole_losses.detach())
        loss.backward()
        total += loss.item()
        assert part.grad.tolist() == pytest.approx(whole_losses.grad.tolist(), rel=1e-12)
    assert total == pytest.approx(whole.item(), rel=1e-12)
    if expected_s is not None:
        assert s.grad.tolist() == pytest.approx(expected_s.tolist(), rel=1e-12)
    assert (expected_s is not None) == weighting.learns
