"""The scripts as a user runs them, on a small edition of the embedded dataset."""

import csv
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from artgraph_vit import ArtGraphViTForImageClassification

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
SMALL = (
    *("--embedded_artworks", "160", "--min_count", "8", "--num_train_epochs", "3", "--frozen_epochs", "1"),
    *("--dataloader_num_workers", "1", "--use_cpu"),  # persistent, as in the demo
)


def start(script: str, *arguments: object, **options) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **options.pop("env", {})}
    command = [sys.executable, *options.pop("launcher", ()), str(ROOT / "scripts" / script), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def run(script: str, *arguments: object, **options) -> str:
    process = start(script, *arguments, **options)
    out, error = process.communicate(timeout=400)
    assert process.returncode == 0, error[-3000:]
    return out


def common(folder: Path) -> tuple:
    """The embedded dataset and the features of its frozen backbone, of which one copy serves all runs."""
    return ("--embedded_folder", folder / "embedded", "--feature_cache_dir", folder / "features")


def labels_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "labels.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def refused(monkeypatch, capsys):
    """`refused(script, *arguments)` runs a script in this process: the one sentence with which it ends."""

    def run_script(script: str, *arguments: object) -> str:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
        assert stopped.value.code == 2
        return " ".join(capsys.readouterr().err.split())

    return run_script


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("trained")
    launcher = ("-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1")
    launcher += ("--mixed_precision", "no", "--dynamo_backend", "no")
    where = ("--output_dir", folder / "run", *common(folder))
    return folder, run("train.py", "configs/demo.yaml", *SMALL, *where, launcher=launcher)


def test_a_run_leaves_what_it_should(trained):
    folder, out = trained
    run_folder = folder / "run"
    for name in (
        *("model.safetensors", "config.json", "preprocessor_config.json", "trainer_state.json", "results.json"),
        *("README.md", "modeling_artgraph_vit.py", "configuration_artgraph_vit.py", "losses.py", "tasks.py"),
        *("figures/multiclassification_losses.png", "figures/multiclassification_macro_f1s.png", "labels.csv"),
        *(f"figures/confusion_{task}.png" for task in ("artist", "style", "genre")),
    ):
        assert (run_folder / name).stat().st_size > 0, name
    assert not list(run_folder.glob("*.bin"))
    for figure in (run_folder / "figures").iterdir():
        assert min(Image.open(figure).size) > 300

    results = results_of(run_folder)
    for line in ("artist", "style", "genre", "tags", "media", "average", "majority", str(run_folder)):
        assert line in out
    assert f"{results['metrics']['avg_macro_f1']:.3f}" in out
    assert set(results["task_losses"]) == {"artist", "style", "genre", "tags", "media"}
    assert results["frozen_metrics"]["avg_macro_f1"] >= 0
    assert results["majority_metrics"].keys() == results["metrics"].keys()
    assert 0 < results["known_rows"]["media"] < results["rows"]
    assert results["versions"]["transformers"]
    assert results["seed"] == 42
    history = json.loads((run_folder / "trainer_state.json").read_text())["log_history"]
    last = next(entry for entry in reversed(history) if "eval_loss" in entry)
    validation = {task: last[f"eval_{task}_known_rows"] for task in results["task_losses"]}
    with open(folder / "embedded" / "artgraph_dataset.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for split, found in (("test", results["known_rows"]), ("val", validation)):  # from the rows of its own split
        listed = (folder / "embedded" / "splits" / f"{split}.txt").read_text().split()
        own = [row for row in rows if row["image"] in listed]
        assert found == {task: sum(bool(row[task]) for row in own) for task in found}

    assert [log["epoch"] for log in history if "eval_loss" in log] == [1, 2, 3]
    assert [log["epoch"] for log in history if "learning_rate" in log] == [1, 2, 3]
    assert [log["epoch"] for log in history if "frozen_test_loss" in log] == [1]

    card = ModelCard.load(run_folder / "README.md")
    reported = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert len(reported) == 6 * 5 + 1
    assert reported["Average macro F1"] == results["metrics"]["avg_macro_f1"]
    model = ArtGraphViTForImageClassification.from_pretrained(run_folder)
    assert "other" in model.config.tasks[0].labels
    for task in model.config.tasks:
        own = [row for row in labels_of(run_folder) if row["task"] == task.name]
        assert [row["label"] for row in own] == list(task.labels)
        mean = sum(float(row["f1"]) for row in own) / len(own)
        if task.is_multi_label:
            assert mean == pytest.approx(results["metrics"][f"{task.name}_macro_f1"])
        else:
            assert sum(int(row["support"]) for row in own) == results["known_rows"][task.name]
    assert str(folder) not in (run_folder / "config.json").read_text() + (run_folder / "README.md").read_text()


def test_a_shorter_demo_learns(tmp_path):
    """On 700 pictures instead of 1,600, for 12 epochs instead of 32."""
    size = ("--embedded_artworks", "700", "--min_count", "12", "--num_train_epochs", "12", "--frozen_epochs", "3")
    run("train.py", "configs/demo.yaml", *SMALL, *size, "--output_dir", tmp_path / "run", *common(tmp_path))
    results = results_of(tmp_path / "run")
    average, frozen, majority = (
        results[name]["avg_macro_f1"] for name in ("metrics", "frozen_metrics", "majority_metrics")
    )
    assert average > frozen + 0.1 > majority + 0.2
    for task in results["task_losses"]:
        assert results["metrics"][f"{task}_macro_f1"] > results["majority_metrics"][f"{task}_macro_f1"], task


def test_a_finished_run_started_again_is_not_trained_with_other_options(trained, refused):
    folder, _ = trained
    before = results_of(folder / "run")
    where = ("--output_dir", folder / "run", *common(folder))
    error = refused("train.py", "configs/demo.yaml", *SMALL, *where, "--learning_rate", "0.5", "--head_dropout", "0.7")
    assert "was made with" in error
    assert "head_dropout=0.1, learning_rate=0.001" in error
    assert results_of(folder / "run") == before


def test_a_checkpoint_that_is_none_is_one_sentence(tmp_path, refused):
    for checkpoint in (tmp_path, "nosuch/model"):
        error = refused("evaluate.py", "configs/demo.yaml", "--checkpoint", checkpoint)
        assert f"The checkpoint '{checkpoint}' cannot be loaded" in error


def test_two_processes_compare_two_models_on_the_same_artworks(trained, tmp_path):
    folder, _ = trained
    earlier = min((folder / "run").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    out = run(
        *("evaluate.py", "configs/demo.yaml", *SMALL, "--embedded_folder", folder / "embedded"),
        *("--checkpoint", folder / "run", "--compare_with", earlier, "--bootstrap", "200", "--results_dir", tmp_path),
        *("--per_device_eval_batch_size", "5"),  # 24 artworks: the last batches hold rows that only fill up
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
    )
    assert out.count("with 95% intervals of 200 resamples") == 2
    results, expected = (results_of(path) for path in (tmp_path, folder / "run"))
    assert results["metrics"] == pytest.approx(expected["metrics"])
    names = {f"{task}_macro_f1" for task in results["task_losses"]} | {"avg_macro_f1"}
    assert results["intervals"]["metrics"].keys() == results["comparison"]["metrics"].keys() == names
    for name in names:
        interval, compared = (results[kind]["metrics"][name] for kind in ("intervals", "comparison"))
        assert interval["value"] == compared["value"] == pytest.approx(expected["metrics"][name])
        assert interval["low"] < interval["high"]
        assert compared["difference"] == compared["value"] - compared["other"]
    assert any(metric["difference"] for metric in results["comparison"]["metrics"].values())
    found, written = labels_of(tmp_path), labels_of(folder / "run")
    assert [(row["label"], row["support"], row["f1"]) for row in found] == [
        (row["label"], row["support"], row["f1"]) for row in written
    ]
    assert (tmp_path / "figures" / "confusion_genre.png").is_file()


def test_a_model_of_other_tasks_is_not_compared(trained, tmp_path, refused):
    folder, _ = trained
    model = ArtGraphViTForImageClassification.from_pretrained(folder / "run")
    model.config.tasks[1] = model.config.tasks[1].with_labels(model.config.tasks[1].labels[::-1])
    model.save_pretrained(tmp_path)
    shutil.copy(folder / "run" / "preprocessor_config.json", tmp_path)
    models = ("--checkpoint", folder / "run", "--compare_with", tmp_path)
    error = refused("evaluate.py", "configs/demo.yaml", *models, "--bootstrap", "200")
    assert f"{tmp_path} has other tasks or labels than {folder / 'run'}" in error


def test_a_run_killed_from_outside_goes_on_to_the_same_bits(trained, tmp_path):
    folder, _ = trained
    where = ("--output_dir", tmp_path / "run", *common(folder))
    process = start("train.py", "configs/demo.yaml", *SMALL, *where, start_new_session=True)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "run").glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "run" / "results.json").exists()

    run("train.py", "configs/demo.yaml", *SMALL, *where)
    resumed, whole = (load_file(path / "run" / "model.safetensors") for path in (tmp_path, folder))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    results, expected = (results_of(path / "run") for path in (tmp_path, folder))
    assert results["metrics"] == expected["metrics"]
    assert results["frozen_metrics"] == expected["frozen_metrics"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--source", "/nowhere/at/all"), "There is no folder '/nowhere/at/all'"),
        (("--tasks", "artist", "century"), "has no column 'century' for the task 'century'"),
        (("--min_count", "100000"), "lower min_count"),
        (("--backbone", "nosuch/backbone"), "The backbone 'nosuch/backbone' cannot be used ("),
        (("--pooling", "max"), "pooling='max': use one of cls, mean, cls_mean, pooler"),
        (("--pooling", "pooler"), "this backbone gives no pooled vector; use 'cls', 'mean' or 'cls_mean'"),
        (("--loss_epsilon", "0.1"), "loss_epsilon=0.1: use a number from 0 to 1e-6"),
        (
            ("--source", "nosuch/dataset"),
            "The source 'nosuch/dataset' is no folder here, and cannot be read as a dataset",
        ),
        (("--embedded_artworks", "99"), "paint at least 100 artworks"),
        (("--output_dir", "/proc/run"), "/proc/run cannot be written to"),
        (("--log_variance_init", "auto", "--task_weighting", "equal"), "log_variance_init='auto' is for task_weigh"),
        (("--metric_for_best_model", "loss"), "metric_for_best_model=loss is best where it is small"),
        (
            ("--task_weighting", "fixed", "--task_weights", '{"artist": 1}'),
            "The options of the model are wrong (task_weighting='fixed' needs task_weights, one for each of artist",
        ),
        (("--stratify_by", "gerne"), "has no column 'gerne' to stratify the split by"),
    ],
)
def test_wrong_data_is_one_sentence(trained, tmp_path, refused, arguments, message):
    folder, _ = trained
    where = ("--output_dir", tmp_path, *common(folder))
    assert message in refused("train.py", "configs/demo.yaml", *SMALL, *where, *arguments)


def test_two_processes_train_from_the_script(trained, tmp_path):
    folder, _ = trained
    out = run(
        *("train.py", "configs/demo.yaml", *SMALL, "--output_dir", tmp_path / "run", *common(folder)),
        *("--per_device_train_batch_size", "16", "--head_dropout", "0"),
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
    )
    assert out.count("Results on the test split") == 1
    results = results_of(tmp_path / "run")
    assert results["recipe"]["global_batch_size"] == 32
    assert results["rows"] == results_of(folder / "run")["rows"]


@pytest.mark.skipif("ARTGRAPH_SHARED" not in os.environ, reason="needs ARTGRAPH_SHARED, a folder with paintings/")
def test_real_paintings_train_to_a_card(tmp_path):
    source = Path(os.environ["ARTGRAPH_SHARED"]) / "paintings"
    run(
        *("train.py", "--source", source, "--min_count", "5", "--output_dir", tmp_path, "--use_cpu"),
        *("--backbone", "configs/demo-backbone", "--from_scratch", "--num_train_epochs", "3", "--frozen_epochs", "1"),
    )
    results = results_of(tmp_path)
    assert results["rows"] == 41
    assert results["data"]["train_rows"] == 187
    assert "claude-monet" in (tmp_path / "README.md").read_text()
