"""The same hundred artworks in each form a source may have are read as the same rows; one form is trained on."""

import csv
import json
import runpy
import shutil
import sys
from collections import Counter
from pathlib import Path

import datasets
import pytest
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor

from artgraph_vit.data import vocabulary
from artgraph_vit.data.demo import paint_artgraph
from artgraph_vit.data.options import DataArguments, read_artworks
from artgraph_vit.data.sources import rows
from artgraph_vit.errors import UserError

SCRIPTS = Path(__file__).parents[1] / "scripts"
NODES = {"artist": "artist", "style": "style", "genre": "genre", "tags": "tag", "media": "media"}
SPLITS = {"train": "train", "val": "validation", "test": "test"}


def run(script: str, *arguments: object) -> None:
    """In this process: what it does is tested elsewhere as a command."""
    argv, sys.argv = sys.argv, [script, *map(str, arguments)]
    try:
        runpy.run_path(str(SCRIPTS / script), run_name="script")["main"]()
    finally:
        sys.argv = argv


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> Path:
    return paint_artgraph(tmp_path_factory.mktemp("painted") / "artgraph", num_artworks=100, size=32, progress=False)


@pytest.fixture(scope="module")
def records(painted) -> list[dict]:
    """Of each artwork `image`, `split`, and a list of labels a task."""
    split_of = {
        name: split
        for stem, split in SPLITS.items()
        for name in (painted / "splits" / f"{stem}.txt").read_text().splitlines()
    }
    with open(painted / "artgraph_dataset.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for task in NODES:
            row[task] = row[task].split(", ") if row[task] else []
        row["split"] = split_of[row["image"]]
    return rows


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTConfig(image_size=16, patch_size=8, **size).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path, painted) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "images").symlink_to(painted / "images", target_is_directory=True)
    return tmp_path / "source"


def write_lines(path: Path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)


def ids_of(records, task) -> dict[str, int]:
    return {label: number for number, label in enumerate(sorted({label for row in records for label in row[task]}))}


def as_artgraph_csv(folder, records, painted, backbone):
    return painted, {}


def as_artgraph_raw(folder, records, painted, backbone):
    artworks = {row["image"]: number for number, row in enumerate(records)}
    write_lines(folder / "mapping" / "artwork_entidx2name.csv", [(number, name) for name, number in artworks.items()])
    relations = {"artist": "createdby", "style": "hasstyle", "genre": "hasgenre", "tags": "about", "media": "madeof"}
    for task, node in NODES.items():
        ids = ids_of(records, task)
        write_lines(folder / "mapping" / f"{node}_entidx2name.csv", [(number, label) for label, number in ids.items()])
        edges = [(artworks[row["image"]], ids[label]) for row in records for label in row[task]]
        write_lines(folder / "raw" / "relations" / f"artwork___{relations[task]}___{node}" / "edge.csv", edges)
    (folder / "splits").symlink_to(painted / "splits", target_is_directory=True)
    return folder, {}


def as_artseek(folder, records, painted, backbone):
    ids = {task: ids_of(records, task) for task in NODES}
    names = {node: {str(number): label for label, number in ids[task].items()} for task, node in NODES.items()}
    (folder / "images").unlink()
    (folder / "images").mkdir()
    for row in records:  # ArtSeek's pictures are JPEGs
        picture = Image.open(painted / "images" / row["image"])
        picture.save(folder / "images" / f"{Path(row['image']).stem}.jpg", quality=95)
    for stem, split in SPLITS.items():
        rows = [row for row in records if row["split"] == split]
        relationships = {
            Path(row["image"]).stem: {node: [ids[task][label] for label in row[task]] for task, node in NODES.items()}
            for row in rows
        }
        (folder / f"{stem}.json").write_text(json.dumps({"relationships": relationships, **names}), encoding="utf-8")
    return folder, {}


