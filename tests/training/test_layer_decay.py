"""Layer-wise learning-rate decay: the rate of every tensor, written out by hand, and of each step of a run."""

import contextlib
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    ConvNextConfig,
    Dinov2Config,
    DINOv3ConvNextConfig,
    PvtConfig,
    SiglipVisionConfig,
    SwinConfig,
    TrainerCallback,
    ViTConfig,
)

from artgraph_vit import ArtGraphViTConfig, ArtGraphViTForImageClassification
from artgraph_vit.errors import UserError
from artgraph_vit.training.phases import layer_scales, parameter_groups

from .test_kill import assert_close
from .tiny import TASKS, StopAt, Stopped, tiny_trainer

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
# The rate of what begins with a name, where the learning rate is 0.8 and each layer halves it.
RATES = {
    "vit": (
        ViTConfig(**VIT, intermediate_size=32),
        "cls",
        {"embeddings.": 0.1, "layers.0.": 0.2, "layers.1.": 0.4, "layernorm.": 0.8},
    ),
    "dinov2": (
        Dinov2Config(**VIT),
        "cls",
        {"embeddings.": 0.1, "encoder.layer.0.": 0.2, "encoder.layer.1.": 0.4, "layernorm.": 0.8},
    ),
    "swin, whose stages cannot be divided": (
        SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=2),
        "mean",
        {"embeddings.": 0.1, "encoder.layers.0.": 0.2, "encoder.layers.1.": 0.4, "layernorm.": 0.8},
    ),
    "siglip, whose pooler comes after the blocks": (
        SiglipVisionConfig(**VIT, intermediate_size=32),
        "pooler",
        {"embeddings.": 0.1, "encoder.layers.0.": 0.2, "encoder.layers.1.": 0.4, "post_layernorm.": 0.8, "head.": 0.8},
    ),
    "convnext, whose stages hold layers that are named too": (
        ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 2], image_size=32),
        "mean",
        {"embeddings.": 0.1, "encoder.stages.0.": 0.2, "encoder.stages.1.": 0.4, "layernorm.": 0.8},
    ),
    "dinov3 convnext, which has layers between the blocks": (
        DINOv3ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], image_size=32),
        "pooler",
        {
            "model.stages.0.downsample_layers.": 0.025,
            "model.stages.0.layers.": 0.05,
            "model.stages.1.": 0.1,
            "model.stages.2.": 0.2,
            "model.stages.3.": 0.4,
            "layer_norm.": 0.8,
        },
    ),
}


def build(config, pooling: str) -> ArtGraphViTForImageClassification:
    return ArtGraphViTForImageClassification(ArtGraphViTConfig(backbone_config=config, tasks=TASKS, pooling=pooling))


@pytest.mark.parametrize("kind", RATES)
def test_every_tensor_learns_once_and_at_the_rate_of_its_layer(kind):
    config, pooling, rates = RATES[kind]
    model = build(config, pooling)
    expected = {f"backbone.{name}": rate for name, rate in rates.items()} | {"heads.": 0.8, "log_variances": 0.8}
    decayed = [name for name, _ in model.named_parameters() if name != "log_variances"]
    groups = parameter_groups(model, layer_scales(model, 0.5), decayed, 0.8, 0.01)
    names = {parameter: name for name, parameter in model.named_parameters()}
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(names[p] for group in groups for p in group["params"]) == sorted(learning)
    seen = set()
    for group in groups:
        for parameter in group["params"]:
            (prefix,) = [prefix for prefix in expected if names[parameter].startswith(prefix)]
            assert group["lr"] == pytest.approx(expected[prefix]), names[parameter]
            assert group["weight_decay"] == (0.0 if names[parameter] == "log_variances" else 0.01)
            seen.add(prefix)
    assert seen == set(expected)
    assert [groups[0]["lr"], groups[0]["weight_decay"]] == [0.8, 0.01]  # whose rate is logged
    rates_of_groups = [group["lr"] for group in groups]
    assert rates_of_groups == sorted(rates_of_groups, reverse=True)


def test_a_backbone_without_blocks_is_refused():
    with pytest.raises(UserError, match=r"the backbone 'pvt' names no blocks, .* leave layer_decay out, or choose"):
        layer_scales(build(PvtConfig(), "cls"), 0.5)


# ---- a run ----

OPTIONS = {
    "layer_decay": 0.5,
    "learning_rate": 1e-3,
    "frozen_learning_rate": 4e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.25,
    "logging_strategy": "steps",
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_strategy": "no",
    "load_best_model_at_end": False,
}
PHASE = 8  # steps each


