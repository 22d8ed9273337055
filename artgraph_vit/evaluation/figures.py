"""The figures of a run: losses and macro F1 scores, drawn from its log, one panel a task; and confusion matrices.

The phase boundary and the best epoch are marked. Colours are of Okabe & Ito's palette, told apart by everyone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

CONFUSION = "figures/confusion_{}.png"  # of a task, where its folder's figures are
NUMBERED_LABELS = 20  # up to so many, each cell of a confusion matrix says its number
LONGEST_NAME = 36  # characters of a label, where the space is short
TRAIN, VALIDATION, BEST, BOUNDARY, WEIGHT = "#E69F00", "#0072B2", "#009E73", "#555555", "#CC79A7"
Log = Sequence[Mapping[str, float]]


def draw_figures(
    log_history: Log, tasks: Sequence[str], folder: str | Path, frozen_epochs: float, best_epoch: float | None
) -> list[Path]:
    """Writes `figures/multiclassification_losses.png` and `figures/multiclassification_macro_f1s.png` of the log in
    `trainer_state.json`, one panel a task; `frozen_epochs` is 0 if the first phase did not end, or there was none."""
    target = Path(folder) / "figures"
    target.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in (("losses", losses_figure), ("macro_f1s", macro_f1_figure)):
        paths.append(target / f"multiclassification_{name}.png")
        draw(log_history, tasks, frozen_epochs, best_epoch).savefig(paths[-1], dpi=110)
    return paths


def losses_figure(log_history: Log, tasks: Sequence[str], frozen_epochs: float, best_epoch: float | None) -> Figure:
    """Train and validation loss of each task, before it is weighted, and the weight, on a scale of its own."""
    figure, panels = _panels([f"{task} loss" for task in tasks])
    for task, axes in zip(tasks, panels, strict=True):
        _curve(axes, log_history, f"{task}_loss", "train", TRAIN)
        _curve(axes, log_history, f"eval_{task}_loss", "validation", VALIDATION)
        axes.set_ylim(bottom=0)
        if any(f"{task}_weight" in log for log in log_history):
            beside = axes.twinx()
            _curve(beside, log_history, f"{task}_weight", "weight", WEIGHT)
            beside.set_ylim(0, 1.1 * beside.get_ylim()[1])
            beside.tick_params(axis="y", labelcolor=WEIGHT)
            beside.spines[["top"]].set_visible(False)
            axes.plot([], [], color=WEIGHT, label="weight of the loss (right scale)")  # for the legend
    return _finish(figure, panels, frozen_epochs, best_epoch)


def macro_f1_figure(log_history: Log, tasks: Sequence[str], frozen_epochs: float, best_epoch: float | None) -> Figure:
    """Macro F1 of each task on the validation split, and their average."""
    figure, panels = _panels([f"{name} macro F1" for name in [*tasks, "average"]])
    for name, axes in zip([*(f"{task}_macro_f1" for task in tasks), "avg_macro_f1"], panels, strict=True):
        _curve(axes, log_history, f"eval_{name}", "validation", VALIDATION)
        axes.set_ylim(0, 1)
    return _finish(figure, panels, frozen_epochs, best_epoch)


def draw_confusions(
    confusions: Mapping[str, Any], labels: Mapping[str, Sequence[str]], folder: str | Path
) -> list[Path]:
    """Writes `figures/confusion_{task}.png` of each task in what `MultiTaskMetrics.confusions()` returned."""
    paths = []
    for task, counts in confusions.items():
        paths.append(Path(folder) / CONFUSION.format(task))
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        confusion_figure(np.asarray(counts), labels[task], task).savefig(paths[-1], dpi=110)
    return paths


def confusion_figure(counts: np.ndarray, labels: Sequence[str], task: str) -> Figure:
    """What was predicted of the artworks of each label, in percent of them; a label without artworks has no colour.
    Counts are `(C, C)`, by actual and predicted label."""
    size = len(labels)
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(100 * counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    names = [name if len(name) <= LONGEST_NAME else f"{name[:24]}…{name[25 - LONGEST_NAME :]}" for name in labels]
    margin = 0.085 * max(map(len, names))  # inches, about what the names need
    side = max(2.6, (0.36 if size <= NUMBERED_LABELS else 0.26) * size)
    figure = Figure(figsize=(side + margin + 2.1, side + margin + 1.2), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="magma_r", vmin=0, vmax=100)  # uniform, and light where nothing is
    style: dict[str, Any] = {"fontsize": 8, "parse_math": False}  # a $ in a name is a $
    rows = [f"{name} ({total:,})" for name, total in zip(names, totals[:, 0], strict=True)]
    axes.set_xticks(range(size), names, rotation=90, **style)
    axes.set_yticks(range(size), rows, **style)
    axes.set(xlabel="predicted", ylabel="actual (artworks)", title=f"{task}: what each label is taken for")
    if size <= NUMBERED_LABELS:
        for row, column in np.argwhere(shares.round() > 0):
            colour = "white" if shares[row, column] > 50 else "black"
            axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, label="% of the label's artworks", shrink=0.6)
    return figure


def _panels(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    columns = min(3, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows + 0.6), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, place, title=title) for place, title in enumerate(titles, 1)]


def _curve(axes: Axes, log_history: Log, name: str, label: str, colour: str) -> None:
    points = [(log["epoch"], log[name]) for log in log_history if name in log]
    if points:
        marker = "o" if len(points) < 60 else ""
        axes.plot(*zip(*points, strict=True), color=colour, label=label, marker=marker, markersize=3, linewidth=1.6)


def _finish(figure: Figure, panels: Sequence[Axes], frozen_epochs: float, best_epoch: float | None) -> Figure:
    for axes in panels:
        if frozen_epochs:
            axes.axvline(frozen_epochs, color=BOUNDARY, linestyle="--", linewidth=1, label="backbone unfrozen")
        if best_epoch is not None:
            axes.axvline(best_epoch, color=BEST, linestyle=":", linewidth=1.8, label="best epoch")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles = {str(curve.get_label()): curve for axes in panels for curve in axes.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    return figure
