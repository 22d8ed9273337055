"""`results.json` and the tables made of it: every figure beside the majority guess and the frozen phase. And
`labels.csv`, a line for each label.

[`Measured`] is what one evaluation says of the tasks; [`Results`] is what a run says of itself.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import as_user_error
from ..files import atomic_write
from .metrics import MULTI_LABEL_KINDS, SINGLE_LABEL_KINDS

METRIC_KINDS = (*dict.fromkeys((*SINGLE_LABEL_KINDS, *MULTI_LABEL_KINDS)), "absent_labels")
KINDS = (*METRIC_KINDS, "loss", "weight", "known_rows")
OTHER_METRICS = {"majority": "majority_metrics", "frozen": "frozen_metrics", "at_half": "metrics_at_half"}


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
        """Reads the flat names that `Trainer` logs, such as `eval_artist_macro_f1`.

        Args:
            values (`Mapping[str, float]`): other names among them do not matter.
            tasks (`Sequence[str]`): their names.
            prefix (`str`, *optional*): with its "_", such as "eval_".
        """
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
    comparison: dict[str, Any] | None = None  # what `macro_f1_comparison` returned, and "checkpoint"

    def to_dict(self) -> dict[str, Any]:
        """As `results.json` has it."""
        plain = {name: value for name, value in vars(self).items() if not isinstance(value, Measured)}
        measured = {
            "loss": self.measured.loss,
            "task_losses": self.measured.of_kind("loss"),
            "known_rows": self.measured.of_kind("known_rows"),
            "metrics": self.measured.flat(),
        }
        others = {key: (other := getattr(self, name)) and other.flat() for name, key in OTHER_METRICS.items()}
        first = {"split": self.split, "rows": self.rows}
        return first | measured | others | {name: value for name, value in plain.items() if name not in OTHER_METRICS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Results:
        """Reads what [`to_dict`] returned; keys that it does not know are left out."""
        tasks = list(values["known_rows"])
        measured = Measured.of_log(values["metrics"], tasks)
        measured.loss = values["loss"]
        for kind, key in (("loss", "task_losses"), ("known_rows", "known_rows")):
            for task, value in values[key].items():
                measured.tasks[task][kind] = value
        others: dict[str, Any] = {
            name: None if values.get(key) is None else Measured.of_log(values[key], tasks)
            for name, key in OTHER_METRICS.items()
        }
        known = {option.name for option in fields(cls)}
        plain = {name: value for name, value in values.items() if name in known}
        return cls(measured=measured, **others, **plain)

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
        """Reads `results.json`.

        Raises:
            UserError: if it is not there, or not of a finished run.
        """
        path = Path(folder) / "results.json"
        wrong = (OSError, ValueError, KeyError, TypeError, AttributeError)
        with as_user_error(f"{path} is not of a finished run", "train or evaluate again.", kinds=wrong):
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))


def write_labels(rows: Sequence[Mapping[str, Any]], folder: str | Path) -> Path:
    """Writes `labels.csv`, in UTF-8, of the rows that `MultiTaskMetrics.label_rows()` returns; None as nothing."""
    path = Path(folder) / "labels.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def results_rows(results: Results) -> list[dict[str, str]]:
    """The table of results as rows of cells: one a task, and the average of the macro F1s."""
    others = {"at .5": results.at_half, "majority F1": results.majority, "frozen F1": results.frozen}
    rows = []
    for task, own in results.measured.tasks.items():
        first, digits = ("hamming_loss", 4) if "hamming_loss" in own else ("accuracy", 3)
        rows.append(
            {
                "task": task,
                "known": f"{own['known_rows']:,}",
                "loss": _number(own.get("loss"), 4),
                "accuracy": _number(own.get("accuracy")),
                "hamming": _number(own.get("hamming_loss"), 4),
                "guess": _number(results.majority.tasks[task].get(first), digits),
                "precision": _number(own.get("macro_precision")),
                "recall": _number(own.get("macro_recall")),
                "F1": _number(own.get("macro_f1")),
                **{
                    name: _number(other.tasks[task].get("macro_f1")) if other else "" for name, other in others.items()
                },
            }
        )
    averages = {name: _number(other.avg_macro_f1) if other else "" for name, other in others.items()}
    average = {"task": "average", "F1": _number(results.measured.avg_macro_f1), **averages}
    return [*rows, {**dict.fromkeys(rows[0], ""), **average}]


def results_table(results: Results) -> str:
    """A plain-text table for the end of a run, at most 100 columns wide."""
    rows = [{name: cell for name, cell in row.items() if name != "guess"} for row in results_rows(results)]
    title = f"Results on the {results.split} split, {results.rows:,} artworks"
    if results.at_half is not None:
        title += ", tuned (at .5: F1 as trained, by p > 0.5)"
    return _plain_table(title, rows)


def tuning_table(tuning: Mapping[str, Any], thresholds: Mapping[str, Any], temperatures: Mapping[str, float]) -> str:
    """What tuning changed, a line a task: temperature, thresholds, macro F1 of validation and test split by p > 0.5
    and tuned, and the expected calibration error (ECE) on the test split; at most 100 columns wide.

    Args:
        tuning (`dict`): of "validation" and "test" what [`compare_tuned`] returned.
        thresholds, temperatures (`dict`): of the tuned config.
    """
    rows = []
    for task in [*tuning["test"]["known_rows"], "average"]:
        name = "avg_macro_f1" if task == "average" else f"{task}_macro_f1"
        given = thresholds.get(task)
        values = [given] if isinstance(given, float) else given or []
        ends = dict.fromkeys(f"{end:.2g}" for end in (min(values), max(values))) if values else ()
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
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}

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
