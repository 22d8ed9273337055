"""A run that is stopped anywhere and resumed ends like one that was not: weights to the last bit, logs to 1e-6.

In process, each feature is resumed from each kind of place: the checkpoint that a run leaves is all that a stopped one
leaves. Beside it a few real kills, also of several processes and in the middle of writing.
"""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Dinov2Config

from artgraph_vit import ArtGraphViTConfig, ArtGraphViTForImageClassification
from artgraph_vit.data import PictureTransform
from artgraph_vit.data.augmentation import Augmentation
from artgraph_vit.loading import verify_checkpoint
from artgraph_vit.training.averaging import TRAINING_WEIGHTS
from artgraph_vit.training.trainer import ArtGraphTrainer

from .processes import assert_close, assert_same_logs, final_weights, run_tiny
from .tiny import EVAL_ROWS, TASKS, TRAIN_ROWS, artworks, end_workers, image_processor, tiny_trainer

# 4 steps an epoch, 8 in phase heads and 8 in phase full.
STOPS = {"in phase heads": 3, "at the boundary": 8, "a step after the boundary": 9, "in phase full": 14}
PICTURES = {"pictures": True}
# Each with the options that it goes together with.
FEATURES = {
    "logs and evaluations within epochs": {
        **{"logging_strategy": "steps", "logging_steps": 3, "eval_strategy": "steps", "eval_steps": 2},
    },
    "average, layer decay, schedule and accumulation": {
        **{"ema_decay": 0.5, "layer_decay": 0.6, "lr_scheduler_type": "cosine", "warmup_steps": 0.25},
        **{"gradient_accumulation_steps": 4, "per_device_train_batch_size": 4},
    },
    "stochastic depth": {"dinov2": True},
    "features computed once": PICTURES,
    "features computed once, persistent workers": {
        **{"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
        **PICTURES,
    },
    "mixup and augmentation": {"mixup_alpha": 0.8, "augmented": True, **PICTURES},
    "mixup and augmentation, persistent workers": {
        **{"mixup_alpha": 0.8, "augmented": True, "dataloader_num_workers": 2, "dataloader_persistent_workers": True},
        **PICTURES,
    },
}


def build(folder: Path, seed: int, feature: str, pictures: Path, features: Path, **options) -> ArtGraphTrainer:
    options = {"load_best_model_at_end": False, "feature_cache_dir": str(features), **FEATURES[feature], **options}
    if options.pop("dinov2", False):
        sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32}
        backbone = Dinov2Config(**sizes, patch_size=16, drop_path_rate=0.4)
        torch.manual_seed(seed)
        config = ArtGraphViTConfig(backbone_config=backbone, tasks=TASKS, head_dropout=0.1)
        options["model"] = ArtGraphViTForImageClassification(config)
    is_augmented = options.pop("augmented", False)
    if options.pop("pictures", False):
        train = artworks(pictures, TRAIN_ROWS, 1)
        if is_augmented:
            crops = Augmentation(0.4, horizontal_flip=True, seed=3)
            train = train.with_transform(PictureTransform(image_processor(), augmentation=crops))
        options["datasets"] = (train, artworks(pictures, EVAL_ROWS, 2))
    return tiny_trainer(folder, seed, **options)


@pytest.fixture(scope="module", params=FEATURES)
def whole(request, tmp_path_factory, pictures):
    """A run that leaves a checkpoint at each step."""
    folder = tmp_path_factory.mktemp("whole")
    saves = {"save_strategy": "steps", "save_steps": 1}
    trainer = build(folder / "run", 0, request.param, pictures, folder / "features", **saves)
    trainer.train()
    end_workers(trainer)
    return request.param, folder, trainer


