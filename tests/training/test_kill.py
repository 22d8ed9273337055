"""Runs that are killed, again and again, end like one that was not: to the last bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from artgraph_vit.loading import verify_checkpoint

from .processes import SCRIPT, final_weights, run_tiny

# 4 steps an epoch, 8 in phase heads and 8 in phase full; logs, evaluations and checkpoints fall on different steps.
OPTIONS = (
    *('logging_strategy="steps"', "logging_steps=3", 'eval_strategy="steps"', "eval_steps=2"),
    *('save_strategy="steps"', "save_steps=2", "eval_delay=0", "eval_on_start=false"),
)
TWO = ("per_device_train_batch_size=8",)


def random_steps(seed: int) -> tuple[int, int]:
    """A step in phase heads and one in phase full."""
    drawn = random.Random(seed)
    return drawn.randint(1, 7), drawn.randint(9, 15)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run_tiny(folder, *OPTIONS)
    return folder


def assert_same_run(actual: Path, expected: Path, processes: int = 1, tolerance: float = 0.0) -> None:
    """Final and last weights, the optimizer's state, the best checkpoint and the log history."""
    for process in range(processes):
        assert_close(final_weights(actual, process), final_weights(expected, process), tolerance)
    last = "checkpoint-16"
    weights = [load_file(folder / last / "model.safetensors") for folder in (actual, expected)]
    assert_close(*weights, tolerance)
    states = [torch.load(folder / last / "optimizer.pt", weights_only=True)["state"] for folder in (actual, expected)]
    assert states[0].keys() == states[1].keys()
    for one, other in zip(*map(dict.values, states), strict=True):
        assert_close(one, other, tolerance)
    logs = [json.loads((folder / "trainer_state.json").read_text()) for folder in (actual, expected)]
    assert Path(logs[0]["best_model_checkpoint"]).name == Path(logs[1]["best_model_checkpoint"]).name
    assert logs[0]["best_metric"] == pytest.approx(logs[1]["best_metric"], abs=tolerance)
    histories = [[without_times(entry) for entry in log["log_history"]] for log in logs]
    assert len(histories[0]) == len(histories[1]) > 12
    for one, other in zip(*histories, strict=True):
        assert one == (other if tolerance == 0 else pytest.approx(other, rel=1e-5, abs=tolerance))


def without_times(entry: dict) -> dict:
    """Without what depends on the clock; the last entry, `train_loss`, is about the last call of `train` only."""
    return {name: value for name, value in entry.items() if not name.endswith(("runtime", "per_second", "train_loss"))}


def assert_close(actual: dict, expected: dict, tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        one, other = torch.as_tensor(actual[name]), torch.as_tensor(expected[name])
        if tolerance == 0:
            assert torch.equal(one, other), name
        else:
            torch.testing.assert_close(one, other, atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize(
    "kills",
    [
        [("--kill-at", step) for step in (random_steps(1)[0], 8, 9, random_steps(1)[1])],
        [("--kill-in-save", at) for at in ("2:weights", "6:torn", "8:unsealed", "12:weights", "16:torn")],
    ],
    ids=["at random steps and at the boundary", "while a checkpoint is being written"],
)
def test_a_run_killed_often_ends_like_one_that_was_not(uninterrupted, tmp_path, kills):
    for number, kill in enumerate(kills):
        # Where there is a checkpoint, all weights must come from it.
        seed = number if any(verify_checkpoint(path) is None for path in tmp_path.glob("checkpoint-*")) else 0
        killed = run_tiny(tmp_path, *kill, "--resume", "auto", "--model-seed", seed, *OPTIONS, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
        if kill[0] == "--kill-in-save":
            assert not (tmp_path / f"checkpoint-{kill[1].split(':')[0]}" / "checkpoint.json").exists()
            if number:
                before = kills[number - 1][1].split(":")[0]
                assert f"checkpoint-{before} is not whole (it was not written to its end)" in killed.stderr
    run_tiny(tmp_path, "--resume", "auto", "--model-seed", 7, *OPTIONS)
    assert_same_run(tmp_path, uninterrupted)


def test_two_processes_killed_often_end_like_two_that_were_not(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run_tiny(whole, *OPTIONS, *TWO, processes=2)
    heads, full = random_steps(2)
    for kill in (("--kill-at", heads), ("--kill-in-save", "8:weights"), ("--kill-at", full, "--kill-process", 1)):
        killed = run_tiny(stopped, *kill, "--resume", "auto", *OPTIONS, *TWO, processes=2, check=False)
        assert killed.returncode != 0
        assert not (stopped / "world-size-2").exists()
    run_tiny(stopped, "--resume", "auto", *OPTIONS, *TWO, processes=2)
    assert (stopped / "world-size-2").exists()
    assert_same_run(stopped, whole, processes=2, tolerance=1e-6)


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
    for name, tensor in final_weights(tmp_path / "one").items():
        torch.testing.assert_close(final_weights(moved)[name], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.soak
def test_a_run_killed_from_outside_at_random_times(uninterrupted, tmp_path):
    """`pytest -m soak`: SIGKILL after random times, twenty times or until the run gets through."""
    drawn = random.Random(int(os.environ.get("ARTGRAPH_SOAK_SEED", "0")))
    command = [sys.executable, str(SCRIPT), str(tmp_path), "--resume", "auto", *OPTIONS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    killed = 0
    while killed < 20:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started = time.monotonic()
        wait = drawn.uniform(2.5, 8)
        while process.poll() is None and time.monotonic() < started + wait:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        killed += 1
    run_tiny(tmp_path, "--resume", "auto", *OPTIONS)
    assert_same_run(tmp_path, uninterrupted)
