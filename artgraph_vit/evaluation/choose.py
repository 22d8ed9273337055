"""All that is tuned of a model, from its scores on validation rows: first temperatures, then what decides by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..model.tasks import Task
from .adjustment import best_tau
from .calibration import best_temperature, expected_calibration_error
from .metrics import MultiTaskMetrics
from .thresholds import SHRINKAGE, SHRUNK, choose_thresholds

TUNED = ("thresholds", "temperatures", "logit_offsets", "tuning")  # fields of the config


@dataclass(frozen=True)
class Scores:
    """What heads say of a split, before anything is tuned, and what is true.

    Args:
        logits (`dict[str, FloatTensor]` of shape `(N, C)`).
        labels (`dict[str, Tensor]`): int64 `(N,)` or float `(N, C)`, -100 where unknown.
    """

    logits: Mapping[str, Tensor]
    labels: Mapping[str, Tensor]


class KeptScores(MultiTaskMetrics):
    """Metrics that keep what they are fed, on the CPU, logits as float32."""

    def reset(self) -> None:
        super().reset()
        self._batches: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def update(self, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
        super().update(logits, labels)
        kept = {name: scores.float().cpu() for name, scores in logits.items()}
        self._batches.append((kept, {name: values.cpu() for name, values in labels.items()}))

    def scores(self) -> Scores:
        names = [task.name for task in self.tasks]
        logits, labels = zip(*self._batches, strict=True)
        return Scores(
            {name: torch.cat([batch[name] for batch in logits]) for name in names},
            {name: torch.cat([batch[name] for batch in labels]) for name in names},
        )


def choose(
    tasks: Sequence[Task],
    scores: Scores,
    method: str = SHRUNK,
    log_priors: Mapping[str, Tensor] | None = None,
    split: str = "validation",
) -> dict[str, dict[str, Any]]:
    """Chooses temperatures, thresholds and, if asked for, logit offsets.

    The temperature T of each head is the one that calibrates it; τ and thresholds are chosen on calibrated scores, so
    a single-label head with offsets says z/T - τ·log π. Its probabilities are then those of a world where all classes
    are as frequent as τ makes them.

    Args:
        tasks (`Sequence[Task]`): a task without a known label in the split stays as it is.
        scores ([`Scores`]): of the split.
        method (`str`, *optional*, defaults to `"shrunk"`): as for [`choose_thresholds`].
        log_priors (`dict[str, FloatTensor]`, *optional*): of single-label tasks; by default no logit is adjusted.
        split (`str`, *optional*, defaults to `"validation"`): what the record calls it.

    Returns:
        The fields `TUNED` of the config.

    Raises:
        UserError: if no row of the split has a known label.
        ValueError: on another method.
    """
    thresholds: dict[str, Any] = {}
    temperatures: dict[str, float] = {}
    offsets: dict[str, list[float]] = {}
    records: dict[str, dict[str, Any]] = {}
    for task in tasks:
        logits, labels = scores.logits[task.name], scores.labels[task.name]
        if not ((labels > 0.5) if task.is_multi_label else (labels >= 0)).any():
            continue
        temperature = temperatures[task.name] = best_temperature(logits, labels, task)
        record: dict[str, Any] = {}
        if task.is_multi_label:
            found = choose_thresholds(logits / temperature, labels, method)
            thresholds[task.name] = found.values
            record = {"global_threshold": found.of_all, "positives": found.positives}
        elif log_priors is not None:
            log_prior = log_priors[task.name]
            record = {"tau": best_tau(logits / temperature, labels, task, log_prior)}
            if record["tau"] > 0:
                # The head divides by T what these are added to.
                offsets[task.name] = (-record["tau"] * temperature * log_prior.double()).tolist()
        records[task.name] = record
    if not records:
        raise UserError(f"No artwork of the {split} split has a known label, so nothing can be tuned on it.")
    tuned: dict[str, dict] = {"thresholds": thresholds, "temperatures": temperatures, "logit_offsets": offsets}
    measured = measure(tasks, scores, tuned)
    for name, record in records.items():
        record |= {
            "known_rows": measured["known_rows"][name],
            "macro_f1_at_half": measured["metrics_at_half"][f"{name}_macro_f1"],
            "macro_f1": measured["metrics"][f"{name}_macro_f1"],
            "calibration_error": measured["calibration_error"][name],
        }
    return {**tuned, "tuning": {"split": split, "method": method, "shrinkage": SHRINKAGE, "tasks": records}}


def measure(tasks: Sequence[Task], scores: Scores, tuned: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How much tuning changes on a split.

    Args:
        tasks (`Sequence[Task]`).
        scores ([`Scores`]): of the split.
        tuned (`dict`): as [`choose`] returns it.

    Returns:
        "known_rows"; "metrics_at_half", the metrics of the model as it was trained, by p > 0.5, and "metrics", those
        of the tuned one; and "calibration_error", for each task with a known row "before" and "after".
    """
    after = {name: _tuned_logits(name, logits, tuned) for name, logits in scores.logits.items()}
    at_half, at_tuned = MultiTaskMetrics(tasks), MultiTaskMetrics(tasks, tuned["thresholds"])
    at_half.update(scores.logits, scores.labels)
    at_tuned.update(after, scores.labels)
    known_rows = at_half.known_rows()
    errors = {
        task.name: {
            when: expected_calibration_error(logits[task.name], scores.labels[task.name], task)
            for when, logits in (("before", scores.logits), ("after", after))
        }
        for task in tasks
        if known_rows[task.name]
    }
    return {
        "known_rows": known_rows,
        "metrics_at_half": at_half.compute(),
        "metrics": at_tuned.compute(),
        "calibration_error": errors,
    }


def _tuned_logits(name: str, logits: Tensor, tuned: Mapping[str, Mapping[str, Any]]) -> Tensor:
    """As the head with this config will say it."""
    offsets = tuned["logit_offsets"].get(name)
    if offsets is not None:
        logits = logits + logits.new_tensor(offsets)
    return logits / tuned["temperatures"].get(name, 1.0)
