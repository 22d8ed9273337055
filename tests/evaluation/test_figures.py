"""The figures hold the points of the log, the phase boundary and the best epoch."""

import itertools

import numpy as np
import pytest
from PIL import Image

from artgraph_vit.evaluation.figures import (
    confusion_figure,
    draw_confusions,
    draw_figures,
    losses_figure,
    macro_f1_figure,
)

from .made import TASKS, history


def lines_of(axes) -> dict[str, list]:
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}


def test_losses_hold_train_and_validation_points():
    figure = losses_figure(history(), TASKS, frozen_epochs=1, best_epoch=3)
    artist, tags, weight = figure.axes
    assert (artist.get_title(), tags.get_title()) == ("artist loss", "tags loss")
    assert lines_of(weight)["weight"] == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]
    lines = lines_of(artist)
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


def test_each_picture_is_written(tmp_path):
    tasks = [f"task{number}" for number in range(7)]
    logs = [{f"eval_{task}_loss": 1.0, "epoch": 1.0, "step": 1} for task in tasks]
    paths = draw_figures(logs, tasks, tmp_path, frozen_epochs=0, best_epoch=1.0)
    confusions = {"genre": np.eye(2, dtype=int), "style": np.ones((3, 3), dtype=int)}
    paths += draw_confusions(confusions, {"style": "abc", "genre": ("x", "y"), "tags": ("z",)}, tmp_path)
    names = ("multiclassification_losses", "multiclassification_macro_f1s", "confusion_genre", "confusion_style")
    assert paths == [tmp_path / "figures" / f"{name}.png" for name in names]
    assert all(min(Image.open(path).size) > 300 for path in paths)


def test_confusions_are_shares_of_the_actual_label():
    counts = np.array([[6, 2, 0], [0, 0, 0], [1, 0, 199]])  # of the last .5 %, which is no whole percent
    axes, _ = confusion_figure(counts, ["portrait", "$x_{", "sea"], "genre").axes
    (image,) = axes.images
    shown = image.get_array()
    assert shown[0].tolist() == [75, 25, 0]
    assert np.ma.getmaskarray(shown).tolist() == [[False] * 3, [True] * 3, [False] * 3]  # nothing is known of it
    assert (image.norm.vmin, image.norm.vmax) == (0, 100)
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "75", (1, 0): "25", (2, 2): "100"}
    assert [text.get_text() for text in axes.get_yticklabels()] == ["portrait (8)", "$x_{ (0)", "sea (200)"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["portrait", "$x_{", "sea"]


@pytest.mark.parametrize("size", [1, 50])
@pytest.mark.filterwarnings("error")
def test_names_of_labels_are_whole_and_do_not_overlap(size):
    names = [f"{number} a long name of a label with $ and _{'of' * (number % 3)}" for number in range(size)]
    names[-1] = "longer than fits: " * 5 + "end"
    figure = confusion_figure(np.eye(size, dtype=int), names, "style")
    figure.draw_without_rendering()
    axes, _ = figure.axes
    whole = figure.bbox
    rows, columns = (
        [text.get_window_extent() for text in texts] for texts in (axes.get_yticklabels(), axes.get_xticklabels())
    )
    assert all(whole.x0 <= box.x0 and whole.y0 <= box.y0 for box in rows + columns)
    assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(rows))
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(columns))
    assert axes.get_window_extent().width > whole.width / 3
    last = axes.get_xticklabels()[-1].get_text()
    assert last.startswith("longer than fits: ")
    assert last.endswith("end")
