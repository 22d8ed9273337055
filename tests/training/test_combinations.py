"""Options of `TrainingArguments` in combination: each works, or is one sentence before training.

An independent audit found what stands here; the sentences of single options are in test_options.py.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback

from artgraph_vit.errors import UserError

from .processes import assert_close, assert_same_logs, final_weights, run_tiny
from .tiny import EVAL_ROWS, TRAIN_ROWS, artworks, end_workers, tiny_trainer


def features_in(folder: Path) -> dict[int, np.ndarray]:
    """By the number of rows."""
    return {len(array): array for array in map(np.load, folder.glob("*.npy"))}


def test_features_of_workers_are_those_of_one_process(tmp_path, pictures):
    """Batches as they come are refused, see test_options.py: accelerate cuts padding, and skips, by their order."""
    rows = (artworks(pictures, TRAIN_ROWS, 1), artworks(pictures, EVAL_ROWS, 2))
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        options = {"dataloader_num_workers": workers, "num_train_epochs": 1, "frozen_epochs": 1, "datasets": rows}
        tiny_trainer(folder / "run", feature_cache_dir=str(folder), **options).train()
    expected, found = (features_in(tmp_path / name) for name in ("0", "2"))
    assert expected.keys() == found.keys() == {EVAL_ROWS, TRAIN_ROWS}
    for number, features in expected.items():
        np.testing.assert_array_equal(found[number], features)


def test_drop_last_is_about_training_alone(tmp_path, pictures):
    """50 rows in batches of 16 are 3 steps; evaluations and features have all rows."""
    datasets = (artworks(pictures, TRAIN_ROWS, 1), artworks(pictures, EVAL_ROWS, 2))
    options = {"dataloader_drop_last": True, "feature_cache_dir": str(tmp_path / "features")}
    options |= {"num_train_epochs": 2, "frozen_epochs": 1}
    trainer = tiny_trainer(tmp_path / "run", datasets=datasets, **options)
    trainer.train()
    assert trainer.state.global_step == 2 * (TRAIN_ROWS // 16)
    assert features_in(tmp_path / "features").keys() == {EVAL_ROWS, TRAIN_ROWS}
    assert trainer.evaluate()["eval_genre_known_rows"] == EVAL_ROWS
    assert len(trainer.predict(datasets[1]).metrics) > 0
    assert trainer.metrics.known_rows()["genre"] == EVAL_ROWS
    evaluations = [log for log in trainer.state.log_history if "eval_loss" in log]
    assert {log["eval_genre_known_rows"] for log in evaluations} == {EVAL_ROWS}


def test_fewer_rows_than_a_batch_leave_no_step(tmp_path):
    trainer = tiny_trainer(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=64)
    with pytest.raises(UserError, match=r"leaves no step: there are 50 train artworks, and a batch .* takes 64"):
        trainer.train()


def test_the_best_evaluation_within_an_epoch_has_a_checkpoint(tmp_path):
    """A learning rate that ruins phase full: the best step is an early one, and the run ends with its weights."""
    options = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
    trainer = tiny_trainer(tmp_path, learning_rate=0.5, max_grad_norm=0.0, **options)
    trainer.train()
    evaluations = {log["step"]: log["eval_avg_macro_f1"] for log in trainer.state.log_history if "eval_loss" in log}
    best = max(evaluations, key=evaluations.get)
    assert trainer.state.best_global_step == best < 16
    assert_close(dict(trainer.model.state_dict()), load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors"))
    assert trainer.evaluate()["eval_avg_macro_f1"] == pytest.approx(evaluations[best])


def test_max_steps_trains_so_many_steps(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=3, load_best_model_at_end=False)
    backbone = {name: p.detach().clone() for name, p in trainer.model.backbone.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 3
    assert trainer.state.epoch == 0.75
    assert_close(dict(trainer.model.backbone.named_parameters()), backbone)


def test_an_evaluation_at_the_start_is_not_made_again_after_a_resume(tmp_path):
    options = {"eval_on_start": True, "load_best_model_at_end": False}
    whole = tiny_trainer(tmp_path / "whole", **options)
    whole.train()
    assert [log["step"] for log in whole.state.log_history if "eval_loss" in log] == [0, 4, 8, 12, 16]
    resumed = tiny_trainer(tmp_path / "resumed", seed=7, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
    assert_same_logs(resumed.state.log_history, whole.state.log_history)
    assert resumed.args.eval_on_start


class TellToStop(TrainerCallback):
    """As Ctrl-C in some notebooks, or a time limit, does it: the run ends after this step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 6:
            control.should_save = control.should_training_stop = True


