"""Preparing a source: what is stored, left out and reported; going on after a stop; and what training sees of it."""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, List, load_dataset
from PIL import Image
from transformers import ViTImageProcessor

from artgraph_vit.data import PictureTransform, decoding
from artgraph_vit.data.decoding import DEADLY
from artgraph_vit.data.options import DataArguments, read_artworks
from artgraph_vit.errors import UserError
from artgraph_vit.preparing import DatasetCardOptions, PictureEncoder, prepare_dataset
from tests.hub_server import HubServer

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare.py"
COUNT = 30


def shapes(seed: int, width: int = 90, height: int = 60) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def source(artgraph_folder, monkeypatch, tmp_path):
    """Thirty small paintings in an ArtGraph export, of which two cannot be read and some are there again."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names = [f"ärtist_{i:02}_train.jpg" for i in range(COUNT)]
    rows = [
        {
            "image": name,
            "artist": ["ada", "bea", "cleo", ""][i % 4] if i else "rare",
            "style": "rococo" if i % 3 else "baroque",
            "genre": "portrait" if i % 2 else "marina",
            "tags": "Tree, sea" if i % 5 else "",
            "media": "oil",
        }
        for i, name in enumerate(names)
    ]
    folder = artgraph_folder(rows, splits={"train": names[:20], "val": names[20:25], "test": names[25:]})
    images = folder / "images"
    for i, name in enumerate(names):
        shapes(i).save(images / name, quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    shapes(3).save(images / names[3], quality=95, exif=exif)  # lies on its side
    shapes(4, 20, 15).save(images / names[4], quality=95)  # smaller than what is stored
    (images / names[5]).write_bytes((images / names[5]).read_bytes()[:400])
    (images / names[22]).write_text("no picture")
    (images / names[7]).write_bytes((images / names[6]).read_bytes())  # twice in train
    shapes(8, 180, 120).save(images / names[26], quality=60)  # in test, larger and paler saved, what is in train
    return folder


def prepare(source, folder, encoder=None, shard_rows=7, **options):
    rows, tasks = read_artworks(DataArguments(str(source), min_count=4))
    return prepare_dataset(
        rows,
        tasks,
        folder,
        encoder or PictureEncoder(size=48),
        DatasetCardOptions(),
        num_processes=1,
        progress=False,
        shard_rows=shard_rows,
        **options,
    )


def tree(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_prepared_dataset_is_one_of_datasets_with_small_upright_pictures(source, tmp_path):
    report = prepare(source, tmp_path / "out")
    dataset = load_dataset(str(tmp_path / "out"))
    assert {name: len(part) for name, part in dataset.items()} == {"train": 19, "validation": 4, "test": 5}
    assert report["artworks"] == 28
    train = dataset["train"]
    assert train.features["artist"] == ClassLabel(names=["ada", "bea", "cleo", "other"])
    assert train.features["tags"] == List(ClassLabel(names=["Tree", "sea"]))
    by_name = {row["name"]: row for row in train}
    plain, turned, small = (by_name[f"ärtist_{i:02}_train.jpg"]["image"] for i in (2, 3, 4))
    assert (plain.size, plain.mode, plain.format) == ((72, 48), "RGB", "JPEG")
    assert turned.size == (48, 72)
    assert small.size == (20, 15)
    expected = np.asarray(shapes(2).resize((72, 48), Image.Resampling.BICUBIC), dtype=float)
    assert np.abs(np.asarray(plain) - expected).mean() < 4
    first = by_name["ärtist_00_train.jpg"]
    assert train.features["artist"].int2str(first["artist"]) == "other"
    assert first["tags"] is None
    assert by_name["ärtist_03_train.jpg"]["artist"] is None


def test_the_report_names_what_was_left_out_and_what_is_there_again(source, tmp_path):
    prepare(source, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    left_out = {entry["name"]: (entry["split"], entry["reason"]) for entry in report["left_out"]}
    assert {name: split for name, (split, _) in left_out.items()} == {
        "ärtist_05_train.jpg": "train",
        "ärtist_22_train.jpg": "validation",
    }
    assert "Truncated" in left_out["ärtist_05_train.jpg"][1]
    assert str(tmp_path) not in json.dumps(report)  # it is published
    (group,) = report["duplicates"]
    assert {entry["name"] for entry in group} == {"ärtist_06_train.jpg", "ärtist_07_train.jpg"}
    (pair,) = report["near_duplicates_across_splits"]
    assert pair["artworks"] == [
        {"name": "ärtist_08_train.jpg", "split": "train"},
        {"name": "ärtist_26_train.jpg", "split": "test"},
    ]


def test_the_card_has_counts_that_add_up_and_a_histogram_a_task(source, tmp_path):
    prepare(source, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| pictures | 19 | 4 | 5 |" in card
    assert "stored as JPEGs whose shorter side has at most 48 pixels." in card
    assert "2 pictures could not be read and are left out" in card
    for task in ("artist", "style", "genre", "tags", "media"):
        assert f"(figures/{task}.png)" in card
        with Image.open(tmp_path / "out" / "figures" / f"{task}.png") as figure:
            assert figure.width > 500


def test_stop_ends_at_the_first_bad_picture_by_name(source, tmp_path):
    with pytest.raises(UserError, match=r"'ärtist_05_train\.jpg' cannot be read .*on_bad_image=skip"):
        prepare(source, tmp_path / "out", on_bad_image="stop")


@pytest.mark.parametrize(("stop_after", "whole"), [(3, 0), (22, 20)])
def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_bytes(source, tmp_path, stop_after, whole):
    prepare(source, tmp_path / "whole" / "out")

    class StopAfter(PictureEncoder):
        pictures = 0

        def __call__(self, image):
            StopAfter.pictures += 1
            if StopAfter.pictures > stop_after:
                raise KeyboardInterrupt
            return super().__call__(image)

    folder = tmp_path / "stopped" / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare(source, folder, StopAfter(size=48))
    assert not (folder / "report.json").exists()
    encoded = []

    class Counting(PictureEncoder):
        def __call__(self, image):
            encoded.append(image)
            return super().__call__(image)

    prepare(source, folder, Counting(size=48))
    assert tree(folder) == tree(tmp_path / "whole" / "out")
    assert len(encoded) == COUNT - whole  # what was whole is not done again


def stopping(monkeypatch, number: int) -> list:
    """From now on the number-th file that gets its name, or folder that goes, is the last: the power is cut there."""
    calls: list = []

    def watched(function):
        def call(*args, **options):
            calls.append(args)
            if len(calls) == number:
                if function is shutil.rmtree:  # in the middle of it
                    next(path for path in Path(args[0]).iterdir()).unlink()
                raise KeyboardInterrupt
            return function(*args, **options)

        return call

    monkeypatch.setattr(os, "replace", watched(os.replace))
    monkeypatch.setattr(Path, "rename", watched(Path.rename))
    monkeypatch.setattr(shutil, "rmtree", watched(shutil.rmtree))
    return calls


@pytest.mark.slow
def test_a_run_that_was_stopped_at_any_file_ends_with_the_same_bytes(source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        calls = stopping(patch, 0)
        prepare(source, tmp_path / "whole" / "out")
        assert len(calls) > 12
    for number in range(1, len(calls) + 1):
        folder = tmp_path / str(number) / "out"
        with monkeypatch.context() as patch:
            stopping(patch, number)
            with pytest.raises(KeyboardInterrupt):
                prepare(source, folder)
        if not (folder / "report.json").exists() and (folder / "data").exists():
            with pytest.raises(UserError, match="is not prepared to its end"):
                read_artworks(DataArguments(str(folder)))
        prepare(source, folder)
        assert tree(folder) == tree(tmp_path / "whole" / "out"), number
        assert not [path for path in folder.parent.iterdir() if path != folder]


def test_two_runs_in_one_folder_are_not_let(source, tmp_path):
    errors = []

    class SecondRun(PictureEncoder):
        def __call__(self, image):
            if not errors:
                with pytest.raises(UserError, match="Another run is writing to") as error:
                    prepare(source, tmp_path / "out")
                errors.append(error)
            return super().__call__(image)

    prepare(source, tmp_path / "out", SecondRun(size=48))
    assert errors


class Deadly(PictureEncoder):
    """A decoder that crashes at one picture, as one in C may."""

    def __call__(self, image):
        if "_11_" in image["path"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(image)


def test_a_picture_that_kills_its_decoder_is_left_out(source, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "get_context", lambda _: multiprocessing.get_context("fork"))  # starts sooner
    rows, tasks = read_artworks(DataArguments(str(source), min_count=4))
    card = DatasetCardOptions()
    report = prepare_dataset(rows, tasks, tmp_path / "out", Deadly(48), card, num_processes=2, progress=False)
    reasons = {entry["name"]: entry["reason"] for entry in report["left_out"]}
    assert reasons["ärtist_11_train.jpg"] == DEADLY
    assert len(reasons) == 3


def test_a_run_does_not_go_on_with_other_pictures(source, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        prepare(source, tmp_path / "out", on_bad_image="stop")
    shapes(22).save(source / "images" / "ärtist_22_train.jpg")
    with pytest.raises(UserError, match="was begun from other data, options"):
        prepare(source, tmp_path / "out")


def test_a_finished_folder_is_left_alone_and_another_one_refused(source, tmp_path):
    prepare(source, tmp_path / "out")
    before = tree(tmp_path / "out")
    assert prepare(source, tmp_path / "out")["artworks"] == 28
    assert tree(tmp_path / "out") == before
    rows, tasks = read_artworks(DataArguments(str(source), min_count=4))
    named = DatasetCardOptions(dataset_name="Thirty paintings", data_license="cc0-1.0")  # of the card alone
    prepare_dataset(rows, tasks, tmp_path / "out", PictureEncoder(48), named, progress=False, shard_rows=7)
    assert "# Thirty paintings" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="was prepared from other data, options"):
        prepare(source, tmp_path / "out", PictureEncoder(size=32))
    with pytest.raises(UserError, match="is not empty and no dataset"):
        prepare(source, source)


def test_a_split_of_which_no_picture_can_be_read_is_refused(source, tmp_path):
    for path in (source / "images").glob("ärtist_2[0-4]*"):
        path.write_text("no picture")
    with pytest.raises(UserError, match="The split 'validation' has no picture that can be read"):
        prepare(source, tmp_path / "out")


def test_a_full_disk_is_one_sentence_and_keeps_what_is_written(source, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    calls = []

    def full(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return to_parquet(*args, **options)

    to_parquet = Dataset.to_parquet
    monkeypatch.setattr(Dataset, "to_parquet", full)
    with pytest.raises(
        UserError, match=r"train-00002-of-00003\.parquet cannot be written \(.*No space left on device\)"
    ):
        prepare(source, folder)
    assert len(list((folder / "data").glob("*.parquet"))) == 2
    assert not list(folder.rglob("*.part"))


def test_training_sees_the_same_labels_and_splits_prepared_or_raw(source, tmp_path):
    """But `min_count` is not asked again: the labels were chosen when all pictures were there."""
    prepare(source, tmp_path / "out")
    raw, raw_tasks = read_artworks(DataArguments(str(source), min_count=4))
    rows, tasks = read_artworks(DataArguments(str(tmp_path / "out"), min_count=10_000))
    assert tasks == raw_tasks
    left_out = {"ärtist_05_train.jpg", "ärtist_22_train.jpg"}
    columns = ["split", *(task.name for task in tasks)]

    def by_name(some):
        return {row["name"]: [row[column] for column in columns] for row in some.select_columns(["name", *columns])}

    assert by_name(rows) == {name: values for name, values in by_name(raw).items() if name not in left_out}


def test_exact_pixels_are_those_of_the_plain_path_to_the_byte(source, tmp_path):
    processor = ViTImageProcessor(size={"height": 32, "width": 40})
    prepare(source, tmp_path / "out", PictureEncoder(48, exact_for=PictureTransform(processor, "full")))
    rows, _ = read_artworks(DataArguments(str(tmp_path / "out")))
    names = load_dataset(str(tmp_path / "out"), split="train")["name"]
    for name, row in zip(names, rows, strict=False):
        if "_03_" in name:
            continue  # lies on its side
        picture = Image.open(source / "images" / name).convert("RGB")
        expected = processor(picture, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
        assert (PictureTransform(processor).pixels(row["image"]).numpy() == expected).all()
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "stored as the very pixels, uncompressed, of a backbone's ViTImageProcessor" in card
    other = ViTImageProcessor(size={"height": 40, "width": 32})
    with pytest.raises(UserError, match="prepared for an image processor that resizes otherwise"):
        PictureTransform(other).pixels(rows[0]["image"])


def start(source, folder, cache, *options, environment=()) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), str(source), str(folder), "--min_count", "4", "--num_processes", "2"]
    command += options
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1", **dict(environment)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


@pytest.mark.slow
def test_the_script_killed_at_random_and_started_again_ends_with_the_same_bytes(source, tmp_path):
    finish(start(source, tmp_path / "whole" / "out", tmp_path / "cache"))
    folder = tmp_path / "killed" / "out"
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    process = start(source, folder, tmp_path / "cache")
    files = chance.randint(1, 6)
    while process.poll() is None and sum(path.is_file() for path in folder.rglob("*")) < files:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate(timeout=60)  # its workers hold the pipes open: they end too
    output = finish(start(source, folder, tmp_path / "cache"))
    assert "28 pictures are in" in output
    assert tree(folder) == tree(tmp_path / "whole" / "out"), f"seed {seed}"
    prepare(
        source, tmp_path / "one" / "out", PictureEncoder(256), shard_rows=1000
    )  # one process, not the script's two
    assert tree(tmp_path / "one" / "out") == tree(folder)


@pytest.mark.slow
def test_a_pushed_dataset_is_read_from_the_hub_with_its_vocabulary(source, tmp_path):
    """Pushed twice, as after an interruption; then read in a process that knows the Hub alone."""
    with HubServer({"hf_test": "tester"}) as server:
        hub = {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}
        push = ("--push_to_hub", "tester/artworks", "--private", "true", "--data_license", "cc0-1.0")
        for _ in range(2):
            finish(start(source, tmp_path / "out", tmp_path / "cache", *push, environment=hub))
            earlier = server.repos["datasets", "tester/artworks"].find("main").files
            earlier["data/train-00000-of-00009.parquet"] = b"of an earlier preparation"
        finish(start(source, tmp_path / "out", tmp_path / "cache", *push, environment=hub))
        assert server.repos["datasets", "tester/artworks"].private
        files = server.files("datasets", "tester/artworks", "main")
        assert len([name for name in files if name.startswith("data/")]) == 3
        code = (
            "from artgraph_vit.data.options import DataArguments, read_artworks\n"
            "rows, tasks = read_artworks(DataArguments('tester/artworks', min_count=10_000))\n"
            "print(len(rows), *[len(task.labels) for task in tasks], sorted(rows['name'])[0])"
        )
        environment = {**os.environ, **hub, "HF_HOME": str(tmp_path / "home")}
        read = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert read.stdout.split() == ["28", "4", "2", "2", "2", "1", "ärtist_00_train.jpg"], read.stderr[-2000:]
    assert {name.split("/")[0] for name in files} - {".gitattributes"} == {
        *("README.md", "data", "figures", "report.json", "vocabulary.json")
    }
    card = files["README.md"].decode()
    assert 'load_dataset("tester/artworks", split="train")' in card
    assert "license: cc0-1.0" in card
