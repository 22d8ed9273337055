"""Made splits: 70/15/15, stratified, disjoint, and decided by the artworks' names and the seed alone."""

import numpy as np
import pytest
from datasets import Dataset, Features, Value

from artgraph_vit.errors import UserError
from tests.data.loading import divided

GENRES = {"portrait": 600, "landscape": 250, "still life": 100, "battle": 30, "rare": 3, None: 17}
FEATURES = Features(
    {"name": Value("string"), "split": Value("string"), "stratum": Value("string"), "genre": Value("string")}
)


def artworks(splits: list | None = None) -> Dataset:
    """1,000 artworks of unequal genres."""
    genres = [genre for genre, count in GENRES.items() for _ in range(count)]
    names = [f"{i:04}.jpg" for i in range(1000)]
    columns = {"name": names, "split": splits or [None] * 1000, "stratum": genres, "genre": genres}
    return Dataset.from_dict(columns, features=FEATURES)


def names(splits) -> dict[str, set[str]]:
    return {name: set(part["name"]) for name, part in splits.items()}


def test_shares_are_70_15_15_over_all_and_in_each_genre():
    splits = divided(artworks())
    assert set.union(*names(splits).values()) == set(artworks()["name"])  # and 1,000 in all, so each once
    assert {name: len(part) for name, part in splits.items()} == {"train": 700, "validation": 150, "test": 150}
    for genre, count in GENRES.items():
        for name, share in {"train": 0.7, "validation": 0.15, "test": 0.15}.items():
            assert abs(splits[name]["genre"][:].count(genre) - share * count) <= 2, (genre, name)


def test_splits_do_not_change_when_rows_are_reordered():
    order = np.random.default_rng(0).permutation(1000)
    assert names(divided(artworks().select(order))) == names(divided(artworks()))


def test_another_seed_gives_other_splits():
    first, second = (names(divided(artworks(), seed=seed)) for seed in (1, 2))
    assert len(first["test"] & second["test"]) < 75  # 150 of 1,000 twice: about 22 in common by chance
    assert first == names(divided(artworks(), seed=1))


def test_without_the_column_to_stratify_by_the_shares_still_hold():
    splits = divided(artworks().remove_columns("stratum"))
    assert [len(part) for part in splits.values()] == [700, 150, 150]


def test_splits_of_the_source_are_kept():
    given = (["train"] * 3 + ["validation"] + ["test"]) * 200
    splits = divided(artworks(given))
    for name in ("train", "validation", "test"):
        assert splits[name]["name"][:] == [f"{i:04}.jpg" for i in range(1000) if given[i] == name]
        assert splits[name].column_names == ["name", "genre"]


def test_a_missing_split_is_cut_from_train_and_the_others_stay():
    given = ["test" if i % 4 == 0 else "train" for i in range(1000)]
    splits = divided(artworks(given))
    assert splits["test"]["name"][:] == [f"{i:04}.jpg" for i in range(0, 1000, 4)]
    assert len(splits["validation"]) == pytest.approx(750 * 15 / 85, abs=1)
    assert not set(splits["validation"]["name"]) & set(splits["train"]["name"])


def test_the_same_picture_twice_goes_to_one_split():
    doubled = Dataset.from_dict(
        {"name": [f"{i // 2}.jpg" for i in range(1000)], "split": [None] * 1000, "stratum": ["portrait"] * 1000}
    )
    parts = names(divided(doubled))
    assert sum(map(len, parts.values())) == 500


def test_an_empty_split_and_an_artwork_in_two_are_refused():
    for given in (["test"] * 500 + ["validation"] * 500, ["test"] * 1000):
        with pytest.raises(UserError, match="The split 'train' is empty: give it artworks"):
            divided(artworks(given))
    rows = Dataset.from_dict(
        {"name": ["a", "b", "c", "a"], "split": ["train", "validation", "test", "test"], "genre": ["x"] * 4}
    )
    with pytest.raises(UserError, match=r"'a' is in two splits, 'train' and 'test': keep"):
        divided(rows)