def test_a_callback_that_saves_at_an_epochs_last_step_saves_its_log_too(tmp_path):
    class Save(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = state.global_step == 8

    options = {"save_strategy": "no", "load_best_model_at_end": False}
    whole = tiny_trainer(tmp_path / "whole", **options)
    whole.add_callback(Save())
    whole.train()
    resumed = tiny_trainer(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
    assert_same_logs(resumed.state.log_history, whole.state.log_history)


def test_a_run_that_was_told_to_stop_is_not_finished(tmp_path, finished):
    told = tiny_trainer(tmp_path / "told", callbacks=[TellToStop()], load_best_model_at_end=False)
    told.train()
    assert told.state.global_step == 6
    resumed = tiny_trainer(tmp_path / "told", seed=7, load_best_model_at_end=False)
    resumed.train(resume_from_checkpoint="last")
    assert resumed.state.global_step == 16
    assert_close(resumed.model.state_dict(), finished.model.state_dict())


def test_early_stopping_goes_on_counting_and_ends_a_run_for_good(tmp_path):
    options = {"num_train_epochs": 12, "learning_rate": 0.0, "weight_decay": 0.0}
    whole = tiny_trainer(tmp_path, callbacks=[EarlyStoppingCallback(3)], **options)
    whole.train()  # phase full learns nothing: it stops soon after it began
    end = whole.state.global_step
    assert end < 48
    for step in (end - 4, end):
        resumed = tiny_trainer(tmp_path / f"from-{step}", callbacks=[EarlyStoppingCallback(3)], **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert resumed.state.global_step == end


@pytest.mark.parametrize("options", [{"max_steps": 10}, {"num_train_epochs": 2.5}, {"max_steps": 6}])
def test_a_finished_run_started_again_trains_no_further(tmp_path, options):
    """Also where it ends in the middle of an epoch, in either phase."""
    options = {"load_best_model_at_end": False, "save_strategy": "steps", "save_steps": 2, **options}
    whole = tiny_trainer(tmp_path, **options)
    whole.train()
    again = tiny_trainer(tmp_path, seed=3, **options)
    again.train(resume_from_checkpoint="last")
    assert again.state.global_step == whole.state.global_step
    assert_close(again.model.state_dict(), whole.model.state_dict())


def test_a_folder_that_is_only_called_like_a_checkpoint_is_left_alone(tmp_path):
    options = {"num_train_epochs": 2, "frozen_epochs": 0, "load_best_model_at_end": False, "save_total_limit": 1}
    tiny_trainer(tmp_path, **options).train()
    assert (tmp_path / "checkpoint-8").is_dir()  # with a limit of 1, Trainer would keep the best one alone
    shutil.copytree(tmp_path / "checkpoint-8", tmp_path / "checkpoint-99-old")
    longer = tiny_trainer(tmp_path, seed=7, **(options | {"num_train_epochs": 3}))
    longer.train(resume_from_checkpoint="last")
    assert longer.state.global_step == 12
    best = f"checkpoint-{longer.state.best_global_step}"
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-12", best, "checkpoint-99-old"}
    assert longer.args.save_total_limit == 1


def test_an_optimizer_whose_package_is_absent_is_one_sentence(tmp_path):
    trainer = tiny_trainer(tmp_path, optim="adamw_bnb_8bit")
    with pytest.raises(UserError, match=r"^optim='adamw_bnb_8bit' cannot be used \(.*\): install what it needs"):
        trainer.train()


def test_persistent_workers_and_none_train_the_same(tmp_path, finished):
    """What a loader draws for its workers is drawn apart from dropout."""
    workers = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}
    trainer = tiny_trainer(tmp_path / "workers", load_best_model_at_end=False, **workers)
    trainer.train()
    end_workers(trainer)
    assert_close(trainer.model.state_dict(), finished.model.state_dict())


@pytest.mark.slow
def test_mixup_on_two_processes_whose_rows_do_not_divide(tmp_path):
    """50 rows in steps of 16: the last step has 2 rows, and one process none of its own."""
    run_tiny(tmp_path, "per_device_train_batch_size=8", "mixup_alpha=0.8", "num_train_epochs=2", processes=2)
    one, two = (final_weights(tmp_path, process) for process in (0, 1))
    assert_close(one, two)
    assert all(torch.isfinite(tensor).all() for tensor in one.values())
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["global_step"] == 8
    assert json.loads((tmp_path / "metrics-1.json").read_text())["eval_genre_known_rows"] == EVAL_ROWS


def test_a_schedule_is_not_stretched_by_a_resume(tmp_path):
    options = {"lr_scheduler_type": "cosine", "load_best_model_at_end": False}
    tiny_trainer(tmp_path, num_train_epochs=3, **options).train()
    longer = tiny_trainer(tmp_path, num_train_epochs=6, **options)
    with pytest.raises(UserError, match=r"made with num_train_epochs=3.*, and this run has num_train_epochs=6"):
        longer.train(resume_from_checkpoint="last")


@pytest.mark.parametrize(
    "options",
    [{"lr_scheduler_type": "warmup_stable_decay"}, {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"a": 1}}],
)
def test_a_schedule_whose_options_are_wrong_is_one_sentence(tmp_path, options):
    with pytest.raises(UserError, match=r"^lr_scheduler_type='.*' cannot be used with lr_scheduler_kwargs="):
        tiny_trainer(tmp_path, **options).train()


def test_what_a_run_cannot_report_to_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"^The options of training are wrong \(") as refused:
        tiny_trainer(tmp_path, report_to=["nonsense"])
    assert "\n" not in str(refused.value)


def test_several_datasets_to_evaluate_are_refused_before_training(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.eval_dataset = {"one": trainer.eval_dataset, "other": trainer.eval_dataset}
    with pytest.raises(ValueError, match="eval_dataset is one dataset here"):
        trainer.train()
    assert trainer.state.global_step == 0
