"""The two figures of a run, drawn from its log: losses and macro F1 scores, one panel a task.

The phase boundary and the best epoch are marked. Colours are of Okabe & Ito's palette, told apart by everyone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

TRAIN, VALIDATION, BEST, BOUNDARY = "#E69F00", "#0072B2", "#009E73", "#555555"


def draw_figures(
    log_history: Sequence[Mapping[str, float]],
    tasks: Sequence[str],
    folder: str | Path,
    frozen_epochs: int,
    best_epoch: float | None,
) -> list[Path]:
    """Writes `figures/multiclassification_losses.png` and `figures/multiclassification_macro_f1s.png`.

    Args:
        log_history (`Sequence[Mapping]`): as in `trainer_state.json`.
        tasks (`Sequence[str]`): the names, one panel each.
        folder (`str` or `Path`): the output folder of the run.
        frozen_epochs (`int`): where the first phase ends; 0 for none.
        best_epoch (`float`, *optional*): of the best checkpoint.
    """
    target = Path(folder) / "figures"
    target.mkdir(parents=True, exist_ok=True)
    figures = {
        "multiclassification_losses.png": losses_figure(log_history, tasks, frozen_epochs, best_epoch),
        "multiclassification_macro_f1s.png": macro_f1_figure(log_history, tasks, frozen_epochs, best_epoch),
    }
    for name, figure in figures.items():
        figure.savefig(target / name, dpi=110)
    return [target / name for name in figures]


def losses_figure(
    log_history: Sequence[Mapping[str, float]], tasks: Sequence[str], frozen_epochs: int, best_epoch: float | None
) -> Figure:
    """Train and validation loss of each task, before it is weighted."""
    figure, panels = _panels(len(tasks))
    for task, axes in zip(tasks, panels, strict=False):
        _curve(axes, log_history, f"{task}_loss", "train", TRAIN)
        _curve(axes, log_history, f"eval_{task}_loss", "validation", VALIDATION)
        axes.set_title(f"{task} loss")
        axes.set_ylim(bottom=0)
    return _finish(figure, panels[: len(tasks)], frozen_epochs, best_epoch)


def macro_f1_figure(
    log_history: Sequence[Mapping[str, float]], tasks: Sequence[str], frozen_epochs: int, best_epoch: float | None
) -> Figure:
    """Macro F1 of each task on the validation split, and their average."""
    figure, panels = _panels(len(tasks) + 1)
    names = {**{task: f"eval_{task}_macro_f1" for task in tasks}, "average": "eval_avg_macro_f1"}
    for (task, key), axes in zip(names.items(), panels, strict=False):
        _curve(axes, log_history, key, "validation", VALIDATION)
        axes.set_title(f"{task} macro F1")
        axes.set_ylim(0, 1)
    return _finish(figure, panels[: len(names)], frozen_epochs, best_epoch)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(3, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(rows, columns, number + 1) for number in range(count)]
    return figure, panels


def _curve(axes: Axes, log_history: Iterable[Mapping[str, float]], key: str, label: str, colour: str) -> None:
    points = [(log["epoch"], log[key]) for log in log_history if key in log]
    if points:
        marker = "o" if len(points) < 60 else ""
        axes.plot(*zip(*points, strict=True), color=colour, label=label, marker=marker, markersize=3, linewidth=1.6)


def _finish(figure: Figure, panels: Sequence[Axes], frozen_epochs: int, best_epoch: float | None) -> Figure:
    for axes in panels:
        if frozen_epochs:
            axes.axvline(frozen_epochs, color=BOUNDARY, linestyle="--", linewidth=1, label="backbone unfrozen")
        if best_epoch is not None:
            axes.axvline(best_epoch, color=BEST, linestyle=":", linewidth=1.8, label="best epoch")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    return figure
