"""The figures hold the points of the log, the phase boundary and the best epoch."""

import pytest
from PIL import Image

from artgraph_vit.reporting.figures import draw_figures, losses_figure, macro_f1_figure

from .made import TASKS, history


def lines_of(axes) -> dict[str, list]:
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}


def test_losses_hold_train_and_validation_points():
    figure = losses_figure(history(), TASKS, frozen_epochs=1, best_epoch=3)
    assert [axes.get_title() for axes in figure.axes] == ["artist loss", "tags loss"]
    lines = lines_of(figure.axes[0])
    assert lines["train"] == [(1, 2.0), (2, 1.0), (3, pytest.approx(2 / 3)), (4, 0.5)]
    assert lines["validation"][0] == (1, 2.2)
    assert {point[0] for point in lines["backbone unfrozen"]} == {1}
    assert {point[0] for point in lines["best epoch"]} == {3}


def test_scores_hold_a_panel_for_the_average():
    figure = macro_f1_figure(history(), TASKS, frozen_epochs=0, best_epoch=None)
    assert [axes.get_title() for axes in figure.axes] == ["artist macro F1", "tags macro F1", "average macro F1"]
    lines = lines_of(figure.axes[-1])
    assert lines["validation"][-1] == (4, pytest.approx(0.6))
    assert set(lines) == {"validation"}


@pytest.mark.parametrize("count", [1, 3, 5, 7])
def test_any_number_of_tasks_is_drawn(tmp_path, count):
    tasks = [f"task{number}" for number in range(count)]
    logs = [{f"eval_{task}_loss": 1.0, "epoch": 1.0, "step": 1} for task in tasks]
    for path in draw_figures(logs, tasks, tmp_path, frozen_epochs=0, best_epoch=1.0):
        width, height = Image.open(path).size
        assert width >= 300
        assert height >= 300
