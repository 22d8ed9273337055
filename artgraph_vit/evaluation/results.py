"""`results.json` and the tables made of it: every figure beside the majority guess and the frozen phase. And
`labels.csv`, a line for each label.

`results` is a plain dict with the keys "split", "rows", "known_rows", "loss", "task_losses", "metrics",
"majority_metrics", "frozen_metrics" (None without a frozen phase) and what else the run says of itself. Where it
is tuned, "loss", "task_losses" and "metrics" are of its tuned scores and thresholds, "metrics_at_half" those of the
model as trained, by p > 0.5, and "tuning" has both for the validation split too.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import atomic_write
from .metrics import MULTI_LABEL_KINDS, SINGLE_LABEL_KINDS


def split_metrics(metrics: Mapping[str, float], prefix: str, tasks: Sequence[str]) -> dict[str, Any]:
    """Sorts what `trainer.evaluate(metric_key_prefix=prefix)` returned.

    Returns:
        "loss", "task_losses" and "known_rows" (by task), and "metrics" (`artist_macro_f1` and so on).
    """
    plain = {
        name.removeprefix(f"{prefix}_"): value for name, value in metrics.items() if name.startswith(f"{prefix}_")
    }
    kinds = dict.fromkeys((*SINGLE_LABEL_KINDS, *MULTI_LABEL_KINDS, "absent_labels"))
    names = [f"{task}_{kind}" for task in tasks for kind in kinds] + ["avg_macro_f1"]
    return {
        "loss": plain["loss"],
        "task_losses": {task: plain[f"{task}_loss"] for task in tasks if f"{task}_loss" in plain},
        "known_rows": {task: plain[f"{task}_known_rows"] for task in tasks},
        "metrics": {name: plain[name] for name in names if name in plain},
    }


def write_results(results: Mapping[str, Any], folder: str | Path) -> Path:
    """Writes `results.json`, whole or not at all; a figure that is not finite, which JSON cannot say, as null."""
    path = Path(folder) / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_finite(results), indent=2, allow_nan=False) + "\n"
    unfinished = path.with_suffix(".json.part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
    return path


def write_labels(rows: Sequence[Mapping[str, Any]], folder: str | Path) -> Path:
    """Writes `labels.csv`, in UTF-8, of the rows that `MultiTaskMetrics.label_rows()` returns; None as nothing."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path = Path(folder) / "labels.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def results_rows(results: Mapping[str, Any], tasks: Sequence[str]) -> list[dict[str, str]]:
    """The table of results as rows of cells: one a task, and the average of the macro F1s."""
    metrics, majority, frozen = results["metrics"], results["majority_metrics"], results["frozen_metrics"] or {}
    at_half = results.get("metrics_at_half") or {}
    rows = []
    for task in tasks:
        kind = "hamming_loss" if f"{task}_hamming_loss" in metrics else "accuracy"
        rows.append(
            {
                "task": task,
                "known": f"{results['known_rows'][task]:,}",
                "loss": _number(results["task_losses"].get(task), 4),
                "accuracy": _number(metrics.get(f"{task}_accuracy")),
                "hamming": _number(metrics.get(f"{task}_hamming_loss"), 4),
                "guess": _number(majority.get(f"{task}_{kind}"), 4 if kind == "hamming_loss" else 3),
                "precision": _number(metrics.get(f"{task}_macro_precision")),
                "recall": _number(metrics.get(f"{task}_macro_recall")),
                "F1": _number(metrics.get(f"{task}_macro_f1")),
                "at .5": _number(at_half.get(f"{task}_macro_f1")),
                "majority F1": _number(majority.get(f"{task}_macro_f1")),
                "frozen F1": _number(frozen.get(f"{task}_macro_f1")),
            }
        )
    average = dict.fromkeys(rows[0], "") if rows else {}
    return [
        *rows,
        {
            **average,
            "task": "average",
            "F1": _number(metrics.get("avg_macro_f1")),
            "at .5": _number(at_half.get("avg_macro_f1")),
            "majority F1": _number(majority.get("avg_macro_f1")),
            "frozen F1": _number(frozen.get("avg_macro_f1")),
        },
    ]


def results_table(results: Mapping[str, Any], tasks: Sequence[str]) -> str:
    """A plain-text table for the end of a run, at most 100 columns wide."""
    rows = results_rows(results, tasks)
    scores = ("accuracy", "hamming", "precision", "recall", "F1", "at .5", "majority F1", "frozen F1")
    names = ("task", "known", "loss", *scores)
    columns = [name for name in names if any(row[name] for row in rows)]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    title = f"Results on the {results['split']} split, {results['rows']:,} artworks"
    if "metrics_at_half" in results:
        title += ", tuned (at .5: F1 as trained, by p > 0.5)"

    def line(cells: Mapping[str, str]) -> str:
        first, *others = columns
        return "  ".join([cells[first].ljust(widths[first]), *(cells[name].rjust(widths[name]) for name in others)])

    rule = "-" * (sum(widths.values()) + 2 * (len(columns) - 1))
    body = [line(row) for row in rows]
    return "\n".join([title, rule, line({name: name for name in columns}), rule, *body[:-1], rule, body[-1], rule])


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"
