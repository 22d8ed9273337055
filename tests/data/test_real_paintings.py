"""Real photographs of paintings in the ArtGraph layout; skipped where `ARTGRAPH_SHARED` does not name their folder."""

import csv
import os
from collections import Counter
from pathlib import Path

import pytest

from artgraph_vit.data import build_vocabulary, encode_labels, find_bad_pictures
from tests.data.loading import load

pytestmark = pytest.mark.skipif(
    "ARTGRAPH_SHARED" not in os.environ, reason="needs ARTGRAPH_SHARED, the folder that holds paintings/"
)


def test_all_is_read_and_artists_with_fewer_than_five_paintings_become_other():
    folder = Path(os.environ["ARTGRAPH_SHARED"]) / "paintings"
    rows, tasks = load(folder)
    with open(folder / "artgraph_dataset.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(rows) == 267
    assert [task.name for task in tasks] == ["artist", "style", "genre", "tags", "media"]
    assert rows["artist"][:] == [row["artist"] or None for row in table]
    assert rows["media"][:] == [row["media"].split(", ") if row["media"] else None for row in table]
    assert find_bad_pictures(rows, num_processes=1, progress=False) == {}
    artist, *_, tags, media = build_vocabulary(rows, tasks, min_count=5)
    paintings = Counter(row["artist"] for row in table if row["artist"])
    assert set(artist.labels) == {name for name, count in paintings.items() if count >= 5} | {"other"}
    assert artist.labels == tuple(sorted(artist.labels))
    encoded = encode_labels(rows, [artist, tags, media])
    others = encoded["artist"][:].count(artist.labels.index("other"))
    assert others == sum(count for count in paintings.values() if count < 5)
