"""The trainer against what it promises: two phases in one run, exact steps, exact evaluation, exact resume."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import f1_score
from transformers import TrainerCallback

from artgraph_vit import ArtGraphViTForImageClassification
from artgraph_vit.data import ArtGraphCollator
from artgraph_vit.errors import UserError
from artgraph_vit.loading import write_manifest
from artgraph_vit.model.tasks import UNKNOWN

from .processes import final_weights, run_tiny
from .tiny import EVAL_ROWS, TASKS, RandomArtworks, tiny_trainer

STEPS_AN_EPOCH = 4


class Recorder(TrainerCallback):
    """Keeps what the model and the optimizer are at each step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        model = getattr(model, "module", model)
        self.steps.append(
            {
                "backbone": {name: p.detach().clone() for name, p in model.backbone.named_parameters()},
                "backbone_has_grad": any(p.grad is not None for p in model.backbone.parameters()),
                "backbone_training": model.backbone.training,
                "heads_training": model.heads.training,
                "lr": {group["lr"] for group in optimizer.param_groups},
                "decay": {
                    group["weight_decay"]: [p.shape for p in group["params"]] for group in optimizer.param_groups
                },
                "parameters": sum(p.numel() for group in optimizer.param_groups for p in group["params"]),
            }
        )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run_tiny(folder)
    return folder


def test_one_call_runs_both_phases_and_everything_counts_on(tmp_path):
    recorder = Recorder()
    trainer = tiny_trainer(tmp_path, callbacks=[recorder], load_best_model_at_end=False)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()

    heads, full = recorder.steps[: 2 * STEPS_AN_EPOCH], recorder.steps[2 * STEPS_AN_EPOCH :]
    assert len(full) == 2 * STEPS_AN_EPOCH
    for step in heads:
        assert not step["backbone_has_grad"]
        assert not step["backbone_training"]
        assert step["heads_training"]
        assert step["lr"] == {5e-3}
        assert all(torch.equal(step["backbone"][name], before[f"backbone.{name}"]) for name in step["backbone"])
    head_parameters = sum(p.numel() for name, p in trainer.model.named_parameters() if "backbone" not in name)
    assert {step["parameters"] for step in heads} == {head_parameters}
    for step in full:
        assert step["backbone_has_grad"]
        assert step["backbone_training"]
        assert step["lr"] == {2e-3}
    assert {step["parameters"] for step in full} == {sum(p.numel() for p in trainer.model.parameters())}
    assert all(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())

    history = trainer.state.log_history
    assert [log["epoch"] for log in history if "eval_loss" in log] == [1, 2, 3, 4]
    assert [log["step"] for log in history if "eval_loss" in log] == [4, 8, 12, 16]
    assert [log["learning_rate"] for log in history if "learning_rate" in log] == [5e-3, 5e-3, 2e-3, 2e-3]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        f"checkpoint-{step}" for step in (12, 16, 4, 8)
    ]


def test_log_variances_alone_are_spared_weight_decay(tmp_path):
    recorder = Recorder()
    tiny_trainer(tmp_path, callbacks=[recorder], num_train_epochs=1, frozen_epochs=0).train()
    decay = recorder.steps[0]["decay"]
    assert decay[0.0] == [torch.Size([len(TASKS)])]
    assert set(decay) == {0.0, 0.01}


def test_a_frozen_phase_checkpoint_holds_no_optimizer_state_of_the_backbone(uninterrupted):
    state = torch.load(uninterrupted / "checkpoint-8" / "optimizer.pt", weights_only=True)["state"]
    heads = 2 * len(TASKS) + 1  # weight and bias each, and the log variances
    assert len(state) == heads
    assert len(torch.load(uninterrupted / "checkpoint-12" / "optimizer.pt", weights_only=True)["state"]) > heads


@pytest.mark.parametrize("accumulation", [4])
def test_accumulated_steps_are_those_of_the_whole_batch(tmp_path, accumulation):
    whole = tiny_trainer(tmp_path / "whole", head_dropout=0.0, load_best_model_at_end=False)
    whole.train()
    parts = tiny_trainer(
        tmp_path / "parts",
        head_dropout=0.0,
        load_best_model_at_end=False,
        per_device_train_batch_size=16 // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    parts.train()
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], tensor, atol=5e-5, rtol=1e-4)
    for one, other in zip(whole.state.log_history, parts.state.log_history, strict=True):
        for name in set(one) & {"loss", "artist_loss", "tags_loss", "eval_loss", "grad_norm"}:
            assert other[name] == pytest.approx(one[name], rel=1e-3), name


