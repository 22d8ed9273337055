"""results.json, labels.csv and the tables in the terminal."""

import csv
import json
import math
from dataclasses import replace

import pytest

from artgraph_vit import ArtGraphViTConfig, Task
from artgraph_vit.errors import UserError
from artgraph_vit.evaluation.results import Results, metrics_of, results_table, tuning_table, write_labels
from artgraph_vit.model.tasks import MULTI_LABEL, SINGLE_LABEL
from artgraph_vit.publishing.card import CardOptions, render_card

from .made import TASKS, results


def words_of(table: str) -> dict[str, list[str]]:
    assert max(map(len, table.splitlines())) <= 100
    return {line.split()[0]: line.split()[1:] for line in table.splitlines()[2:] if line.strip("-")}


def test_each_figure_stands_in_its_row_and_column():
    lines = results_table(results()).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0] == "Results on the test split, 1,240 artworks"
    header = lines[2]
    artist, tags, average = (next(line for line in lines if line.startswith(name)) for name in (*TASKS, "average"))

    def cells(line: str, *columns: str) -> list[str]:
        ends = [header.index(column) + len(column) for column in columns]
        return [line[:end].split("  ")[-1].strip() if line[:end].strip() else "" for end in ends]

    assert cells(artist, "known", "loss", "accuracy") == ["1,230", "1.1234", "0.611"]
    assert cells(tags, "known", "loss", "hamming", "precision") == ["930", "0.0321", "0.0555", "0.511"]
    assert cells(artist, " F1", "majority F1", "frozen F1") == ["0.644", "0.111", "0.333"]
    assert cells(average, " F1", "majority F1", "frozen F1") == ["0.586", "0.078", "0.333"]
    assert "frozen" not in results_table(replace(results(), frozen_metrics=None))  # a run without that phase


def test_a_log_is_read_by_the_known_tasks():
    """A task's name may be the start of another's."""
    log = {"test_loss": 1.0, "test_style_loss": 2.0, "test_tags_known_rows": 0, "eval_tags_macro_f1": 9.0}
    metrics = {"style_of_frame_macro_f1": 0.4, "tags_absent_labels": 2, "avg_macro_f1": 0.4}
    log |= {f"test_{name}": value for name, value in metrics.items()}
    assert metrics_of(log, ["style", "style_of_frame", "tags"], "test_") == metrics


def test_results_are_read_as_they_were_written(tmp_path):
    """By the keys that users know; a figure that JSON cannot say is null."""
    path = results().write(tmp_path)
    assert Results.read(tmp_path) == results()
    written = json.loads(path.read_text())
    assert (written["task_losses"], written["metrics_at_half"]) == ({"artist": 1.1234, "tags": 0.0321}, None)
    assert (written["metrics"]["tags_macro_f1"], written["majority_metrics"]["avg_macro_f1"]) == (0.533, 0.0777)
    results(loss=math.nan).write(tmp_path)
    assert json.loads(path.read_text())["loss"] is None
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]

    del written["metrics_at_half"]  # as results were before models were tuned
    path.write_text(json.dumps({**written, "runtime_seconds": 3}))
    assert Results.read(tmp_path) == results()
    for damaged in ("{", "[]", "{}", '{"known_rows": {}}'):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"results.json is not of a finished run \(.+\): train or evaluate again"):
            Results.read(tmp_path)


def test_labels_of_any_name_stand_in_a_table(tmp_path):
    names = ["female-portraits", 'a "b", c', "naïve — 浮世絵", "two\nlines"]
    rows = [
        {"task": "tags", "label": name, "support": 3, "f1": 1 / 3, "threshold": None if number else 0.25}
        for number, name in enumerate(names)
    ]
    path = write_labels(rows, tmp_path / "new")
    with open(path, newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [row["label"] for row in read] == names
    assert [float(row["f1"]) for row in read] == [1 / 3] * 4
    assert [row["threshold"] for row in read] == ["0.25", "", "", ""]
    assert [file.name for file in path.parent.iterdir()] == ["labels.csv"]


def tuning() -> dict:
    def split(at_half: float, tuned: float) -> dict:
        return {
            "known_rows": {"artist": 9, "tags": 9},
            "metrics_at_half": {"artist_macro_f1": 0.5, "tags_macro_f1": at_half, "avg_macro_f1": at_half + 0.01},
            "metrics": {"artist_macro_f1": 0.51, "tags_macro_f1": tuned, "avg_macro_f1": tuned + 0.01},
            "calibration_error": {"tags": {"before": 0.123, "after": 0.045}},
        }

    return {"validation": split(0.211, 0.322), "test": split(0.233, 0.344)}


def test_each_figure_of_tuning_stands_in_its_line():
    words = words_of(tuning_table(tuning(), {"tags": [0.25, 0.3125]}, {"artist": 1.5, "tags": 0.75}))
    assert words["artist"] == ["1.5", "0.500", "0.510", "0.500", "0.510"]
    assert words["tags"] == ["0.75", "0.25", "to", "0.31", "0.211", "0.322", "0.233", "0.344", "0.123", "0.045"]
    assert words["average"] == ["0.221", "0.332", "0.243", "0.354"]
    assert words_of(tuning_table(tuning(), {"tags": 0.25}, {}))["tags"][:2] == ["0.25", "0.211"]


def test_results_and_card_show_both():
    tuned = results(metrics_at_half=tuning()["test"]["metrics_at_half"], tuning=tuning())
    table = results_table(tuned)
    assert "by p > 0.5" in table
    assert "at .5" not in results_table(results())
    assert words_of(table)["tags"][-4:-2] == ["0.533", "0.233"]

    tasks = [Task("artist", SINGLE_LABEL, ("ada", "bea")), Task("tags", MULTI_LABEL, ("Tree", "boat"))]
    card = render_card(tuned, ArtGraphViTConfig(tasks=tasks), "run", CardOptions())
    assert "| tags | 0.533 | 0.233 | 0.045 | 0.123 |" in card
    assert "| average | 0.586 | 0.243 |  |  |" in card
    assert "by p > 0.5" not in render_card(results(), ArtGraphViTConfig(tasks=tasks), "run", CardOptions())
