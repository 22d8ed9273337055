"""FSDP2 on two CPU processes trains the model of one; an engine that would not be in use is an error."""

import json
import signal
from pathlib import Path

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, TrainerState

from artgraph_vit import ArtGraphViTForImageClassification
from artgraph_vit.loading import verify_checkpoint

from .engine_run import ACCUMULATIONS, ENGINE_RUN, WORDS, report
from .processes import SCRIPT, run_tiny
from .test_exact import closed_form_gradients, relative_error
from .test_kill import assert_close, without_times
from .tiny import tiny_trainer

ON_CPU = Path(__file__).with_name("fsdp_on_cpu.py")


@pytest.fixture(scope="module")
def two(tmp_path_factory, pictures) -> Path:
    """The same on two processes, with FSDP2, after a run that was killed."""
    folder = tmp_path_factory.mktemp("two")
    arguments = (SCRIPT, folder / "killed", *WORDS, "per_device_train_batch_size=8", "--kill-at", 9)
    killed = run_tiny(*arguments, script=ON_CPU, processes=2, check=False)
    assert f"exitcode  : -{signal.SIGKILL.value}" in killed.stderr
    assert not (folder / "killed" / "checkpoint-10").exists()
    run_tiny(ENGINE_RUN, folder, pictures, 2, script=ON_CPU, processes=2)
    return folder


def assert_same_end(actual: Path, expected: Path) -> None:
    """The last checkpoint, the state of the optimizer and the log history, to the last bit."""
    last = "checkpoint-16"
    assert_close(*(load_file(folder / last / "model.safetensors") for folder in (actual, expected)), 0.0)
    states = [torch.load(folder / last / "optimizer.bin", weights_only=True) for folder in (actual, expected)]
    assert len(states[0]["state"]) == len(load_file(expected / last / "model.safetensors")) - 2  # class weights
    for name, state in states[1]["state"].items():
        assert_close(states[0]["state"][name], state, 0.0)
    logs = [TrainerState.load_from_json(folder / "trainer_state.json") for folder in (actual, expected)]
    assert logs[0].best_global_step == logs[1].best_global_step
    histories = [[without_times(entry) for entry in log.log_history] for log in logs]
    assert histories[0] == histories[1]


def test_fsdp2_trains_the_model_of_one_process(one, two):
    assert report(two)["engine"] == "FSDPArtGraphViTForImageClassification"
    for checkpoint in (2, 8, 10, 16):  # phase heads from its start to its end, then phase full
        path = f"whole/checkpoint-{checkpoint}/model.safetensors"
        assert_close(load_file(two / path), load_file(one / path), 1e-4)
    logs = [TrainerState.load_from_json(folder / "whole" / "trainer_state.json") for folder in (two, one)]
    for actual, expected in zip(*(log.log_history for log in logs), strict=True):
        for name in ("step", "loss", "artist_loss", "artist_weight", "grad_norm", "eval_loss"):
            assert actual.get(name, 0) == pytest.approx(expected.get(name, 0), rel=1e-3), name


def test_a_checkpoint_of_fsdp2_is_one_of_from_pretrained(two):
    checkpoints = sorted((two / "whole").glob("checkpoint-*"))
    assert len(checkpoints) == 8
    for checkpoint in checkpoints:
        assert verify_checkpoint(checkpoint) is None
        names = {path.name for path in checkpoint.iterdir()}
        assert {"model.safetensors", "modeling_artgraph_vit.py", "tasks.py", "optimizer.bin"} <= names
        assert not any(name.startswith(("pytorch_model", "_fsdp")) for name in names)
        config = json.loads((checkpoint / "config.json").read_text())
        assert config["architectures"] == ["ArtGraphViTForImageClassification"]
    last = two / "whole" / "checkpoint-16"
    model = ArtGraphViTForImageClassification.from_pretrained(last)
    assert_close(dict(model.state_dict()), load_file(last / "model.safetensors"), 0.0)
    travelled = AutoModelForImageClassification.from_pretrained(last, trust_remote_code=True)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_close(travelled(pixels).logits, model(pixels).logits, 0.0)


def test_fsdp2_ends_with_its_best_checkpoint(two):
    state = TrainerState.load_from_json(two / "whole" / "trainer_state.json")
    assert state.best_global_step <= 8
    best = load_file(Path(state.best_model_checkpoint) / "model.safetensors")
    assert_close(load_file(two / "whole.safetensors"), best, 0.0)
    scores = next(log for log in state.log_history if log["step"] == state.best_global_step and "eval_loss" in log)
    for process in (0, 1):
        assert report(two, process)["metrics"]["best"]["eval_loss"] == pytest.approx(scores["eval_loss"], rel=1e-6)


@pytest.mark.parametrize("name", ["stopped", "killed"])
def test_fsdp2_stopped_in_each_phase_and_resumed_ends_like_a_run_that_was_not(two, name):
    """Stopped in phase heads; killed behind the boundary, before phase full has a checkpoint, and stopped in it."""
    assert_same_end(two / name, two / "whole")
    assert_close(load_file(two / f"{name}.safetensors"), load_file(two / "whole.safetensors"), 0.0)


