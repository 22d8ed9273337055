"""The average of the weights against the formula; and that it is what is evaluated, saved and resumed, everywhere."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from artgraph_vit.errors import UserError
from artgraph_vit.training.averaging import TRAINING_WEIGHTS
from artgraph_vit.training.checkpoints import check_free_space

from .processes import assert_close
from .tiny import StopAt, Stopped, tiny_trainer

DECAY = 0.5  # the warm-up is over at step 8
STEPS = 16  # 8 in phase heads and 8 in phase full
OPTIONS = {
    "ema_decay": DECAY,
    "layer_decay": 0.6,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.25,
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
}


def trainer_with_early_best(folder: Path, **options):
    """As `tiny_trainer`, but the best checkpoint is that with the least F1, which is an early one."""
    trainer = tiny_trainer(folder, **options)
    trainer.args.greater_is_better = False
    return trainer


class KeepWeights(TrainerCallback):
    """The weights after each step, before it is evaluated or saved; the first are those of the start."""

    def __init__(self):
        self.steps: list[dict[str, np.ndarray]] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._keep(model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self._keep(model)

    def _keep(self, model) -> None:
        self.steps.append({name: p.detach().numpy().astype(np.float64) for name, p in model.named_parameters()})


class Run:
    """A run on this process that keeps its weights."""

    def __init__(self, folder: Path, **options):
        keep = KeepWeights()
        self.folder = folder
        self.trainer = trainer_with_early_best(folder, callbacks=[keep], **(OPTIONS | options))
        self.trainer.train()
        self.weights = keep.steps

    def averages(self) -> list[dict[str, np.ndarray]]:
        """By the formula, in float64: after each step, from the weights of the start."""
        averages = [self.weights[0]]
        for step, weights in enumerate(self.weights[1:], start=1):
            d = min(DECAY, (1 + step) / (10 + step))
            averages.append({name: d * averages[-1][name] + (1 - d) * w for name, w in weights.items()})
        return averages


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return Run(tmp_path_factory.mktemp("averaged"))


def saved(folder: Path, step: int, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoint-{step}" / name)


def assert_near(tensors: dict, expected: dict[str, np.ndarray]) -> None:
    for name, tensor in tensors.items():
        if not name.endswith("class_weights"):  # a buffer
            np.testing.assert_allclose(tensor.double().numpy(), expected[name], atol=2e-6, rtol=1e-5)


def test_checkpoints_hold_the_average_of_the_formula_and_the_weights_of_training_beside_it(run):
    averages = run.averages()
    for step in range(2, STEPS + 1, 2):
        model, weights = saved(run.folder, step), saved(run.folder, step, TRAINING_WEIGHTS)
        assert set(averages[step]) <= set(model)
        assert_near(model, averages[step])
        assert all(np.array_equal(weights[name].numpy(), run.weights[step][name]) for name in weights)
        assert set(weights) == set(averages[step])
    apart = np.abs(averages[12]["heads.artist.weight"] - run.weights[12]["heads.artist.weight"])
    assert apart.max() > 1e-3  # else the average could be anything


def test_what_is_evaluated_is_the_average_that_is_saved(run, tmp_path):
    evaluations = {log["step"]: log for log in run.trainer.state.log_history if "eval_loss" in log}
    assert set(evaluations) == set(range(2, STEPS + 1, 2))
    for step, logged in evaluations.items():
        trainer = trainer_with_early_best(tmp_path, **OPTIONS)
        trainer.model.load_state_dict(saved(run.folder, step))
        metrics = trainer.evaluate()
        for name in ("eval_loss", "eval_artist_loss", "eval_avg_macro_f1"):
            assert metrics[name] == pytest.approx(logged[name], rel=1e-6)
    trainer.model.load_state_dict(saved(run.folder, STEPS, TRAINING_WEIGHTS), strict=False)  # buffers apart
    assert trainer.evaluate()["eval_loss"] != pytest.approx(evaluations[STEPS]["eval_loss"], rel=1e-4)


def test_the_average_changes_nothing_of_training(run, tmp_path):
    without = Run(tmp_path, ema_decay=None)
    assert not (tmp_path / "checkpoint-2" / TRAINING_WEIGHTS).exists()
    for step, weights in enumerate(without.weights):
        assert all(np.array_equal(weights[name], run.weights[step][name]) for name in weights)


def test_a_run_ends_with_its_best_checkpoints_average_and_a_run_resumed_at_its_end_with_the_last(run, tmp_path):
    best = run.trainer.state.best_global_step
    assert best < STEPS
    assert_close(dict(run.trainer.model.state_dict()), saved(run.folder, best))
    shutil.copytree(run.folder / f"checkpoint-{STEPS}", tmp_path / f"checkpoint-{STEPS}")
    again = trainer_with_early_best(tmp_path, seed=5, **(OPTIONS | {"load_best_model_at_end": False}))
    again.train(resume_from_checkpoint="last")
    assert_close(dict(again.model.state_dict()), saved(run.folder, STEPS))
    again.save_model(str(tmp_path / "final"))
    assert_close(load_file(tmp_path / "final" / "model.safetensors"), saved(run.folder, STEPS))


def test_an_interrupted_call_of_train_leaves_no_average_to_the_next(run, tmp_path):
    trainer = trainer_with_early_best(tmp_path / "stopped", callbacks=[StopAt(3)], **OPTIONS)
    with pytest.raises(Stopped):
        trainer.train()
    trainer.pop_callback(StopAt)
    trainer.args.output_dir = str(tmp_path / "anew")
    trainer.model.load_state_dict(tiny_trainer(tmp_path).model.state_dict())  # this sets the seed, too
    trainer.add_callback(StopAt(5))
    with pytest.raises(Stopped):
        trainer.train()
    assert_close(saved(tmp_path / "anew", 4), saved(run.folder, 4))


def test_the_disk_must_hold_the_average_too(tmp_path, monkeypatch):
    """The checkpoint of phase full has the average, the weights and AdamW's two averages: four times the model."""
    trainer = tiny_trainer(tmp_path, ema_decay=DECAY)
    size = sum(p.numel() for p in trainer.model.parameters()) * 4
    for free, is_enough in ((4 * size, True), (4 * size - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: shutil._ntuple_diskusage(10**9, 0, free))
        if is_enough:
            check_free_space(trainer.args, trainer.model)
        else:
            with pytest.raises(UserError, match="a checkpoint of this model needs"):
                check_free_space(trainer.args, trainer.model)


def test_save_only_model_leaves_the_weights_of_training_out(tmp_path):
    few = {"num_train_epochs": 1, "frozen_epochs": 0, "save_only_model": True, "load_best_model_at_end": False}
    tiny_trainer(tmp_path, **(OPTIONS | few)).train()
    assert (tmp_path / "checkpoint-2" / "model.safetensors").exists()
    assert not (tmp_path / "checkpoint-2" / TRAINING_WEIGHTS).exists()
