"""The vocabulary that a prepared dataset brings along: in a folder, on a Hub, and offline after that."""

import json

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from artgraph_vit.data import build_vocabulary
from artgraph_vit.data.sources.datasets_source import VOCABULARY, kept_vocabulary, write_vocabulary
from artgraph_vit.data.streaming import stream_labels, stream_pictures
from artgraph_vit.errors import UserError
from artgraph_vit.model.tasks import MULTI_LABEL, SINGLE_LABEL, Task
from tests.data.loading import load

ARTIST = Task("artist", SINGLE_LABEL, ("ada", "other", "zoë"), rare="other")
TAGS = Task("tags", MULTI_LABEL, ("Tree", "静物"), rare="drop")


def prepared(folder, tasks=(ARTIST, TAGS)):
    """A folder as scripts/prepare.py leaves it: shards with splits in their names, and a vocabulary."""
    features = Features({"image": ImageFeature(), "artist": Value("string"), "genre": Value("string")})
    columns = {"artist": ["ada", "bea"], "genre": ["x", "y"], "image": [Image.new("RGB", (4, 4))] * 2}
    (folder / "data").mkdir(parents=True)
    for split in ("train", "test"):
        dataset = Dataset.from_dict(columns, features=features).add_column("tags", [["Tree"], ["静物", "rare"]])
        dataset.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    if tasks is not None:
        write_vocabulary(folder, tasks)
    return folder


def test_a_folder_brings_its_vocabulary(tmp_path):
    rows, tasks = load(prepared(tmp_path / "data set"))
    assert tasks == [ARTIST, TAGS]  # not the genre, which it was not prepared for
    assert rows["artist"][:] == ["ada", "bea"] * 2
    assert rows["split"][:] == ["train"] * 2 + ["test"] * 2
    assert build_vocabulary(rows, tasks, min_count=100) == [ARTIST, TAGS]


def test_some_of_its_tasks_and_others(tmp_path):
    folder = prepared(tmp_path / "data")
    assert load(folder, ["tags"])[1] == [TAGS]
    other = Task("artist", SINGLE_LABEL, ("ada", "bea"))
    assert load(folder, [other])[1] == [other]  # the user's own, as for the labels of a model
    with pytest.raises(UserError, match="was prepared without the task 'genre', with artist, tags: prepare it anew"):
        load(folder, ["artist", "genre"])
    assert load(folder, ["artist", "media"], missing_tasks="unknown")[1][0] == ARTIST


