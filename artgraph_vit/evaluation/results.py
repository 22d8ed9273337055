"""`results.json` and the tables made of it: every figure beside the majority guess and the frozen phase. And
`labels.csv`, a line for each label.

[`Measured`] is what one evaluation says of the tasks; [`Results`] is what a run says of itself.
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
KINDS = (*METRIC_KINDS, "loss", "weight", "known_rows")
# In `results.json`: figures of each task that are no metrics, and the metrics of other models.
TASK_FIGURES = {"task_losses": "loss", "known_rows": "known_rows"}
OTHER_METRICS = {"majority": "majority_metrics", "frozen": "frozen_metrics", "at_half": "metrics_at_half"}
COLUMNS = {
    **{"loss": ("loss", 4), "accuracy": ("accuracy", 3), "hamming": ("hamming_loss", 4)},
    **{"precision": ("macro_precision", 3), "recall": ("macro_recall", 3)},
}


@dataclass
class Measured:
    """What one evaluation, or one entry of the training log, says of the tasks.

    Args:
        tasks (`dict[str, dict[str, float]]`): by task and kind (`KINDS`); what was not measured is not there.
        loss (`float`, *optional*): the joined loss.
        avg_macro_f1 (`float`, *optional*).
    """

    tasks: dict[str, dict[str, float]]
    loss: float | None = None
    avg_macro_f1: float | None = None

    @classmethod
    def of_log(cls, values: Mapping[str, Any], tasks: Sequence[str], prefix: str = "") -> Measured:
        """Reads the flat names that `Trainer` logs, such as `eval_artist_macro_f1`, whose prefix is "eval_"; others
        among them do not matter."""
        by_task = {
            task: {kind: values[name] for kind in KINDS if (name := f"{prefix}{task}_{kind}") in values}
            for task in tasks
        }
        return cls(by_task, values.get(f"{prefix}loss"), values.get(f"{prefix}avg_macro_f1"))

    def flat(self) -> dict[str, float | None]:
        """The metrics by flat names, as `results.json` has them."""
        metrics = {
            f"{task}_{kind}": own[kind] for task, own in self.tasks.items() for kind in METRIC_KINDS if kind in own
        }
        return {**metrics, "avg_macro_f1": self.avg_macro_f1}

    def of_kind(self, kind: str) -> dict[str, float]:
        """By task, where it was measured."""
        return {task: own[kind] for task, own in self.tasks.items() if kind in own}


@dataclass
class Results:
    """What `results.json` holds. There `measured` is the four entries "loss", "task_losses", "known_rows" and
    "metrics", and the other metrics are "majority_metrics", "frozen_metrics" and "metrics_at_half"."""

    split: str  # what was evaluated
    rows: int  # artworks of the split
    measured: Measured  # of the model; if it is tuned, by its tuned scores and thresholds
    majority: Measured  # of the guess that looks at no picture
    seed: int
    recipe: dict[str, Any]  # the options of the run
    versions: dict[str, str]  # of packages
    frozen: Measured | None = None  # at the end of the frozen phase, if there was one
    at_half: Measured | None = None  # of a tuned model, as it was trained, by p > 0.5
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

    def to_dict(self) -> dict[str, Any]:
        """As `results.json` has it."""
        measured: dict[str, Any] = {"loss": self.measured.loss}
        measured |= {key: self.measured.of_kind(kind) for key, kind in TASK_FIGURES.items()}
        measured["metrics"] = self.measured.flat()
        others = {key: (other := getattr(self, name)) and other.flat() for name, key in OTHER_METRICS.items()}
        own = {name: value for name, value in vars(self).items() if name not in ("measured", *OTHER_METRICS)}
        return {"split": self.split, "rows": self.rows, **measured, **others, **own}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Results:
        """Reads what [`to_dict`] returned; keys that it does not know are left out."""
        tasks = list(values["known_rows"])
        measured = Measured.of_log({**values["metrics"], "loss": values["loss"]}, tasks)
        for key, kind in TASK_FIGURES.items():
            for task, value in values[key].items():
                measured.tasks[task][kind] = value
        others: dict[str, Any] = {
            name: Measured.of_log(values[key], tasks) for name, key in OTHER_METRICS.items() if values.get(key)
        }
        own = {option.name: values[option.name] for option in fields(cls) if option.name in values}
        return cls(measured=measured, **others, **own)

    def write(self, folder: str | Path) -> Path:
        """Writes `results.json`, whole or not at all; a figure that is not finite, which JSON cannot say, as null."""
        path = Path(folder) / "results.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part:
            text = json.dumps(_finite(self.to_dict()), indent=2, allow_nan=False)
            part.write_text(text + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, folder: str | Path) -> Results:
        """Reads `results.json`; raises a `UserError` if it is not there, or not of a finished run."""
        path = Path(folder) / "results.json"
        wrong = (OSError, ValueError, KeyError, TypeError, AttributeError)
        with as_user_error(f"{path} is not of a finished run", "train or evaluate again.", kinds=wrong):
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))


def write_labels(rows: Sequence[Mapping[str, Any]], folder: str | Path) -> Path:
    """Writes `labels.csv`, in UTF-8, of the rows that `MultiTaskMetrics.label_rows()` returns; None as nothing."""
    path = Path(folder) / "labels.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        pd.DataFrame(rows).to_csv(part, index=False, lineterminator="\r\n")
    return path


def results_rows(results: Results) -> list[dict[str, str]]:
    """The table of results as rows of cells: one a task, and the average of the macro F1s."""
    models = {"F1": results.measured, "at .5": results.at_half}
    models |= {"majority F1": results.majority, "frozen F1": results.frozen}
    rows = []
    for task, own in results.measured.tasks.items():
        first, digits = ("hamming_loss", 4) if "hamming_loss" in own else ("accuracy", 3)
        cells = {"task": task, "known": f"{own['known_rows']:,}"}
        cells |= {column: _number(own.get(kind), digits) for column, (kind, digits) in COLUMNS.items()}
        cells["guess"] = _number(results.majority.tasks[task].get(first), digits)
        f1s = {name: model.tasks[task].get("macro_f1") if model else None for name, model in models.items()}
        rows.append(cells | {name: _number(f1) for name, f1 in f1s.items()})
    averages = {name: _number(model.avg_macro_f1 if model else None) for name, model in models.items()}
    return [*rows, {**dict.fromkeys(rows[0], ""), "task": "average", **averages}]


def results_table(results: Results) -> str:
    """A plain-text table for the end of a run, at most 100 columns wide."""
    title = f"Results on the {results.split} split, {results.rows:,} artworks"
    if results.at_half is not None:
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
