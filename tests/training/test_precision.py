"""Mixed precision, compilation and the other speed-ups of `Trainer`: the same training within tolerance."""

import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from .tiny import tiny_model, tiny_trainer

OPTIONS = {"num_train_epochs": 2, "frozen_epochs": 1, "head_dropout": 0.0, "load_best_model_at_end": False}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    trainer = tiny_trainer(tmp_path_factory.mktemp("plain"), **OPTIONS)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"optim": "adamw_torch"}, 1e-5),
        ({"gradient_checkpointing": True}, 1e-5),
        pytest.param({"torch_compile": True}, 1e-3, marks=pytest.mark.soak),
        ({"bf16": True}, 0.05),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_trainers_own_options_give_the_same_training(plain, tmp_path, options, tolerance):
    """Through both phases: the loss of each task at each epoch, and the weights."""
    trainer = tiny_trainer(tmp_path, **OPTIONS, **options)
    trainer.train()
    assert len(trainer.state.log_history) == len(plain.state.log_history)
    for one, other in zip(plain.state.log_history, trainer.state.log_history, strict=True):
        for name in one:
            if name.endswith("_loss"):
                assert other[name] == pytest.approx(one[name], rel=tolerance * 10, abs=tolerance), name
    moved = load_file(tmp_path / "checkpoint-8" / "model.safetensors")
    expected = dict(plain.model.state_dict())
    assert moved.keys() == expected.keys()
    difference = math.sqrt(sum(float(((moved[name] - p) ** 2).sum()) for name, p in expected.items()))
    size = math.sqrt(sum(float((p**2).sum()) for p in expected.values()))
    assert difference < tolerance * size


def test_fused_adamw_and_sdpa_are_the_default(plain):
    assert plain.args.optim == "adamw_torch_fused"
    assert all(group["fused"] for group in plain.optimizer.optimizer.param_groups)
    assert plain.model.backbone.config._attn_implementation == "sdpa"


def test_eager_attention_gives_the_same_logits():
    sdpa = tiny_model(seed=3).eval()
    eager = tiny_model(seed=3).eval()
    eager.set_attn_implementation("eager")
    assert eager.backbone.config._attn_implementation == "eager"
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, logits in eager(pixels).logits.items():
            torch.testing.assert_close(sdpa(pixels).logits[name], logits, atol=1e-5, rtol=1e-4)


class Dtypes(TrainerCallback):
    """What the optimizer sees, whether the log variances move at each step, and in what the heads compute."""

    def __init__(self):
        self.dtypes, self.log_variances, self.computed = set(), [], []

    def watch(self, trainer) -> None:
        trainer.add_callback(self)
        head = trainer.model.heads["artist"]
        head.register_forward_hook(lambda module, args, output: self.computed.append((module.training, output.dtype)))

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.dtypes |= {p.dtype for group in optimizer.param_groups for p in group["params"]}
        self.log_variances.append(model.log_variances.detach().clone())


def test_log_variances_move_under_bf16_at_the_smallest_learning_rate(tmp_path):
    seen = Dtypes()
    rates = {"learning_rate": 5e-5, "frozen_learning_rate": 5e-5}
    trainer = tiny_trainer(tmp_path, bf16=True, frozen_epochs=1, num_train_epochs=2, **rates)
    seen.watch(trainer)
    trainer.train()
    assert seen.dtypes == {torch.float32}
    trained = [dtype for is_training, dtype in seen.computed if is_training]
    assert trained == [torch.bfloat16] * 8  # steps of both phases
    moves = torch.stack(seen.log_variances).diff(dim=0)
    assert len(moves) == 7
    assert bool((moves != 0).all())
    assert trainer.model.log_variances.dtype == torch.float32
    # 8 steps of AdamW at 5e-5 from 0: a bfloat16 parameter could not hold the sum so exactly.
    assert 1e-4 < float(trainer.model.log_variances.detach().abs().max()) <= 8 * 5e-5 * 1.001


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_and_metrics_stay_float32_under_autocast(tmp_path, make_batch, build_model, dtype):
    model, batch = build_model(), make_batch(rows=12)
    with torch.no_grad():
        for head in model.heads.values():
            head.weight *= 30  # logits whose softmax half precision would lose
    expected = model(**batch)
    with torch.autocast("cpu", dtype):
        output = model(**batch)
        # From the same logits the loss is the one of float32, to its last digits.
        targets = model.make_targets(batch["labels"])
        from_logits = model.loss_numerators(output.logits, targets)
    assert output.logits["artist"].dtype == dtype
    assert output.loss.dtype == torch.float32
    assert all(loss.dtype == torch.float32 for loss in output.task_losses.values())
    plain = model.loss_numerators({n: v.float() for n, v in output.logits.items()}, targets)
    assert torch.equal(from_logits, plain)
    assert torch.allclose(output.loss, expected.loss, rtol=0.1)
    output.loss.backward()
    assert model.log_variances.grad.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


def test_an_evaluation_under_bf16_sums_in_float64(tmp_path):
    trainer = tiny_trainer(tmp_path, bf16=True)
    exact = tiny_trainer(tmp_path / "exact")
    assert trainer._eval_sums.dtype == torch.float64
    metrics, expected = trainer.evaluate(), exact.evaluate()
    assert isinstance(metrics["eval_loss"], float)
    assert metrics["eval_loss"] == pytest.approx(expected["eval_loss"], rel=0.02)
    assert metrics["eval_loss"] != expected["eval_loss"]  # bfloat16 was at work
