"""Layer-wise learning-rate decay: the rate of every tensor, written out by hand, and of each step of a run."""

import math

import pytest
from transformers import (
    ConvNextConfig,
    Dinov2Config,
    DINOv3ConvNextConfig,
    PvtConfig,
    SiglipVisionConfig,
    SwinConfig,
    TrainerCallback,
)

from artgraph_vit import ArtGraphViTConfig, ArtGraphViTForImageClassification
from artgraph_vit.errors import UserError
from artgraph_vit.training.phases import layer_scales, parameter_groups

from .tiny import TASKS, tiny_trainer

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
# What the names begin with, layer by layer from the top: each layer halves the rate.
RATES = {
    "dinov2": (
        Dinov2Config(**VIT),
        "cls",
        [("layernorm.",), ("encoder.layer.1.",), ("encoder.layer.0.",), ("embeddings.",)],
    ),
    "swin, whose stages cannot be divided": (
        SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=2),
        "mean",
        [("layernorm.",), ("encoder.layers.1.",), ("encoder.layers.0.",), ("embeddings.",)],
    ),
    "siglip, whose pooler comes after the blocks": (
        SiglipVisionConfig(**VIT, intermediate_size=32),
        "pooler",
        [("post_layernorm.", "head."), ("encoder.layers.1.",), ("encoder.layers.0.",), ("embeddings.",)],
    ),
    "convnext, whose stages hold layers that are named too": (
        ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 2], image_size=32),
        "mean",
        [("layernorm.",), ("encoder.stages.1.",), ("encoder.stages.0.",), ("embeddings.",)],
    ),
    "dinov3 convnext, which has layers between the blocks": (
        DINOv3ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], image_size=32),
        "pooler",
        [
            *(("layer_norm.",), ("model.stages.3.",), ("model.stages.2.",), ("model.stages.1.",)),
            *(("model.stages.0.layers.",), ("model.stages.0.downsample_layers.",)),
        ],
    ),
}


def build(config, pooling: str) -> ArtGraphViTForImageClassification:
    return ArtGraphViTForImageClassification(ArtGraphViTConfig(backbone_config=config, tasks=TASKS, pooling=pooling))


@pytest.mark.parametrize("kind", RATES)
def test_every_tensor_learns_once_and_at_the_rate_of_its_layer(kind):
    config, pooling, layers = RATES[kind]
    model = build(config, pooling)
    expected = {f"backbone.{name}": 0.5**number for number, names in enumerate(layers) for name in names}
    expected |= {"heads.": 1.0, "log_variances": 1.0}
    decayed = [name for name, _ in model.named_parameters() if name != "log_variances"]
    groups = parameter_groups(model, decayed, 0.01, 0.5)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert sorted(names[p] for group in groups for p in group["params"]) == sorted(names.values())
    seen = set()
    for group in groups:
        for parameter in group["params"]:
            (prefix,) = [prefix for prefix in expected if names[parameter].startswith(prefix)]
            assert group["scale"] == pytest.approx(expected[prefix]), names[parameter]
            assert group["is_backbone"] == prefix.startswith("backbone.")
            assert group["weight_decay"] == (0.0 if names[parameter] == "log_variances" else 0.01)
            seen.add(prefix)
    assert seen == set(expected)
    assert [names[group["params"][0]].split(".")[0] for group in groups[:3]] == ["heads", "log_variances", "backbone"]
    scales = [group["scale"] for group in groups[2:]]
    assert scales == sorted(scales, reverse=True)


def test_a_backbone_without_blocks_is_refused():
    with pytest.raises(UserError, match=r"the backbone 'pvt' names no blocks, .* leave layer_decay out, or choose"):
        layer_scales(build(PvtConfig(), "cls"), 0.5)


# ---- a run: that it is resumed to the last bit is shown in test_resume.py ----

OPTIONS = {
    "layer_decay": 0.5,
    "learning_rate": 1e-3,
    "frozen_learning_rate": 4e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.25,
    "logging_strategy": "steps",
    "logging_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "no",
    "load_best_model_at_end": False,
}
PHASE = 8  # steps each


class Rates(TrainerCallback):
    """The rate of each parameter with which a step is made, by step."""

    def __init__(self):
        self.steps: dict[int, dict[str, float]] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        names = {parameter: name for name, parameter in model.named_parameters()}
        groups = optimizer.param_groups
        self.steps[state.global_step] = {names[p]: group["lr"] for group in groups for p in group["params"]}


def cosine(step: int, peak: float) -> float:
    """Two steps of warm-up, then down to 0 at the end of the phase."""
    return peak * step / 2 if step < 2 else peak * (1 + math.cos(math.pi * (step - 2) / (PHASE - 2))) / 2


def linear(step: int, peak: float) -> float:
    return peak * (1 - step / PHASE)


@pytest.mark.parametrize(
    ("options", "schedule"), [({}, cosine), ({"lr_scheduler_type": "linear", "warmup_steps": 0}, linear)]
)
def test_the_schedule_of_each_phase_starts_anew_and_scales_all_rates(tmp_path, options, schedule):
    rates = Rates()
    trainer = tiny_trainer(tmp_path, callbacks=[rates], **(OPTIONS | options))
    trainer.train()
    assert sorted(rates.steps) == list(range(2 * PHASE))
    for step, of_step in rates.steps.items():
        full = schedule(step % PHASE, 4e-3 if step < PHASE else 1e-3)
        logged = next(log for log in trainer.state.log_history if log["step"] == step + 1)
        assert logged["learning_rate"] == pytest.approx(full, abs=1e-12)  # of the heads
        for name, rate in of_step.items():
            part = {"embeddings": 1 / 8, "layers.0": 1 / 4, "layers.1": 1 / 2}
            factor = next((value for key, value in part.items() if name.startswith(f"backbone.{key}.")), 1.0)
            factor = 0.0 if name.startswith("backbone.") and step < PHASE else factor
            assert rate == pytest.approx(factor * full, abs=1e-12), (step, name)


@pytest.mark.parametrize(("frozen_epochs", "warmup", "phase", "steps"), [(2, 9, "heads", 8), (3, 5, "full", 4)])
def test_a_warm_up_longer_than_a_phase_is_refused_before_training(tmp_path, frozen_epochs, warmup, phase, steps):
    """Also one that the second phase alone would not finish."""
    trainer = tiny_trainer(tmp_path, **(OPTIONS | {"frozen_epochs": frozen_epochs, "warmup_steps": warmup}))
    message = rf"^warmup_steps={warmup} is longer than phase {phase}, which has {steps} steps: give fewer, or"
    with pytest.raises(UserError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not list(tmp_path.glob("checkpoint-*"))
