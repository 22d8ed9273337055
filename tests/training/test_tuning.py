"""What a run says of itself is what was done; a trained model is tuned on its validation split."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from datasets import DatasetDict, concatenate_datasets
from sklearn.metrics import f1_score

from artgraph_vit import ArtGraphViTForImageClassification
from artgraph_vit.data import ArtGraphCollator
from artgraph_vit.data.options import DataArguments
from artgraph_vit.errors import UserError
from artgraph_vit.evaluation.metrics import MultiTaskMetrics
from artgraph_vit.evaluation.results import Results
from artgraph_vit.evaluation.tuning import TUNED
from artgraph_vit.publishing.card import CardOptions
from artgraph_vit.training.arguments import ArtGraphTrainingArguments, ModelArguments
from artgraph_vit.training.options import parse_options
from artgraph_vit.training.run import evaluate, finish_run, train, tune, tune_checkpoint

from ..test_scripts import labels_of, run
from .tiny import TASKS, artworks, tiny_trainer


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("pictures")
    rows = {"train": (40, 1), "validation": (37, 2), "test": (21, 3)}
    return {split: artworks(folder, count, seed) for split, (count, seed) in rows.items()}


@pytest.fixture
def splits(pictures) -> DatasetDict:
    return DatasetDict({split: rows.with_format(None) for split, rows in pictures.items()})


@pytest.fixture
def make_trainer(tmp_path, pictures):
    """`make_trainer(**options)`."""
    datasets = (pictures["train"], pictures["validation"])
    return lambda **options: tiny_trainer(tmp_path / "run", datasets=datasets, **options)


@pytest.fixture
def trainer(make_trainer):
    """Of a model whose heads are sure enough of themselves to be tuned."""
    made = make_trainer()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for head in made.model.heads.values():
            head.weight.copy_(torch.randn(head.weight.shape, generator=random))
    return made


def config_of(trainer) -> dict:
    return {name: getattr(trainer.config, name) for name in TUNED}


def scores_of(trainer, rows) -> dict:
    trainer.metrics = MultiTaskMetrics(TASKS, keep_scores=True)
    trainer.predict(rows)
    return trainer.metrics.scores()


# ---- what a run says of itself ----


@pytest.mark.parametrize(
    ("options", "epochs", "frozen_epochs", "said"),
    [
        ({"max_steps": 2}, 2 / 3, 2 / 3, "Only the heads learned, for 0.667 epochs"),
        ({"max_steps": 7}, 7 / 3, 2, "then the whole model up to epoch 2.33."),
        ({"num_train_epochs": 1, "frozen_epochs": 0}, 1, 0, "The whole model learned from the start, up to epoch 1."),
    ],
)
def test_records_are_of_what_was_done(make_trainer, splits, pictures, options, epochs, frozen_epochs, said):
    trainer = make_trainer(load_best_model_at_end=False, **options)
    trainer.train()
    made = DataArguments(source="made")
    results = finish_run(trainer, splits, pictures, ModelArguments(backbone="tiny"), made, CardOptions(license="mit"))
    folder = Path(trainer.args.output_dir)
    assert Results.read(folder) == results
    assert (results.epochs, results.frozen_epochs) == pytest.approx((epochs, frozen_epochs))
    assert (results.recipe.get("max_steps"), results.best_epoch) == (options.get("max_steps"), None)
    assert (
        ("max_steps" in results.departures) == ("num_train_epochs" not in results.recipe) == ("max_steps" in options)
    )
    card = (folder / "README.md").read_text()
    assert said in card
    assert "published under mit." in card


def test_the_checkpoint_that_was_evaluated_is_named(make_trainer, splits, pictures):
    trainer = make_trainer(learning_rate=0.5, num_train_epochs=3, frozen_epochs=1)  # so the best is not the last
    trainer.train()
    results = finish_run(trainer, splits, pictures, ModelArguments(), DataArguments(source="made"), CardOptions())
    scores = {log["epoch"]: log["eval_avg_macro_f1"] for log in trainer.state.log_history if "eval_loss" in log}
    assert results.best_validation_avg_macro_f1 == max(scores.values()) == scores[results.best_epoch]
    assert results.best_step == 3 * results.best_epoch == trainer.state.best_global_step < 9
    evaluated = trainer.evaluate()
    assert evaluated["eval_avg_macro_f1"] == pytest.approx(results.best_validation_avg_macro_f1)


# ---- tuning ----


def test_the_tuned_model_is_measured_as_it_decides(trainer, splits, pictures):
    """And its record is of each validation row with a known label once."""
    before = trainer.evaluate(pictures["test"])
    measured = tune(trainer, pictures)
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
    probabilities = scores_of(trainer, pictures["validation"])["tags"][0].sigmoid()[is_known]  # with what was tuned
    for name, thresholds in (("macro_f1", trainer.config.thresholds["tags"]), ("macro_f1_at_half", 0.5)):
        predicted = probabilities > torch.tensor(thresholds)
        macro_f1 = f1_score(batch["tags"][is_known], predicted, average="macro", zero_division=0)
        assert record["tasks"]["tags"][name] == pytest.approx(macro_f1)

    first = config_of(trainer)  # tuning anew starts from the model's own scores
    tune(trainer, pictures, method="global")
    assert config_of(trainer) != first
    assert tune(trainer, pictures) == measured
    assert config_of(trainer) == first


def test_rows_without_a_known_label_do_not_count(trainer, splits, pictures, caplog):
    tune(trainer, pictures)
    expected = config_of(trainer)
    nothing = dict.fromkeys(("artist", "genre", "tags"))
    unknown = splits["train"].map(lambda row: nothing, features=splits["train"].features)
    rows = concatenate_datasets([unknown, splits["validation"]])
    transform = pictures["validation"].format["format_kwargs"]["transform"]
    tune(trainer, {**pictures, "validation": rows.with_transform(transform)})
    found = config_of(trainer)
    assert found["tuning"]["tasks"]["tags"]["known_rows"] == expected["tuning"]["tasks"]["tags"]["known_rows"]
    for task in TASKS:  # in other batches, so but for the last bits
        assert found["temperatures"][task.name] == pytest.approx(expected["temperatures"][task.name], rel=1e-4)
    assert found["thresholds"]["tags"] == pytest.approx(expected["thresholds"]["tags"], rel=1e-4)

    only_tags = dict.fromkeys(("artist", "genre"))
    rows = splits["validation"].map(lambda row: only_tags, features=splits["validation"].features)
    logging.getLogger("transformers").propagate = True
    tune(trainer, {**pictures, "validation": rows.with_transform(transform)})
    assert "No artwork of the validation split has a known genre, which stays untuned" in caplog.text
    assert set(trainer.config.temperatures) == set(trainer.config.tuning["tasks"]) == {"tags"}
    with pytest.raises(UserError, match="No artwork of the validation split has a known label"):
        tune(trainer, {**pictures, "validation": unknown.with_transform(transform)})


# ---- a run of the demo, evaluated and tuned ----


SMALL = (
    *("--embedded_artworks", 160, "--min_count", 8, "--num_train_epochs", 2, "--frozen_epochs", 1, "--use_cpu"),
    *("--dataloader_num_workers", 0, "--dataloader_persistent_workers", "false"),
)
CLASSES = (ModelArguments, DataArguments, CardOptions, ArtGraphTrainingArguments)


def options(folder: Path, output_dir: Path, *words) -> tuple:
    places = ("--embedded_folder", folder / "embedded", "--feature_cache_dir", folder, "--output_dir", output_dir)
    argv = [str(word) for word in (Path("configs/demo.yaml").resolve(), *SMALL, *places, *words)]
    return parse_options(CLASSES, argv)


def data_of(folder: Path, output_dir: Path, *words) -> dict:
    """What [`evaluate`] and [`tune_checkpoint`] take."""
    _, data_args, _, args = options(folder, output_dir, *words)
    return {"data_args": data_args, "args": args}


def tuned_config(folder: Path) -> dict:
    config = json.loads((folder / "config.json").read_text())
    return {name: config[name] for name in TUNED if name in config}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Tuned at the end of training."""
    folder = tmp_path_factory.mktemp("tuned")
    train(*options(folder, folder / "run", "--tune_thresholds"))
    return folder


