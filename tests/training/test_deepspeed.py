"""DeepSpeed's ZeRO stage 2 on two CPU processes trains the model of one; what it cannot do is refused."""

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, TrainerState

from artgraph_vit import ArtGraphViTForImageClassification
from artgraph_vit.loading import verify_checkpoint
from artgraph_vit.training.deepspeed_config import follow_arguments

from .engine_run import ACCUMULATIONS, ENGINE_RUN, OPTIONS, WORDS, report
from .processes import SCRIPT, run_tiny
from .test_engines import assert_same_average
from .test_exact import relative_error
from .test_kill import assert_close, without_times
from .tiny import tiny_trainer

DEEPSPEED = os.environ.get("ARTGRAPH_DEEPSPEED", "")
ON_CPU = {
    "script": Path(__file__).with_name("deepspeed_on_cpu.py"),
    "config": "deepspeed_zero2.yaml",
    "processes": 2,
    "packages": DEEPSPEED,
}


@pytest.fixture(scope="module")
def two(tmp_path_factory, pictures, one) -> Path:
    """engine_run.py on two processes with DeepSpeed, after a run that was killed, and one that had another engine."""
    if not DEEPSPEED:
        pytest.skip("needs ARTGRAPH_DEEPSPEED, the folder in which `make test` installs deepspeed")
    folder = tmp_path_factory.mktemp("two")
    arguments = (SCRIPT, folder / "killed", *WORDS, "per_device_train_batch_size=8", "--kill-at", 9)
    killed = run_tiny(*arguments, **ON_CPU, check=False)
    assert f"exitcode  : -{signal.SIGKILL.value}" in killed.stderr
    assert not (folder / "killed" / "checkpoint-10").exists()
    copy_run(one / "whole", folder / "moved", until=10)
    run_tiny(ENGINE_RUN, folder, pictures, 2, **ON_CPU)
    return folder


def copy_run(whole: Path, folder: Path, until: int) -> None:
    """What a run had left in its output folder at a step."""
    for step in range(2, until + 1, 2):
        shutil.copytree(whole / f"checkpoint-{step}", folder / f"checkpoint-{step}")


def state_of(checkpoint: Path) -> dict:
    return torch.load(checkpoint / "optimizer.pt", weights_only=True)


def assert_same_checkpoint(actual: Path, expected: Path, tolerance: float) -> None:
    """Weights, and the state of the optimizer with its groups."""
    assert_close(*(load_file(folder / "model.safetensors") for folder in (actual, expected)), tolerance)
    states = state_of(actual), state_of(expected)
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for number, state in states[1]["state"].items():
        assert_close(states[0]["state"][number], state, tolerance)


def test_deepspeed_trains_the_model_of_one_process(one, two):
    assert report(two)["engine"] == "DeepSpeedEngine"
    # Phase heads from its start to its end, then phase full, whose gradients of the keys' biases are rounding errors.
    for step, tolerance in ((2, 1e-6), (8, 1e-6), (10, 1e-4), (16, 1e-4)):
        assert_same_checkpoint(two / f"whole/checkpoint-{step}", one / f"whole/checkpoint-{step}", tolerance)
    logs = [TrainerState.load_from_json(folder / "whole" / "trainer_state.json") for folder in (two, one)]
    norms = []
    for actual, expected in zip(*(log.log_history for log in logs), strict=True):
        for name in ("step", "loss", "artist_loss", "artist_weight", "grad_norm", "eval_loss", "learning_rate"):
            assert actual.get(name, 0) == pytest.approx(expected.get(name, 0), rel=1e-4), name
        norms.append(actual.get("grad_norm", 0))
    assert max(norms) > 2  # so that max_grad_norm, 1, clipped


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
def test_a_steps_gradient_is_that_of_one_process(one, two, accumulation):
    """In float32, compared with float64; before the second step the weights differ already."""
    for process in (0, 1):
        for step, tolerance in ((0, 1e-6), (1, 1e-5)):
            actual = load_file(two / f"gradients-{process}-{accumulation}-{step}.safetensors")
            assert relative_error(actual, load_file(one / f"gradients-0-1-{step}.safetensors")) < tolerance


@pytest.mark.parametrize("name", ["stopped", "killed"])
def test_deepspeed_stopped_in_each_phase_and_resumed_ends_like_a_run_that_was_not(two, name):
    """Stopped in phase heads; killed behind the boundary, before phase full has a checkpoint, and stopped in it."""
    assert_same_checkpoint(two / name / "checkpoint-16", two / "whole" / "checkpoint-16", 0.0)
    assert_close(load_file(two / f"{name}.safetensors"), load_file(two / "whole.safetensors"), 0.0)
    logs = [TrainerState.load_from_json(two / run / "trainer_state.json") for run in (name, "whole")]
    assert logs[0].best_global_step == logs[1].best_global_step
    histories = [[without_times(entry) for entry in log.log_history] for log in logs]
    assert histories[0] == histories[1]


def test_deepspeed_ends_with_its_best_checkpoint_which_is_of_phase_heads(two):
    state = TrainerState.load_from_json(two / "whole" / "trainer_state.json")
    assert state.best_global_step <= 8
    best = load_file(Path(state.best_model_checkpoint) / "model.safetensors")
    assert_close(load_file(two / "whole.safetensors"), best, 0.0)
    scores = next(log for log in state.log_history if log["step"] == state.best_global_step and "eval_loss" in log)
    for process in (0, 1):
        assert report(two, process)["metrics"]["best"]["eval_loss"] == pytest.approx(scores["eval_loss"], rel=1e-6)


