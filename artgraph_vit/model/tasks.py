"""What the model predicts: a `Task` is a name, a `problem_type` and its ordered labels; and which it decides for.

The five ArtGraph tasks are the default, not a limit: a config may hold any number of tasks. A task also
says what happens to labels that are too rare to learn (`rare`), because the same rule must hold when the
vocabulary is built and when another dataset is read with it. This file travels to the Hub with the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
OTHER = "other"
THRESHOLD = 0.5  # of a multi-label task for which the config holds none
UNKNOWN = -100  # in a batch: a label, a row or an entry that nobody recorded (the value PyTorch's losses ignore)


@dataclass(frozen=True)
class Task:
    """One thing to predict.

    Args:
        name (`str`): a Python identifier; the key of the head, of the labels in a batch and of the metrics.
        problem_type (`str`): `"single_label_classification"` or `"multi_label_classification"`.
        labels (`tuple[str, ...]`): the labels in the order of the logits; empty until a vocabulary is built.
        rare (`str`, *optional*, defaults to `"keep"`): what happens to a label that stands on too few
            artworks: `"keep"` it, `"other"` (single-label only: it becomes the label `other`), or `"drop"`
            (it is left out; an artwork with no label left is unknown).

    Raises:
        ValueError: if one of the values above is not allowed, or a label stands twice.
    """

    name: str
    problem_type: str
    labels: tuple[str, ...] = ()
    rare: str = "keep"

    def __post_init__(self) -> None:
        if not isinstance(self.labels, (list, tuple)):
            raise ValueError(f"Task {self.name!r} has labels={self.labels!r}: give a list of labels.")
        object.__setattr__(self, "labels", tuple(self.labels))
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ValueError(f"Task name {self.name!r} is not an identifier: use letters, digits and '_' only.")
        if hasattr(nn.ModuleDict(), self.name):
            raise ValueError(
                f"A task cannot be called {self.name!r}, a name that PyTorch's modules use: choose another."
            )
        if self.problem_type not in (SINGLE_LABEL, MULTI_LABEL):
            raise ValueError(
                f"Task {self.name!r} has problem_type {self.problem_type!r}: use {SINGLE_LABEL!r} or {MULTI_LABEL!r}."
            )
        if self.rare not in ("keep", "other", "drop") or (self.rare == "other" and self.is_multi_label):
            raise ValueError(
                f"Task {self.name!r} has rare={self.rare!r}: use 'keep', 'drop' or, for a single-label task, 'other'."
            )
        if any(not isinstance(label, str) for label in self.labels):
            raise ValueError(f"Task {self.name!r} has a label that is not a string.")
        if len(set(self.labels)) != len(self.labels):
            twice = next(label for label in self.labels if self.labels.count(label) > 1)
            raise ValueError(f"Task {self.name!r} has the label {twice!r} twice.")

    @property
    def num_labels(self) -> int:
        return len(self.labels)

    @property
    def is_multi_label(self) -> bool:
        return self.problem_type == MULTI_LABEL

    def with_labels(self, labels: tuple[str, ...] | list[str]) -> Task:
        return replace(self, labels=tuple(labels))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "labels": list(self.labels)}

    @classmethod
    def from_dict(cls, values: Task | Mapping[str, Any]) -> Task:
        """Reads a task from its JSON form; a `Task` passes unchanged."""
        try:
            return values if isinstance(values, Task) else cls(**values)
        except TypeError as error:
            raise ValueError(
                f"A task is given as a dict with the keys {', '.join(cls.__dataclass_fields__)} (the first two are "
                f"needed), not as {str(values)[:200]}."
            ) from error


ARTGRAPH_TASKS = (
    Task("artist", SINGLE_LABEL, rare="other"),
    Task("style", SINGLE_LABEL),
    Task("genre", SINGLE_LABEL),
    Task("tags", MULTI_LABEL, rare="drop"),
    Task("media", MULTI_LABEL, rare="drop"),
)


def predicted_labels(logits: Tensor, task: Task, threshold: float | Sequence[float] = THRESHOLD) -> Tensor:
    """Which labels a task predicts.

    Args:
        logits (`FloatTensor` of shape `(B, C)`).
        task (`Task`).
        threshold (`float` or `Sequence[float]`, *optional*, defaults to 0.5): of a multi-label task; a label is
            predicted if its probability is above it.

    Returns:
        `BoolTensor` of shape `(B, C)`, one true entry a row for a single-label task.
    """
    if not task.is_multi_label:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, best, True)
    thresholds = torch.as_tensor(threshold, dtype=torch.float32, device=logits.device)
    return logits.float() > torch.logit(thresholds)


def label_scores(logits: Tensor, task: Task) -> Tensor:
    """The probability of each label, float32 of the shape of `logits`, `(B, C)`: of one among all for a single-label
    task, of each by itself for a multi-label task."""
    return logits.float().sigmoid() if task.is_multi_label else logits.float().softmax(-1)
