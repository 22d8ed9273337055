"""Phase `heads` of 5 epochs, with features computed once (`cache_frozen_features=True`) against without.

How: ViT-B/16 with random weights, JPEGs decoded and processed when they are fetched, an evaluation at the end of each
epoch. Both runs start from the same weights, draw the same rows in the same order, and are timed from `train()` to
its end: making the features and writing them to an empty folder included. Interleaved, medians; wall time, and CPU
time, which does not see what other jobs take. The difference is the largest of any weight of the heads after the run.

Expect: 5 epochs need 1 pass of the backbone instead of 5, so 5x is the limit; 4.5x to 5x, and equal heads. On a CPU
about 10 minutes.

.venv/bin/python benchmarks/frozen_features.py [--quick] [--out FILE] [--train-rows N] [--validation-rows N]
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import torch
from measure import arguments, compare, interleave, ratios, write_table
from workload import IS_GPU, TINY, VIT_B, jpeg_rows, make_model, make_trainer

EPOCHS = 5


def train_heads(vit: dict[str, int], train, validation, cached: bool) -> dict[str, Any]:
    """Seconds of the phase by both clocks, and the heads after it."""
    with TemporaryDirectory() as folder:
        model = make_model(vit)
        trainer = make_trainer(
            Path(folder, "run"),
            model,
            train,
            validation,
            num_train_epochs=EPOCHS,
            frozen_epochs=EPOCHS,
            eval_strategy="epoch",
            per_device_train_batch_size=8,
            per_device_eval_batch_size=16,
            bf16=IS_GPU,
            cache_frozen_features=cached,
            feature_cache_dir=str(Path(folder, "features")),
        )
        start, cpu_start = perf_counter(), process_time()
        trainer.train()
        heads = {name: tensor.cpu() for name, tensor in model.heads.state_dict().items()}
        return {"wall seconds": perf_counter() - start, "CPU seconds": process_time() - cpu_start, "heads": heads}


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of a number."""
    return max((a[name] - b[name]).abs().max().item() for name in a)


def main() -> None:
    given = arguments(__doc__, train_rows=64, validation_rows=16)
    vit, rounds = VIT_B, 3
    if given.quick:
        vit, rounds = {**TINY, "image_size": 224, "patch_size": 32, "num_hidden_layers": 2}, 1
        given.train_rows, given.validation_rows = 16, 8
    train, validation = jpeg_rows(given.train_rows), jpeg_rows(given.validation_rows, first=given.train_rows)
    cases = {
        "cached": lambda: train_heads(vit, train, validation, cached=True),
        "online": lambda: train_heads(vit, train, validation, cached=False),
    }
    found = interleave(cases, rounds)
    heads = {name: runs[0]["heads"] for name, runs in found.items()}
    difference = farthest(heads["cached"], heads["online"])
    moved = farthest(heads["online"], make_model(vit).heads.state_dict())
    model = "2 layers" if given.quick else "ViT-B/16 at 224"
    what = f"{model}, {given.train_rows} train and {given.validation_rows} validation rows, {EPOCHS} epochs"
    table = []
    for clock in ("wall seconds", "CPU seconds"):
        cached, online = ([run[clock] for run in found[name]] for name in ("cached", "online"))
        table.append(
            compare(f"{what}: {clock}, against without", cached, online, ">= 4.5", ".1f", ratios(online, cached))
        )
    write_table(
        [
            *table,
            (
                "largest difference of a head's weight, against the way the weights went",
                f"{difference:.1e}",
                f"{moved:.1e}",
                f"{difference / moved:.1e}",
                "<= 1e-5",
            ),
        ],
        given.out,
    )


if __name__ == "__main__":
    main()
