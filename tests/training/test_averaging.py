"""The average of the weights against the formula; and that it is what is evaluated, saved and resumed, everywhere."""

import contextlib
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from artgraph_vit import ArtGraphViTForImageClassification
from artgraph_vit.errors import UserError
from artgraph_vit.training.averaging import TRAINING_WEIGHTS
from artgraph_vit.training.checkpoints import check_free_space

from .processes import final_weights, run_tiny
from .test_kill import assert_close, without_times
from .tiny import EVAL_ROWS, TRAIN_ROWS, StopAt, Stopped, artworks, tiny_trainer

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
WORDS = [f"{name}={json.dumps(value)}" for name, value in OPTIONS.items()]  # for tiny.py


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
        self.trainer = tiny_trainer(folder, callbacks=[keep], **(OPTIONS | options))
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
        if not name.endswith(("class_weights", "log_prior", "positive_weights")):  # buffers
            np.testing.assert_allclose(tensor.double().numpy(), expected[name], atol=2e-6, rtol=1e-5)


def test_checkpoints_hold_the_average_of_the_formula_and_the_weights_of_training_beside_it(run):
    averages = run.averages()
    for step in range(2, STEPS + 1, 2):
        model, weights = saved(run.folder, step), saved(run.folder, step, TRAINING_WEIGHTS)
        assert set(averages[step]) <= set(model)
        assert_near(model, averages[step])
        assert all(np.array_equal(weights[name].numpy(), run.weights[step][name]) for name in weights)
        in_heads = {name for name in averages[step] if not name.startswith("backbone.")}
        assert set(weights) == (in_heads if step <= 8 else set(averages[step]))
    apart = np.abs(averages[12]["heads.artist.weight"] - run.weights[12]["heads.artist.weight"])
    assert apart.max() > 1e-3  # else the average could be anything


def test_the_backbone_and_its_average_are_what_they_were_until_phase_heads_ends(run):
    model = saved(run.folder, 8)
    names = [name for name in run.weights[0] if name.startswith("backbone.")]
    assert all(np.array_equal(model[name].numpy(), run.weights[0][name]) for name in names)
    after = saved(run.folder, 10)
    assert any(not np.array_equal(after[name].numpy(), run.weights[0][name]) for name in names)


def test_an_average_that_forgets_less_than_the_warm_up_is_that_of_the_warm_up(tmp_path):
    """(1 + t)/(10 + t) is below .999 for all steps of this run, whose average at step 1 is 2/11 of the start."""
    short = {"num_train_epochs": 2, "frozen_epochs": 0, "save_steps": 1, "load_best_model_at_end": False}
    run = Run(tmp_path, ema_decay=0.999, **short)
    start, first = run.weights[0], run.weights[1]
    one = {name: 2 / 11 * start[name] + 9 / 11 * first[name] for name in start}
    assert_near(saved(tmp_path, 1), one)
    second = {name: 3 / 12 * one[name] + 9 / 12 * run.weights[2][name] for name in one}
    assert_near(saved(tmp_path, 2), second)


def test_what_is_evaluated_is_the_average_that_is_saved(run, tmp_path):
    evaluations = {log["step"]: log for log in run.trainer.state.log_history if "eval_loss" in log}
    assert set(evaluations) == set(range(2, STEPS + 1, 2))
    for step, logged in evaluations.items():
        trainer = tiny_trainer(tmp_path, **OPTIONS)
        trainer.model.load_state_dict(saved(run.folder, step))
        metrics = trainer.evaluate()
        for name in ("eval_loss", "eval_artist_loss", "eval_avg_macro_f1"):
            assert metrics[name] == pytest.approx(logged[name], rel=1e-6)
    trainer.model.load_state_dict(saved(run.folder, STEPS, TRAINING_WEIGHTS), strict=False)
    assert trainer.evaluate()["eval_loss"] != pytest.approx(evaluations[STEPS]["eval_loss"], rel=1e-4)


def test_the_average_changes_nothing_of_training(run, tmp_path):
    without = Run(tmp_path, ema_decay=None)
    assert not (tmp_path / "checkpoint-2" / TRAINING_WEIGHTS).exists()
    for step, weights in enumerate(without.weights):
        assert all(np.array_equal(weights[name], run.weights[step][name]) for name in weights)


def test_a_run_ends_with_its_best_checkpoints_average_or_with_its_last_one(run, tmp_path):
    best = ArtGraphViTForImageClassification.from_pretrained(run.trainer.state.best_model_checkpoint)
    assert_close(dict(run.trainer.model.state_dict()), dict(best.state_dict()), 0.0)
    last = Run(tmp_path, load_best_model_at_end=False)
    assert_close(dict(last.trainer.model.state_dict()), saved(run.folder, STEPS), 0.0)
    last.trainer.save_model(str(tmp_path / "final"))
    assert_close(load_file(tmp_path / "final" / "model.safetensors"), saved(run.folder, STEPS), 0.0)
    best_early = Run(tmp_path / "early", learning_rate=0.5, max_grad_norm=0.0)  # which ruins phase full
    step = best_early.trainer.state.best_global_step
    assert step < STEPS
    assert_close(dict(best_early.trainer.model.state_dict()), saved(tmp_path / "early", step), 0.0)


