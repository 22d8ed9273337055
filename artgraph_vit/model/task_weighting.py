"""How the losses of the tasks are joined: L = Σ w_i·L_i + Σ r_i, where a rule gives the weights w and the terms r.

A rule is one small function. `uncertainty` is the source document's; the others stand in `RULES` beside it. All of it
is computed in float32 or better, whatever the autocast. Travels to the Hub with the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LEARNING_RULES = ("uncertainty", "uncertainty_liebel")  # by the log variances
_LEAST_LOSS = 1e-8  # below it a loss counts as this much, where a rule divides by it


@dataclass(frozen=True)
class TaskWeighting:
    """A rule and what it needs to know.

    Args:
        rule (`str`, *optional*, defaults to `"uncertainty"`): one of `RULES`.
        epsilon (`float`, *optional*, defaults to 0): the ε of `"uncertainty"`.
        max_weight (`float`, *optional*): no task gets a larger weight.
        fixed (`tuple[float, ...]`, *optional*): the weights of `"fixed"`, one a task.
        temperature (`float`, *optional*, defaults to 1): of the softmax of `"soft_uncertainty"`.
    """

    rule: str = "uncertainty"
    epsilon: float = 0.0
    max_weight: float | None = None
    fixed: tuple[float, ...] = ()
    temperature: float = 1.0

    @property
    def learns(self) -> bool:
        """Whether the log variances are a part of it."""
        return self.rule in LEARNING_RULES

    @property
    def needs_step_losses(self) -> bool:
        """Whether the weights depend on the losses, which must then be those of the whole optimizer step."""
        return self.rule in ("soft_uncertainty", "log")

    def __call__(self, losses: Tensor, is_known: Tensor, log_variances: Tensor) -> tuple[Tensor, Tensor]:
        """The weights and the terms of a step, `(T,)` each.

        Args:
            losses (`Tensor` of shape `(T,)`): the L_i of the step, without gradient.
            is_known (`BoolTensor` of shape `(T,)`): which tasks have a known row in it.
            log_variances (`Tensor` of shape `(T,)`): the s_i; σ_i² = exp(s_i).
        """
        return RULES[self.rule](losses.detach(), is_known, log_variances, self)


def uncertainty(
    losses: Tensor, is_known: Tensor, log_variances: Tensor, weighting: TaskWeighting
) -> tuple[Tensor, Tensor]:
    """w = 1/(σ²+ε), r = log(σ+ε), at whose minimum w = 1/(2L).

    Kendall, Gal & Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018, section 3.3, with an ε.
    """
    variances, sigmas = log_variances.exp(), torch.exp(log_variances / 2)
    if weighting.max_weight is not None:  # a floor under σ² is a cap on the weight that s can always come back from
        variances = variances + 1 / weighting.max_weight
        sigmas = variances.sqrt()
    return 1 / (variances + weighting.epsilon), torch.log(sigmas + weighting.epsilon)


def uncertainty_liebel(
    losses: Tensor, is_known: Tensor, log_variances: Tensor, weighting: TaskWeighting
) -> tuple[Tensor, Tensor]:
    """w = 1/(2σ²), r = log(1+σ²), which is never negative.

    Liebel & Körner, "Auxiliary Tasks in Multi-task Learning", 2018, equation 5.
    """
    variances = log_variances.exp()
    if weighting.max_weight is not None:
        variances = variances + 1 / (2 * weighting.max_weight)
    return 1 / (2 * variances), torch.log1p(variances)


def soft_uncertainty(
    losses: Tensor, is_known: Tensor, log_variances: Tensor, weighting: TaskWeighting
) -> tuple[Tensor, Tensor]:
    """w = softmax(1/(L·temperature)) over the tasks with a known row: they sum to 1.

    Kirchdorfer et al., "Analytical Uncertainty-Based Loss Weighting in Multi-Task Learning", GCPR 2024 (UW-SO).
    """
    scores = 1 / (losses.clamp(min=_LEAST_LOSS) * weighting.temperature)
    weights = torch.where(is_known, scores, -torch.inf).softmax(-1)
    return _capped(weights.nan_to_num(0.0), weighting), torch.zeros_like(losses)  # nan where no task is known


def log(losses: Tensor, is_known: Tensor, log_variances: Tensor, weighting: TaskWeighting) -> tuple[Tensor, Tensor]:
    """w = 1/L, so that the joined loss is Σ log L: the tasks' geometric mean is made small.

    Chennupati et al., "MultiNet++", CVPR Workshops 2019, take the geometric mean itself. Below the loss at which the
    weight reaches its cap, the loss goes on in a straight line.
    """
    least = _LEAST_LOSS if weighting.max_weight is None else 1 / weighting.max_weight
    losses = losses.clamp(min=least)
    return 1 / losses, torch.log(losses) - 1  # w·L + r = log L


def fixed(losses: Tensor, is_known: Tensor, log_variances: Tensor, weighting: TaskWeighting) -> tuple[Tensor, Tensor]:
    """The weights that were given, one a task."""
    return _capped(losses.new_tensor(weighting.fixed), weighting), torch.zeros_like(losses)


def equal(losses: Tensor, is_known: Tensor, log_variances: Tensor, weighting: TaskWeighting) -> tuple[Tensor, Tensor]:
    """w = 1: the sum of the losses."""
    return _capped(torch.ones_like(losses), weighting), torch.zeros_like(losses)


Rule = Callable[[Tensor, Tensor, Tensor, TaskWeighting], tuple[Tensor, Tensor]]
RULES: dict[str, Rule] = {
    "uncertainty": uncertainty,
    "uncertainty_liebel": uncertainty_liebel,
    "soft_uncertainty": soft_uncertainty,
    "log": log,
    "fixed": fixed,
    "equal": equal,
}


def join_task_losses(
    task_losses: Tensor,
    is_known: Tensor,
    log_variances: Tensor,
    weighting: TaskWeighting,
    term_share: float = 1.0,
    step_losses: Tensor | None = None,
) -> Tensor:
    """L = Σ w_i·L_i + Σ r_i over the tasks with a known row.

    Args:
        task_losses (`Tensor` of shape `(T,)`): the L_i.
        is_known (`BoolTensor` of shape `(T,)`): a task without a known row adds nothing, not even its term.
        log_variances (`Tensor` of shape `(T,)`): the s_i.
        weighting ([`TaskWeighting`]).
        term_share (`float`, *optional*, defaults to 1): the part of the terms r that this call carries, where the L_i
            are one micro-batch's part of an optimizer step.
        step_losses (`Tensor` of shape `(T,)`, *optional*): then, those of the whole step.

    Returns:
        The joined loss, a scalar.
    """
    with torch.autocast(task_losses.device.type, enabled=False):
        at_least_float32 = torch.promote_types(log_variances.dtype, torch.float32)
        whole = task_losses if step_losses is None else step_losses
        weights, terms = weighting(whole, is_known, log_variances.to(at_least_float32))
        joined = task_losses * weights + term_share * terms
        return torch.where(is_known, joined, torch.zeros_like(joined)).sum()


def best_log_variances(losses: Tensor, weighting: TaskWeighting) -> Tensor:
    """The s_i at which the joined loss is smallest for given L_i, `(T,)`, of a rule that learns them.

    σ² = 2L for `"uncertainty"` and (L + √(L²+8L))/4 for `"uncertainty_liebel"`; where the cap on the weight does not
    allow it, a hundredth of what the cap adds to σ².
    """
    losses = losses.double().clamp(min=_LEAST_LOSS)
    is_liebel = weighting.rule == "uncertainty_liebel"
    variances = (losses + (losses**2 + 8 * losses).sqrt()) / 4 if is_liebel else 2 * losses
    if weighting.max_weight is not None:
        floor = 1 / (2 * weighting.max_weight if is_liebel else weighting.max_weight)
        variances = (variances - floor).clamp(min=floor / 100)
    return variances.log()


def _capped(weights: Tensor, weighting: TaskWeighting) -> Tensor:
    return weights if weighting.max_weight is None else weights.clamp(max=weighting.max_weight)
