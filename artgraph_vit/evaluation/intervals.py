"""How far macro F1 could be off by chance: percentile bootstrap intervals over the artworks of a split.

Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13. Artworks are drawn anew with replacement, as
many as there are; all tasks, and both models of a comparison, are judged on the same draws. A draw is a count for each
artwork, so the true positives and the rest of all labels are one matrix product for many draws at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import UserError
from ..model.tasks import Task

Rows = Mapping[str, tuple[Tensor, Tensor]]

CONFIDENCE = 0.95
FEWEST = 100  # resamples: with fewer an end of the interval hangs on one or two of them
BLOCK = 2**22  # artworks drawn at once, 32 MB


def macro_f1_intervals(tasks: Sequence[Task], rows: Rows, resamples: int = 1000, seed: int = 42) -> dict[str, Any]:
    """95 % intervals of `{task}_macro_f1` and `avg_macro_f1`.

    A draw holds fewer different artworks than the split, and may lack a rare label, which then counts 0 for a
    multi-label task: where many labels have only a few artworks, the interval lies too low.

    Args:
        tasks (`Sequence[Task]`): those that are in `rows` are judged.
        rows (`dict[str, tuple[BoolTensor, BoolTensor]]`): predicted and actual labels of each task, `(N, C)` each, as
            `MultiTaskMetrics.rows()` returns them.
        resamples (`int`, *optional*, defaults to 1000): at least 100.
        seed (`int`, *optional*, defaults to 42).

    Returns:
        "resamples", "seed", "confidence" and "metrics": by name the "value" on the rows themselves, "low" and "high".

    Raises:
        UserError: if no row has a known label.
    """
    names, ((values, drawn),) = _macro_f1s(tasks, [rows], resamples, seed)
    found = zip(names, values.tolist(), drawn, strict=True)
    metrics = {name: {"value": value, **_interval(own)} for name, value, own in found}
    return {"resamples": resamples, "seed": seed, "confidence": CONFIDENCE, "metrics": metrics}


def macro_f1_comparison(
    tasks: Sequence[Task], rows: Rows, other_rows: Rows, resamples: int = 1000, seed: int = 42
) -> dict[str, Any]:
    """By how much a model is better than another on the same rows, with 95 % intervals: paired, so what both find
    hard or easy cancels out.

    Args:
        tasks (`Sequence[Task]`): of both models.
        rows, other_rows (`dict[str, tuple[BoolTensor, BoolTensor]]`): as for [`macro_f1_intervals`].
        resamples (`int`, *optional*, defaults to 1000): at least 100.
        seed (`int`, *optional*, defaults to 42).

    Returns:
        As [`macro_f1_intervals`]; "metrics" has by name "value" and "other", their "difference", its "low" and "high".

    Raises:
        ValueError: if the actual labels are not the same for both.
        UserError: if no row has a known label.
    """
    if rows.keys() != other_rows.keys() or not all(rows[name][1].equal(other_rows[name][1]) for name in rows):
        raise ValueError("The two models were not judged on the same rows: evaluate both on the same split.")
    names, ((values, drawn), (others, others_drawn)) = _macro_f1s(tasks, [rows, other_rows], resamples, seed)
    found = zip(names, values.tolist(), others.tolist(), drawn - others_drawn, strict=True)
    metrics = {
        name: {"value": value, "other": other, "difference": value - other, **_interval(differences)}
        for name, value, other, differences in found
    }
    return {"resamples": resamples, "seed": seed, "confidence": CONFIDENCE, "metrics": metrics}


def intervals_table(found: Mapping[str, Any]) -> str:
    """What [`macro_f1_intervals`] or [`macro_f1_comparison`] returned, as plain text."""
    metrics = found["metrics"]
    is_comparison = "difference" in metrics["avg_macro_f1"]
    sign = "+" if is_comparison else ""
    what = "Difference to the other model" if is_comparison else "Macro F1"
    lines = [f"{what}, with {CONFIDENCE:.0%} intervals of {found['resamples']:,} resamples"]
    for name, metric in metrics.items():
        figures = [f"{metric['difference' if is_comparison else 'value']:{sign}.3f}"]
        figures += [f"[{metric['low']:{sign}.3f}, {metric['high']:{sign}.3f}]"]
        figures += [f"({metric['value']:.3f} and {metric['other']:.3f})"] if is_comparison else []
        lines.append("  ".join([name.ljust(max(map(len, metrics))), *figures]))
    return "\n".join(lines)


def _interval(drawn: np.ndarray) -> dict[str, float]:
    low, high = np.nanquantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"low": float(low), "high": float(high)}


def _macro_f1s(
    tasks: Sequence[Task], models: Sequence[Rows], resamples: int, seed: int
) -> tuple[list[str], list[tuple[np.ndarray, np.ndarray]]]:
    """The names of the macro F1s, and of each model their values on the rows themselves, `(names,)`, and on the draws,
    `(names, resamples)`; not a number where no row of a draw has a known label."""
    if resamples < FEWEST:
        raise ValueError(f"resamples={resamples}: use at least {FEWEST}.")
    judged = [task for task in tasks if task.name in models[0]]
    if not judged:
        raise UserError("No artwork of the split has a known label: there is nothing to draw intervals of.")
    num_rows = len(models[0][judged[0].name][0])
    itself = np.ones((1, num_rows), dtype=np.float32)
    blocks = [
        [[_macro_f1(task, *rows[task.name], counts) for task in judged] for rows in models]
        for counts in itertools.chain([itself], _draws(num_rows, resamples, seed))
    ]
    found = np.concatenate([np.array(block) for block in blocks], axis=-1)  # (models, tasks, 1 + resamples)
    found = np.concatenate([found, np.nanmean(found, axis=1, keepdims=True)], axis=1)  # (models, names, 1 + resamples)
    names = [f"{task.name}_macro_f1" for task in judged] + ["avg_macro_f1"]
    return names, [(of_model[:, 0], of_model[:, 1:]) for of_model in found]


def _draws(num_rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row is drawn: float32 blocks `(some resamples, num_rows)`."""
    random = np.random.default_rng(seed)
    most = max(1, BLOCK // num_rows)
    for start in range(0, resamples, most):
        size = min(most, resamples - start)
        drawn = random.integers(num_rows, size=(size, num_rows)) + num_rows * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * num_rows).reshape(size, num_rows).astype(np.float32)


def _macro_f1(task: Task, predicted: Tensor, actual: Tensor, counts: np.ndarray) -> np.ndarray:
    """`(B,)` of counts `(B, N)`; float32 holds them exactly, up to 8 million rows."""
    true = counts @ (predicted & actual).float().numpy()  # (B, C)
    either = counts @ (predicted.float() + actual.float()).numpy()  # (B, C), predicted and actual positives
    f1 = np.divide(2.0 * true, either, out=np.zeros(true.shape), where=either > 0, dtype=float)
    if task.is_multi_label:
        return f1.mean(1)
    counted = (either > 0).sum(1)
    return np.divide(f1.sum(1), counted, out=np.full(len(f1), np.nan), where=counted > 0)
