"""Streaming metrics against scikit-learn, on random data and on the counts behind the published test results."""

import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    hamming_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from artgraph_vit import Task
from artgraph_vit.evaluation.metrics import MultiTaskMetrics, kinds_of, majority_metrics, score_bins
from artgraph_vit.model.tasks import MULTI_LABEL, SINGLE_LABEL

pytestmark = pytest.mark.filterwarnings(
    *("ignore:y_pred contains classes not in y_true", "ignore:A single label was found in 'y_true'")
)
STYLE = Task("style", SINGLE_LABEL, tuple("abcdefg"))
TAGS = Task("tags", MULTI_LABEL, tuple("uvwxyz"))


def micro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    return f1_score(labels, predicted, average="micro", zero_division=0)


def sklearn_metrics(name: str, labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """scikit-learn's values on rows that are all known: class indices `(N,)` or 0/1 `(N, C)`."""
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
    if labels.ndim == 1:
        first = {"accuracy": accuracy_score, "balanced_accuracy": balanced_accuracy_score}
    else:
        first = {"hamming_loss": hamming_loss, "micro_f1": micro_f1}
    return {
        **{f"{name}_{key}": function(labels, predicted) for key, function in first.items()},
        f"{name}_macro_precision": precision,
        f"{name}_macro_recall": recall,
        f"{name}_macro_f1": f1,
    }


def streamed(logits: dict, labels: dict, tasks: list[Task], sizes: list[int], **options) -> MultiTaskMetrics:
    """Metrics that were fed the rows in batches of these sizes."""
    metrics = MultiTaskMetrics(tasks, **options)
    for rows in torch.arange(sum(sizes)).split(sizes):
        metrics.update({k: v[rows] for k, v in logits.items()}, {k: v[rows] for k, v in labels.items()})
    return metrics


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


@pytest.mark.parametrize(("sizes", "seed"), [([150], 0), ([1, 2, 100, 7, 40], 1), ([1] * 150, 2)])
def test_values_equal_scikit_learn_however_the_rows_are_streamed(random_rows, sizes, seed):
    logits, labels = random_rows(seed)
    metrics = streamed(logits, labels, [STYLE, TAGS], sizes)
    values = metrics.compute()
    metrics.reset()  # forgets everything
    assert math.isnan(metrics.compute()["avg_macro_f1"])
    metrics.update(logits, labels)
    assert_values(metrics.compute(), values)

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
        {
            "tags_hamming_loss": np.mean(labels[known] != predicted[known]),
            "tags_macro_f1": np.mean(f1s),
            "tags_micro_f1": f1_score(labels[known], predicted[known]),  # of all known entries as one label
        },
    )


def test_mean_average_precision_equals_scikit_learn_to_a_bin():
    """With ties and extremes, rows and entries unknown, the second tag on no artwork and the third on all."""
    random = np.random.default_rng(8)
    tags = (random.random((3000, 6)) < [0.02, 0, 1, 0.3, 0.5, 0.1]).astype(float)
    logits = (2 * tags + random.normal(size=tags.shape) * [1, 1, 1, 0.2, 9, 2] - 2).astype(np.float32)
    logits[:40, 3] = 0.75
    logits[40:44, 5] = [np.inf, -np.inf, 21, -1e30]
    tags[random.random(3000) < 0.2] = -100
    tags[random.random(tags.shape) < 0.1] = -100
    metrics = streamed({"tags": torch.tensor(logits)}, {"tags": torch.tensor(tags)}, [TAGS], [1, 999, 2000])

    def expected(scores: np.ndarray) -> list[float]:
        known = tags != -100
        return [average_precision_score(tags[known[:, c], c], scores[known[:, c], c]) for c in (0, 2, 3, 4, 5)]

    found = [row["average_precision"] for row in metrics.label_rows()]
    assert found.pop(1) is None
    assert found == pytest.approx(expected(score_bins(torch.tensor(logits)).numpy()), rel=1e-12)
    assert found == pytest.approx(expected(np.nan_to_num(logits)), abs=5e-3)
    assert metrics.compute()["tags_mean_average_precision"] == pytest.approx(np.mean(found), rel=1e-12)


@pytest.mark.parametrize(("deviation", "below"), [(1, 0.001), (0.2, 0.005), (0.02, 0.05)])
def test_mean_average_precision_lies_below_scikit_learn_as_far_as_is_said(deviation, below):
    """In the docstring of the metrics, and in the card."""
    random = np.random.default_rng(0)
    task = Task("tags", MULTI_LABEL, tuple(map(str, range(60))))
    tags = random.random((3000, 60)) < np.exp(random.uniform(np.log(0.005), np.log(0.3), 60))
    scores = random.normal(size=tags.shape) + random.uniform(0, 4, 60) * tags
    logits = (deviation * scores / scores.std(0) - 3).astype(np.float32)
    metrics = MultiTaskMetrics([task])
    metrics.update({"tags": torch.tensor(logits)}, {"tags": torch.tensor(tags).float()})
    exact = np.mean([average_precision_score(tags[:, c], logits[:, c]) for c in range(60)])
    assert 0.3 * below < exact - metrics.compute()["tags_mean_average_precision"] < 1.5 * below


