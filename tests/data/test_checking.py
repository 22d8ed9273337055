"""Pictures that cannot be read are found, once, on one process or several, and skipped or stop the run."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import PIL
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature

from artgraph_vit.data import checking, decoding, find_bad_pictures, leave_out
from artgraph_vit.data.decoding import DEADLY, Picture, Unreadable, process_pictures
from artgraph_vit.errors import UserError
from artgraph_vit.model.pictures import BadPictureError
from tests.made_pictures import bad_pictures_in, encoded, noise


@pytest.fixture
def fork(monkeypatch) -> None:
    """Processes that start at once."""
    monkeypatch.setattr(decoding, "get_context", lambda _: multiprocessing.get_context("fork"))


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The paths of the pictures that are decoded from now on, in this process."""
    paths: list[str] = []
    read = checking.reading_rules.read_picture
    monkeypatch.setattr(
        checking.reading_rules, "read_picture", lambda image: (paths.append(image["path"]), read(image))
    )
    return paths


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


def files_in(folder: Path, count: int = 4) -> dict[str, dict]:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.png").write_bytes(encoded(noise(4), "PNG")["bytes"])
    (folder / "1.png").write_bytes(b"text")
    return {path.name: {"bytes": None, "path": str(path)} for path in sorted(folder.iterdir())}


# ---- what is found ----


def test_bad_pictures_are_found_at_their_rows(mixed_rows, bad_pictures):
    bad = find_bad_pictures(mixed_rows, progress=False)
    assert [mixed_rows[index]["name"] for index in bad] == list(bad_pictures)
    assert all(reason for reason in bad.values())
    assert find_bad_pictures(mixed_rows, progress=False) == bad


def test_several_processes_find_the_same_bad_pictures(fork):
    good, bad = encoded(noise(4), "PNG"), {"bytes": b"text", "path": "bad.png"}
    rows = rows_of({str(index): bad if index in (0, 63, 64, 517) else good for index in range(518)})
    found = find_bad_pictures(rows, num_processes=2, progress=False)
    assert list(found) == [0, 63, 64, 517]
    assert found[63].startswith("bad.png: not a picture")


def test_skip_leaves_bad_pictures_out_and_stop_raises_and_both_list_them(mixed_rows, bad_pictures, tmp_path):
    bad = find_bad_pictures(mixed_rows, progress=False)
    report = tmp_path / "reports" / "bad.json"
    rows = leave_out(mixed_rows, bad, "skip", report)
    assert rows["name"][:] == [f"good {index}" for index in range(7)]
    with pytest.raises(UserError, match=r"6 of 13 pictures cannot be read, the first is 'truncated'.*=skip"):
        leave_out(mixed_rows, bad, "stop", tmp_path / "bad.json")
    for listed in (json.loads(report.read_text()), json.loads((tmp_path / "bad.json").read_text())):
        assert listed["count"] == 6
        assert [entry["name"] for entry in listed["pictures"]] == list(bad_pictures)


# ---- what is kept ----


def test_only_new_and_changed_pictures_are_decoded_again(tmp_path, decoded):
    pictures = files_in(tmp_path / "pictures") | {"embedded": {**encoded(noise(4), "PNG"), "path": "embedded"}}
    first = find_bad_pictures(rows_of(pictures), progress=False)
    assert list(first) == [1]
    assert len(decoded) == 5
    assert find_bad_pictures(rows_of(pictures), progress=False) == first
    assert len(decoded) == 5

    changed, mended, new = (tmp_path / "pictures" / name for name in ("0.png", "1.png", "4.png"))
    changed.write_bytes(b"text")
    mended.write_bytes(encoded(noise(5), "PNG")["bytes"])
    new.write_bytes(b"text")
    pictures = {"new": {"bytes": None, "path": str(new)}, **pictures, "other": encoded(noise(6), "PNG")}
    assert list(find_bad_pictures(rows_of(pictures), progress=False)) == [0, 1]
    assert decoded[5:] == [str(new), str(changed), str(mended), "picture.png"]


def test_a_touched_file_another_pillow_and_other_rules_are_checked_anew(tmp_path, decoded, monkeypatch):
    rows = rows_of(files_in(tmp_path / "pictures"))
    find_bad_pictures(rows, progress=False)
    path = tmp_path / "pictures" / "2.png"
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    find_bad_pictures(rows, progress=False)
    assert decoded[4:] == [str(path)]
    with monkeypatch.context() as patch:
        patch.setattr(PIL, "__version__", "99.0")
        find_bad_pictures(rows, progress=False)
    assert len(decoded) == 9
    (tmp_path / "rules.py").write_text("other rules")
    monkeypatch.setattr(checking.reading_rules, "__file__", str(tmp_path / "rules.py"))
    find_bad_pictures(rows, progress=False)
    assert len(decoded) == 13


def test_what_may_be_over_tomorrow_is_not_kept(tmp_path, monkeypatch):
    rows = rows_of(files_in(tmp_path / "pictures"))
    with monkeypatch.context() as patch:

        def fail(image):
            raise BadPictureError(image["path"], "[Errno 5] Input/output error")

        patch.setattr(checking.reading_rules, "read_picture", fail)
        assert len(find_bad_pictures(rows, progress=False)) == 4
    assert list(find_bad_pictures(rows, progress=False)) == [1]