@pytest.fixture
def untuned(trained, tmp_path) -> Path:
    """A copy of the run, as it would have been without tuning."""
    copy = tmp_path / "copy"
    shutil.copytree(trained / "run", copy, ignore=shutil.ignore_patterns("checkpoint-*"))
    for name, as_trained in (("config.json", TUNED), ("results.json", ("tuning", "metrics_at_half"))):
        values = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps({k: v for k, v in values.items() if k not in as_trained}))
    (copy / "README.md").write_text("old")
    return copy


def assert_tuned_as_trained(folder: Path, trained: Path) -> None:
    for task in ("tags", "media"):
        expected = tuned_config(trained / "run")["thresholds"][task]
        assert tuned_config(folder)["thresholds"][task] == pytest.approx(expected, rel=1e-4)
    found, expected = Results.read(folder), Results.read(trained / "run")
    for name in ("metrics", "metrics_at_half", "task_losses"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-5)
    assert f"{expected.metrics_at_half['avg_macro_f1']:.3f}" in (folder / "README.md").read_text()
    thresholds = [float(row["threshold"]) for row in labels_of(folder) if row["task"] == "media"]
    assert thresholds == pytest.approx(tuned_config(folder)["thresholds"]["media"])


def test_a_run_ends_tuned_if_asked(trained, tmp_path, capsys):
    folder = trained / "run"
    results, config = Results.read(folder), tuned_config(folder)
    assert set(config["temperatures"]) == {"artist", "style", "genre", "tags", "media"}
    assert set(config["thresholds"]) == {"tags", "media"}
    assert results.recipe["tune_thresholds"] is True
    assert results.tuning["test"]["metrics"] == pytest.approx(results.metrics)
    assert results.metrics_at_half["tags_macro_f1"] != results.metrics["tags_macro_f1"]
    card = (folder / "README.md").read_text()
    assert f"{results.metrics_at_half['avg_macro_f1']:.3f}" in card
    assert "one for each label" in card
    # Whoever loads it decides by what the folder says.
    evaluate(str(folder), **data_of(trained, tmp_path))
    assert Results.read(tmp_path).metrics == pytest.approx(results.metrics)
    assert "Results on the test split, 24 artworks" in capsys.readouterr().out
    # And by p > 0.5 where it was not tuned, with intervals and the difference to itself.
    evaluate(str(folder), **data_of(trained, tmp_path), split="validation", bootstrap=100, compare_with=str(folder))
    assert capsys.readouterr().out.count("95% intervals of 100 resamples") == 2
    found = Results.read(tmp_path)
    assert found.intervals["metrics"]["avg_macro_f1"]["value"] == pytest.approx(found.metrics["avg_macro_f1"])
    assert {metric["difference"] for metric in found.comparison["metrics"].values()} == {0}
    with pytest.raises(UserError, match=r"is finished and tuned, and this would write it anew, untuned"):
        train(*options(trained, folder))


