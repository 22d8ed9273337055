"""Which checkpoint a run starts from: whole ones only, and never another run's."""

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from artgraph_vit import ArtGraphViTForImageClassification
from artgraph_vit.errors import UserError
from artgraph_vit.loading import load_model, verify_checkpoint, write_manifest
from artgraph_vit.training.arguments import ArtGraphTrainingArguments
from artgraph_vit.training.checkpoints import RunRecord, checkpoint_to_resume, saving

from .processes import assert_close, run_tiny
from .tiny import RandomArtworks, tiny_trainer


def write_checkpoint(folder: Path, step: int, is_sealed: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    (checkpoint / "model.safetensors").write_bytes(b"weights" * 100)
    if is_sealed:
        write_manifest(checkpoint)
    return checkpoint


@pytest.fixture
def resume(tmp_path):
    args = ArtGraphTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    return lambda wanted: checkpoint_to_resume(args, wanted)


def test_a_folder_with_a_run_or_a_model_is_not_written_over(resume, tmp_path):
    assert resume(None) is resume("auto") is None
    with pytest.raises(UserError, match="holds no whole checkpoint"):
        resume("last")
    with pytest.raises(UserError, match="is not a checkpoint"):
        resume(str(tmp_path / "nowhere"))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    for wanted in (None, "auto"):
        with pytest.raises(UserError, match="already holds a finished model"):
            resume(wanted)
    older, newest = write_checkpoint(tmp_path, 9), write_checkpoint(tmp_path, 10)
    with pytest.raises(UserError, match="already holds a run"):
        resume(None)
    assert resume("last") == resume("auto") == resume(True) == str(newest)
    assert resume(str(older)) == str(older)


def flip_a_bit(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[300] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda path: (path / "checkpoint.json").unlink(), "it was not written to its end"),
        (lambda path: (path / "checkpoint.json").write_text("{"), "its checkpoint.json cannot be read"),
        (lambda path: (path / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (lambda path: os.truncate(path / "model.safetensors", 300), "model.safetensors has 300 bytes instead of 700"),
        (flip_a_bit, "model.safetensors has changed since it was written"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(resume, tmp_path, caplog, harm, reason):
    whole, harmed = write_checkpoint(tmp_path, 4), write_checkpoint(tmp_path, 8)
    assert verify_checkpoint(harmed) is None
    harm(harmed)
    assert verify_checkpoint(harmed) == reason
    assert resume("last") == str(whole)
    assert "checkpoint-8 is not whole" in caplog.text
    assert reason in caplog.text
    with pytest.raises(UserError, match=r"checkpoint-8 is not (whole|a checkpoint)"):
        resume(str(harmed))


def test_every_file_of_a_real_checkpoint_is_sealed(finished_folder):
    for checkpoint in finished_folder.glob("checkpoint-*"):
        sealed = json.loads((checkpoint / "checkpoint.json").read_text())["files"]
        there = {path.name for path in checkpoint.iterdir()}
        assert set(sealed) == there - {"checkpoint.json"}
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= there
        assert "training_args.bin" not in there


def test_old_checkpoints_go_when_the_new_one_is_sealed(tmp_path):
    trainer = tiny_trainer(tmp_path, save_total_limit=2)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint).name
    kept = {"checkpoint-16", best} if best != "checkpoint-16" else {"checkpoint-16", "checkpoint-12"}
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == kept
    assert trainer.args.save_total_limit == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_accumulation_steps": 2}, "made with 16 artworks a step, and this run has 32 on 1 process"),
        ({"learning_rate": 0.1}, "made with learning_rate=0.002, and this run has learning_rate=0.1"),
        ({"frozen_epochs": 1}, "made with frozen_epochs=2, and this run has frozen_epochs=1"),
        ({"layer_decay": 0.5}, r"made with layer_decay=1\.0, and this run has layer_decay=0\.5"),
        ({"ema_decay": 0.5}, "made with ema_decay=None, and this run has ema_decay=0.5"),
        ({"mixup_alpha": 0.8}, "mixup_alpha=0.0, and this run has mixup_alpha=0.8"),
        ({"datasets": (RandomArtworks(49, seed=1), None)}, "made on 50 train artworks, and this run has 49"),
    ],
)
def test_a_run_resumes_only_what_is_its_own(finished_folder, tmp_path, options, message):
    trainer = tiny_trainer(tmp_path, **{"eval_strategy": "no", "load_best_model_at_end": False, **options})
    with pytest.raises(UserError, match=message):
        trainer.train(resume_from_checkpoint=str(finished_folder / "checkpoint-8"))


def test_a_run_of_other_labels_is_not_resumed(finished_folder, tmp_path):
    turned = tiny_trainer(tmp_path)
    turned.config.tasks = [task.with_labels(task.labels[::-1]) for task in turned.config.tasks]
    with pytest.raises(UserError, match="other tasks or labels than this run's"):
        turned.train(resume_from_checkpoint=str(finished_folder / "checkpoint-8"))


def test_going_on_for_longer_is_no_other_run(finished_folder, tmp_path):
    longer = tiny_trainer(tmp_path, num_train_epochs=5, load_best_model_at_end=False)
    longer.train(resume_from_checkpoint=str(finished_folder / "checkpoint-12"))
    assert longer.state.global_step == 20


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "was not written by ArtGraphTrainer"),
        ({"args": {"phase": "heads"}, "attributes": {}}, r"was written by artgraph_vit 0\.1, .*: finish the run with"),
    ],
    ids=["plain Trainer", "an older version"],
)
def test_a_checkpoint_of_another_trainer_is_refused(finished_folder, tmp_path, record, message):
    checkpoint = shutil.copytree(finished_folder / "checkpoint-8", tmp_path / "checkpoint-8")
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    del state["stateful_callbacks"]["RunRecord"]
    if record is not None:
        state["stateful_callbacks"]["RunRecord"] = record
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    write_manifest(checkpoint)
    with pytest.raises(UserError, match=message):
        tiny_trainer(tmp_path / "out").train(resume_from_checkpoint=str(checkpoint))


