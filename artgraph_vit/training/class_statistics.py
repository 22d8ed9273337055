"""What the counts of labels in the train split do to a model before it is trained.

Class weights and the weights of positives go into the buffers of the heads; if asked for, the log variances start
where a model that looks at no picture would end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from datasets import Dataset
from torch import Tensor

from ..data import ArtGraphCollator, known_row_count, label_counts
from ..model.losses import best_log_variances, soft_targets
from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification, TaskHead
from ..model.tasks import Task

CLASS_WEIGHTS = {"balanced": 1.0, "sqrt": 0.5, "none": 0.0}  # by which power; the first as scikit-learn has it


def inverse_power_weights(counts: Tensor, power: float) -> Tensor:
    """Weights proportional to 1/n^power of the counts n, int64 `(C,)`, with a mean over the rows of 1, and 1 for a
    class without rows: float `(C,)`."""
    weights = counts.clamp(min=1).double() ** -power
    weights = weights * counts.sum() / (weights * counts).sum()
    return torch.where(counts > 0, weights, torch.ones_like(weights)).float()


def set_label_statistics(model: ArtGraphViTForImageClassification, rows: Dataset, class_weights: str) -> None:
    """Fills the buffers of the heads from the encoded rows of the train split; `class_weights` names one of
    `CLASS_WEIGHTS`."""
    for task in model.config.tasks:
        counts = label_counts(rows, task)
        if not task.is_multi_label:
            model.set_class_weights({task.name: inverse_power_weights(counts, CLASS_WEIGHTS[class_weights])})
        elif model.config.max_positive_weight > 1:
            positives = counts.clamp(min=1).double()
            weights = (known_row_count(rows, task) - positives) / positives
            bounded = weights.clamp(min=1, max=model.config.max_positive_weight)
            model.heads[task.name].positive_weights.copy_(bounded)


@torch.no_grad()
def start_log_variances_at_prior(model: ArtGraphViTForImageClassification, rows: Dataset) -> None:
    """Sets each log variance where the joined loss is smallest for a model that looks at no picture: whose logits are
    the constant ones with the smallest loss on the train rows."""
    constant = {name: _best_constant_logits(head, rows) for name, head in model.heads.items()}
    sums = torch.zeros(3, len(model.config.tasks), dtype=torch.float64)  # numerators, denominators, known rows
    for labels in label_batches(rows, model.config.tasks):
        targets = {name: soft_targets(labels[name], head.task) for name, head in model.heads.items()}
        size = len(next(iter(labels.values())))
        logits = {name: values.expand(size, -1) for name, values in constant.items()}
        sums += torch.stack([model.loss_numerators(logits, targets), *model.loss_denominators(targets)]).double()
    numerators, denominators, known = sums
    best = best_log_variances(numerators / torch.where(known > 0, denominators, 1.0))
    model.log_variances.copy_(torch.where(known > 0, best, torch.zeros_like(best)))


def _best_constant_logits(head: TaskHead, rows: Dataset) -> Tensor:
    """log(w·n) of class weights w and counts n; log(w·p/(1-p)) of weights w of positives and the share p of the known
    rows: float64 `(C,)`."""
    counts = label_counts(rows, head.task).double()
    if not head.task.is_multi_label:
        return (head.class_weights.double() * counts.clamp(min=1)).log()
    positives = counts.clamp(min=0.5)  # half a row, where there is none
    negatives = (known_row_count(rows, head.task) - counts).clamp(min=0.5)
    weights = getattr(head, "positive_weights", torch.ones(len(counts))).double()
    return (weights * positives / negatives).log()


def label_batches(rows: Dataset, tasks: Sequence[Task], size: int = 512) -> Iterator[Mapping[str, Tensor]]:
    """The labels of encoded rows as they stand in batches, without pictures."""
    rows = rows.with_format(None).select_columns([task.name for task in tasks])
    collator = ArtGraphCollator(tasks)
    for start in range(0, len(rows), size):
        yield collator.labels([rows[index] for index in range(start, min(start + size, len(rows)))])
