"""scripts/predict.py: the pipeline's own answers for each picture of any source, exactly once, whatever stops it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from artgraph_vit.errors import UserError
from artgraph_vit.files import folder_lock
from artgraph_vit.serving.predict import model_digest, open_pictures
from tests.hub_server import HubServer

from .conftest import BAD, COUNT, ROOT, run_script

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def predict(*arguments: object) -> None:
    run_script("predict.py", *arguments, "--use_cpu")


def start(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [sys.executable, *launcher, str(ROOT / "scripts" / "predict.py"), *map(str, arguments), "--use_cpu"]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def rows_of(folder: Path) -> list[dict]:
    return list(load_dataset("parquet", data_files=str(folder / "data" / "*.parquet"), split="train", streaming=True))


def assert_whole(folder: Path) -> list[dict]:
    """Each picture is there once, in order, and the bad ones say why."""
    rows = rows_of(folder)
    assert [row["index"] for row in rows] == list(range(COUNT))
    assert tuple(row["index"] for row in rows if row["error"]) == BAD
    report = json.loads((folder / "report.json").read_text())
    assert report["pictures"] == COUNT
    assert [bad["name"] for bad in report["bad_pictures"]] == [rows[number]["name"] for number in BAD]
    assert not list(folder.rglob("*.part"))
    return rows


def about(answer: dict) -> dict:
    """Labels and scores of an answer, the scores to five digits."""
    return {
        task: [(entry["label"], pytest.approx(entry["score"], abs=1e-5)) for entry in entries]
        for task, entries in answer.items()
    }


def test_a_folder_gets_the_answers_of_the_pipeline(model_folder, picture_folder, pipe, tmp_path):
    predict(model_folder, picture_folder, tmp_path / "out", "--batch_size", "7", "--shard_rows", "25")
    rows = assert_whole(tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out" / "data").iterdir()) == [
        f"part-00000{number}.parquet" for number in range(3)
    ]
    answers = pipe(picture_folder)
    assert [row["name"] for row in rows] == [str(Path(a["file"]).relative_to(picture_folder)) for a in answers]
    for row, answer in zip(rows, answers, strict=True):
        if "error" in answer:
            assert row["error"] == answer["error"]
            assert row["artist"] is None
            continue
        found = {task: [(e["label"], e["score"]) for e in row[task]] for task in ("artist", "genre", "tags")}
        assert found == about({task: answer[task] for task in found})
    others = [entry for row in rows for entry in row["artist"] or () if entry["label"] == "other"]
    assert others
    assert all(entry["means"] for entry in others)


def test_options_reach_the_answers(model_folder, picture_folder, tmp_path):
    predict(model_folder, picture_folder, tmp_path / "out", "--top_k", "1", "--threshold", "0.9")
    for row in rows_of(tmp_path / "out"):
        if row["error"] is None:
            assert len(row["artist"]) == len(row["genre"]) == 1
            assert all(entry["score"] > 0.9 for entry in row["tags"])


def test_parquet_files_are_read_in_their_order(model_folder, parquet_folder, pipe, tmp_path, encoded_pictures):
    predict(model_folder, parquet_folder, tmp_path / "out", "--shard_rows", "20", "--batch_size", "8")
    rows = assert_whole(tmp_path / "out")
    assert [row["name"] for row in rows] == [f"artwork {number}" for number in range(COUNT)]
    expected = pipe(encoded_pictures[33])["genre"]
    assert rows[33]["genre"][0]["label"] == expected[0]["label"]
    assert rows[33]["genre"][0]["score"] == pytest.approx(expected[0]["score"], abs=1e-5)
    predict(model_folder, parquet_folder / "1.parquet", tmp_path / "part")
    assert [row["name"] for row in rows_of(tmp_path / "part")][:2] == ["artwork 25", "artwork 26"]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_no_picture_is_there_twice(model_folder, picture_folder, tmp_path):
    arguments = (model_folder, picture_folder, tmp_path / "out", "--batch_size", "1", "--shard_rows", "3")
    process = start(*arguments)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "out" / "data").glob("*.parquet"))) < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out" / "data").glob("*.parquet")}
    assert 3 <= len(done) < 20
    assert not (tmp_path / "out" / "report.json").exists()

    predict(*arguments)
    assert_whole(tmp_path / "out")
    again = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out" / "data").iterdir()}
    assert {name: again[name] for name in done} == done  # what was whole was not done again
    predict(*arguments[:3], "--batch_size", "5", "--shard_rows", "3")  # nothing is left to do
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out" / "data").iterdir()} == again


@pytest.mark.slow
def test_two_processes_divide_the_shards(model_folder, parquet_folder, tmp_path, monkeypatch):
    arguments = (model_folder, parquet_folder, tmp_path / "out", "--shard_rows", "7", "--num_workers", "0")
    numbers = [{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"} for rank in "01"]
    for rank, is_done in ((0, False), (1, True)):  # one after the other
        for name, value in numbers[rank].items():
            monkeypatch.setenv(name, value)
        predict(*arguments)
        assert (tmp_path / "out" / "report.json").exists() == is_done
        shards = {int(file.stem[-6:]) for file in (tmp_path / "out" / "data").iterdir()}
        assert shards == (set(range(9)) if is_done else {0, 2, 4, 6, 8})
    rows = assert_whole(tmp_path / "out")

    both = tmp_path / "both"  # and at once
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    process = start(*arguments[:2], both, *arguments[3:], launcher=launcher)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert [(row["name"], row["tags"]) for row in assert_whole(both)] == [(row["name"], row["tags"]) for row in rows]


def test_another_model_or_another_source_is_not_mixed_in(model_folder, picture_folder, tmp_path, build_model):
    out = tmp_path / "out"
    predict(model_folder, picture_folder, out)
    with pytest.raises(UserError, match="other values of top_k: choose another folder"):
        predict(model_folder, picture_folder, out, "--top_k", "2")
    (picture_folder / "one more.png").write_bytes((picture_folder / "room 0" / "000.png").read_bytes())
    with pytest.raises(UserError, match="other values of pictures"):
        predict(model_folder, picture_folder, out)
    (picture_folder / "one more.png").unlink()
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps({**config, "thresholds": {"tags": 0.9}}))
    with pytest.raises(UserError, match="other values of model"):
        predict(model_folder, picture_folder, out)
    build_model(seed=2).save_pretrained(model_folder)
    with pytest.raises(UserError, match="other values of model"):
        predict(model_folder, picture_folder, out)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and no predictions were begun there"):
        predict(model_folder, picture_folder, other)


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        ("config", "temperatures", {"genre": 3.0, "tags": 1.6}),
        ("config", "thresholds", {"tags": [0.9, 0.2, 0.5, 0.05, 0.6]}),
        ("config", "image_size", 16),
        ("config", "pooling", "mean"),
        ("model", "_prefix_tokens", 2),  # as a release that knows another kind of token would count
    ],
)
def test_a_model_is_another_by_whatever_changes_its_answers(pipe, monkeypatch, owner, name, value):
    digest = model_digest(pipe.model, pipe.image_processor)
    with monkeypatch.context() as changed:
        changed.setattr(pipe.model.config if owner == "config" else pipe.model, name, value)
        assert model_digest(pipe.model, pipe.image_processor) != digest
    assert model_digest(pipe.model, pipe.image_processor) == digest


def test_names_of_files_need_not_be_utf8_and_links_are_followed(model_folder, picture_folder, tmp_path):
    odd = os.fsencode(picture_folder) + b"/caf\xe9.png"
    Path(os.fsdecode(odd)).write_bytes((picture_folder / "room 0" / "000.png").read_bytes())
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "pictures").symlink_to(picture_folder)
    (picture_folder / "again").symlink_to(picture_folder)  # without an end
    predict(model_folder, linked, tmp_path / "out")
    names = [row["name"] for row in rows_of(tmp_path / "out")]
    assert len(names) == COUNT + 1
    assert r"pictures/caf\xe9.png" in names


def test_a_row_names_no_file_of_this_machine(model_folder, picture_folder, tmp_path):
    path = str(picture_folder / "room 0" / "000.png")
    for name, image in (("text", path), ("struct", {"bytes": None, "path": path})):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"image": [image]}), tmp_path / name / "rows.parquet")
        predict(model_folder, tmp_path / name, tmp_path / f"{name} out", "--embeddings")
        (row,) = rows_of(tmp_path / f"{name} out")
        assert (row["error"], row["thumbnail"]) == ("neither bytes nor a path is stored", None)


def test_output_in_the_source_wrong_options_and_a_second_run_of_the_same_process_are_refused(
    model_folder, picture_folder, tmp_path, monkeypatch
):
    for folder, options, message in (
        (picture_folder, (), "is in the source: choose a folder outside of it"),
        (tmp_path, ("--top_k", "0"), "top_k=0: use a whole number of at least 1"),
        (tmp_path, ("--threshold", "1"), r"threshold=1\.0: use a number above 0 and below 1"),
    ):
        with pytest.raises(UserError, match=message):
            predict(model_folder, picture_folder, folder / "out", *options)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        folder_lock(tmp_path / "out" / ".locks" / "1"),
        pytest.raises(UserError, match=r"Another run is writing to .*out:"),
    ):
        predict(model_folder, picture_folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("./nowhere", {}, "There is no './nowhere'"),
        ("empty", {}, "empty has no parquet file and no picture"),
        ("notes.txt", {}, "notes.txt has no parquet file and no picture"),
        ("empty", {"split": "test"}, "is on this machine: split"),
        ("parquet", {"image_column": "picture"}, "has no column 'picture'; its columns are name, image"),
        ("parquet", {"name_column": "title"}, "has no column 'title'; its columns are name, image"),
        ("broken.parquet", {}, "broken.parquet cannot be read as parquet"),
        ("nosuch/dataset", {}, "'nosuch/dataset' is no folder here, and cannot be read from the Hub"),
    ],
)
def test_a_wrong_source_is_one_sentence(tmp_path, parquet_folder, monkeypatch, source, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(UserError, match=message):
        open_pictures(source, **options)


# ---- a model and datasets of the Hub, over HTTP ----

SCRIPT = """
import json, runpy, sys
from datasets import load_dataset
from huggingface_hub import HfApi
from artgraph_vit import ArtGraphPipeline