def as_picture_folder_csv(folder, records, painted, backbone):
    lines = [["file_name", "split", *NODES]]
    for row in records:
        single = [row[task][0] if row[task] else "" for task in ("artist", "style", "genre")]
        several = (json.dumps(row["tags"]), "|".join(row["media"]))
        lines.append([f"images/{row['image']}", row["split"], *single, *several])
    (folder / "images").unlink()  # a link to a folder is not followed
    shutil.copytree(painted / "images", folder / "images")
    write_lines(folder / "metadata.csv", lines)
    return folder, {"label_separator": "|"}


def as_picture_folder_jsonl(folder, records, painted, backbone):
    (folder / "images").unlink()
    for split in SPLITS.values():
        (folder / split).mkdir()
        own = [row for row in records if row["split"] == split]
        lines = [json.dumps({"file_name": row["image"], **{task: row[task] for task in NODES}}) for row in own]
        (folder / split / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
        for row in own:
            shutil.copy(painted / "images" / row["image"], folder / split)
    return folder, {}


def as_parquet(folder, records, painted, backbone):
    """ClassLabels, lists of them, and columns that are called otherwise, as on the Hub."""
    (folder / "images").unlink()
    (folder / "data").mkdir()
    columns = {"artist": "painter", "tags": "subjects"}
    for split in SPLITS.values():
        rows = [row for row in records if row["split"] == split]
        values = {"picture": [{"bytes": (painted / "images" / r["image"]).read_bytes(), "path": None} for r in rows]}
        features = {"picture": datasets.Image()}
        for task in NODES:
            label = datasets.ClassLabel(names=sorted(ids_of(records, task)))
            several = task in ("tags", "media")
            features[columns.get(task, task)] = datasets.List(label) if several else label
            values[columns.get(task, task)] = [row[task] if several else (row[task] or [None])[0] for row in rows]
        part = datasets.Dataset.from_dict(values, features=datasets.Features(features))
        part.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder, {"columns": columns, "image_column": "picture"}


def as_prepared(folder, records, painted, backbone):
    run("prepare.py", painted, folder.parent / "prepared", "--size", "24", "--min_count", "5")
    return folder.parent / "prepared", {"min_count": 1_000_000}


def as_exact(folder, records, painted, backbone):
    run("prepare.py", painted, folder.parent / "exact", "--exact_for", backbone, "--min_count", "5")
    return folder.parent / "exact", {"min_count": 1_000_000}


FORMS = [
    *(as_artgraph_csv, as_artgraph_raw, as_artseek, as_picture_folder_csv, as_picture_folder_jsonl, as_parquet),
    *(as_prepared, as_exact),
]


def train(source, output, backbone, *options) -> dict:
    given = ("--source", source, "--output_dir", output, "--backbone", backbone, "--from_scratch", "--use_cpu")
    given += ("--num_train_epochs", "2", "--frozen_epochs", "1", "--disable_tqdm", "true")
    run("train.py", *given, "--feature_cache_dir", output.parent / "features", "--min_count", "5", *options)
    return json.loads((output / "results.json").read_text())


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__.removeprefix("as_"))
def test_each_form_is_read_as_the_same_artworks(form, folder, records, painted, backbone):
    source, options = form(folder, records, painted, backbone)
    rows, tasks = read_artworks(DataArguments(str(source), **({"min_count": 5} | options)))
    assert rows["split"][:].count("test") == sum(row["split"] == "test" for row in records)
    labels = {task.name: list(task.labels) for task in tasks}
    for task in NODES:
        counts = {label: sum(label in row[task] for row in records) for label in ids_of(records, task)}
        kept = {label for label, count in counts.items() if count >= 5 or task in ("style", "genre")}
        kept |= {"other"} if task == "artist" and len(kept) < len(counts) else set()
        assert labels[task] == sorted(kept)

        def meant(row, task=task, kept=kept):
            names = row[task] if task != "artist" else [name if name in kept else "other" for name in row[task]]
            return row["split"], tuple(sorted(kept & set(names)))

        values = rows[task][:]
        found = [[labels[task][i] for i in ([] if v is None else v if isinstance(v, list) else [v])] for v in values]
        pairs = zip(rows["split"], (tuple(sorted(names)) for names in found), strict=True)
        assert Counter(pairs) == Counter(map(meant, records))