def test_a_sharded_checkpoint_is_resumed_and_loaded_whole(finished_folder, tmp_path):
    checkpoint = shutil.copytree(finished_folder / "checkpoint-12", tmp_path / "checkpoint-12")
    (checkpoint / "model.safetensors").unlink()
    model = ArtGraphViTForImageClassification.from_pretrained(finished_folder / "checkpoint-12")
    model.save_pretrained(checkpoint, max_shard_size="20KB")
    assert len(list(checkpoint.glob("model-*.safetensors"))) > 2
    write_manifest(checkpoint)
    loaded = ArtGraphViTForImageClassification.from_pretrained(checkpoint)
    assert_close(dict(loaded.state_dict()), dict(model.state_dict()))

    trainer = tiny_trainer(tmp_path / "resumed", seed=5, load_best_model_at_end=False)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert_close(dict(trainer.model.state_dict()), load_file(finished_folder / "checkpoint-16" / "model.safetensors"))


@pytest.mark.parametrize(
    ("name", "tensor", "problem"),
    [
        ("heads.artist.bias", None, "1 missing"),
        ("heads.medium.bias", torch.zeros(2), "1 unexpected"),
        ("backbone.layernorm.weight", torch.zeros(7), "1 of another shape"),
    ],
)
def test_a_checkpoint_without_exactly_the_models_tensors_is_refused(finished_folder, tmp_path, name, tensor, problem):
    checkpoint = shutil.copytree(finished_folder / "checkpoint-12", tmp_path / "checkpoint-12")
    tensors = load_file(checkpoint / "model.safetensors")
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    write_manifest(checkpoint)
    with pytest.raises(UserError, match=rf"does not hold exactly the model's tensors: {problem} \({name}\)"):
        tiny_trainer(tmp_path / "run").train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize("where", ["file/run", "/proc/run"])
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, where):
    (tmp_path / "file").write_text("not a folder")
    args = ArtGraphTrainingArguments(output_dir=str(tmp_path / where), use_cpu=True)
    with pytest.raises(UserError, match=r"run cannot be written to \(.*\): choose another --output_dir"):
        checkpoint_to_resume(args, None)


def test_a_full_disk_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(UserError, match=r"has 0.0 MB free, and a checkpoint of this model needs 0\.\d MB"):
        tiny_trainer(tmp_path).train()


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))  # the optimizer of phase full is larger


