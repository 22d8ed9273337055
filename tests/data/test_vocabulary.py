"""Vocabulary and encoding: which labels are kept, in what order, and what becomes of the others."""

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature

from artgraph_vit import Task
from artgraph_vit.data import build_vocabulary, encode_labels, known_row_count, label_counts
from artgraph_vit.errors import UserError
from artgraph_vit.model.tasks import MULTI_LABEL, SINGLE_LABEL

ARTIST = Task("artist", SINGLE_LABEL, rare="other")
STYLE = Task("style", SINGLE_LABEL)
TAGS = Task("tags", MULTI_LABEL, rare="drop")


def raw_rows(**columns) -> Dataset:
    """Raw rows with the columns given: names of labels, lists of names, or None."""
    count = len(next(iter(columns.values())))
    is_list = {name: any(isinstance(value, list) for value in values) for name, values in columns.items()}
    features = {name: List(Value("string")) if is_list[name] else Value("string") for name in columns}
    values = {
        "image": [{"path": f"{i}.jpg", "bytes": None} for i in range(count)],
        "name": [f"{i}.jpg" for i in range(count)],
        "split": ["train"] * count,
        **columns,
    }
    fixed = {"image": ImageFeature(decode=False), "name": Value("string"), "split": Value("string")}
    return Dataset.from_dict(values, features=Features({**fixed, **features}))


def labels(task: Task, values: list, min_count: int) -> tuple[str, ...]:
    return build_vocabulary(raw_rows(**{task.name: values}), [task], min_count)[0].labels


def test_an_artist_needs_min_count_artworks_and_the_rest_become_other():
    values = ["ada"] * 3 + ["bea"] * 2 + ["cleo"] * 3 + [None] * 5
    assert labels(ARTIST, values, min_count=2) == ("ada", "bea", "cleo")  # nobody is rare: no other
    assert labels(ARTIST, values, min_count=3) == ("ada", "cleo", "other")


def test_a_tag_needs_min_count_artworks_and_the_rest_are_dropped():
    values = [["Tree", "sea"], ["sea", "sky"], ["sea", "Tree"], None]
    assert labels(TAGS, values, min_count=1) == ("Tree", "sea", "sky")
    assert labels(TAGS, values, min_count=2) == ("Tree", "sea")
    assert labels(TAGS, values, min_count=3) == ("sea",)


def test_labels_are_sorted_and_keep_their_case_and_those_of_some_tasks_are_not_filtered():
    assert labels(STYLE, ["b"] * 9 + ["a"], min_count=5) == ("a", "b")
    values = [["female-portraits"], ["Tree"], ["tree"], ["Étude"], ["sea"]]
    assert labels(TAGS, values, min_count=1) == ("Tree", "female-portraits", "sea", "tree", "Étude")
    assert labels(ARTIST, ["zoe", "zoe", "ada", "ada", "x"], min_count=2) == ("ada", "other", "zoe")


def test_labels_are_counted_over_all_splits():
    rows = raw_rows(artist=["ada", "bea", "ada", "bea"])
    rows = rows.remove_columns("split").add_column("split", ["train", "train", "validation", "test"])
    assert build_vocabulary(rows, [ARTIST], min_count=2)[0].labels == ("ada", "bea")


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        (STYLE, [None] * 3, r"The task 'style' has 0 label\(s\) on at least 1 of the 3 artworks.*labels_from"),
        (ARTIST, ["ada", "bea", "cleo"], r"'artist' has 1 label\(s\) on at least 2 of the 3 artworks.*lower min"),
        (TAGS, [["Tree"], ["sea"], None], r"'tags' has 0 label\(s\) on at least 2"),
    ],
)
def test_a_task_with_nothing_to_tell_apart_is_refused(task, values, message):
    with pytest.raises(UserError, match=message):
        labels(task, values, min_count=2)


