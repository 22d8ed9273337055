"""What the tables and the card say of a tuned model."""

from artgraph_vit import ArtGraphViTConfig, Task
from artgraph_vit.evaluation.results import results_table
from artgraph_vit.evaluation.tuning_table import tuning_table
from artgraph_vit.model.tasks import MULTI_LABEL, SINGLE_LABEL
from artgraph_vit.publishing.card import CardOptions, render_card

from .made import TASKS, results


def measured() -> dict:
    def split(at_half: float, tuned: float) -> dict:
        return {
            "metrics_at_half": {"artist_macro_f1": 0.5, "tags_macro_f1": at_half, "avg_macro_f1": at_half + 0.01},
            "metrics": {"artist_macro_f1": 0.51, "tags_macro_f1": tuned, "avg_macro_f1": tuned + 0.01},
            "calibration_error": {"tags": {"before": 0.123, "after": 0.045}},
        }

    return {"validation": split(0.211, 0.322), "test": split(0.233, 0.344)}


def tuned_config() -> ArtGraphViTConfig:
    tasks = [Task("artist", SINGLE_LABEL, ("ada", "bea")), Task("tags", MULTI_LABEL, ("Tree", "boat"))]
    return ArtGraphViTConfig(
        tasks=tasks,
        thresholds={"tags": [0.25, 0.3125]},
        temperatures={"artist": 1.5, "tags": 0.75},
        tuning={"tasks": {"artist": {"tau": 0.3}, "tags": {}}},
    )


def test_each_figure_of_tuning_stands_in_its_line():
    lines = tuning_table(measured(), tuned_config()).splitlines()
    assert max(map(len, lines)) <= 100
    words = {line.split()[0]: line.split()[1:] for line in lines}
    assert words["artist"] == ["1.5", "tau", "0.3", "0.500", "0.510", "0.500", "0.510"]
    assert words["tags"] == ["0.75", "0.25", "to", "0.31", "0.211", "0.322", "0.233", "0.344", "0.123", "0.045"]
    assert words["average"] == ["0.221", "0.332", "0.243", "0.354"]


def test_results_and_card_show_both():
    tuned = results() | {"metrics_at_half": measured()["test"]["metrics_at_half"], "tuning": measured()}
    table = results_table(tuned, TASKS)
    assert max(map(len, table.splitlines())) <= 100
    assert "by p > 0.5" in table
    assert "at .5" not in results_table(results(), TASKS)
    line = next(line for line in table.splitlines() if line.startswith("tags"))
    assert line.split()[-4:-2] == ["0.533", "0.233"]

    card = render_card(tuned, tuned_config(), "run", CardOptions())
    assert "| tags | 0.533 | 0.233 | 0.045 | 0.123 |" in card
    assert "| average | 0.586 | 0.243 |  |  |" in card
    assert "by p > 0.5" not in render_card(results(), tuned_config(), "run", CardOptions())