def test_evaluation_is_that_of_all_rows_at_once(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.model.set_class_weights({"artist": torch.tensor([0.5, 3.0, 1.0])})
    with torch.no_grad():
        trainer.model.log_variances.copy_(torch.tensor([0.3, -0.7, 0.1]))
    metrics = trainer.evaluate()

    batch = ArtGraphCollator(TASKS)(RandomArtworks(EVAL_ROWS, seed=2).rows)
    with torch.no_grad():
        output = trainer.model.eval()(**batch)
    assert metrics["eval_loss"] == pytest.approx(output.loss.item(), rel=1e-6)
    for task in TASKS:
        assert metrics[f"eval_{task.name}_loss"] == pytest.approx(output.task_losses[task.name].item(), rel=1e-6)
    known = batch["labels"]["artist"] != UNKNOWN
    assert metrics["eval_artist_known_rows"] == known.sum().item() < EVAL_ROWS
    expected = f1_score(
        batch["labels"]["artist"][known], output.logits["artist"].argmax(-1)[known], average="macro", zero_division=0
    )
    assert metrics["eval_artist_macro_f1"] == pytest.approx(expected)


def test_another_dataset_is_evaluated_on_its_own_rows(tmp_path):
    """Also with persistent workers, for which `Trainer` keeps the first dataset's loader."""
    other = RandomArtworks(EVAL_ROWS + 4, seed=3)
    expected = tiny_trainer(tmp_path / "plain").evaluate(other)
    trainer = tiny_trainer(tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True)
    validation = trainer.evaluate()
    metrics = trainer.evaluate(other)
    assert metrics["eval_genre_known_rows"] == EVAL_ROWS + 4
    assert validation["eval_genre_known_rows"] == EVAL_ROWS
    assert metrics["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)
    assert trainer.evaluate()["eval_loss"] == validation["eval_loss"] != metrics["eval_loss"]


def test_an_evaluation_that_broke_off_leaves_nothing_behind(tmp_path):
    trainer = tiny_trainer(tmp_path)
    expected = trainer.evaluate()
    row = trainer.eval_dataset.rows[-1]
    pixels = row.pop("pixel_values")
    with pytest.raises(KeyError):
        trainer.evaluate()
    row["pixel_values"] = pixels
    metrics = trainer.evaluate()
    assert all(metrics[name] == value for name, value in expected.items() if not name.endswith(("time", "second")))


def test_an_unknown_metric_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match="metric_for_best_model='avg_f1' is none of the metrics artist_accuracy"):
        tiny_trainer(tmp_path, metric_for_best_model="avg_f1")


def test_train_loss_of_a_task_is_the_mean_over_its_known_rows(tmp_path):
    """With learning rate 0 and no dropout the epoch's logged task loss is the loss of all train rows at once."""
    trainer = tiny_trainer(
        tmp_path, head_dropout=0.0, num_train_epochs=1, frozen_epochs=1, frozen_learning_rate=0.0, weight_decay=0.0
    )
    batch = ArtGraphCollator(TASKS)(trainer.train_dataset.rows)
    with torch.no_grad():
        expected = trainer.model.eval()(**batch).task_losses
    trainer.train()
    log = next(log for log in trainer.state.log_history if "learning_rate" in log)
    for task in TASKS:
        assert log[f"{task.name}_loss"] == pytest.approx(expected[task.name].item(), rel=1e-5)
        assert log[f"{task.name}_weight"] == pytest.approx(1, abs=2e-8)


def test_evaluating_more_often_does_not_change_training(uninterrupted, tmp_path):
    run_tiny(tmp_path, 'eval_strategy="steps"', "eval_steps=3", "load_best_model_at_end=false")
    expected = load_file(uninterrupted / "checkpoint-16" / "model.safetensors")
    actual = load_file(tmp_path / "checkpoint-16" / "model.safetensors")
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_the_best_checkpoint_is_loaded_whole(tmp_path):
    """A learning rate that ruins the model in the last epochs: the best checkpoint is an early one."""
    trainer = tiny_trainer(tmp_path, learning_rate=0.5, max_grad_norm=0.0)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name != "checkpoint-16"
    saved = ArtGraphViTForImageClassification.from_pretrained(best)
    assert all(torch.equal(saved.state_dict()[name], t) for name, t in trainer.model.state_dict().items())
    last = ArtGraphViTForImageClassification.from_pretrained(tmp_path / "checkpoint-16")
    assert not torch.equal(last.heads["artist"].weight, saved.heads["artist"].weight)
    metric = trainer.evaluate()["eval_avg_macro_f1"]
    assert metric == pytest.approx(trainer.state.best_metric)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_a_checkpoint_without_exactly_the_models_tensors_is_refused(uninterrupted, tmp_path, change):
    trainer = tiny_trainer(tmp_path)
    shutil.copytree(uninterrupted / "checkpoint-4", tmp_path / "checkpoint-4")
    path = tmp_path / "checkpoint-4" / "model.safetensors"
    tensors = load_file(path)
    if change == "missing":
        del tensors["heads.artist.bias"]
    else:
        tensors["heads.medium.bias"] = torch.zeros(2)
    save_file(tensors, path, metadata={"format": "pt"})
    write_manifest(tmp_path / "checkpoint-4")
    with pytest.raises(ValueError, match=change) as error:
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert ("heads.artist.bias" if change == "missing" else "heads.medium.bias") in str(error.value)


def test_other_options_than_the_runs_are_refused_on_resume(uninterrupted, tmp_path):
    checkpoint = str(uninterrupted / "checkpoint-12")
    with pytest.raises(ValueError, match=r"made with learning_rate=0.002, and this run has learning_rate=0.1"):
        tiny_trainer(tmp_path, learning_rate=0.1).train(resume_from_checkpoint=checkpoint)
    longer = tiny_trainer(tmp_path, num_train_epochs=5, load_best_model_at_end=False)
    longer.train(resume_from_checkpoint=checkpoint)  # going on for longer is no other run
    assert longer.state.global_step == 20


def test_another_number_of_frozen_epochs_is_refused_on_resume(uninterrupted):
    trainer = tiny_trainer(uninterrupted, frozen_epochs=1)
    with pytest.raises(ValueError, match="made with frozen_epochs=2, and this run has frozen_epochs=1"):
        trainer.train(resume_from_checkpoint=str(uninterrupted / "checkpoint-12"))


@pytest.mark.parametrize("frozen_epochs", [0, 2])
def test_a_run_may_have_one_phase_only(tmp_path, frozen_epochs):
    recorder = Recorder()
    tiny_trainer(tmp_path, callbacks=[recorder], num_train_epochs=2, frozen_epochs=frozen_epochs).train()
    assert {step["backbone_training"] for step in recorder.steps} == {frozen_epochs == 0}


def test_schedules_start_anew_in_each_phase(tmp_path):
    recorder = Recorder()
    tiny_trainer(tmp_path, callbacks=[recorder], lr_scheduler_type="linear").train()
    rates = [step["lr"].pop() for step in recorder.steps]
    for phase, peak in ((rates[:8], 5e-3), (rates[8:], 2e-3)):
        assert phase == pytest.approx([peak * (1 - step / 8) for step in range(8)])


def test_two_processes_train_the_model_of_one(uninterrupted, tmp_path):
    """Both phases; 50 rows in global batches of 16 leave a last step of 2 rows, of which one process has none."""
    one, two = tmp_path / "one", tmp_path / "two"
    options = ["head_dropout=0.0", "load_best_model_at_end=false"]
    run_tiny(one, *options)
    run_tiny(two, *options, "per_device_train_batch_size=8", processes=2)
    assert (two / "world-size-2").exists()
    first, second, alone = final_weights(two, 0), final_weights(two, 1), final_weights(one)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name, tensor in alone.items():
        torch.testing.assert_close(first[name], tensor, atol=1e-4, rtol=1e-3)
    start = tiny_trainer(tmp_path / "start").model.state_dict()
    moved = [name for name in alone if not torch.equal(alone[name], start[name])]
    assert any(name.startswith("backbone") for name in moved)

    metrics = [json.loads((two / f"metrics-{process}.json").read_text()) for process in (0, 1)]
    expected = json.loads((one / "metrics-0.json").read_text())
    for name, value in expected.items():
        if not name.endswith(("runtime", "per_second")):
            assert metrics[0][name] == metrics[1][name]
            assert math.isclose(metrics[0][name], value, rel_tol=1e-3, abs_tol=1e-3), name