class Rates(TrainerCallback):
    """The rate of each parameter with which a step is made, by step."""

    def __init__(self):
        self.steps: dict[int, dict[str, float]] = {}
        self.groups: list[tuple[float, int]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        names = {parameter: name for name, parameter in model.named_parameters()}
        groups = optimizer.param_groups
        self.steps[state.global_step] = {names[p]: group["lr"] for group in groups for p in group["params"]}
        self.groups = [(group["weight_decay"], len(group["params"])) for group in groups]


def cosine(step: int, peak: float) -> float:
    """Two steps of warm-up, then down to 0 at the end of the phase."""
    return peak * step / 2 if step < 2 else peak * (1 + math.cos(math.pi * (step - 2) / (PHASE - 2))) / 2


@pytest.mark.parametrize("stops", [(), (3, 8, 11)], ids=["at once", "resumed in the middle of each phase"])
def test_the_schedule_of_each_phase_scales_all_rates(tmp_path, stops):
    rates = Rates()
    for number, stop in enumerate((*stops, None)):
        callbacks = [rates] if stop is None else [rates, StopAt(stop)]
        trainer = tiny_trainer(tmp_path, 7 * number, callbacks, **OPTIONS)
        with contextlib.suppress(Stopped):
            trainer.train(resume_from_checkpoint="auto")
    assert sorted(rates.steps) == list(range(2 * PHASE))
    for step, of_step in rates.steps.items():
        peak = 4e-3 if step < PHASE else 1e-3
        full = cosine(step % PHASE, peak)
        logged = next(log for log in trainer.state.log_history if log["step"] == step + 1)
        assert logged["learning_rate"] == pytest.approx(full, abs=1e-12)
        assert ("backbone.layers.0.mlp.fc1.weight" in of_step) == (step >= PHASE)
        for name, rate in of_step.items():
            part = {"embeddings": 1 / 8, "layers.0": 1 / 4, "layers.1": 1 / 2}
            factor = next((value for key, value in part.items() if name.startswith(f"backbone.{key}.")), 1.0)
            assert rate == pytest.approx(factor * full, abs=1e-12), (step, name)


def test_without_decay_the_groups_are_those_of_trainer(tmp_path):
    rates = Rates()
    trainer = tiny_trainer(tmp_path, callbacks=[rates], num_train_epochs=1, frozen_epochs=0)
    trainer.train()
    number = sum(1 for _ in trainer.model.parameters())
    assert rates.groups == [(0.01, number - 1), (0.0, 1)]  # the log variances


def test_a_run_that_is_stopped_and_resumed_ends_like_one_that_was_not(tmp_path):
    tiny_trainer(tmp_path / "whole", **OPTIONS).train()
    for number, stop in enumerate((9, 13, None)):
        callbacks = [] if stop is None else [StopAt(stop)]
        trainer = tiny_trainer(tmp_path / "stopped", 7 * number, callbacks, **OPTIONS)
        with contextlib.suppress(Stopped):
            trainer.train(resume_from_checkpoint="auto")
    last = "checkpoint-16"
    assert_close(*(load_file(tmp_path / run / last / "model.safetensors") for run in ("stopped", "whole")), 0.0)
    states = [torch.load(tmp_path / run / last / "optimizer.pt", weights_only=True) for run in ("stopped", "whole")]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for number, state in states[1]["state"].items():
        assert_close(states[0]["state"][number], state, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_decay": 0.0}, r"^layer_decay=0: use a number above 0, at most 1, such as 0\.75\.$"),
        ({"layer_decay": 1.1}, r"^layer_decay=1.1: use a number above 0"),
        ({"layer_decay": 0.5, "frozen_epochs": 4}, r"^layer_decay is for the second phase, and there is none"),
        ({"lr_scheduler_type": "cosine", "warmup_steps": 1.5}, r"^warmup_steps=1\.5: use a whole number, or a part"),
        ({"layer_decay": 0.5, "optim": "lomo"}, r"^layer_decay does not work with optim=lomo, which groups"),
        (
            {"warmup_steps": 0.1},
            r"^warmup_steps=0.1 does nothing with lr_scheduler_type='constant': use cosine or constant_with_warmup",
        ),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_trainer(tmp_path, **options)


def test_another_decay_is_refused_on_resume(tmp_path):
    tiny_trainer(tmp_path, **OPTIONS, num_train_epochs=1, frozen_epochs=0).train()
    other = tiny_trainer(tmp_path, **(OPTIONS | {"layer_decay": 1.0}), num_train_epochs=1, frozen_epochs=0)
    with pytest.raises(UserError, match=r"made with layer_decay=0\.5, and this run has layer_decay=1\.0"):
        other.train(resume_from_checkpoint="last")


@pytest.mark.parametrize(("frozen_epochs", "warmup", "phase", "steps"), [(2, 9, "heads", 8), (3, 5, "full", 4)])
def test_a_warm_up_longer_than_a_phase_is_refused_before_training(tmp_path, frozen_epochs, warmup, phase, steps):
    """Also one that the second phase alone would not finish."""
    trainer = tiny_trainer(tmp_path, **(OPTIONS | {"frozen_epochs": frozen_epochs, "warmup_steps": warmup}))
    with pytest.raises(
        UserError,
        match=rf"^warmup_steps={warmup} is longer than phase {phase}, which has {steps} steps: give fewer, or",
    ):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not list(tmp_path.glob("checkpoint-*"))
