"""Streaming metrics against scikit-learn, on random data and on the counts behind the published test results."""

import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, f1_score, hamming_loss, precision_recall_fscore_support

from artgraph_vit import Task
from artgraph_vit.metrics import MultiTaskMetrics, majority_metrics
from artgraph_vit.tasks import MULTI_LABEL, SINGLE_LABEL

STYLE = Task("style", SINGLE_LABEL, tuple("abcdefg"))
TAGS = Task("tags", MULTI_LABEL, tuple("uvwxyz"))
PUBLISHED_F1S = {
    "artist": 0.5862963720648307,
    "style": 0.5740512721960334,
    "genre": 0.6594409792772451,
    "tags": 0.3961297113144862,
    "media": 0.46162278125964595,
}


def sklearn_metrics(name: str, labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """scikit-learn's values on rows that are all known: class indices `(N,)` or 0/1 `(N, C)`."""
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
    first = {"accuracy": accuracy_score} if labels.ndim == 1 else {"hamming_loss": hamming_loss}
    return {
        **{f"{name}_{key}": function(labels, predicted) for key, function in first.items()},
        f"{name}_macro_precision": precision,
        f"{name}_macro_recall": recall,
        f"{name}_macro_f1": f1,
    }


def assert_values(metrics: dict[str, float], expected: dict[str, float]) -> None:
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.fixture
def random_rows():
    """`random_rows(seed)`: logits and labels of both kinds of task; some labels never occur, some rows are unknown."""

    def make(seed: int, rows: int = 150) -> tuple[dict, dict]:
        random = np.random.default_rng(seed)
        style_logits = random.normal(size=(rows, 7))
        style_logits[:, 1] -= 10  # never predicted
        style_logits[:, [2, 3]] -= [10, 10]  # neither predicted nor actual
        style = random.choice([-100, 0, 1, 5], size=rows, p=[0.2, 0.4, 0.2, 0.2])  # 4 and 6 are predicted only
        tag_logits = random.normal(size=(rows, 6)) - 0.5
        tag_logits[:, 0] = -9
        tags = (random.random((rows, 6)) < 0.3).astype(float)
        tags[:, 1] = 0
        tags[random.random(rows) < 0.3] = -100
        return (
            {"style": torch.tensor(style_logits), "tags": torch.tensor(tag_logits)},
            {"style": torch.tensor(style), "tags": torch.tensor(tags)},
        )

    return make


@pytest.mark.parametrize("sizes", [[150], [1, 2, 100, 7, 40], [1] * 150])
@pytest.mark.parametrize("seed", [0, 1])
def test_values_equal_scikit_learn_however_the_rows_are_streamed(random_rows, sizes, seed):
    logits, labels = random_rows(seed)
    metrics = MultiTaskMetrics([STYLE, TAGS])
    for rows in torch.arange(150).split(sizes):
        metrics.update({k: v[rows] for k, v in logits.items()}, {k: v[rows] for k, v in labels.items()})
    values = metrics.compute()

    style, tags = labels["style"].numpy(), labels["tags"].numpy()
    known_style, known_tags = style != -100, tags[:, 0] != -100
    assert_values(
        values,
        sklearn_metrics("style", style[known_style], logits["style"].numpy().argmax(1)[known_style])
        | sklearn_metrics("tags", tags[known_tags], (logits["tags"].numpy() > 0)[known_tags].astype(int)),
    )
    assert values["avg_macro_f1"] == (values["style_macro_f1"] + values["tags_macro_f1"]) / 2
    assert (values["style_absent_labels"], values["tags_absent_labels"]) == (4, 1)
    assert metrics.known_rows() == {"style": known_style.sum(), "tags": known_tags.sum()}


def test_a_masked_entry_counts_for_its_label_nowhere():
    random = np.random.default_rng(4)
    labels = random.choice([0, 1, -100], size=(80, 6), p=[0.5, 0.3, 0.2])
    predicted = random.integers(0, 2, size=(80, 6))
    metrics = MultiTaskMetrics([TAGS])
    metrics.update_predictions(TAGS, torch.tensor(predicted).bool(), torch.tensor(labels))
    known = labels != -100
    f1s = [f1_score(labels[known[:, c], c], predicted[known[:, c], c], zero_division=0) for c in range(6)]
    assert_values(
        metrics.compute(),
        {"tags_hamming_loss": np.mean(labels[known] != predicted[known]), "tags_macro_f1": np.mean(f1s)},
    )


@pytest.mark.parametrize(("labels", "predicted"), [([2] * 9, [2] * 9), ([2] * 9, [0] * 9), ([0, 1, 2], [1, 2, 0])])
def test_degenerate_single_label_cases_equal_scikit_learn(labels, predicted):
    metrics = MultiTaskMetrics([STYLE])
    metrics.update_predictions(STYLE, torch.eye(7, dtype=torch.bool)[predicted], torch.tensor(labels))
    assert_values(metrics.compute(), sklearn_metrics("style", np.array(labels), np.array(predicted)))


@pytest.mark.parametrize("actual", [0, 1])
@pytest.mark.parametrize("predicted", [0, 1])
def test_degenerate_multi_label_cases_equal_scikit_learn(actual, predicted):
    metrics = MultiTaskMetrics([TAGS])
    metrics.update_predictions(TAGS, torch.full((5, 6), bool(predicted)), torch.full((5, 6), float(actual)))
    expected = sklearn_metrics("tags", np.full((5, 6), actual), np.full((5, 6), predicted))
    assert_values(metrics.compute(), expected)


def test_a_task_without_a_known_row_has_no_metrics_and_is_not_averaged(random_rows):
    logits, labels = random_rows(0)
    labels["tags"].fill_(-100)
    metrics = MultiTaskMetrics([STYLE, TAGS])
    assert math.isnan(metrics.compute()["avg_macro_f1"])
    metrics.update(logits, labels)
    values = metrics.compute()
    assert not [name for name in values if name.startswith("tags")]
    assert values["avg_macro_f1"] == values["style_macro_f1"]


def test_reset_forgets_everything(random_rows):
    metrics = MultiTaskMetrics([STYLE, TAGS])
    metrics.update(*random_rows(0))
    metrics.reset()
    metrics.update(*random_rows(1))
    alone = MultiTaskMetrics([STYLE, TAGS])
    alone.update(*random_rows(1))
    assert metrics.compute() == alone.compute()


def test_a_label_needs_a_probability_above_its_threshold():
    task = Task("tags", MULTI_LABEL, ("a", "b"))
    logits = {"tags": torch.tensor([[0.0, 1.0], [1e-3, -1.0]])}  # probabilities .5, .731; .50025, .269
    labels = {"tags": torch.ones(2, 2)}
    values = {}
    for name, thresholds in {"half": None, "one": {"tags": 0.7}, "each": {"tags": [0.4, 0.2]}}.items():
        metrics = MultiTaskMetrics([task], thresholds)
        metrics.update(logits, labels)
        values[name] = metrics.compute()["tags_macro_recall"]
    assert values == {"half": 0.5, "one": 0.25, "each": 1.0}


@pytest.mark.parametrize(
    ("name", "num_labels", "correct", "accuracy"),
    [
        ("artist", 243, 12_375, 0.6993105786618445),
        ("style", 32, 10_614, 0.5997965641952984),
        ("genre", 18, 12_879, 0.7277915913200723),
    ],
)
def test_published_accuracies_follow_from_their_counts(name, num_labels, correct, accuracy):
    task = Task(name, SINGLE_LABEL, tuple(map(str, range(num_labels))))
    labels = torch.arange(17_696) % num_labels
    guesses = torch.where(torch.arange(17_696) < correct, labels, (labels + 1) % num_labels)
    metrics = MultiTaskMetrics([task])
    for rows in torch.arange(17_696).split(5000):
        predicted = torch.nn.functional.one_hot(guesses[rows], num_labels).bool()
        metrics.update_predictions(task, predicted, labels[rows])
    assert metrics.compute()[f"{name}_accuracy"] == accuracy


@pytest.mark.parametrize(
    ("name", "num_labels", "rows", "wrong", "loss"),
    [("tags", 429, 14_335, 34_978, 0.005687743253142625), ("media", 31, 6_817, 5_203, 0.024620611658709015)],
)
def test_published_hamming_losses_follow_from_their_counts(name, num_labels, rows, wrong, loss):
    task = Task(name, MULTI_LABEL, tuple(map(str, range(num_labels))))
    labels = torch.full((17_696, num_labels), -100, dtype=torch.int16)  # most rows known, the others say nothing
    labels[:rows] = torch.arange(rows)[:, None].add(torch.arange(num_labels)).remainder(50) == 0
    predicted = labels > 0.5
    predicted[:rows].view(-1)[:wrong] ^= True
    predicted[rows:] = True
    metrics = MultiTaskMetrics([task])
    metrics.update_predictions(task, predicted, labels)
    assert metrics.compute()[f"{name}_hamming_loss"] == loss
    assert metrics.known_rows() == {name: rows}


def test_the_published_average_is_the_plain_mean_over_the_tasks():
    rows = 200_000  # enough for counts that give each published F1 to 5 digits: T true of N/2 predicted and actual
    tasks = [Task(name, MULTI_LABEL, ("label",)) for name in PUBLISHED_F1S]
    metrics = MultiTaskMetrics(tasks)
    for task in tasks:
        true = round(PUBLISHED_F1S[task.name] * rows / 2)
        actual, predicted = torch.zeros(rows, 1), torch.zeros(rows, 1, dtype=torch.bool)
        actual[: rows // 2] = 1
        predicted[rows // 2 - true : rows - true] = True
        metrics.update_predictions(task, predicted, actual)
    values = metrics.compute()
    for name, f1 in PUBLISHED_F1S.items():
        assert values[f"{name}_macro_f1"] == pytest.approx(f1, abs=1e-5)
    assert values["avg_macro_f1"] == pytest.approx(0.5355082232224483, abs=1e-5)


def test_memory_does_not_grow_with_the_number_of_artworks(random_rows):
    metrics = MultiTaskMetrics([STYLE, TAGS])
    sizes = []
    for seed in range(40):
        metrics.update(*random_rows(seed, rows=500))
        sizes.append(len(pickle.dumps(vars(metrics))))
    assert max(sizes) <= sizes[0] + 64  # a number may take a few more digits, nothing else


def test_majority_metrics_are_those_of_a_dummy_classifier():
    random = np.random.default_rng(0)
    train_style = random.choice(7, size=200, p=[0.1, 0.4, 0.2, 0.1, 0.1, 0.05, 0.05])
    train_tags = (random.random((200, 6)) < [0.9, 0.6, 0.3, 0.02, 0.45, 0.55]).astype(int)
    style = random.choice(7, size=90)
    tags = (random.random((90, 6)) < 0.5).astype(int)
    priors = {
        "style": torch.tensor(np.bincount(train_style, minlength=7) / 200),
        "tags": torch.tensor(train_tags.mean(0)),
    }
    batches = [
        {"style": torch.tensor(style[part]), "tags": torch.tensor(tags[part]).float()}
        for part in (slice(0, 50), slice(50, 90))
    ]
    pictures = np.zeros((200, 1))
    dummy_style = DummyClassifier(strategy="most_frequent").fit(pictures, train_style).predict(pictures[:90])
    dummy_tags = DummyClassifier(strategy="most_frequent").fit(pictures, train_tags).predict(pictures[:90])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = majority_metrics([STYLE, TAGS], priors, batches)
    assert_values(values, sklearn_metrics("style", style, dummy_style) | sklearn_metrics("tags", tags, dummy_tags))
