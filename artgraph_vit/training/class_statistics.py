"""What the counts of labels in the train split do to a model before it is trained.

Class weights, the prior of logit adjustment and the weights of positives go into the buffers of the heads; if asked
for, the biases of the heads and the log variances start where a model that looks at no picture would end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from datasets import Dataset
from torch import Tensor

from ..data import ArtGraphCollator, known_row_count, label_counts
from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification
from ..model.task_weighting import best_log_variances
from ..model.tasks import Task

EFFECTIVE_NUMBER_BETA = 0.999


def balanced_class_weights(counts: Tensor) -> Tensor:
    """scikit-learn's `balanced`: n / (K·n_c), n rows, n_c of class c, K classes that have rows; 1 for the others.

    Args:
        counts (`LongTensor` of shape `(C,)`): the n_c.

    Returns:
        `FloatTensor` of shape `(C,)`.
    """
    has_rows = counts > 0
    weights = counts.sum() / (has_rows.sum() * counts.clamp(min=1).double())
    return torch.where(has_rows, weights, torch.ones_like(weights)).float()


def sqrt_class_weights(counts: Tensor) -> Tensor:
    """Weights proportional to 1/√n_c, whose mean over the rows is 1; as [`balanced_class_weights`]."""
    return _of_mean_one(1 / counts.clamp(min=1).double().sqrt(), counts)


def effective_number_class_weights(counts: Tensor, beta: float = EFFECTIVE_NUMBER_BETA) -> Tensor:
    """Weights proportional to (1-β)/(1-β^n_c), whose mean over the rows is 1; as [`balanced_class_weights`].

    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, equation 3.
    """
    return _of_mean_one((1 - beta) / (1 - beta ** counts.clamp(min=1).double()), counts)


def equal_class_weights(counts: Tensor) -> Tensor:
    """1 for each class, float `(C,)`."""
    return torch.ones(len(counts))


CLASS_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "balanced": balanced_class_weights,
    "sqrt": sqrt_class_weights,
    "effective_number": effective_number_class_weights,
    "none": equal_class_weights,
}


def set_label_statistics(model: ArtGraphViTForImageClassification, rows: Dataset, class_weights: str) -> None:
    """Fills the buffers of the heads.

    Args:
        model ([`ArtGraphViTForImageClassification`]).
        rows (`Dataset`): the encoded rows of the train split.
        class_weights (`str`): one of `CLASS_WEIGHTS`.
    """
    for task in model.config.tasks:
        counts = label_counts(rows, task)
        buffers = dict(model.heads[task.name].named_buffers())
        if not task.is_multi_label:
            model.set_class_weights({task.name: CLASS_WEIGHTS[class_weights](counts)})
        if "log_prior" in buffers:
            buffers["log_prior"].copy_(log_prior(counts))
        if "positive_weights" in buffers:
            known, positives = known_row_count(rows, task), counts.clamp(min=1).double()
            weights = (known - positives) / positives
            buffers["positive_weights"].copy_(weights.clamp(min=1, max=model.config.max_positive_weight))


@torch.no_grad()
def start_biases_at_prior(model: ArtGraphViTForImageClassification, rows: Dataset) -> None:
    """Sets the biases of the heads to the constant logits with the smallest cross-entropy on the train rows.

    With class weights w and logit adjustment τ that is log(w·n) - τ·log π for the classes of a task, and with weights
    w of positives it is log(w·p/(1-p)) for a label on the share p of the known rows. (The asymmetric loss has another
    minimum; its biases start at this one.)
    """
    for task in model.config.tasks:
        head = model.heads[task.name]
        counts = label_counts(rows, task)
        if task.is_multi_label:
            positives = counts.double().clamp(min=0.5)  # half a row, where there is none
            negatives = (known_row_count(rows, task) - counts).double().clamp(min=0.5)
            bias = (positives / negatives).log()
            if hasattr(head, "positive_weights"):
                bias = bias + head.positive_weights.double().log()
        else:
            bias = (head.class_weights.double() * counts.clamp(min=1)).log()
            bias = bias - bias.logsumexp(0)
            if hasattr(head, "log_prior"):
                bias = bias - model.config.logit_adjustment * head.log_prior.double()
        head.bias.copy_(bias)


@torch.no_grad()
def start_log_variances_at_prior(model: ArtGraphViTForImageClassification, rows: Dataset) -> None:
    """Sets each log variance where the joined loss is smallest for a model that looks at no picture.

    Its losses are those of the constant logits of [`start_biases_at_prior`], by the model's own loss functions.
    """
    biases = {name: head.bias.clone() for name, head in model.heads.items()}
    start_biases_at_prior(model, rows)
    sums = torch.zeros(2, len(model.config.tasks), dtype=torch.float64)
    for labels in label_batches(rows, model.config.tasks):
        size = len(next(iter(labels.values())))
        logits = {name: head.bias.expand(size, -1) for name, head in model.heads.items()}
        denominators, _ = model.loss_denominators(labels)
        sums += torch.stack([model.loss_numerators(logits, labels), denominators]).double()
    for name, bias in biases.items():
        model.heads[name].bias.copy_(bias)
    numerators, denominators = sums
    losses = numerators / torch.where(denominators > 0, denominators, 1.0)
    best = best_log_variances(losses, model.config.weighting)
    model.log_variances.copy_(torch.where(denominators > 0, best, torch.zeros_like(best)))


def label_batches(rows: Dataset, tasks: Sequence[Task], size: int = 512) -> Iterator[Mapping[str, Tensor]]:
    """The labels of encoded rows as they stand in batches, without pictures."""
    rows = rows.with_format(None).select_columns([task.name for task in tasks])
    collator = ArtGraphCollator(tasks)
    for start in range(0, len(rows), size):
        yield collator.labels([rows[index] for index in range(start, min(start + size, len(rows)))])


def log_prior(counts: Tensor) -> Tensor:
    """The logarithm of each class's share of the rows, from their counts: float64 `(C,)`."""
    counted = counts.double().clamp(min=1)  # a class without a row counts as one
    return (counted / counted.sum()).log()


def _of_mean_one(weights: Tensor, counts: Tensor) -> Tensor:
    has_rows = counts > 0
    weights = weights * counts.sum() / (weights * counts).sum()
    return torch.where(has_rows, weights, torch.ones_like(weights)).float()
