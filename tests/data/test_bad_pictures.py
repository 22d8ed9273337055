"""Pictures that cannot be read are found, on one process or several, and skipped or stop the run."""

import json
import multiprocessing
import os
import signal

import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature

from artgraph_vit.data import DataError, find_bad_pictures, leave_out
from artgraph_vit.data import bad_pictures as checking
from tests.made_pictures import bad_pictures_in, encoded, noise


@pytest.fixture
def bad_pictures(tmp_path) -> dict[str, dict]:
    return bad_pictures_in(tmp_path)


def rows_of(pictures: dict[str, dict]) -> Dataset:
    features = Features({"image": ImageFeature(decode=False), "name": Value("string")})
    return Dataset.from_dict({"image": list(pictures.values()), "name": list(pictures)}, features=features)


@pytest.fixture
def mixed_rows(bad_pictures) -> Dataset:
    good = encoded(noise(8), "PNG")
    pictures = {"good 0": good}
    for index, (name, image) in enumerate(bad_pictures.items(), start=1):
        pictures |= {name: image, f"good {index}": good}
    return rows_of(pictures)


def test_bad_pictures_are_found_at_their_rows(mixed_rows, bad_pictures):
    bad = find_bad_pictures(mixed_rows, progress=False)
    assert [mixed_rows[index]["name"] for index in bad] == list(bad_pictures)
    assert all(reason for reason in bad.values())


def test_several_processes_find_the_same_bad_pictures():
    good, bad = encoded(noise(4), "PNG"), {"bytes": b"text", "path": "bad.png"}
    rows = rows_of({str(index): bad if index in (0, 63, 64, 517) else good for index in range(518)})
    assert set(find_bad_pictures(rows, num_processes=2, progress=False)) == {0, 63, 64, 517}


def kill_at_mark(rows: dict) -> dict:
    """A transform that dies as a decoder with a mistake would."""
    if any(image["bytes"] == b"kills" for image in rows["image"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return rows


def test_a_picture_that_kills_its_process_is_found_and_all_others_are_checked(monkeypatch):
    monkeypatch.setattr(checking, "get_context", lambda _: multiprocessing.get_context("fork"))  # starts sooner
    bad = {5: b"text", 70: b"kills", 75: b"kills", 600: b"text", 767: b"kills"}
    good = encoded(noise(4), "PNG")
    images = {str(row): {"bytes": bad[row], "path": f"{row}.png"} if row in bad else good for row in range(768)}
    found = find_bad_pictures(rows_of(images).with_transform(kill_at_mark), num_processes=2, progress=False)
    assert list(found) == list(bad)
    assert found[70] == "the process that decodes it dies"
    assert found[600].startswith("600.png: not a picture")


def test_skip_leaves_bad_pictures_out_and_lists_them(mixed_rows, bad_pictures, tmp_path):
    bad = find_bad_pictures(mixed_rows, progress=False)
    rows = leave_out(mixed_rows, bad, "skip", tmp_path / "reports" / "bad.json")
    assert rows["name"][:] == [f"good {index}" for index in range(7)]
    report = json.loads((tmp_path / "reports" / "bad.json").read_text())
    assert report["count"] == 6
    assert [entry["name"] for entry in report["pictures"]] == list(bad_pictures)


def test_stop_ends_the_run_with_one_sentence_and_still_lists_them(mixed_rows, tmp_path):
    bad = find_bad_pictures(mixed_rows, progress=False)
    with pytest.raises(DataError, match=r"6 of 13 pictures cannot be read, the first is 'truncated'.*=skip"):
        leave_out(mixed_rows, bad, "stop", tmp_path / "bad.json")
    assert json.loads((tmp_path / "bad.json").read_text())["count"] == 6


@pytest.mark.parametrize("on_bad_image", ["skip", "stop"])
def test_without_a_bad_picture_all_rows_stay(on_bad_image, tmp_path):
    rows = rows_of({"a": encoded(noise(4), "PNG"), "b": encoded(noise(4), "GIF")})
    kept = leave_out(rows, find_bad_pictures(rows, progress=False), on_bad_image, tmp_path / "bad.json")
    assert kept["name"][:] == ["a", "b"]
    assert not (tmp_path / "bad.json").exists()
