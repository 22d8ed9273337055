"""The `evaluate` module: taken from its folder with no network, it returns what `MultiTaskMetrics` returns."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torch

from artgraph_vit import Task
from artgraph_vit.evaluation.metrics import MultiTaskMetrics

MODULE = Path(__file__).parents[1] / "metrics" / "artgraph_vit_metrics"


@pytest.fixture
def load(monkeypatch, tmp_path):
    """`load(**options)`: `evaluate.load` of our module, all caches in a temporary folder and no network at all."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_METRICS_CACHE", str(tmp_path / "metrics"))
    evaluate = pytest.importorskip("evaluate")
    # Both are read when evaluate is first imported, which another test may have done.
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.syspath_prepend(tmp_path / "modules")

    def refuse(*args, **kwargs):
        raise AssertionError("the module went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return lambda **options: evaluate.load(str(MODULE), **options)


@pytest.fixture
def artworks(tasks):
    """Random predictions and references of 60 artworks, in the module's form."""
    random = np.random.default_rng(3)
    predictions, references = [], []
    for _ in range(60):
        prediction, reference = {}, {}
        for task in tasks:
            if task.is_multi_label:
                prediction[task.name] = random.integers(0, 2, task.num_labels).tolist()
                reference[task.name] = random.choice([0, 1, -100], task.num_labels, p=[0.5, 0.4, 0.1]).tolist()
                if random.random() < 0.3:
                    reference[task.name] = [-100] * task.num_labels
            else:
                prediction[task.name] = int(random.integers(task.num_labels))
                reference[task.name] = int(random.choice([-100, *range(task.num_labels)]))
        predictions.append(prediction)
        references.append(reference)
    return predictions, references


def expected_metrics(tasks: list[Task], predictions: list[dict], references: list[dict]) -> dict[str, float]:
    metrics = MultiTaskMetrics(tasks)
    for prediction, reference in zip(predictions, references, strict=True):
        for task in tasks:
            if task.is_multi_label:
                predicted, labels = torch.tensor([prediction[task.name]]), torch.tensor([reference[task.name]])
            else:
                predicted = torch.eye(task.num_labels)[[prediction[task.name]]]
                labels = torch.tensor([reference[task.name]])
            metrics.update_predictions(task, predicted.bool(), labels)
    return metrics.compute()


def test_compute_returns_exactly_the_values_of_the_package(load, tasks, artworks):
    """However the artworks are added, and again for others."""
    predictions, references = artworks
    module = load(tasks=[task.to_dict() for task in tasks])
    expected = expected_metrics(tasks, predictions, references)
    assert module.compute(predictions=predictions, references=references) == expected
    assert 0 < expected["avg_macro_f1"] < 1
    module.add_batch(predictions=predictions[:7], references=references[:7])
    module.add(prediction=predictions[7], reference=references[7])
    module.add_batch(predictions=predictions[8:20], references=references[8:20])
    assert module.compute() == expected_metrics(tasks, predictions[:20], references[:20])


def test_the_example_of_its_documentation_holds(load):
    tasks = [
        {"name": "genre", "problem_type": "single_label_classification", "labels": ["landscape", "portrait"]},
        {"name": "tags", "problem_type": "multi_label_classification", "labels": ["Tree", "sea", "sky"]},
    ]
    module = load(tasks=tasks)
    results = module.compute(
        predictions=[{"genre": 0, "tags": [1, 0, 1]}, {"genre": 1, "tags": [0, 0, 0]}],
        references=[{"genre": 0, "tags": [1, 0, 1]}, {"genre": -100, "tags": [0, 1, 0]}],
    )
    assert results["genre_accuracy"] == 1.0
    assert results["tags_hamming_loss"] == pytest.approx(1 / 6)
    assert results["tags_macro_recall"] == pytest.approx(2 / 3)
    assert "avg_macro_f1" in module.description


@pytest.mark.parametrize("tasks", [None, [], [{"name": "genre", "problem_type": "single_label_classification"}]])
def test_tasks_without_labels_are_refused_with_what_to_pass(load, tasks):
    with pytest.raises(ValueError, match=r"Pass the tasks with their labels: evaluate.load\(path, tasks="):
        load(tasks=tasks)


@pytest.mark.parametrize(
    ("name", "prediction", "reference", "message"),
    [
        ("artist", 4, 0, r"predictions\[1\]\['artist'\] is 4, but should be the index of one of the 4 labels\."),
        ("artist", -100, 0, r"predictions\[1\]\['artist'\] is -100"),
        ("artist", 0, -1, r"references\[1\]\['artist'\] is -1, .* \(or -100 for unknown\)"),
        ("tags", [1, 0], [0] * 5, r"predictions\[1\]\['tags'\] is .* a list of 5 numbers, each 0 or 1\."),
        ("tags", [0.7] * 5, [0] * 5, r"predictions\[1\]\['tags'\] is \[0.7,"),
        ("tags", [0] * 5, [2] * 5, r"references\[1\]\['tags'\] is \[2.0,"),
    ],
)
def test_a_value_that_does_not_fit_its_task_is_named(load, tasks, artworks, name, prediction, reference, message):
    predictions, references = (rows[:3] for rows in artworks)
    predictions[1] = {**predictions[1], name: prediction}
    references[1] = {**references[1], name: reference}
    with pytest.raises(ValueError, match=message):
        load(tasks=tasks, keep_in_memory=True).compute(predictions=predictions, references=references)
