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


def macro_f1_intervals(
    tasks: Sequence[Task], rows: Rows, other_rows: Rows | None = None, resamples: int = 1000, seed: int = 42
) -> dict[str, Any]:
    """95 % intervals of `{task}_macro_f1` and `avg_macro_f1`, or of the differences to another model on the same rows:
    paired, so what both find hard or easy cancels out.

    A draw holds fewer different artworks than the split, and may lack a rare label, which then counts 0 for a
    multi-label task: where many labels have only a few artworks, the interval of a macro F1 lies too low.

    Args:
        tasks (`Sequence[Task]`): those that are in `rows` are judged.
        rows, other_rows (`dict[str, tuple[BoolTensor, BoolTensor]]`): what `MultiTaskMetrics.decisions()` returned of
            the one and the other model.
        resamples, seed (`int`, *optional*).

    Returns:
        "resamples", "seed", "confidence" and "metrics": by name the "value" on the rows themselves, "low" and "high";
        with another model its value, "other", and the "difference", to which "low" and "high" then belong.

    Raises:
        UserError: if no row has a known label.
    """
    models = [rows] if other_rows is None else [rows, other_rows]
    judged = [task for task in tasks if task.name in rows]
    if not judged:
        raise UserError("No artwork of the split has a known label: there is nothing to draw intervals of.")
    num_rows = len(rows[judged[0].name][0])
    itself = np.ones((1, num_rows), dtype=np.float32)
    blocks = [
        [[_macro_f1(task, *model[task.name], counts) for model in models] for task in judged]
        for counts in itertools.chain([itself], _draws(num_rows, resamples, seed))
    ]
    found = np.concatenate([np.array(block) for block in blocks], axis=-1)  # (tasks, models, 1 + resamples)
    found = np.concatenate([found, np.nanmean(found, axis=0, keepdims=True)])
    metrics: dict[str, dict[str, float]] = {}
    for name, values in zip([*(task.name for task in judged), "avg"], found, strict=True):
        metric, shown = {"value": values[0, 0].item()}, values[0]
        if other_rows is not None:
            shown = values[0] - values[1]
            metric |= {"other": values[1, 0].item(), "difference": shown[0].item()}
        low, high = np.nanquantile(shown[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
        metrics[f"{name}_macro_f1"] = {**metric, "low": low, "high": high}
    return {"resamples": resamples, "seed": seed, "confidence": CONFIDENCE, "metrics": metrics}


def intervals_table(found: Mapping[str, Any]) -> str:
    """What [`macro_f1_intervals`] returned, as plain text."""
    metrics = found["metrics"]
    is_comparison = "difference" in metrics["avg_macro_f1"]
    what, sign = ("Difference to the other model", "+") if is_comparison else ("Macro F1", "")
    lines = [f"{what}, with {CONFIDENCE:.0%} intervals of {found['resamples']:,} resamples"]
    width = max(map(len, metrics))
    for name, metric in metrics.items():
        shown = metric.get("difference", metric["value"])
        line = f"{name:{width}}  {shown:{sign}.3f}  [{metric['low']:{sign}.3f}, {metric['high']:{sign}.3f}]"
        lines.append(line + (f"  ({metric['value']:.3f} and {metric['other']:.3f})" if is_comparison else ""))
    return "\n".join(lines)


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