@pytest.mark.slow
def test_a_head_without_labels_is_kept_if_asked_for(records, painted, backbone, tmp_path):
    """A model of five tasks, then training on a source that lacks two of them."""
    train(painted, tmp_path / "five", backbone)
    lines = [["file_name", "style", "genre", "artist", "split"]]
    lines += [[r["image"], r["style"][0], r["genre"][0], (r["artist"] or [""])[0], r["split"]] for r in records]
    source = shutil.copytree(painted / "images", tmp_path / "pictures")
    write_lines(source / "metadata.csv", lines)
    options = ("--labels_from", tmp_path / "five", "--missing_tasks", "unknown")
    results = train(source, tmp_path / "run", backbone, *options)
    of_test = [row for row in records if row["split"] == "test"]
    known = {"artist": sum(bool(row["artist"]) for row in of_test), "style": len(of_test), "genre": len(of_test)}
    assert results["known_rows"] == {**known, "tags": 0, "media": 0}
    assert results["rows"] == len(of_test)
    assert results["data"]["train_rows"] == sum(row["split"] == "train" for row in records)
    tasks = [json.loads((tmp_path / name / "config.json").read_text())["tasks"] for name in ("five", "run")]
    assert tasks[0] == tasks[1]


@pytest.mark.slow
def test_a_prepared_dataset_is_streamed(painted, backbone, cache, tmp_path):
    """Its results are of the same artworks as if it had been copied into the cache, where nothing of it is left."""
    prepared = tmp_path / "prepared"
    run("prepare.py", painted, prepared, "--min_count", "5")
    streamed = train(prepared, tmp_path / "true", backbone, "--streaming", "true")
    assert not list(cache.rglob("*.arrow"))
    whole = train(prepared, tmp_path / "false", backbone)
    assert list(cache.rglob("*.arrow"))
    for key in ("rows", "known_rows", "data", "majority_metrics"):
        assert streamed[key] == whole[key]
    assert streamed["metrics"].keys() == whole["metrics"].keys()
    evaluated = ("--checkpoint", tmp_path / "true", "--source", prepared, "--use_cpu")
    for name in ("true", "false"):
        run("evaluate.py", *evaluated, "--streaming", name, "--results_dir", tmp_path / f"evaluated-{name}")
    results = [json.loads((tmp_path / f"evaluated-{name}" / "results.json").read_text()) for name in ("true", "false")]
    for key in ("metrics", "loss"):
        assert results[0][key] == pytest.approx(results[1][key], rel=1e-9)
    with pytest.raises(UserError, match="cannot be streamed: vocabulary and splits must be known"):
        train(painted, tmp_path / "raw", backbone, "--streaming", "true")


def test_a_run_does_not_write_into_its_source(painted, backbone):
    with pytest.raises(UserError, match="output_dir is the source itself"):
        train(painted, painted, backbone)


def test_what_is_not_read_is_said(painted, records, tmp_path, monkeypatch):
    """A column that is misspelt is no task less without a word; nor is a separator that is not the one in use."""
    said = []
    for module in (rows, vocabulary):
        monkeypatch.setattr(module.logger, "warning", lambda text, *values: said.append(text % values))
    (tmp_path / "images").symlink_to(painted / "images", target_is_directory=True)
    lines = [["image", "styel", "genre", "tags"]]
    lines += [[r["image"], r["style"][0], r["genre"][0], ";".join(r["tags"])] for r in records]
    write_lines(tmp_path / "artgraph_dataset.csv", lines)
    read_artworks(DataArguments(str(tmp_path), min_count=1))
    assert any("has no artist, style, media, and the columns styel are not read" in text for text in said)
    assert any("labels of tags hold a comma, a semicolon or a bar" in text for text in said)
