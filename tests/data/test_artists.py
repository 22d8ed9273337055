"""The rule of 100 on artists distributed as ArtGraph's are.

The counts are those that the authors published: 116,475 artworks by 2,501 artists, the most (1,886) by
vincent-van-gogh, 242 artists with 100 or more, and 46.9 % of the artworks by all the others; the encoder's label
`other` is at index 174. The other names are made: the list itself is in no public text that could be found.
(Sources: the exploratory notebook of github.com/nicolafan/neural-artwork-caption-generator, and the model's card.)
"""

import pytest
from datasets import Dataset, Features, Value

from artgraph_vit.data import build_vocabulary, encode_labels
from artgraph_vit.data.vocabulary import label_counts
from artgraph_vit.model.tasks import ARTGRAPH_TASKS

ROWS, ARTISTS, FREQUENT, MOST = 116_475, 2_501, 242, 1_886
RARE_ROWS = 54_627  # 46.9 %
BEFORE_OTHER = 174
ARTIST = ARTGRAPH_TASKS[0]


def counts_like_artgraphs() -> dict[str, int]:
    """How many artworks each artist has; two names differ in a letter's case, and some sort beside "other"."""
    before = [f"{letter}-painter-{n:03}" for n in range(30) for letter in "abcdefghijklmn"][: BEFORE_OTHER - 2]
    after = [f"{letter}-painter-{n:03}" for n in range(30) for letter in "pqrst"][: FREQUENT - BEFORE_OTHER - 2]
    frequent = ["Other", "othe", *before, "others", "vincent-van-gogh", *after]
    counts = dict.fromkeys(frequent, 100) | {"vincent-van-gogh": MOST, "othe": 101, "Other": 101}
    left = ROWS - RARE_ROWS - sum(counts.values())
    shared = [*before, *after]  # in a falling line, so that the last keep 100 or little more
    weights = range(len(shared) - 1, -1, -1)
    for name, weight in zip(shared, weights, strict=True):
        counts[name] += left * weight // sum(weights)
    counts[shared[0]] += ROWS - RARE_ROWS - sum(counts.values())
    rare = [f"rare-{n:04}" for n in range(ARTISTS - FREQUENT)]
    counts |= dict.fromkeys(rare[:100], 99)
    each, more = divmod(RARE_ROWS - 9900, len(rare) - 100)
    counts |= {name: each + (index < more) for index, name in enumerate(rare[100:])}
    return counts


@pytest.fixture(scope="module")
def counts():
    return counts_like_artgraphs()


@pytest.fixture(scope="module")
def rows(counts):
    artists = [name for name, count in counts.items() for _ in range(count)]
    columns = {"name": [f"{index}.jpg" for index in range(len(artists))], "artist": artists}
    return Dataset.from_dict(columns, features=Features({"name": Value("string"), "artist": Value("string")}))


def test_the_counts_are_as_published(counts, rows):
    assert (len(rows), len(counts), max(counts.values())) == (ROWS, ARTISTS, MOST)
    assert sum(count >= 100 for count in counts.values()) == FREQUENT
    assert {99, 100, 101} <= set(counts.values())


def test_243_labels_sorted_with_other_at_174(counts, rows):
    (artist,) = build_vocabulary(rows, [ARTIST], min_count=100)
    assert artist.num_labels == 243
    assert list(artist.labels) == sorted(artist.labels)
    assert artist.labels.index("other") == BEFORE_OTHER
    assert set(artist.labels) - {"other"} == {name for name, count in counts.items() if count >= 100}


def test_each_artwork_of_a_rare_artist_is_by_other(counts, rows):
    (artist,) = build_vocabulary(rows, [ARTIST], min_count=100)
    found = label_counts(encode_labels(rows, [artist]), artist)
    assert found[BEFORE_OTHER] == RARE_ROWS
    assert round(found[BEFORE_OTHER].item() / ROWS, 3) == 0.469
    assert found.sum() == ROWS
    for label, count in zip(artist.labels, found.tolist(), strict=True):
        assert label == "other" or count == counts[label]


@pytest.mark.parametrize(("min_count", "kept_of"), [(99, 99), (100, 100), (101, 101)])
def test_both_sides_of_the_rule(counts, rows, min_count, kept_of):
    (artist,) = build_vocabulary(rows, [ARTIST], min_count=min_count)
    assert set(artist.labels) - {"other"} == {name for name, count in counts.items() if count >= kept_of}


def test_without_a_rare_artist_there_is_no_other(rows):
    (artist,) = build_vocabulary(rows, [ARTIST], min_count=1)
    assert artist.num_labels == ARTISTS
    assert "other" not in artist.labels
