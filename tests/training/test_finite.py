"""A loss that is not finite stops the run with its step, task and artworks, before any weight changes."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from artgraph_vit.errors import UserError
from artgraph_vit.loading import verify_checkpoint

from .tiny import RandomArtworks, tiny_trainer


class Spoilt(RandomArtworks):
    """Artworks with names; one has a pixel that is not a number."""

    def __init__(self, rows: int, seed: int, spoilt: int | None):
        super().__init__(rows, seed)
        for index, row in enumerate(self.rows):
            row["name"] = f"artwork-{index}.jpg"
        if spoilt is not None:
            self.rows[spoilt]["pixel_values"] = self.rows[spoilt]["pixel_values"].clone()
            self.rows[spoilt]["pixel_values"][0, 0, 0] = float("nan")
            self.rows[spoilt] |= {"artist": 0, "genre": 1, "tags": [0]}


class Weights(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.last = {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [
        {"frozen_epochs": 2, "logging_nan_inf_filter": True},
        {"frozen_epochs": 0, "gradient_accumulation_steps": 4, "per_device_train_batch_size": 4},
    ],
)
def test_the_step_the_task_and_the_artwork_are_named(tmp_path, options):
    weights = Weights()
    trainer = tiny_trainer(tmp_path, callbacks=[weights], **options)
    trainer.train_dataset = Spoilt(50, seed=1, spoilt=17)
    with pytest.raises(UserError) as stopped:
        trainer.train()
    message = str(stopped.value)
    assert message.startswith(f"Step {trainer.state.global_step + 1}: ")
    assert "Training stopped before" in message
    assert "the loss of artist, genre, tags is nan, from 'artwork-17.jpg' (look at these pictures)" in message
    if trainer.state.global_step:
        for name, parameter in trainer.model.named_parameters():
            assert torch.equal(parameter, weights.last[name])
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_only_the_task_at_fault_is_named(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.train_dataset = Spoilt(50, seed=1, spoilt=None)
    with torch.no_grad():
        trainer.model.heads["genre"].bias[0] = float("inf")
    with pytest.raises(
        UserError, match=r"Step 1: the loss of genre is (nan|inf|inf/nan), from 'artwork-.*lower learning_rate"
    ):
        trainer.train()


def test_rows_without_a_name_are_counted(tmp_path):
    trainer = tiny_trainer(tmp_path)
    rows = Spoilt(50, seed=1, spoilt=3).rows
    for row in rows:
        del row["name"]
    trainer.train_dataset.rows = rows
    with pytest.raises(UserError, match=r"from row \d+ of its batch"):
        trainer.train()


def test_a_joined_loss_that_overflows_says_so(tmp_path):
    trainer = tiny_trainer(tmp_path)
    with torch.no_grad():
        trainer.model.log_variances[1] = 200.0  # σ = e^100 is more than float32 holds
    with pytest.raises(UserError, match="the joined loss is not finite, though each row's loss is"):
        trainer.train()


def test_of_mixed_pictures_both_are_named(tmp_path):
    trainer = tiny_trainer(tmp_path, mixup_alpha=0.8)
    trainer.train_dataset = Spoilt(50, seed=1, spoilt=17)
    with pytest.raises(UserError) as stopped:
        trainer.train()
    message = str(stopped.value)
    assert "'artwork-17.jpg mixed with artwork-" in message
    assert message.count("artwork-17.jpg") == 2  # in its own row, and where it is the partner
    assert message.count(" mixed with ") == 2


@pytest.mark.parametrize("step", [2, 4, 16])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, step):
    """The gradient breaks within an epoch, at an epoch's last step, and at the run's last; no loss has shown it."""
    trainer = tiny_trainer(tmp_path, frozen_epochs=0, save_total_limit=None)

    def spoil(gradient):
        return gradient * float("nan") if trainer.state.global_step == step - 1 else gradient

    trainer.model.heads["genre"].weight.register_hook(spoil)
    with pytest.raises(
        UserError, match=rf"^Step ({step}: the weights are not finite any more|{step + 1}: the loss of)"
    ):
        trainer.train()
    for checkpoint in tmp_path.glob("checkpoint-*"):
        weights = load_file(checkpoint / "model.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())
        history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
        assert all(math.isfinite(entry.get("loss", 0.0)) for entry in history)
    assert len([path for path in tmp_path.glob("checkpoint-*") if verify_checkpoint(path) is None]) == (step - 1) // 4