def assert_same_average(actual: Path, expected: Path) -> None:
    """Averages and weights of training in the checkpoints, and what the runs end with, by engine_run.py."""
    for step in (2, 8, 10, 16):
        for name in ("model.safetensors", "training_weights.safetensors"):
            paths = [folder / "averaged" / f"checkpoint-{step}" / name for folder in (actual, expected)]
            assert_close(load_file(paths[0]), load_file(paths[1]), 1e-4)
    states = [
        TrainerState.load_from_json(folder / "averaged" / "checkpoint-16" / "trainer_state.json")
        for folder in (actual, expected)
    ]
    losses = [[log["eval_loss"] for log in state.log_history if "eval_loss" in log] for state in states]
    assert len(losses[0]) == 16
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    state = states[0]
    for name, step in (("best", state.best_global_step), ("last", 16)):
        average = load_file(actual / "averaged" / f"checkpoint-{step}" / "model.safetensors")
        assert_close(load_file(actual / f"averaged-{name}.safetensors"), average, 0.0)


def test_fsdp2_stopped_in_phase_full_has_the_average_of_one_process(one, two):
    assert_same_average(two, one)


def test_another_engine_does_not_resume_a_checkpoint_of_fsdp2(one, two, tmp_path):
    trainer = tiny_trainer(tmp_path, head_dropout=0.0)
    with pytest.raises(ValueError, match=r"was made with FSDP2, and this run does not use it: resume with the config"):
        trainer.train(resume_from_checkpoint=str(two / "whole" / "checkpoint-6"))
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match=r"was made without FSDP2, and this run uses it: resume with the config"):
        trainer._refuse_other_engine(str(one / "whole" / "checkpoint-6"))


def test_a_tensor_that_a_checkpoint_lacks_is_an_error_with_fsdp2(two, tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.is_fsdp_enabled = True
    weights = load_file(two / "whole" / "checkpoint-6" / "model.safetensors")
    del weights["log_variances"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 missing \(log_variances\), 0 unexpected"):
        trainer._load_from_checkpoint(str(tmp_path))


def test_fsdp2_evaluates_before_training_and_trains_on_frozen_features(one, two):
    for process in (0, 1):
        for when in ("before", "after"):
            actual, expected = (report(folder, at)["metrics"][when] for folder, at in ((two, process), (one, 0)))
            for name in ("eval_loss", "eval_artist_loss", "eval_avg_macro_f1", "eval_artist_known_rows"):
                assert actual[name] == pytest.approx(expected[name], rel=1e-4)
    names = [{path.name for path in (folder / "cache").glob("*.npy")} for folder in (one, two)]
    assert len(names[0]) == 2  # train and evaluation
    assert names[0] == names[1]  # the key is that of the whole weights
    assert_close(load_file(two / "cached.safetensors"), load_file(one / "cached.safetensors"), 1e-4)


def test_fsdp2_computes_in_bf16_and_keeps_weights_in_float32(one, two):
    assert report(two)["dtypes"] == report(one)["dtypes"] == ["torch.bfloat16", "weights torch.float32"]
    weights = [load_file(folder / "bf16.safetensors") for folder in (two, one)]
    assert {tensor.dtype for tensor in weights[0].values()} == {torch.float32}
    assert_close(*weights, 0.02)


def test_a_loss_that_is_not_finite_stops_fsdp2_before_the_weights_change(two):
    for process in (0, 1):
        assert report(two, process)["spoilt"] == {"error": "Step 1", "is_same": True}


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
def test_a_steps_gradient_is_exact_with_fsdp2(one, two, accumulation):
    for process in (0, 1):
        for step in (0, 1):
            actual = load_file(two / f"gradients-{process}-{accumulation}-{step}.safetensors")
            assert relative_error(actual, load_file(one / f"gradients-0-1-{step}.safetensors")) < 1e-12
        first = load_file(two / f"gradients-{process}-{accumulation}-0.safetensors")
        assert relative_error(first, closed_form_gradients()) < 1e-12


# ---- engines that are not in use ----


def test_fsdp_that_is_not_in_use_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(
        ValueError, match=r"asks for FSDP, which accelerate uses on GPUs only, one a process: leave --use"
    ):
        tiny_trainer(tmp_path)


def test_processes_that_do_not_see_each_other_are_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"do not see each other, for there is no GPU: pass --use_cpu\."):
        tiny_trainer(tmp_path, use_cpu=False)


@pytest.mark.parametrize("setting", [{"FSDP_VERSION": "1"}, {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}])
def test_fsdp_of_another_kind_is_refused(monkeypatch, tmp_path, setting):
    trainer = tiny_trainer(tmp_path)
    environment = {"FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"} | setting
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    trainer.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    try:
        with pytest.raises(ValueError, match="only version 2 with fsdp_state_dict_type FULL_STATE_DICT works here"):
            trainer._set_up_fsdp2(trainer.model)
    finally:
        del trainer.accelerator.state.fsdp_plugin  # accelerate's states are one for the whole process