def test_a_trained_model_is_tuned_as_training_does_it(trained, untuned, capsys):
    before = json.loads((untuned / "config.json").read_text())
    assert tune_checkpoint(str(untuned), **data_of(trained, untuned)) == untuned
    out = capsys.readouterr().out
    assert out.count("average") == 1
    assert max(map(len, out.splitlines())) <= 100
    after = json.loads((untuned / "config.json").read_text())
    assert {name for name in after if after[name] != before.get(name)} == set(TUNED)
    assert_tuned_as_trained(untuned, trained)


@pytest.mark.slow
def test_so_do_two_processes_by_the_script(trained, untuned):
    words = (*SMALL[:4], "--use_cpu", "--dataloader_num_workers", "1", "--embedded_folder", trained / "embedded")
    run(
        *("tune_thresholds.py", "configs/demo.yaml", untuned, *words),
        *("--per_device_eval_batch_size", "5"),  # the last batches hold rows that only fill up
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
    )
    assert_tuned_as_trained(untuned, trained)


def test_a_checkpoint_is_tuned_as_a_copy(trained, untuned, tmp_path):
    checkpoint = next((trained / "run").glob("checkpoint-*"))
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    copy = tmp_path / "tuned"
    tune_checkpoint(str(checkpoint), **data_of(trained, copy), method="global", save_to=str(copy))
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    model = ArtGraphViTForImageClassification.from_pretrained(copy)
    assert 0 < model.config.thresholds["tags"] == model.config.tuning["tasks"]["tags"]["global_threshold"] < 1

    data = data_of(trained, tmp_path)
    for folder, options, message in (
        (checkpoint, {}, r"or a checkpoint of training, which stays as it was written: pass --save_to FOLDER"),
        ("user/model", {}, r"user/model is no folder here, .* pass --save_to FOLDER"),
        (checkpoint, {"save_to": str(copy)}, "holds something already: choose a new folder"),
    ):
        with pytest.raises(UserError, match=message):
            tune_checkpoint(str(folder), **data, **options)
    written = json.loads((untuned / "results.json").read_text())
    for other in ({"rows": 22}, {"split": "train"}, {"known_rows": {**written["known_rows"], "tags": 3}}):
        (untuned / "results.json").write_text(json.dumps({**written, **other}))
        with pytest.raises(UserError, match="give the same data options as in training"):
            tune_checkpoint(str(untuned), **data)
