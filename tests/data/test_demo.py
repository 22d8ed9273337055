"""The embedded dataset: the same bytes for the same arguments, in the ArtGraph layout, with work for every rule."""

import csv
import dataclasses
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from artgraph_vit.data import build_vocabulary, encode_labels
from artgraph_vit.data.demo import SETTINGS, paint_artgraph, paint_artwork
from artgraph_vit.errors import UserError
from artgraph_vit.model.tasks import OTHER
from tests.data.loading import divided, load


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> Path:
    return paint_artgraph(tmp_path_factory.mktemp("painted") / "set", num_artworks=400, size=48, progress=False)


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    first, again, other = (paint_artgraph(tmp_path / str(n), 100, 32, seed=n // 2, progress=False) for n in range(3))
    assert digest(first) == digest(again) != digest(other)


def test_a_finished_dataset_is_kept_and_another_is_not_written_over(painted):
    before = {path: path.stat().st_mtime_ns for path in painted.rglob("*")}
    paint_artgraph(painted, 400, 48, progress=False)
    assert {path: path.stat().st_mtime_ns for path in painted.rglob("*")} == before
    for wrong, message in (
        ({"num_artworks": 500}, "holds something else than this dataset"),
        ({"setting": "hard"}, "holds something else"),
        ({"num_artworks": 10}, "paint at least 100 artworks of 32 pixels"),
        ({"size": 8}, "paint at least 100 artworks of 32 pixels"),
    ):
        with pytest.raises(UserError, match=message):
            paint_artgraph(painted, **{"num_artworks": 400, "size": 48, **wrong})


def test_every_rule_has_work_to_do(painted):
    with open(painted / "artgraph_dataset.csv", newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    assert 0 < sum(not record["artist"] for record in records) < 0.1 * len(records)
    without_tags = sum(not record["tags"] for record in records) / len(records)
    without_media = sum(not record["media"] for record in records) / len(records)
    assert 0.1 < without_tags < without_media < 0.6
    assert all(record["style"] and record["genre"] for record in records)

    rows, tasks = load(painted)
    tasks = build_vocabulary(rows, tasks, min_count=10)
    artists = {record["artist"] for record in records} - {""}
    assert OTHER in tasks[0].labels
    assert 4 < tasks[0].num_labels < len(artists)
    tags = {task.name: task for task in tasks}["tags"]
    assert {"Moon", "birds"} <= set(tags.labels)
    assert "comets" not in tags.labels
    splits = divided(encode_labels(rows, tasks))
    assert splits.num_rows == {"train": 280, "validation": 60, "test": 60}


def test_a_label_shows_in_the_pixels():
    """What a person sees at a glance a rule on mean colours finds too: the bare rim tells the ground."""
    rims = {}
    for index in range(200):
        picture, row = paint_artwork(index)
        if row["media"]:
            pixels = np.asarray(picture, dtype=float)
            rims.setdefault(row["media"].split(", ")[1], []).append(pixels[:4].mean())
    assert max(rims["panel"]) < min(rims["canvas"])
    assert max(rims["canvas"]) < min(rims["paper"])


def test_the_hard_setting_has_long_tails_wrong_and_forgotten_labels_and_worn_pictures(monkeypatch):
    hard = [paint_artwork(index, size=32, setting="hard") for index in range(250)]
    plain = [row for _, row in (paint_artwork(index, size=32) for index in range(250))]
    for task, at_least in (("style", 4), ("genre", 3), ("artist", 15)):
        counts = Counter(row[task] for _, row in hard if row[task]).most_common()
        of_plain = Counter(row[task] for row in plain if row[task]).most_common()
        assert counts[0][1] / counts[-1][1] >= at_least, task
        assert counts[0][1] > 1.3 * of_plain[0][1], task

    easier = {"wrong": 1e-12, "forgotten": 0.0, "wear": SETTINGS["hard"].wear}
    monkeypatch.setitem(SETTINGS, "hard", dataclasses.replace(SETTINGS["hard"], **easier))
    right = [paint_artwork(index, size=32, setting="hard") for index in range(250)]
    for task in ("style", "genre", "artist"):
        share = np.mean([a[task] != b[task] for (_, a), (_, b) in zip(hard, right, strict=True)])
        assert 0.03 < share < 0.13, task  # a wrong label may be the right one by chance
    things, recorded = (sum(len(row["tags"].split(", ")) for _, row in rows if row["tags"]) for rows in (right, hard))
    assert 0.75 < recorded / things < 0.9
    assert all(a.tobytes() == b.tobytes() for (a, _), (b, _) in zip(hard, right, strict=True))

    monkeypatch.setitem(SETTINGS, "hard", dataclasses.replace(SETTINGS["hard"], wear=0.0))
    fresh = [paint_artwork(index, size=32, setting="hard")[0] for index in range(20)]
    assert all(a.tobytes() != b.tobytes() for a, (b, _) in zip(fresh, right, strict=False))


def test_the_hard_setting_keeps_more_to_be_tested_on(tmp_path):
    folder = paint_artgraph(tmp_path / "set", 200, 32, progress=False, setting="hard")
    sizes = [len((folder / "splits" / f"{split}.txt").read_text().split()) for split in ("train", "val", "test")]
    assert sizes == [50, 50, 100]
