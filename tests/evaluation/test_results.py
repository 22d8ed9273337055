"""results.json and the table in the terminal."""

import csv
import json
import math

from artgraph_vit.evaluation.results import results_table, split_metrics, write_labels, write_results

from .made import TASKS, results


def test_each_figure_stands_in_its_row_and_column():
    lines = results_table(results(), TASKS).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0] == "Results on the test split, 1,240 artworks"
    header = lines[2]
    artist, tags, average = (next(line for line in lines if line.startswith(name)) for name in (*TASKS, "average"))

    def cell(line: str, column: str) -> str:
        end = header.index(column) + len(column)
        return line[:end].split("  ")[-1].strip() if line[:end].strip() else ""

    assert [cell(artist, name) for name in ("known", "loss", "accuracy")] == ["1,230", "1.1234", "0.611"]
    assert [cell(tags, name) for name in ("known", "loss", "hamming", "precision")] == [
        "930",
        "0.0321",
        "0.0555",
        "0.511",
    ]
    assert [cell(artist, name) for name in (" F1", "majority F1", "frozen F1")] == ["0.644", "0.111", "0.333"]
    assert [cell(average, name) for name in (" F1", "majority F1", "frozen F1")] == ["0.586", "0.078", "0.333"]


def test_a_run_without_a_frozen_phase_has_no_such_column():
    assert "frozen" not in results_table({**results(), "frozen_metrics": None}, TASKS)


def test_evaluations_are_sorted_by_kind():
    flat = {"test_loss": 1.0, "test_artist_loss": 2.0, "test_artist_known_rows": 5, "test_tags_known_rows": 0}
    measured = {"artist_accuracy": 0.5, "artist_balanced_accuracy": 0.6, "artist_top5_accuracy": 0.9}
    measured |= {"artist_macro_f1": 0.4, "artist_absent_labels": 2, "tags_mean_average_precision": 0.3}
    measured |= {"tags_micro_f1": 0.2, "avg_macro_f1": 0.4}
    flat |= {f"test_{name}": value for name, value in measured.items()} | {"test_runtime": 3.0, "eval_loss": 9.0}
    assert split_metrics(flat, "test", TASKS) == {
        "loss": 1.0,
        "task_losses": {"artist": 2.0},
        "known_rows": {"artist": 5, "tags": 0},
        "metrics": measured,
    }


def test_results_are_valid_json_whatever_they_hold(tmp_path):
    path = write_results(results(), tmp_path)
    assert json.loads(path.read_text()) == results()
    write_results({**results(), "loss": math.nan}, tmp_path)
    assert json.loads(path.read_text())["loss"] is None
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


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
