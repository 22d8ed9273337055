"""A trained model is tuned on its validation split: in this process, and by the scripts as a user runs them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import DatasetDict, concatenate_datasets
from sklearn.metrics import f1_score

from artgraph_vit import ArtGraphViTForImageClassification
from artgraph_vit.data import ArtGraphCollator
from artgraph_vit.errors import UserError
from artgraph_vit.training.tuning import (
    collect_scores,
    folder_to_tune,
    refuse_to_adjust_twice,
    results_to_update,
    tune,
    write_tuned_config,
)

from ..test_scripts import SMALL, common, labels_of, run
from .tiny import TASKS, artworks, tiny_model, tiny_trainer

TUNED = ("thresholds", "temperatures", "logit_offsets", "tuning")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("pictures")
    rows = {"train": (40, 1), "validation": (37, 2), "test": (21, 3)}
    return {split: artworks(folder, count, seed) for split, (count, seed) in rows.items()}


@pytest.fixture
def splits(pictures) -> DatasetDict:
    return DatasetDict({split: rows.with_format(None) for split, rows in pictures.items()})


@pytest.fixture
def trainer(tmp_path, pictures):
    """Of a model whose heads are sure enough of themselves to be tuned."""
    made = tiny_trainer(tmp_path, datasets=(pictures["train"], pictures["validation"]))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for head in made.model.heads.values():
            head.weight.copy_(torch.randn(head.weight.shape, generator=random))
    return made


def config_of(trainer) -> dict:
    return {name: getattr(trainer.config, name) for name in TUNED}


def test_scores_are_those_of_the_model_on_each_row_once(trainer, pictures):
    rows = pictures["validation"]
    scores = collect_scores(trainer, rows)
    batch = ArtGraphCollator(TASKS)([rows[index] for index in range(len(rows))])
    with torch.no_grad():
        logits = trainer.model.eval()(trainer.normalize_pixels(batch)["pixel_values"]).logits
    for task in TASKS:
        torch.testing.assert_close(scores.logits[task.name], logits[task.name], rtol=1e-5, atol=1e-5)
        assert torch.equal(scores.labels[task.name], batch["labels"][task.name])


@pytest.mark.parametrize("adjust_logits", [False, True])
def test_the_tuned_model_is_measured_as_it_decides(trainer, splits, pictures, adjust_logits):
    before = trainer.evaluate(pictures["test"])
    measured = tune(trainer, splits, pictures, adjust_logits=adjust_logits)
    after = trainer.evaluate(pictures["test"])
    for found, expected in ((measured["test"]["metrics_at_half"], before), (measured["test"]["metrics"], after)):
        for name, value in found.items():
            assert value == pytest.approx(expected[f"eval_{name}"]), name
    assert after["eval_tags_macro_f1"] != before["eval_tags_macro_f1"]

    record = trainer.config.tuning
    assert (record["method"], record["shrinkage"], record["split"]) == ("shrunk", 20, "validation")
    batch = ArtGraphCollator(TASKS).labels([splits["validation"][index] for index in range(37)])
    is_known = batch["tags"][:, 0] >= 0
    assert record["tasks"]["tags"]["known_rows"] == is_known.sum() < 37
    assert record["tasks"]["tags"]["positives"] == batch["tags"][is_known].sum(0).tolist()
    scores = collect_scores(trainer, pictures["validation"])  # with what was tuned
    probabilities = scores.logits["tags"].sigmoid()[is_known]
    for name, thresholds in (("macro_f1", trainer.config.thresholds["tags"]), ("macro_f1_at_half", 0.5)):
        predicted = probabilities > torch.tensor(thresholds)
        macro_f1 = f1_score(batch["tags"][is_known], predicted, average="macro", zero_division=0)
        assert record["tasks"]["tags"][name] == pytest.approx(macro_f1)
    assert ("tau" in record["tasks"]["artist"]) == adjust_logits


def test_tuning_twice_gives_the_same_answer(trainer, splits, pictures):
    measured = tune(trainer, splits, pictures, adjust_logits=True)
    first = config_of(trainer)
    tune(trainer, splits, pictures, method="global")
    assert config_of(trainer) != first
    assert tune(trainer, splits, pictures, adjust_logits=True) == measured
    assert config_of(trainer) == first


def test_rows_without_a_known_label_do_not_count(trainer, splits, pictures):
    tune(trainer, splits, pictures)
    expected = config_of(trainer)
    nothing = dict.fromkeys(("artist", "genre", "tags"))
    unknown = splits["train"].map(lambda row: nothing, features=splits["train"].features)
    rows = concatenate_datasets([unknown, splits["validation"]])
    transform = pictures["validation"].format["format_kwargs"]["transform"]
    tune(trainer, splits, {**pictures, "validation": rows.with_transform(transform)})
    found = config_of(trainer)
    assert found["tuning"]["tasks"]["tags"]["known_rows"] == expected["tuning"]["tasks"]["tags"]["known_rows"]
    for task in TASKS:  # in other batches, so but for the last bits
        assert found["temperatures"][task.name] == pytest.approx(expected["temperatures"][task.name], rel=1e-4)
    assert found["thresholds"]["tags"] == pytest.approx(expected["thresholds"]["tags"], rel=1e-4)

    only_tags = dict.fromkeys(("artist", "genre"))
    rows = splits["validation"].map(lambda row: only_tags, features=splits["validation"].features)
    tune(trainer, splits, {**pictures, "validation": rows.with_transform(transform)})
    assert set(trainer.config.temperatures) == set(trainer.config.tuning["tasks"]) == {"tags"}
    with pytest.raises(UserError, match="No artwork of the validation split has a known label"):
        tune(trainer, splits, {**pictures, "validation": unknown.with_transform(transform)})


def test_a_wrong_method_is_refused(trainer, splits, pictures):
    with pytest.raises(ValueError, match="method='best': use one of"):
        tune(trainer, splits, pictures, method="best")


def test_logits_are_not_adjusted_twice(trainer, splits, pictures):
    refuse_to_adjust_twice(trainer.model)
    with pytest.raises(UserError, match=r"trained with logit_adjustment=0\.5 in its loss"):
        refuse_to_adjust_twice(tiny_model(logit_adjustment=0.5))
    trainer.model.set_class_weights({"genre": torch.tensor([0.5, 2.0])})
    with pytest.raises(UserError, match=r"trained with class weights \(genre\)"):
        tune(trainer, splits, pictures, adjust_logits=True)
    assert trainer.config.tuning == {}


def test_a_checkpoint_is_only_changed_where_it_may_be(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "checkpoint.json").write_text("{}")
    sealed = str(tmp_path / "checkpoint-3")
    with pytest.raises(UserError, match=r"is sealed and stays as it is: pass --save_to FOLDER"):
        folder_to_tune(sealed, None)
    with pytest.raises(UserError, match=r"'user/model' is no folder here .* pass --save_to FOLDER"):
        folder_to_tune("user/model", None)
    with pytest.raises(UserError, match="holds something already: choose a new folder"):
        folder_to_tune(sealed, str(tmp_path))
    assert folder_to_tune(sealed, str(tmp_path / "new")) == tmp_path / "new"
    assert folder_to_tune(str(tmp_path), None) == tmp_path


def test_results_of_other_artworks_are_not_changed(tmp_path, splits):
    assert results_to_update(str(tmp_path), splits, TASKS) is None
    known = {task.name: sum(bool(row[task.name] is not None) for row in splits["test"]) for task in TASKS}
    own = {"split": "test", "rows": 21, "known_rows": known}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(own))
    assert results_to_update(str(tmp_path), splits, TASKS) == own
    for other in ({"rows": 22}, {"split": "train"}, {"known_rows": {**known, "tags": 3}}):
        path.write_text(json.dumps({**own, **other}))
        with pytest.raises(UserError, match="give the same data options as in training"):
            results_to_update(str(tmp_path), splits, TASKS)
    path.write_text("{}")
    with pytest.raises(UserError, match="is not of a finished run"):
        results_to_update(str(tmp_path), splits, TASKS)


def test_only_what_was_tuned_changes_in_the_config(trainer, splits, pictures, tmp_path):
    trainer.model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    before = json.loads(path.read_text())
    tune(trainer, splits, pictures)
    write_tuned_config(trainer.config, path.parent)
    after = json.loads(path.read_text())
    assert {name for name in after if after[name] != before.get(name)} == set(TUNED) - {"logit_offsets"}
    assert {name: after[name] for name in TUNED} == config_of(trainer)


# ---- the scripts ----


def tune_script(folder: Path, checkpoint: Path, *arguments: object, **options) -> str:
    data = (*SMALL[:4], "--use_cpu", "--dataloader_num_workers", "1", "--embedded_folder", folder / "embedded")
    return run("tune_thresholds.py", "configs/demo.yaml", checkpoint, *data, *arguments, **options)


def tuned_config(folder: Path) -> dict:
    config = json.loads((folder / "config.json").read_text())
    return {name: config[name] for name in TUNED if name in config}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Tuned at the end of training."""
    folder = tmp_path_factory.mktemp("tuned")
    where = ("--output_dir", folder / "run", *common(folder))
    out = run("train.py", "configs/demo.yaml", *SMALL, *where, "--tune_thresholds", "--class_weights", "none")
    assert "tuned (at .5: F1 as trained, by p > 0.5)" in out
    return folder


