"""`results.json` as a dataclass, `labels.csv`, and the tables in the terminal.

Every figure stands beside those of the majority guess and of the frozen phase.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import as_user_error
from ..files import atomic_write
from .metrics import MULTI_LABEL_KINDS, SINGLE_LABEL_KINDS

METRIC_KINDS = (*dict.fromkeys((*SINGLE_LABEL_KINDS, *MULTI_LABEL_KINDS)), "absent_labels")
COLUMNS = {
    **{"accuracy": ("accuracy", 3), "hamming": ("hamming_loss", 4)},
    **{"precision": ("macro_precision", 3), "recall": ("macro_recall", 3)},
}


def metrics_of(log: Mapping[str, Any], tasks: Sequence[str], prefix: str) -> dict[str, float]:
    """Those values of a log of `Trainer`, where their names begin with a prefix such as "eval_", that are metrics of
    the tasks, by names as [`MultiTaskMetrics`] has them."""
    names = [*(f"{task}_{kind}" for task in tasks for kind in METRIC_KINDS), "avg_macro_f1"]
    return {name: log[prefix + name] for name in names if prefix + name in log}


@dataclass
class Results:
    """What `results.json` holds. Metrics are by the names of [`MultiTaskMetrics`], such as "artist_macro_f1"."""

    split: str  # what was evaluated
    rows: int  # artworks of the split
    loss: float | None  # the joined one
    task_losses: dict[str, float]
    known_rows: dict[str, int]  # of each task
    metrics: dict[str, float]  # of the model; if it is tuned, by its tuned scores and thresholds
    majority_metrics: dict[str, float]  # of the guess that looks at no picture
    seed: int
    recipe: dict[str, Any]  # the options of the run
    versions: dict[str, str]  # of packages
    frozen_metrics: dict[str, float] | None = None  # at the end of the frozen phase, if there was one
    metrics_at_half: dict[str, float] | None = None  # of a tuned model, as it was trained, by p > 0.5
    tuning: dict[str, Any] | None = None  # of "validation" and "test" what `compare_tuned` returned
    best_epoch: float | None = None  # of the checkpoint that was evaluated, if it is not the last state
    best_step: int | None = None
    best_validation_avg_macro_f1: float | None = None
    epochs: float | None = None  # that were trained
    frozen_epochs: float | None = None  # of them those with a frozen backbone
    departures: dict[str, Any] | None = None  # options that differ from those of the published model
    card: dict[str, Any] = field(default_factory=dict)  # its options
    data: dict[str, Any] = field(default_factory=dict)  # the source, and the rows of each split
    intervals: dict[str, Any] | None = None  # what `macro_f1_intervals` returned
    comparison: dict[str, Any] | None = None  # what it returned for two models, and "checkpoint"

    def write(self, folder: str | Path) -> Path:
        """Writes `results.json`, whole or not at all; a figure that is not finite, which JSON cannot say, as null."""
        path = Path(folder) / "results.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part:
            part.write_text(json.dumps(_finite(vars(self)), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, folder: str | Path) -> Results:
        """Reads `results.json`; keys that it does not know are left out.

        Raises:
            UserError: if it is not there, or not of a finished run.
        """
        path = Path(folder) / "results.json"
        wrong = (OSError, ValueError, TypeError)
        with as_user_error(f"{path} is not of a finished run", "train or evaluate again.", kinds=wrong):
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{option.name: values[option.name] for option in fields(cls) if option.name in values})


def write_labels(rows: Sequence[Mapping[str, Any]], folder: str | Path) -> Path:
    """Writes `labels.csv`, in UTF-8, of the rows that `MultiTaskMetrics.label_rows()` returns; None as nothing."""
    path = Path(folder) / "labels.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        pd.DataFrame(rows).to_csv(part, index=False, lineterminator="\r\n")
    return path


def results_rows(results: Results) -> list[dict[str, str]]:
    """The table of results as rows of cells: one a task, and the average of the macro F1s."""
    models = {"F1": results.metrics, "at .5": results.metrics_at_half}
    models |= {"majority F1": results.majority_metrics, "frozen F1": results.frozen_metrics}
    rows = []
    for task, known_rows in results.known_rows.items():
        cells = {"task": task, "known": f"{known_rows:,}", "loss": _number(results.task_losses.get(task), 4)}
        for column, (kind, digits) in COLUMNS.items():
            cells[column] = _number(results.metrics.get(f"{task}_{kind}"), digits)
        kind, digits = COLUMNS["hamming" if cells["hamming"] else "accuracy"]
        cells["guess"] = _number(results.majority_metrics.get(f"{task}_{kind}"), digits)
        rows.append(cells | {name: _number((model or {}).get(f"{task}_macro_f1")) for name, model in models.items()})
    averages = {name: _number((model or {}).get("avg_macro_f1")) for name, model in models.items()}
    return [*rows, {**dict.fromkeys(rows[0], ""), "task": "average", **averages}]


def results_table(results: Results) -> str:
    """A plain-text table for the end of a run, at most 100 columns wide."""
    title = f"Results on the {results.split} split, {results.rows:,} artworks"
    if results.metrics_at_half is not None:
        title += ", tuned (at .5: F1 as trained, by p > 0.5)"
    return _plain_table(title, [row | {"guess": ""} for row in results_rows(results)])


def tuning_table(tuning: Mapping[str, Any], thresholds: Mapping[str, Any], temperatures: Mapping[str, float]) -> str:
    """What tuning changed, a line a task: temperature, thresholds, macro F1 of validation and test split by p > 0.5
    and tuned, and the expected calibration error (ECE) on the test split; at most 100 columns wide. `tuning` is, of
    "validation" and "test", what [`compare_tuned`] returned."""
    rows = []
    for task in [*tuning["test"]["known_rows"], "average"]:
        name = "avg_macro_f1" if task == "average" else f"{task}_macro_f1"
        values = np.atleast_1d(thresholds.get(task, []))
        ends = dict.fromkeys(f"{end:.2g}" for end in (values.min(), values.max())) if len(values) else ()
        error = tuning["test"]["calibration_error"].get(task, {})
        row = {"task": task, "T": f"{temperatures[task]:.3g}" if task in temperatures else ""}
        row["threshold"] = " to ".join(ends)
        for split, short in (("validation", "val"), ("test", "test")):
            row[f"{short} at .5"] = _number(tuning[split]["metrics_at_half"].get(name))
            row[f"{short} tuned"] = _number(tuning[split]["metrics"].get(name))
        rows.append({**row, "ECE before": _number(error.get("before")), "after": _number(error.get("after"))})
    return _plain_table("Macro F1 by p > 0.5 and tuned; expected calibration error (ECE) on the test split", rows)


def _plain_table(title: str, rows: Sequence[Mapping[str, str]]) -> str:
    """Columns in which no row has anything are left out; the last row, an average, stands under a line."""
    table = pd.DataFrame(rows).set_index("task").rename_axis(None)
    header, *lines = table.loc[:, (table != "").any()].to_string().splitlines()
    rule = "-" * len(header)
    return "\n".join([title, rule, header, rule, *lines[:-1], rule, lines[-1], rule])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"
