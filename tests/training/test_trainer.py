"""The trainer against what it promises: two phases in one run, exact steps, exact evaluation, the best checkpoint."""

import inspect
import json
import math

import pytest
import torch
from sklearn.metrics import f1_score
from transformers import Trainer, TrainerCallback

from artgraph_vit.data import ArtGraphCollator
from artgraph_vit.errors import UserError
from artgraph_vit.model.tasks import UNKNOWN
from artgraph_vit.training.trainer import ArtGraphTrainer

from .processes import assert_close, final_weights, run_tiny
from .tiny import EVAL_ROWS, TASKS, RandomArtworks, end_workers, tiny_trainer

STEPS_AN_EPOCH = 4


class Recorder(TrainerCallback):
    """Keeps what the model and the optimizer are at each step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        names = {parameter: name for name, parameter in model.named_parameters()}
        groups = optimizer.param_groups
        self.steps.append(
            {
                "backbone": {name: p.detach().clone() for name, p in model.backbone.named_parameters()},
                "backbone_has_grad": any(p.grad is not None for p in model.backbone.parameters()),
                "backbone_training": model.backbone.training,
                "heads_training": model.heads.training,
                "states": sum(names[p].startswith("backbone") for p in optimizer.state),
                "rates": {names[p]: group["lr"] for group in groups for p in group["params"]},
                "decay": {names[p]: group["weight_decay"] for group in groups for p in group["params"]},
            }
        )


def test_one_call_runs_both_phases_and_everything_counts_on(tmp_path):
    """One optimizer with all parameters; in phase heads nothing of the backbone moves, learns or is kept."""
    recorder = Recorder()
    trainer = tiny_trainer(tmp_path, callbacks=[recorder], load_best_model_at_end=False)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()

    heads, full = recorder.steps[: 2 * STEPS_AN_EPOCH], recorder.steps[2 * STEPS_AN_EPOCH :]
    assert len(full) == 2 * STEPS_AN_EPOCH
    for step in recorder.steps:
        assert set(step["rates"]) == set(before)
        assert {name for name, decay in step["decay"].items() if decay != 0.01} == {"log_variances"}
        assert step["decay"]["log_variances"] == 0
        assert step["heads_training"]
    for step in heads:
        assert not step["backbone_has_grad"]
        assert not step["backbone_training"]
        assert step["states"] == 0
        rates = {name: 0.0 if name.startswith("backbone.") else 5e-3 for name in before}
        assert step["rates"] == rates
        assert all(torch.equal(step["backbone"][name], before[f"backbone.{name}"]) for name in step["backbone"])
    for step in full:
        assert step["backbone_has_grad"]
        assert step["backbone_training"]
        assert set(step["rates"].values()) == {2e-3}
    assert all(p.requires_grad for p in trainer.model.parameters())
    assert all(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())

    history = trainer.state.log_history
    assert [log["epoch"] for log in history if "eval_loss" in log] == [1, 2, 3, 4]
    assert [log["step"] for log in history if "eval_loss" in log] == [4, 8, 12, 16]
    assert [log["learning_rate"] for log in history if "learning_rate" in log] == [5e-3, 5e-3, 2e-3, 2e-3]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        f"checkpoint-{step}" for step in (12, 16, 4, 8)
    ]


# What is relied on of each private method that is overridden: the parameters, by name.
OVERRIDDEN = {
    "_get_dataloader": {"dataset", "description", "batch_size", "sampler_fn", "is_training"},
    "_init_training_state": {
        *("max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial"),
    },
    "_save_checkpoint": {"model", "trial"},
}


def test_the_private_methods_of_trainer_that_are_overridden_are_these_three():
    private = {name for name in vars(ArtGraphTrainer) if name.startswith("_") and not name.endswith("__")}
    assert {name for name in private if hasattr(Trainer, name)} == set(OVERRIDDEN)
    for name, parameters in OVERRIDDEN.items():
        assert set(inspect.signature(getattr(Trainer, name)).parameters) - {"self"} >= parameters, name
    taken = list(inspect.signature(Trainer._get_dataloader).parameters)[1:4]
    assert taken == ["dataset", "description", "batch_size"]  # in this order
    assert list(inspect.signature(Trainer._init_training_state).parameters)[1:] == [
        *("max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial"),
    ]


def test_an_optimizer_of_ones_own_is_refused(tmp_path):
    trainer = tiny_trainer(tmp_path)
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"groups of the trainer's own optimizer: choose it by args\.optim"):
        ArtGraphTrainer(trainer.model, trainer.args, optimizers=(optimizer, None))


def test_a_second_call_of_train_begins_anew(tmp_path, finished):
    trainer = tiny_trainer(tmp_path / "first", num_train_epochs=3, load_best_model_at_end=False)
    trainer.train()
    trainer.args.output_dir, trainer.args.num_train_epochs = str(tmp_path / "second"), 4
    trainer.model.load_state_dict(tiny_trainer(tmp_path).model.state_dict())  # this sets the seed, too
    trainer.train()
    assert_close(trainer.model.state_dict(), finished.model.state_dict())


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
    end_workers(trainer)


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


def test_evaluating_more_often_does_not_change_training(tmp_path, finished):
    often = tiny_trainer(tmp_path, load_best_model_at_end=False, eval_strategy="steps", eval_steps=3)
    often.train()
    assert_close(often.model.state_dict(), finished.model.state_dict())


@pytest.mark.slow
def test_two_processes_train_the_model_of_one(tmp_path):
    """Both phases; 50 rows in global batches of 16 leave a last step of 2 rows, of which one process has none."""
    one, two = tmp_path / "one", tmp_path / "two"
    options = ["head_dropout=0.0", "load_best_model_at_end=false"]
    run_tiny(one, *options)
    run_tiny(two, *options, "per_device_train_batch_size=8", processes=2)
    assert (two / "world-size-2").exists()
    first, second, alone = final_weights(two, 0), final_weights(two, 1), final_weights(one)
    assert_close(first, second)
    assert_close(first, alone, 1e-4)
    start = tiny_trainer(tmp_path / "start").model.state_dict()
    moved = [name for name in alone if not torch.equal(alone[name], start[name])]
    assert any(name.startswith("backbone") for name in moved)

    metrics = [json.loads((two / f"metrics-{process}.json").read_text()) for process in (0, 1)]
    expected = json.loads((one / "metrics-0.json").read_text())
    for name, value in expected.items():
        if not name.endswith(("runtime", "per_second")):
            assert metrics[0][name] == metrics[1][name]
            assert math.isclose(metrics[0][name], value, rel_tol=1e-3, abs_tol=1e-3), name