def test_a_run_ends_tuned_if_asked(trained, tmp_path):
    folder = trained / "run"
    results = json.loads((folder / "results.json").read_text())
    config = tuned_config(folder)
    assert set(config["temperatures"]) == {"artist", "style", "genre", "tags", "media"}
    assert set(config["thresholds"]) == {"tags", "media"}
    assert results["recipe"]["tune_thresholds"] is True
    assert results["tuning"]["test"]["metrics"] == pytest.approx(results["metrics"])
    assert results["metrics_at_half"]["tags_macro_f1"] != results["metrics"]["tags_macro_f1"]
    card = (folder / "README.md").read_text()
    assert f"{results['metrics_at_half']['avg_macro_f1']:.3f}" in card
    assert "one for each label" in card

    # A fresh process decides by what the folder says.
    options = (*SMALL, "--embedded_folder", trained / "embedded", "--results_dir", tmp_path)
    run("evaluate.py", "configs/demo.yaml", *options, "--checkpoint", folder)
    assert json.loads((tmp_path / "results.json").read_text())["metrics"] == pytest.approx(results["metrics"])


def test_the_script_finds_what_training_found_on_two_processes(trained, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(trained / "run", copy, ignore=shutil.ignore_patterns("checkpoint-*"))
    config, results = tuned_config(copy), json.loads((copy / "results.json").read_text())
    for name, as_trained in (("config.json", TUNED), ("results.json", ("tuning", "metrics_at_half"))):
        values = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps({k: v for k, v in values.items() if k not in as_trained}))
    (copy / "README.md").write_text("old")
    out = tune_script(
        *(trained, copy, "--per_device_eval_batch_size", "5"),  # the last batches hold rows that only fill up
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
    )
    assert out.count("average") == 1
    assert max(len(line) for line in out.splitlines() if "The tuned model is in" not in line) <= 119  # but for a path
    for task in ("tags", "media"):
        assert tuned_config(copy)["thresholds"][task] == pytest.approx(config["thresholds"][task], rel=1e-4)
    found = json.loads((copy / "results.json").read_text())
    for name in ("metrics", "metrics_at_half", "task_losses"):
        assert found[name] == pytest.approx(results[name], rel=1e-5)
    assert f"{results['metrics_at_half']['avg_macro_f1']:.3f}" in (copy / "README.md").read_text()
    thresholds = [float(row["threshold"]) for row in labels_of(copy) if row["task"] == "media"]
    assert thresholds == pytest.approx(config["thresholds"]["media"], rel=1e-4)


def test_a_sealed_checkpoint_is_tuned_as_a_copy(trained, tmp_path):
    checkpoint = next((trained / "run").glob("checkpoint-*"))
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    tune_script(trained, checkpoint, "--save_to", tmp_path / "copy", "--method", "global", "--adjust_logits")
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    model = ArtGraphViTForImageClassification.from_pretrained(tmp_path / "copy")
    assert 0 < model.config.thresholds["tags"] == model.config.tuning["tasks"]["tags"]["global_threshold"] < 1
    assert 0 <= model.config.tuning["tasks"]["artist"]["tau"] <= 1