def test_a_run_resumed_at_its_end_ends_with_the_average(run, tmp_path):
    shutil.copytree(run.folder / f"checkpoint-{STEPS}", tmp_path / f"checkpoint-{STEPS}")
    again = tiny_trainer(tmp_path, seed=5, **(OPTIONS | {"load_best_model_at_end": False}))
    again.train(resume_from_checkpoint="last")
    assert_close(dict(again.model.state_dict()), saved(run.folder, STEPS), 0.0)


def test_an_interrupted_call_of_train_leaves_no_average_to_the_next(run, tmp_path):
    trainer = tiny_trainer(tmp_path / "stopped", callbacks=[StopAt(3)], **OPTIONS)
    with pytest.raises(Stopped):
        trainer.train()
    trainer.pop_callback(StopAt)
    trainer.args.output_dir = str(tmp_path / "anew")
    trainer.model.load_state_dict(tiny_trainer(tmp_path).model.state_dict())  # this sets the seed, too
    trainer.train()
    assert_close(saved(tmp_path / "anew", 4), saved(run.folder, 4), 0.0)


# ---- resumed, and on several processes: FSDP2 and DeepSpeed are in test_engines.py and test_deepspeed.py ----


def assert_same_run(actual: Path, expected: Path) -> None:
    """To the last bit: averages, weights of training, and the evaluations."""
    for step in range(2, STEPS + 1, 2):
        for name in ("model.safetensors", TRAINING_WEIGHTS):
            assert_close(saved(actual, step, name), saved(expected, step, name), 0.0)
    states = [
        json.loads((run / f"checkpoint-{STEPS}" / "trainer_state.json").read_text()) for run in (actual, expected)
    ]
    assert states[0]["best_global_step"] == states[1]["best_global_step"]
    histories = [[without_times(entry) for entry in state["log_history"]] for state in states]
    assert histories[0] == histories[1]


def test_killed_in_both_phases_it_ends_like_one_that_was_not(tmp_path):
    run_tiny(tmp_path / "whole", *WORDS)
    for number, kill in enumerate([("--kill-at", 7), ("--kill-in-save", "12:torn")]):
        arguments = (*kill, "--resume", "auto", "--model-seed", 7 * number, *WORDS)
        killed = run_tiny(tmp_path / "killed", *arguments, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    run_tiny(tmp_path / "killed", "--resume", "auto", "--model-seed", 7, *WORDS)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert_close(final_weights(tmp_path / "killed"), final_weights(tmp_path / "whole"), 0.0)


def test_stopped_between_the_phases_on_frozen_features_it_ends_like_one_that_was_not(tmp_path, pictures):
    datasets = (artworks(pictures, TRAIN_ROWS, 1), artworks(pictures, EVAL_ROWS, 2))
    options = OPTIONS | {"datasets": datasets, "feature_cache_dir": str(tmp_path / "cache")}
    tiny_trainer(tmp_path / "whole", **options).train()
    for stop in (3, 9, None):
        callbacks = [] if stop is None else [StopAt(stop)]
        trainer = tiny_trainer(tmp_path / "stopped", 0 if stop == 3 else 7, callbacks, **options)
        with contextlib.suppress(Stopped):
            trainer.train(resume_from_checkpoint="auto")
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2  # of one backbone
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_two_processes_hold_the_average_of_one_also_after_a_kill(tmp_path):
    options = {**OPTIONS, "head_dropout": 0.0, "load_best_model_at_end": False}
    alone = tmp_path / "alone"
    tiny_trainer(alone, **options).train()
    words = [f"{name}={json.dumps(value)}" for name, value in options.items()] + ["per_device_train_batch_size=8"]
    two = tmp_path / "two"
    assert run_tiny(two, "--kill-at", 13, *words, processes=2, check=False).returncode != 0
    run_tiny(two, "--resume", "last", "--model-seed", 7, *words, processes=2)
    for step in (2, 8, 10, STEPS):
        for name in ("model.safetensors", TRAINING_WEIGHTS):
            assert_close(saved(two, step, name), saved(alone, step, name), 1e-4)
    first, second = final_weights(two, 0), final_weights(two, 1)
    assert_close(first, second, 0.0)
    assert_close(first, saved(two, STEPS), 0.0)


# ---- what is refused ----


@pytest.mark.parametrize(("made", "here"), [(DECAY, None), (None, DECAY), (DECAY, 0.9)])
def test_a_run_with_another_average_is_not_resumed(tmp_path, made, here):
    few = {"num_train_epochs": 1, "frozen_epochs": 0}
    tiny_trainer(tmp_path, **(OPTIONS | few | {"ema_decay": made})).train()
    with pytest.raises(UserError, match=f"made with ema_decay={made}, and this run has ema_decay={here}"):
        tiny_trainer(tmp_path, **(OPTIONS | few | {"ema_decay": here})).train(resume_from_checkpoint="last")


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, 1.5])
def test_a_decay_that_is_none_is_refused(tmp_path, decay):
    with pytest.raises(ValueError, match=r"^ema_decay=.*: use a number between 0 and 1, such as 0\.999\.$"):
        tiny_trainer(tmp_path, ema_decay=decay)


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
    options = OPTIONS | {"num_train_epochs": 1, "frozen_epochs": 0}
    Run(tmp_path, **options, save_only_model=True, load_best_model_at_end=False)
    assert (tmp_path / "checkpoint-2" / "model.safetensors").exists()
    assert not (tmp_path / "checkpoint-2" / TRAINING_WEIGHTS).exists()