@pytest.mark.parametrize("has_ties", [False, True])
def test_top_5_accuracy_equals_scikit_learn_and_counts_the_first_of_equal_scores(random_rows, has_ties):
    logits, labels = random_rows(2)
    if has_ties:
        logits["style"] = logits["style"].round()
    metrics = streamed(logits, labels, [STYLE], [100, 50])
    known = labels["style"].numpy() != -100
    scores, style = logits["style"].numpy()[known], labels["style"].numpy()[known]
    # scikit-learn counts the last of equal scores, where accuracy takes the first: hence from right to left.
    expected = top_k_accuracy_score(6 - style, scores[:, ::-1], k=5, labels=range(7))
    values = metrics.compute()
    assert values["style_top5_accuracy"] == pytest.approx(expected, rel=1e-12)
    assert values["style_accuracy"] < values["style_top5_accuracy"] < 1


def test_scores_that_are_not_numbers_win_nothing():
    logits = {"style": torch.full((4, 7), math.nan), "tags": torch.full((4, 6), math.nan)}
    labels = {"style": torch.tensor([0, 1, 2, -100]), "tags": torch.tensor([[1.0, 0, 0, 0, 0, 0]]).repeat(4, 1)}
    labels["tags"][1:, 0] = 0
    metrics = MultiTaskMetrics([STYLE, TAGS])
    metrics.update(logits, labels)
    values = metrics.compute()
    assert values["style_top5_accuracy"] == 0
    assert values["tags_mean_average_precision"] == 0.25  # as if all were tied
    assert values["tags_macro_recall"] == 0


def test_what_is_measured_is_what_is_named(random_rows):
    """And what needs scores is left out without them, as is top-5 accuracy of few labels."""
    few = Task("style", SINGLE_LABEL, tuple("abcde"))
    logits, labels = random_rows(0)
    for task, scores in ((STYLE, logits["style"]), (few, logits["style"][:, [0, 1, 2, 3, 5]]), (TAGS, logits["tags"])):
        known = labels[task.name].where(labels[task.name] < task.num_labels, -100)
        metrics = MultiTaskMetrics([task])
        metrics.update({task.name: scores}, {task.name: known})
        named = {f"{task.name}_{kind}" for kind in kinds_of(task)}
        others = {f"{task.name}_absent_labels", "avg_macro_f1"}
        assert metrics.compute().keys() == named | others
        metrics.reset()
        metrics.update_predictions(task, scores > 0, known)
        of_scores = {"style_top5_accuracy", "tags_mean_average_precision"}
        assert metrics.compute().keys() == (named - of_scores) | others
        assert all(row["average_precision"] is None for row in metrics.label_rows())
    assert "top5_accuracy" not in kinds_of(few)
    metrics.reset()
    metrics.update({"tags": logits["tags"]}, {"tags": torch.zeros(150, 6)})
    assert "tags_mean_average_precision" not in metrics.compute()  # no label has a positive


def test_label_rows_equal_scikit_learn(random_rows):
    logits, labels = random_rows(1)
    thresholds = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    genre = Task("genre", SINGLE_LABEL, ("a", "b"))
    metrics = MultiTaskMetrics([STYLE, genre, TAGS], {"tags": thresholds})
    metrics.update({**logits, "genre": torch.zeros(150, 2)}, {**labels, "genre": torch.full((150,), -100)})
    values, table = metrics.compute(), metrics.label_rows()
    shares = ("precision", "recall", "f1")
    assert list(table[0]) == ["task", "label", "support", "predicted", *shares, "average_precision", "threshold"]
    assert not [name for name in values if name.startswith("genre")]  # of which nothing is known
    assert values["avg_macro_f1"] == (values["style_macro_f1"] + values["tags_macro_f1"]) / 2
    assert [(row["task"], row["label"]) for row in table] == [
        *[("style", label) for label in "abcdefg"],
        *[("tags", label) for label in "uvwxyz"],
    ]
    style, tags = labels["style"].numpy(), labels["tags"].numpy()
    known_style, known_tags = style != -100, tags[:, 0] != -100
    style, guess = style[known_style], logits["style"].numpy().argmax(1)[known_style]
    decided = (logits["tags"].sigmoid().numpy() > thresholds)[known_tags].astype(int)
    for rows, actual, predicted in (
        (table[:7], np.eye(7)[style], np.eye(7)[guess]),
        (table[7:], tags[known_tags], decided),
    ):
        expected = precision_recall_fscore_support(actual, predicted, average=None, zero_division=0)
        for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
            assert [row[name] for row in rows] == pytest.approx(values, rel=1e-12), name
        assert [row["predicted"] for row in rows] == predicted.sum(0).tolist()
    assert [row["threshold"] for row in table] == [None] * 7 + thresholds