def test_a_folder_without_vocabulary_has_its_labels_counted(tmp_path):
    _, tasks = load(prepared(tmp_path / "data", tasks=None))
    assert [(task.name, task.labels) for task in tasks] == [("artist", ()), ("genre", ()), ("tags", ())]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"made_by": "artgraph_vit"}',
        '{"made_by": "artgraph_vit", "tasks": 3}',
        '{"made_by": "artgraph_vit", "tasks": [{"name": "artist"}]}',
        '{"made_by": "artgraph_vit", "tasks": '
        '[{"name": "a", "problem_type": "single_label_classification", "labels": ["x", "x"]}]}',
        "[" * 99_999,
    ],
)
def test_a_damaged_vocabulary(tmp_path, text):
    folder = prepared(tmp_path / "data")
    (folder / VOCABULARY).write_text(text)
    with pytest.raises(UserError, match=VOCABULARY) as error:
        load(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("text", ["null", '["a", "b"]', '{"tasks": []}'])
def test_a_vocabulary_of_somebody_else_is_none_of_a_prepared_dataset(tmp_path, text):
    folder = prepared(tmp_path / "data")
    (folder / VOCABULARY).write_text(text)
    _, tasks = load(folder)
    assert [task.labels for task in tasks] == [()] * len(tasks)
    assert kept_vocabulary(str(folder)) is None


def test_a_path_in_a_prepared_dataset_must_stay_in_its_folder(tmp_path):
    """Also where the rows have names of their own."""
    folder = prepared(tmp_path / "data")
    secret = tmp_path / "secret.png"
    Image.new("RGB", (4, 4)).save(secret)
    shard = next(folder.rglob("*.parquet"))
    rows = Dataset.from_parquet(str(shard), cache_dir=str(tmp_path / "cache")).to_dict()
    count = len(rows["artist"])
    rows["image"] = [{"bytes": None, "path": str(secret)}] * count
    rows["name"] = [str(number) for number in range(count)]
    Dataset.from_dict(rows).cast_column("image", ImageFeature(decode=False)).to_parquet(shard)
    with pytest.raises(UserError, match="lies outside"):
        load(folder)


def test_the_order_of_a_stream_depends_on_the_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    label = ClassLabel(names=["a", "b"])
    features = Features({"image": ImageFeature(decode=False), "name": Value("string"), "genre": label})
    image = {"bytes": b"any", "path": None}
    (tmp_path / "data").mkdir()
    for split in ("train", "validation", "test"):
        columns = {"image": [image] * 30, "name": [f"{split} {i}" for i in range(30)], "genre": [0, 1] * 15}
        shard = tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        Dataset.from_dict(columns, features=features).to_parquet(str(shard))
    write_vocabulary(tmp_path, [Task("genre", SINGLE_LABEL, ("a", "b"))])
    labels, tasks = stream_labels(str(tmp_path))
    assert [task.name for task in tasks] == ["genre"]
    assert labels["train"]["genre"][:] == [0, 1] * 15

    def order(split: str, seed: int) -> list[str]:
        transforms = dict.fromkeys(labels, lambda columns: columns)
        return [row["name"] for row in stream_pictures(str(tmp_path), None, transforms, labels, seed)[split]]

    assert order("train", 1) == order("train", 1) != order("train", 2)
    assert sorted(order("train", 1)) == sorted(order("train", 2)) == sorted(labels["train"]["name"])
    assert order("test", 1) == labels["test"]["name"][:]
    with pytest.raises(UserError, match=r"The labels of genre in .* are not those of the model: do not stream it"):
        stream_labels(str(tmp_path), [Task("genre", SINGLE_LABEL, ("a", "c"))])


PUSH = """
from huggingface_hub import HfApi
api = HfApi()
for name, path in folders.items():
    api.create_repo(f"tester/{name}", repo_type="dataset")
    api.upload_folder(repo_id=f"tester/{name}", repo_type="dataset", folder_path=path)
api.create_branch("tester/prepared", repo_type="dataset", branch="v2")
api.upload_file(path_or_fileobj=second.encode(), path_in_repo="vocabulary.json", repo_id="tester/prepared",
                repo_type="dataset", revision="v2")
"""
LOAD = """
from tests.data.loading import load
for name, revision in (("prepared", None), ("prepared", "v2"), ("plain", None)):
    rows, tasks = load(f"tester/{name}", dataset_revision=revision)
    results[f"{name} {revision}"] = [rows["artist"][:], rows["split"][:], {task.name: task.labels for task in tasks}]
"""
FORGET = """
import pathlib
from huggingface_hub.constants import HF_HUB_CACHE
from artgraph_vit.data.sources.datasets_source import kept_vocabulary
kept = kept_vocabulary("tester/prepared")
for path in pathlib.Path(HF_HUB_CACHE).rglob("vocabulary.json"):
    path.unlink()
results["forgotten"] = [kept_vocabulary("tester/prepared"), kept[0].labels]
"""


@pytest.mark.slow
def test_a_dataset_of_the_hub_brings_its_vocabulary_also_offline(hub, tmp_path):
    folders = {"prepared": prepared(tmp_path / "a"), "plain": prepared(tmp_path / "b", tasks=None)}
    second = json.dumps({"made_by": "artgraph_vit", "tasks": [Task("artist", SINGLE_LABEL, ("ada", "bea")).to_dict()]})
    folders = {name: str(path) for name, path in folders.items()}
    online = hub.run(PUSH + LOAD, folders=folders, second=second)
    assert hub.server.unknown_requests == []
    artists, splits = ["ada", "bea"] * 2, ["train"] * 2 + ["test"] * 2
    kept = {"artist": list(ARTIST.labels), "tags": list(TAGS.labels)}
    counted = {"artist": [], "genre": [], "tags": []}
    assert online["prepared None"] == [artists, splits, kept]
    assert online["prepared v2"] == [artists, splits, {"artist": ["ada", "bea"]}]
    assert online["plain None"] == [artists, splits, counted]
    assert "counted anew" not in online["stderr"]

    offline = hub.run(LOAD + FORGET, offline=True)
    forgotten = offline.pop("forgotten")
    assert {**offline, "stderr": ""} == {**online, "stderr": ""}
    assert forgotten == [None, list(ARTIST.labels)]
    warnings = " ".join(offline["stderr"].split())
    assert "not known whether tester/prepared was prepared" in warnings
    assert "whether tester/plain" not in warnings  # that it has none is known