def test_encoding_gives_numbers_other_and_unknown():
    rows = raw_rows(
        artist=["bea", "zoe", None, "ada"],
        tags=[["sky", "Tree", "rare"], ["rare"], None, ["sky"]],
    )
    tasks = [ARTIST.with_labels(("ada", "bea", "other")), TAGS.with_labels(("Tree", "sky"))]
    encoded = encode_labels(rows, tasks)
    assert encoded["artist"][:] == [1, 2, None, 0]
    assert encoded["tags"][:] == [[0, 1], None, None, [1]]  # only rare tags: unknown, not "no tag"
    assert encoded.features["artist"] == ClassLabel(names=["ada", "bea", "other"])
    assert encoded.features["tags"] == List(ClassLabel(names=["Tree", "sky"]))
    assert encoded["name"][:] == rows["name"][:]
    assert encoded["image"][:] == rows["image"][:]


@pytest.mark.parametrize("task", [STYLE.with_labels(("a", "b")), ARTIST.with_labels(("a", "b"))])
def test_a_label_outside_the_vocabulary_is_refused_by_artwork_and_label(task):
    rows = raw_rows(**{task.name: ["a", "b", "cubism"]})
    message = f"The artwork '2.jpg' has the {task.name} 'cubism', which is not among the 2 labels.*unknown_labels"
    with pytest.raises(UserError, match=message):
        encode_labels(rows, [task])


def test_counts_of_labels_and_of_known_rows():
    style, tags = STYLE.with_labels(("a", "b", "c")), TAGS.with_labels(("Tree", "sea", "sky"))
    rows = raw_rows(style=["a", None, "a", "b"], tags=[["Tree", "sky"], None, ["sky"], None])
    encoded = encode_labels(rows, [style, tags])
    assert torch.equal(label_counts(encoded, style), torch.tensor([2, 1, 0]))
    assert torch.equal(label_counts(encoded, tags), torch.tensor([1, 0, 2]))
    assert (known_row_count(encoded, style), known_row_count(encoded, tags)) == (3, 2)


def test_artists_distributed_as_artgraphs_are():
    """As its authors published: 116,475 artworks by 2,501 artists, of whom 242 have 100 or more, and 46.9 % of the
    artworks by all the others; their encoder has the label `other` at index 174. The rest is made.
    """
    before = [f"{letter}-painter-{n:03}" for n in range(30) for letter in "abcdefghijklmn"][:172]
    after = [f"{letter}-painter-{n:03}" for n in range(30) for letter in "pqrst"][:66]
    counts = dict.fromkeys(["Other", "othe", *before, "others", "vincent-van-gogh", *after], 100)
    counts |= {"vincent-van-gogh": 1886, "othe": 101}
    counts["a-painter-000"] += 116_475 - 54_627 - sum(counts.values())
    rare = {f"rare-{n:04}": 99 if n < 100 else 20 for n in range(2_501 - 242)}
    rare["rare-2258"] += 54_627 - sum(rare.values())
    for n in range(2258, 100, -1):  # spread what is left, so that nobody has 100
        moved = max(0, rare[f"rare-{n:04}"] - 99)
        rare[f"rare-{n:04}"], rare[f"rare-{n - 1:04}"] = rare[f"rare-{n:04}"] - moved, rare[f"rare-{n - 1:04}"] + moved
    artists = [name for name, count in (counts | rare).items() for _ in range(count)]
    assert (len(artists), len(counts | rare), max(rare.values())) == (116_475, 2_501, 99)
    rows = Dataset.from_dict({"name": [str(number) for number in range(len(artists))], "artist": artists})
    for min_count in (99, 100, 101):
        (artist,) = build_vocabulary(rows, [ARTIST], min_count)
        assert set(artist.labels) - {"other"} == {n for n, count in (counts | rare).items() if count >= min_count}
    (artist,) = build_vocabulary(rows, [ARTIST], 100)
    assert (artist.num_labels, artist.labels.index("other"), list(artist.labels)) == (243, 174, sorted(artist.labels))
    found = dict(zip(artist.labels, label_counts(encode_labels(rows, [artist]), artist).tolist(), strict=True))
    assert found == counts | {"other": 54_627}
    assert round(found["other"] / len(rows), 3) == 0.469