model, parquet, pictures, out, script = sys.argv[1:6]
ArtGraphPipeline.from_pretrained(model).push_to_hub("tester/model")
rows = load_dataset("parquet", data_files=f"{parquet}/*.parquet", split="train")
rows.push_to_hub("tester/pictures", split="validation")
api = HfApi()
api.create_repo("tester/folder", repo_type="dataset")
api.upload_folder(repo_id="tester/folder", repo_type="dataset", folder_path=f"{pictures}/room 0")
first = HfApi().dataset_info("tester/pictures").sha
rows.select(range(5)).push_to_hub("tester/pictures", split="validation")
main = runpy.run_path(script, run_name="script")["main"]
for name, source, revision in (
    ("first", "tester/pictures", first), ("last", "tester/pictures", "main"), ("folder", "tester/folder", "main")
):
    sys.argv = ["predict.py", "tester/model", source, f"{out}/{name}", "--dataset_revision", revision]
    sys.argv += ["--shard_rows", "16", "--num_workers", "0", "--use_cpu"]
    main()
"""


@pytest.mark.slow
def test_a_dataset_of_the_hub_is_streamed_at_its_commit(model_folder, parquet_folder, picture_folder, tmp_path):
    with HubServer({"hf_test": "tester"}) as server:
        environment = {**ENVIRONMENT, "HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_test"}
        environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        folders = map(str, (model_folder, parquet_folder, picture_folder, tmp_path, ROOT / "scripts" / "predict.py"))
        command = [sys.executable, "-c", SCRIPT, *folders]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert run.returncode == 0, run.stderr[-3000:]
        assert server.unknown_requests == []
    rows = assert_whole(tmp_path / "first")
    assert [row["name"] for row in rows] == [f"artwork {number}" for number in range(COUNT)]
    loose = json.loads((tmp_path / "folder" / "report.json").read_text())  # pictures as they are, in no parquet
    assert (loose["pictures"], len(loose["bad_pictures"])) == (20, 1)
    assert json.loads((tmp_path / "last" / "report.json").read_text())["pictures"] == 5 < BAD[0]
