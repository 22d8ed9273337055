"""Training on mixed pictures: the loss that it has.

Masks and class weights of mixed labels are in tests/model/test_losses.py; that the division of a step does not
matter is in test_exact.py.
"""

import pytest
import torch
import torch.nn.functional as F
from transformers import TrainerCallback

from artgraph_vit.data import ArtGraphCollator
from artgraph_vit.data.augmentation import Mix
from artgraph_vit.training import trainer as trainer_module

from .exact import UnevenArtworks, joined_gradients
from .processes import relative_error, without_times
from .tiny import TASKS, RandomArtworks, tiny_trainer


class Recorder(TrainerCallback):
    """How batches were mixed, what the model was given, and the gradients of each step."""

    def __init__(self, trainer, monkeypatch, draw) -> None:
        self.trainer, self.mixes, self.inputs, self.gradients = trainer, [], [], []
        trainer.add_callback(self)
        trainer.model.register_forward_pre_hook(self._keep, with_kwargs=True)

        def drawn(*args):
            self.mixes.append(draw(*args))
            return self.mixes[-1]

        monkeypatch.setattr(trainer_module, "draw_mix", drawn)

    def _keep(self, module, args, kwargs):
        if module.training:
            self.inputs.append(kwargs)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def rounded(rows: int, alpha: float, seed: int, *place: int) -> Mix:
    """Shares of which float32, in which targets are, makes no rounding errors."""
    mix = ORIGINAL(rows, alpha, seed, *place)
    return Mix(mix.partners, round(mix.share * 256) / 256)


ORIGINAL = trainer_module.draw_mix


def double_trainer(folder, monkeypatch, rows, draw=rounded, **options):
    """One epoch of steps in float64 with rows in their order, without dropout, all of the model learning."""
    defaults = {"num_train_epochs": 1, "frozen_epochs": 0, "max_grad_norm": 0.0, "learning_rate": 0.0}
    quiet = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "logging_steps": 1}
    options = {**defaults, **quiet, "logging_strategy": "steps", "mixup_alpha": 0.8, "head_dropout": 0.0, **options}
    trainer = tiny_trainer(folder, datasets=(rows, RandomArtworks(4, seed=2)), **options)
    trainer.model.double()
    trainer._get_train_sampler = lambda _=None: torch.utils.data.SequentialSampler(rows)
    return trainer, Recorder(trainer, monkeypatch, draw)


def test_where_all_is_known_it_is_the_loss_of_soft_targets(tmp_path, monkeypatch):
    """Without class weights and masks: PyTorch's cross-entropy on the average of the two labels, step by step."""
    rows = UnevenArtworks(32, seed=1)
    for index, row in enumerate(rows.rows):
        row["artist"], row["tags"] = index % 3, [t for t in range(3) if (index >> t) & 1] or [0]
    trainer, recorder = double_trainer(tmp_path, monkeypatch, rows)
    trainer.train()
    model = trainer.model.eval()
    assert len(recorder.mixes) == len(recorder.gradients) == 2
    for step, mix in enumerate(recorder.mixes):
        batch = ArtGraphCollator(TASKS)(rows.rows[16 * step : 16 * step + 16])
        pixels, partners, share = batch["pixel_values"], mix.partners, mix.share
        torch.testing.assert_close(  # of the same two pictures as the labels
            recorder.inputs[step]["pixel_values"], share * pixels + (1 - share) * pixels[partners], atol=1e-12, rtol=0
        )
        logits, losses = model(recorder.inputs[step]["pixel_values"]).logits, []
        for task in TASKS:
            one = batch["labels"][task.name]
            one = (one if task.is_multi_label else F.one_hot(one, task.num_labels)).double()
            loss = F.binary_cross_entropy_with_logits if task.is_multi_label else F.cross_entropy
            losses.append(loss(logits[task.name], share * one + (1 - share) * one[partners]))
        assert relative_error(recorder.gradients[step], joined_gradients(losses, model)) < 1e-12
        for task, loss in zip(TASKS, losses, strict=True):
            assert trainer.state.log_history[step][f"{task.name}_loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_batches_of_one_row_train_as_without(tmp_path, monkeypatch):
    gradients = []
    for alpha in (0.8, 0.0):
        options = {"per_device_train_batch_size": 1, "mixup_alpha": alpha}
        trainer, recorder = double_trainer(tmp_path / str(alpha), monkeypatch, UnevenArtworks(5, seed=1), **options)
        trainer.train()
        gradients.append(recorder.gradients)
    for actual, expected in zip(*gradients, strict=True):
        assert relative_error(actual, expected) < 1e-12


def test_an_evaluation_is_not_mixed(tmp_path):
    assert without_times(tiny_trainer(tmp_path, mixup_alpha=0.8).evaluate()) == without_times(
        tiny_trainer(tmp_path).evaluate()
    )