def test_a_check_that_was_stopped_goes_on(tmp_path, decoded, monkeypatch):
    monkeypatch.setattr(checking, "BATCH", 2)
    rows = rows_of(files_in(tmp_path / "pictures"))
    read = checking.reading_rules.read_picture
    with monkeypatch.context() as patch:

        def stop(image):
            if image["path"].endswith("3.png"):
                raise KeyboardInterrupt
            return read(image)

        patch.setattr(checking.reading_rules, "read_picture", stop)
        with pytest.raises(KeyboardInterrupt):
            find_bad_pictures(rows, progress=False)
    decoded.clear()
    assert list(find_bad_pictures(rows, progress=False)) == [1]
    assert [Path(path).name for path in decoded] == ["2.png", "3.png"]


@pytest.mark.parametrize("damage", ["no folder", "no database"])
def test_without_a_place_to_keep_it_all_is_checked_and_that_is_said(tmp_path, cache, decoded, monkeypatch, damage):
    said: list[str] = []
    monkeypatch.setattr(checking.logger, "warning", lambda message, *values: said.append(message % values))
    rows = rows_of(files_in(tmp_path / "pictures"))
    if damage == "no folder":
        cache.rmdir()
        cache.touch()
    else:
        find_bad_pictures(rows, progress=False)
        (file,) = (cache / "artgraph_vit").iterdir()
        file.write_bytes(b"this is no database" * 99)
        decoded.clear()
    for _ in range(2):
        assert list(find_bad_pictures(rows, progress=False)) == [1]
    assert len(decoded) == 8
    assert len(said) == 2
    assert "All pictures are checked, and will be again: " in said[0]


# ---- the pool ----


def length(image: dict) -> int:
    """Stands for a decoder with a mistake."""
    if image["bytes"] == b"kills":
        os.kill(os.getpid(), signal.SIGKILL)
    if image["bytes"] == b"text":
        raise BadPictureError(None, "it is text")
    return len(image["bytes"])


def batches_of(contents: list[bytes], size: int = 4):
    pictures = [Picture(number, "", {"bytes": data, "path": None}) for number, data in enumerate(contents)]
    return (pictures[start : start + size] for start in range(0, len(pictures), size))


def test_a_picture_that_kills_its_process_costs_that_picture_alone(fork):
    contents = [b"x" * number for number in range(60)]
    contents[7] = contents[41] = b"text"
    contents[9] = contents[10] = contents[59] = b"kills"
    found = list(process_pictures(batches_of(contents), length, num_workers=2))
    assert [picture.number for batch, _ in found for picture in batch] == list(range(60))
    results = [result for _, results in found for result in results]
    bad = {9: DEADLY, 10: DEADLY, 59: DEADLY, 7: "it is text", 41: "it is text"}
    assert results == [Unreadable(bad[number]) if number in bad else number for number in range(60)]


def test_a_deadly_picture_is_reported_and_checked_again(fork, monkeypatch):
    monkeypatch.setattr(checking, "_decode", length)
    rows = rows_of({"a": encoded(noise(4), "PNG"), "b": {"bytes": b"kills", "path": "b.png"}})
    for _ in range(2):
        assert find_bad_pictures(rows, num_processes=2, progress=False) == {1: f"b.png: {DEADLY}"}


def test_few_batches_wait_and_fewer_large_ones(fork, monkeypatch):
    taken = []

    def batches(count: int):
        for batch in batches_of([b"x" * 100] * count, size=1):
            taken.append(batch)
            yield batch

    found = process_pictures(batches(60), length, num_workers=2)
    next(found)
    assert len(taken) == 2 * decoding.AHEAD + 1
    found.close()
    taken.clear()
    monkeypatch.setattr(decoding, "MAX_AHEAD", 250)
    found = process_pictures(batches(60), length, num_workers=2)
    next(found)
    assert len(taken) == 3
    assert sum(1 for _ in found) == 59


def test_what_is_no_matter_of_a_picture_is_raised(fork):
    for num_workers in (0, 2):
        with pytest.raises(TypeError):
            list(process_pictures(batches_of([None]), length, num_workers))  # type: ignore[list-item]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent_and_leave_ctrl_c_to_it(tmp_path, how):
    """The whole group gets the signal if it is Ctrl-C, as from a terminal."""
    (tmp_path / "slow.py").write_text(
        "import os, time\nfrom artgraph_vit.data.decoding import Picture, process_pictures\n"
        "def slow(image):\n    print('worker', os.getpid(), flush=True)\n    time.sleep(1)\n"
        "if __name__ == '__main__':\n"
        "    batches = ([Picture(number, '', {})] for number in range(10_000))\n"
        "    for _ in process_pictures(batches, slow, 2): pass\n"
    )
    run = subprocess.Popen(
        [sys.executable, tmp_path / "slow.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = set()
    while len(workers) < 2:
        workers.add(int(run.stdout.readline().split()[1]))
    if how == signal.SIGINT:
        os.killpg(run.pid, how)
    else:
        os.kill(run.pid, how)
    _, errors = run.communicate(timeout=60)  # the workers hold the pipes open: they end too
    assert errors.count("Traceback") == (how == signal.SIGINT)  # its own, and none of a worker
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