@pytest.mark.slow
def test_a_disk_that_fills_up_loses_nothing_that_was_saved(tmp_path):
    """The system refuses to let a file grow, as it does on a full disk, at the first checkpoint of phase full."""
    failed = run_tiny(tmp_path, "load_best_model_at_end=false", check=False, preexec_fn=limit_file_size)
    assert failed.returncode == 1
    sentence = failed.stderr.strip().splitlines()[-1]
    assert "checkpoint-12 could not be written" in sentence
    assert "checkpoint-8 is whole: mend the disk and pass --resume_from_checkpoint last" in sentence
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]
    assert all(verify_checkpoint(path) is None for path in tmp_path.glob("checkpoint-*"))
    run_tiny(tmp_path, "--resume", "last", "load_best_model_at_end=false")
    assert verify_checkpoint(tmp_path / "checkpoint-16") is None


def test_the_best_checkpoint_is_found_beside_the_others_or_missed_at_once(tmp_path):
    """A learning rate that ruins the model in the last epochs: the best checkpoint is an early one."""
    options = {"learning_rate": 0.5, "max_grad_norm": 0.0}
    trainer = tiny_trainer(tmp_path / "run", **options)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint).name
    assert best != "checkpoint-16"
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = tiny_trainer(tmp_path / "moved", seed=4, **options)
    moved.train(resume_from_checkpoint="last")
    assert Path(moved.state.best_model_checkpoint) == tmp_path / "moved" / best
    assert_close(dict(moved.model.state_dict()), dict(trainer.model.state_dict()))
    flip_a_bit(tmp_path / "moved" / best)
    with pytest.raises(UserError, match=r"The best checkpoint so far, .* is not whole: model.safetensors has changed"):
        tiny_trainer(tmp_path / "moved", **options).train(resume_from_checkpoint="last")
    shutil.rmtree(tmp_path / "moved" / best)
    with pytest.raises(UserError, match=rf"The best checkpoint so far, .*{best}, is not whole: it is missing"):
        tiny_trainer(tmp_path / "moved", **options).train(resume_from_checkpoint="last")


def test_a_checkpoint_without_an_optimizer_is_not_resumed(tmp_path):
    options = {"save_only_model": True, "load_best_model_at_end": False, "num_train_epochs": 1, "frozen_epochs": 0}
    tiny_trainer(tmp_path, **options).train()
    with pytest.raises(UserError, match="holds no optimizer"):
        tiny_trainer(tmp_path, **options).train(resume_from_checkpoint="last")


def test_a_damaged_checkpoint_is_not_evaluated(finished_folder, tmp_path):
    checkpoint = shutil.copytree(finished_folder / "checkpoint-12", tmp_path / "checkpoint-12")
    flip_a_bit(checkpoint)
    with pytest.raises(UserError, match=r"checkpoint-12' is not whole: model\.safetensors has changed"):
        load_model(str(checkpoint))
    (checkpoint / "checkpoint.json").unlink()
    with pytest.raises(UserError, match="it was not written to its end"):
        load_model(str(checkpoint))


def test_a_process_that_is_gone_is_no_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="Connection reset by peer"), saving(tmp_path / "checkpoint-4"):
        raise RuntimeError("[gloo] Connection reset by peer")
    with pytest.raises(UserError, match="could not be written"), saving(tmp_path / "checkpoint-4"):
        torch.save({"tensor": torch.zeros(100)}, "/dev/full")


def test_an_option_that_an_older_checkpoint_does_not_know_had_its_default():
    older = RunRecord(recipe={"learning_rate": 1e-3}, train_rows=5, global_batch_size=8)
    now = {"learning_rate": 1e-3, "layer_decay": 1.0, "ema_decay": None, "class_weights": "balanced"}
    same = {"train_rows": 5, "global_batch_size": 8}
    RunRecord(recipe=now, **same).check_same(older, "checkpoint-1")
    with pytest.raises(UserError, match=r"made with layer_decay=1\.0, and this run has layer_decay=0\.5"):
        RunRecord(recipe=now | {"layer_decay": 0.5}, **same).check_same(older, "checkpoint-1")


def test_a_tuned_model_is_not_trained_further(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.model.config.temperatures = {"genre": 2.0}
    with pytest.raises(UserError, match="was tuned, and would train through its temperatures: set"):
        trainer.train()