@pytest.mark.parametrize("stop", STOPS)
def test_a_resumed_run_ends_like_one_that_was_not_stopped(whole, tmp_path, pictures, stop):
    feature, folder, expected = whole
    step = STOPS[stop]
    resumed = build(tmp_path, 7, feature, pictures, folder / "features", save_strategy="no")
    resumed.train(resume_from_checkpoint=str(folder / "run" / f"checkpoint-{step}"))
    end_workers(resumed)
    assert resumed.state.global_step == 16
    assert_close(resumed.model.state_dict(), expected.model.state_dict())
    assert_same_logs(resumed.state.log_history, expected.state.log_history)
    states = [trainer.optimizer.state_dict() for trainer in (resumed, expected)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for number, state in states[1]["state"].items():
        assert_close(states[0]["state"][number], state)


def test_phases_leave_what_they_should(whole):
    """No state of the backbone before phase full; weights of training, all of them, beside an average."""
    feature, folder, trainer = whole
    heads = 2 * len(TASKS) + 1  # weight and bias each, and the log variances
    for step in (8, 9):
        checkpoint = folder / "run" / f"checkpoint-{step}"
        states = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
        assert (len(states) == heads) == (step == 8)
        assert {int(state["step"]) for state in states.values()} == {8 if step == 8 else 1}  # it starts anew
        assert (checkpoint / TRAINING_WEIGHTS).exists() == ("average" in feature)
    if "average" in feature:
        names = set(load_file(folder / "run" / "checkpoint-2" / TRAINING_WEIGHTS))
        assert names == {name for name, _ in trainer.model.named_parameters()}
    if "features" in feature:
        assert len(list((folder / "features").iterdir())) == 2  # of one backbone


# ---- real kills ----

# Logs, evaluations and checkpoints fall on different steps.
OPTIONS = (
    *('logging_strategy="steps"', "logging_steps=3", 'eval_strategy="steps"', "eval_steps=2"),
    *('save_strategy="steps"', "save_steps=2", "ema_decay=0.5"),
)
TWO = ("per_device_train_batch_size=8",)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run_tiny(folder, *OPTIONS)
    return folder


def assert_same_run(actual: Path, expected: Path, processes: int = 1, tolerance: float = 0.0) -> None:
    """Final weights, those of all checkpoints, the best checkpoint and the log history."""
    for process in range(processes):
        assert_close(final_weights(actual, process), final_weights(expected, process), tolerance)
        assert_close(final_weights(actual, process), final_weights(actual, 0))
    for step in range(2, 17, 2):
        for name in ("model.safetensors", TRAINING_WEIGHTS):
            files = [load_file(folder / f"checkpoint-{step}" / name) for folder in (actual, expected)]
            assert_close(*files, tolerance)
    logs = [json.loads((folder / "trainer_state.json").read_text()) for folder in (actual, expected)]
    assert logs[0]["best_global_step"] == logs[1]["best_global_step"]
    if tolerance == 0:
        assert_same_logs(logs[0]["log_history"], logs[1]["log_history"])


@pytest.mark.slow
def test_a_run_killed_in_both_phases_and_while_a_checkpoint_is_written(uninterrupted, tmp_path):
    kills = [("--kill-at", 5), ("--kill-in-save", "8:unsealed"), ("--kill-in-save", "12:torn"), ("--kill-at", 13)]
    for number, kill in enumerate(kills):
        seed = 7 * number  # where there is a checkpoint, all weights must come from it
        killed = run_tiny(tmp_path, *kill, "--resume", "auto", "--model-seed", seed, *OPTIONS, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
        if kill[0] == "--kill-in-save":
            torn = tmp_path / f"checkpoint-{kill[1].split(':')[0]}"
            assert verify_checkpoint(torn) == "it was not written to its end"
    assert "checkpoint-12 is not whole (it was not written to its end)" in killed.stderr  # and 10 was taken
    run_tiny(tmp_path, "--resume", "auto", "--model-seed", 7, *OPTIONS)
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.slow
def test_two_processes_killed_end_like_two_that_were_not(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run_tiny(whole, *OPTIONS, *TWO, processes=2)
    for kill in (("--kill-at", 7), ("--kill-at", 13, "--kill-process", 1)):
        killed = run_tiny(stopped, *kill, "--resume", "auto", *OPTIONS, *TWO, processes=2, check=False)
        assert killed.returncode != 0
        assert not (stopped / "world-size-2").exists()
    run_tiny(stopped, "--resume", "auto", "--model-seed", 7, *OPTIONS, *TWO, processes=2)
    assert (stopped / "world-size-2").exists()
    assert_same_run(stopped, whole, processes=2, tolerance=1e-6)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    """Two processes, killed in the middle of an epoch, whose last step is uneven; then one, then four."""
    options = (*OPTIONS, "head_dropout=0.0")  # which processes draw differently
    run_tiny(tmp_path / "one", *options)
    moved = tmp_path / "moved"
    run_tiny(moved, "--kill-at", 7, *options, *TWO, processes=2, check=False)
    warned = run_tiny(moved, "--resume", "last", "--kill-at", 11, *options, check=False)
    assert "was made on 2 process(es), and this run has 1" in warned.stderr
    refused = run_tiny(moved, "--resume", "last", *options, processes=2, check=False)
    assert "made with 16 artworks a step, and this run has 32 on 2 process(es)" in refused.stderr
    run_tiny(moved, "--resume", "last", *options, "per_device_train_batch_size=4", processes=4)
    assert (moved / "world-size-4").exists()
    assert_close(final_weights(moved), final_weights(tmp_path / "one"), 1e-4)
