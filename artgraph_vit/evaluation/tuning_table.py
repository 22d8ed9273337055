"""The table of what tuning changed, made of what `training.tuning.tune` returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..model.configuration_artgraph_vit import ArtGraphViTConfig

COLUMNS = ("task", "T", "decided by", "val at .5", "tuned", "test at .5", "tuned", "ECE before", "after")


def tuning_table(measured: Mapping[str, Any], config: ArtGraphViTConfig) -> str:
    """A line a task, at most 100 columns wide: temperature, thresholds or τ, macro F1 of validation and test split by
    p > 0.5 and tuned, and the expected calibration error on the test split."""
    lines: list[tuple[str, ...]] = [COLUMNS]
    for task in config.tasks:
        name = f"{task.name}_macro_f1"
        temperature = config.temperatures.get(task.name)
        error = measured["test"]["calibration_error"].get(task.name, {})
        lines.append(
            (
                task.name,
                "" if temperature is None else f"{temperature:.3g}",
                _decided_by(config, task.name),
                *_macro_f1s(measured, name),
                *(_number(error.get(when)) for when in ("before", "after")),
            )
        )
    lines.append(("average", "", "", *_macro_f1s(measured, "avg_macro_f1"), "", ""))
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    texts = [
        "  ".join(
            cell.ljust(width) if column in (0, 2) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in lines
    ]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    head, *body, average = texts
    title = "Macro F1 by p > 0.5 and tuned; expected calibration error (ECE) on the test split"
    return "\n".join([title, rule, head, rule, *body, rule, average, rule])


def _macro_f1s(measured: Mapping[str, Any], name: str) -> list[str]:
    splits = [measured[split] for split in ("validation", "test")]
    return [_number(split[kind].get(name)) for split in splits for kind in ("metrics_at_half", "metrics")]


def _decided_by(config: ArtGraphViTConfig, task: str) -> str:
    threshold = config.thresholds.get(task)
    tau = config.tuning["tasks"].get(task, {}).get("tau")
    if threshold is not None:
        values = threshold if isinstance(threshold, list | tuple) else [threshold]
        return f"{min(values):.2g} to {max(values):.2g}" if len(values) > 1 else f"{values[0]:.2g}"
    return "" if tau is None else f"tau {tau:g}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
