"""What only a GPU is asked, for training_step.py: how busy training keeps it, and how long it waits for pictures.

A training step of ViT-B/16 at 224 takes 105.4 GFLOP a picture; the peak is that of a large bf16 matrix product in the
same run. Batches are read from JPEGs by the data loader's workers, one for each core but one.
"""

from __future__ import annotations

import os
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from workload import DEVICE, IS_GPU, VIT_B, jpeg_rows, make_model, make_trainer, now

FLOP_A_PICTURE = 105.4e9


def share_of_peak(pictures_a_second: float, edge: int = 8192) -> float:
    """What training at this speed achieves of the GPU's peak."""
    a = torch.randn(edge, edge, device=DEVICE, dtype=torch.bfloat16)
    seconds = []
    for _ in range(20):
        start = now()
        for _ in range(10):
            a @ a
        seconds.append((now() - start) / 10)
    return pictures_a_second * FLOP_A_PICTURE * median(seconds[5:]) / (2 * edge**3)


def share_of_data_wait(batch_size: int, steps: int) -> float:
    """The share of a step in which the trainer waits for its next batch; the first quarter, a start, is left out."""
    model, rows = make_model(VIT_B), jpeg_rows(batch_size * steps)
    options = {"num_train_epochs": 1, "per_device_train_batch_size": batch_size, "bf16": IS_GPU}
    options |= {"dataloader_num_workers": max(1, (os.cpu_count() or 2) - 1), "dataloader_prefetch_factor": 4}
    waits: list[tuple[float, float]] = []
    with TemporaryDirectory() as folder:
        trainer = make_trainer(folder, model, rows, **options)
        fetch = trainer.get_batch_samples

        def timed_fetch(*args):
            start = perf_counter()
            result = fetch(*args)
            waits.append((start, perf_counter()))
            return result

        trainer.get_batch_samples = timed_fetch
        trainer.train()
    waits = waits[len(waits) // 4 :]
    return sum(stop - start for start, stop in waits[:-1]) / (waits[-1][0] - waits[0][0])
