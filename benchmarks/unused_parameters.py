"""What DDP's search for parameters without a gradient costs a step of phase `full`, on two processes.

How: phase `heads` leaves the backbone without gradients, so DDP must look for such parameters in each step
(`ddp_find_unused_parameters`), in phase `full` too, since the model is wrapped once. Two processes wrap two copies of
one model, with and without the search, and take turns: forward with the five losses, backward with its exchange of
gradients, clip at 1, AdamW. A value is the CPU seconds of the first process, all of its threads (on a GPU wall
seconds), for one step; a round's pair is made side by side, and the first is left out.

Expect on a CPU: within 2 % at ViT-B/16 size, batch 4 a process. 3 minutes.

.venv/bin/python benchmarks/unused_parameters.py [--quick] [--out FILE] [--batch-size N]
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from measure import arguments, compare, interleave, write_table
from torch.nn.parallel import DistributedDataParallel
from workload import DEVICE, IS_GPU, TINY, VIT_B, make_batches, make_model, now

PORT = "29541"


def step(model: DistributedDataParallel, optimizer: torch.optim.Optimizer, batch: Mapping[str, Any]) -> float:
    """Seconds of one step."""
    dist.barrier()
    start = now()
    model(**batch).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return now() - start


def work(rank: int, vit: Mapping[str, int], rows: int, rounds: int, found: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT}
    dist.init_process_group("nccl" if IS_GPU else "gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    device = torch.device(DEVICE, rank) if IS_GPU else torch.device("cpu")
    plain = make_model(vit).to(device).train()
    batch = make_batches(1, rows, plain.config.backbone_config.image_size)[0]
    cases = {}
    for name, searches in (("with", True), ("without", False)):
        model = DistributedDataParallel(deepcopy(plain), find_unused_parameters=searches)
        cases[name] = partial(step, model, torch.optim.AdamW(model.parameters(), lr=5e-5), batch)
    seconds = interleave(cases, rounds + 1)
    if rank == 0:
        found.update({name: values[1:] for name, values in seconds.items()})
    dist.destroy_process_group()


def main() -> None:
    given = arguments(__doc__, batch_size=4)
    vit, rounds = ({**TINY, "num_hidden_layers": 2}, 2) if given.quick else (VIT_B, 9)
    with torch.multiprocessing.Manager() as manager:
        found = manager.dict()
        torch.multiprocessing.spawn(work, (vit, given.batch_size, rounds, found), nprocs=2)
        what = f"{'tiny' if given.quick else 'ViT-B/16 at 224'}, 2 processes, batch {given.batch_size}: seconds a step"
        row = compare(f"{what} with the search, against without", found["with"], found["without"], "<= 1.02")
    write_table([row], given.out)


if __name__ == "__main__":
    main()