def test_confusions_equal_scikit_learn_where_a_picture_can_show_them(random_rows):
    logits, labels = random_rows(1)
    artist = Task("artist", SINGLE_LABEL, tuple(map(str, range(51))))
    genre = Task("genre", SINGLE_LABEL, tuple(map(str, range(50))))
    scores = torch.tensor(np.random.default_rng(0).normal(size=(150, 51)))
    logits |= {"artist": scores, "genre": scores[:, :50]}
    labels |= {"artist": labels["style"], "genre": torch.arange(150) % 50}
    found = streamed(logits, labels, [STYLE, artist, genre, TAGS], [64, 64, 22]).confusions()
    assert found.keys() == {"style", "genre"}
    for name, counts in found.items():
        actual = labels[name].numpy()
        known = actual != -100
        guesses = logits[name].numpy().argmax(1)
        expected = confusion_matrix(actual[known], guesses[known], labels=range(len(counts)))
        assert counts.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("task", "labels", "predicted"),
    [
        *[
            (STYLE, np.array(y), np.array(x))
            for y, x in (([2] * 9, [2] * 9), ([2] * 9, [0] * 9), ([0, 1, 2], [1, 2, 0]))
        ],
        *[(TAGS, np.full((5, 6), y), np.full((5, 6), x)) for y in (0, 1) for x in (0, 1)],
    ],
)
def test_degenerate_cases_equal_scikit_learn(task, labels, predicted):
    metrics = MultiTaskMetrics([task])
    given = torch.tensor(predicted if task.is_multi_label else np.eye(7)[predicted]).bool()
    metrics.update_predictions(task, given, torch.tensor(labels))
    assert_values(metrics.compute(), sklearn_metrics(task.name, labels, predicted))


@pytest.mark.parametrize(
    ("num_labels", "correct", "accuracy"),
    [(243, 12_375, 0.6993105786618445), (32, 10_614, 0.5997965641952984), (18, 12_879, 0.7277915913200723)],
)
def test_published_accuracies_follow_from_their_counts(num_labels, correct, accuracy):
    task = Task("style", SINGLE_LABEL, tuple(map(str, range(num_labels))))
    labels = torch.arange(17_696) % num_labels
    guesses = torch.where(torch.arange(17_696) < correct, labels, (labels + 1) % num_labels)
    metrics = MultiTaskMetrics([task])
    for rows in torch.arange(17_696).split(5000):
        predicted = torch.nn.functional.one_hot(guesses[rows], num_labels).bool()
        metrics.update_predictions(task, predicted, labels[rows])
    assert metrics.compute()["style_accuracy"] == accuracy


@pytest.mark.parametrize(
    ("num_labels", "rows", "wrong", "loss"),
    [(429, 14_335, 34_978, 0.005687743253142625), (31, 6_817, 5_203, 0.024620611658709015)],
)
def test_published_hamming_losses_follow_from_their_counts(num_labels, rows, wrong, loss):
    task = Task("tags", MULTI_LABEL, tuple(map(str, range(num_labels))))
    labels = torch.full((17_696, num_labels), -100, dtype=torch.int16)  # most rows known, the others say nothing
    labels[:rows] = torch.arange(rows)[:, None].add(torch.arange(num_labels)).remainder(50) == 0
    predicted = labels > 0.5
    predicted[:rows].view(-1)[:wrong] ^= True
    predicted[rows:] = True
    metrics = MultiTaskMetrics([task])
    metrics.update_predictions(task, predicted, labels)
    assert metrics.compute()["tags_hamming_loss"] == loss
    assert metrics.known_rows() == {"tags": rows}


def test_the_published_average_is_that_of_the_published_macro_f1s(monkeypatch):
    published = {
        **{"artist": 0.5862963720648307, "style": 0.5740512721960334, "genre": 0.6594409792772451},
        **{"tags": 0.3961297113144862, "media": 0.46162278125964595},
    }
    tasks = [Task(name, SINGLE_LABEL, ("a", "b")) for name in published]
    metrics = MultiTaskMetrics(tasks)
    metrics.update({name: torch.zeros(1, 2) for name in published}, dict.fromkeys(published, torch.tensor([0])))
    monkeypatch.setattr(metrics, "_measure", lambda task: {"macro_f1": published[task.name]})
    assert metrics.compute()["avg_macro_f1"] == pytest.approx(0.5355082232224483, abs=1e-15)


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
    assert values["tags_mean_average_precision"] == pytest.approx(tags.mean())  # the same score for every artwork
    assert values["style_top5_accuracy"] == np.isin(style, np.argsort(-priors["style"].numpy())[:5]).mean()
