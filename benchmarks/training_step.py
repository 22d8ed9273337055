"""An optimizer step of `ArtGraphTrainer` against a bare PyTorch loop on an equal model and the same preloaded batches.

How: a callback takes turns with the trainer. After each of its steps (each 20 on a GPU) the bare loop makes as many
with a copy of the model: forward with the five losses, backward, clip at 1, fused AdamW. Both are timed, the first
turns are left out, and a round's value is its median. "Overhead" is the difference of the two in a step; it is all
that counts at tiny size: 12 layers, hidden size 32, pictures of 16 pixels, batch 8. There stock `Trainer` trains a
stock `ViTForImageClassification` beside its own bare loop. Both trainers log every 10 steps. The clock is that of
workload.py: on a CPU the CPU time of one thread.

Expect on a CPU: ViT-B/16 within 1 % of the bare loop; tiny: 2 to 3 ms a step over it, for both trainers. 6 minutes.
A GPU (bf16 autocast) adds the two rows of gpu.py.

.venv/bin/python benchmarks/training_step.py [--quick] [--out FILE] [--batch-size N]
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gpu import share_of_data_wait, share_of_peak
from measure import NOT_MEASURED, arguments, compare, interleave, ratios, write_table
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification
from workload import (
    ARTGRAPH,
    DEVICE,
    IS_GPU,
    ONLY_TRAIN,
    TINY,
    VIT_B,
    Preloaded,
    make_batches,
    make_model,
    make_trainer,
    now,
    quiet,
    take,
)

TURN = 20 if IS_GPU else 1  # steps between which a GPU is waited for
WARM_UP = 2  # turns
OPTIONS = {"num_train_epochs": 1, "logging_strategy": "steps", "logging_steps": 10, "bf16": IS_GPU}


class BareLoop(TrainerCallback):
    """Takes turns with the trainer, and keeps the seconds a step of both."""

    def __init__(self, model: torch.nn.Module, batches: list[dict[str, Any]]):
        self.model = deepcopy(model).to(DEVICE).train()
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=5e-5, fused=True)
        self.batches = [_to_device(batch) for batch in batches]
        self.trainer_seconds: list[float] = []
        self.bare_seconds: list[float] = []

    def step(self, index: int) -> None:
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=IS_GPU):
            loss = self.model(**self.batches[index % len(self.batches)]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def on_train_begin(self, args, state, control, **kwargs):
        self.resumed = now()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % TURN == 0:
            stopped = now()
            self.trainer_seconds.append((stopped - self.resumed) / TURN)
            for index in range(TURN):
                self.step(index)
            self.bare_seconds.append((now() - stopped) / TURN)
            self.resumed = now()

    def medians(self) -> dict[str, float]:
        inside, bare = self.trainer_seconds[WARM_UP:], self.bare_seconds[WARM_UP:]
        return {
            "trainer": median(inside),
            "bare": median(bare),
            "overhead": median(a - b for a, b in zip(inside, bare, strict=True)),
            "relative speed": median(ratios(bare, inside)),
        }


def _to_device(value: Any) -> Any:
    return {k: _to_device(v) for k, v in value.items()} if isinstance(value, Mapping) else value.to(DEVICE)


def ours(vit: dict[str, int], batches: list[dict[str, Any]], steps: int) -> dict[str, float]:
    model = make_model(vit)
    bare, data = BareLoop(model, batches), Preloaded(batches, steps)
    with TemporaryDirectory() as folder:
        options = {**OPTIONS, "per_device_train_batch_size": 1}
        make_trainer(folder, model, data, collator=take, callbacks=[bare], **options).train()
    return bare.medians()


def stock(vit: dict[str, int], batches: list[dict[str, Any]], steps: int) -> dict[str, float]:
    batches = [{"pixel_values": b["pixel_values"], "labels": b["labels"]["artist"].clamp(min=0)} for b in batches]
    model = ViTForImageClassification(ViTConfig(**vit, num_labels=ARTGRAPH["artist"]))
    bare, data = BareLoop(model, batches), Preloaded(batches, steps)
    with TemporaryDirectory() as folder:
        args = TrainingArguments(folder, per_device_train_batch_size=1, **OPTIONS, **ONLY_TRAIN)
        quiet(Trainer(model, args, data_collator=take, train_dataset=data, callbacks=[bare])).train()
    return bare.medians()


def main() -> None:
    given = arguments(__doc__, batch_size=128 if IS_GPU else 4)
    name, vit_b = ("2 layers", {**TINY, "num_hidden_layers": 2}) if given.quick else ("ViT-B/16 at 224", VIT_B)
    tiny = {**TINY, "num_hidden_layers": 2 if given.quick else 12}

    batches = make_batches(4, given.batch_size, vit_b.get("image_size", 224))
    rounds, steps = (1, 4 * TURN) if given.quick else (3, 10 * TURN)
    large = interleave({"ours": lambda: ours(vit_b, batches, steps)}, rounds)["ours"]

    small_batches = make_batches(8, 8, TINY["image_size"])
    rounds, steps = (1, 4 * TURN) if given.quick else (20, 50 * TURN)
    small = interleave({f.__name__: lambda f=f: f(tiny, small_batches, steps) for f in (ours, stock)}, rounds)
    ms = {name: {key: [1e3 * run[key] for run in runs] for key in runs[0]} for name, runs in small.items()}

    share = wait = NOT_MEASURED
    if IS_GPU:
        share = f"{100 * share_of_peak(given.batch_size / median(run['trainer'] for run in large)):.1f} %"
        wait = f"{100 * share_of_data_wait(given.batch_size, 8 if given.quick else 100):.2f} %"
    core = "" if IS_GPU else " and core"
    write_table(
        [
            compare(
                f"{name}, batch {given.batch_size}: rows a second{core}, against the bare loop",
                [given.batch_size / run["trainer"] for run in large],
                [given.batch_size / run["bare"] for run in large],
                ">= 0.95",
                ratio=[run["relative speed"] for run in large],
            ),
            compare(
                "tiny: ms a step over the bare loop, against stock `Trainer`",
                ms["ours"]["overhead"],
                ms["stock"]["overhead"],
                "<= 1",
            ),
            compare("tiny: ms a step of this bare loop, against stock's", ms["ours"]["bare"], ms["stock"]["bare"], ""),
            ("on a GPU: achieved share of the bf16 peak, ViT-B/16 training", share, "", "", ">= 45 %"),
            ("on a GPU: wait for data, share of a step", wait, "", "", "< 2 %"),
        ],
        given.out,
    )


if __name__ == "__main__":
    main()