def test_deepspeed_stopped_in_phase_full_has_the_average_of_one_process(one, two):
    assert_same_average(two, one)


def test_deepspeed_and_a_single_process_go_on_from_each_others_checkpoints(one, two, tmp_path):
    assert_same_checkpoint(two / "moved" / "checkpoint-16", one / "whole" / "checkpoint-16", 1e-4)
    copy_run(two / "whole", tmp_path / "back", until=12)
    tiny_trainer(tmp_path / "back", 7, **OPTIONS).train(resume_from_checkpoint="last")
    assert_same_checkpoint(tmp_path / "back" / "checkpoint-16", one / "whole" / "checkpoint-16", 1e-4)


def test_a_checkpoint_of_deepspeed_is_one_of_from_pretrained(one, two):
    checkpoints = sorted((two / "whole").glob("checkpoint-*"))
    assert len(checkpoints) == 8
    for checkpoint in checkpoints:
        assert verify_checkpoint(checkpoint) is None
        names = {path.name for path in checkpoint.iterdir()}
        alone = {path.name for path in (one / "whole" / checkpoint.name).iterdir()}
        assert names - {"rng_state_0.pth", "rng_state_1.pth"} == alone - {"rng_state.pth"}
    last = two / "whole" / "checkpoint-16"
    model = ArtGraphViTForImageClassification.from_pretrained(last)
    assert_close(dict(model.state_dict()), load_file(last / "model.safetensors"), 0.0)
    travelled = AutoModelForImageClassification.from_pretrained(last, trust_remote_code=True)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_close(travelled(pixels).logits, model(pixels).logits, 0.0)


def test_deepspeed_evaluates_before_training_and_trains_on_frozen_features(one, two):
    for process in (0, 1):
        for when in ("before", "after"):
            actual, expected = (report(folder, at)["metrics"][when] for folder, at in ((two, process), (one, 0)))
            for name in ("eval_loss", "eval_artist_loss", "eval_avg_macro_f1", "eval_artist_known_rows"):
                assert actual[name] == pytest.approx(expected[name], rel=1e-4)
    names = [{path.name for path in (folder / "cache").glob("*.npy")} for folder in (one, two)]
    assert len(names[0]) == 2  # train and evaluation
    assert names[0] == names[1]
    assert_close(load_file(two / "cached.safetensors"), load_file(one / "cached.safetensors"), 1e-4)


def test_deepspeed_computes_in_bf16_and_keeps_weights_in_float32(one, two):
    assert report(two)["dtypes"] == report(one)["dtypes"] == ["torch.bfloat16", "weights torch.float32"]
    weights = [load_file(folder / "bf16.safetensors") for folder in (two, one)]
    assert {tensor.dtype for tensor in weights[0].values()} == {torch.float32}
    assert_close(*weights, 0.02)


def test_a_loss_that_is_not_finite_stops_deepspeed_before_the_weights_change(two):
    for process in (0, 1):
        assert report(two, process)["spoilt"] == {"error": "Step 1", "is_same": True}


# ---- what is refused ----

ZERO2 = {"stage": 2}


@pytest.fixture
def installed(monkeypatch):
    """What is refused is so before DeepSpeed is asked anything."""
    monkeypatch.setattr("artgraph_vit.training.deepspeed_config.is_deepspeed_available", lambda: True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"zero_optimization": {"stage": 3}}, r"only ZeRO stage 2 without offloading works here, not stage 3: "),
        ({"zero_optimization": {**ZERO2, "offload_optimizer": {"device": "cpu"}}}, "not stage 2 and offload_opt"),
        ({"zero_optimization": ZERO2, "bf16": {"enabled": True}}, r"Leave bf16 out of the DeepSpeed configuration"),
        (
            {"zero_optimization": ZERO2, "fp16": {"enabled": "auto"}, "optimizer": {"type": "AdamW"}},
            r"Leave fp16, optimizer out .* which keeps weights and log variances in float32\.",
        ),
    ],
)
def test_a_deepspeed_configuration_that_does_not_work_is_refused(installed, tmp_path, config, message):
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps(config))
    for given in (config, str(path)):
        with pytest.raises(ValueError, match=message):
            tiny_trainer(tmp_path, deepspeed=given)


def test_what_the_launcher_asks_of_deepspeed_is_looked_at_too(installed, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    with pytest.raises(ValueError, match="not stage 3"):
        tiny_trainer(tmp_path)


def test_fp16_under_deepspeed_is_refused():
    with pytest.raises(ValueError, match=r"DeepSpeed's fp16 would round the weights .* use --bf16 instead\."):
        follow_arguments(SimpleNamespace(mixed_precision="fp16"))


def test_deepspeed_that_is_not_installed_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr("artgraph_vit.training.deepspeed_config.is_deepspeed_available", lambda: False)
    with pytest.raises(ValueError, match=r"not installed: pip install 'artgraph_vit\[deepspeed\]', or use"):
        tiny_trainer(tmp_path, deepspeed={"zero_optimization": ZERO2})
