"""`FiniteLossCheck`: a loss that is not finite stops training before it reaches the weights, and names its rows.

Whether a loss is finite is known on the GPU only when the forward pass is over. The answer is asked for after the
backward pass was handed over, so the GPU has work while the process waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainerCallback

from ..errors import UserError
from ..model.losses import Target
from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification


class _Answer:
    """Whether all of some numbers are finite, fetched from the GPU without waiting for it."""

    def __init__(self, numbers: Tensor):
        self.is_finite, self.is_ready = torch.isfinite(numbers).all(), None
        if self.is_finite.is_cuda:
            self.is_finite = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(
                self.is_finite, non_blocking=True
            )
            self.is_ready = torch.cuda.Event()
            self.is_ready.record()

    def __bool__(self) -> bool:
        if self.is_ready is not None:
            self.is_ready.synchronize()
        return bool(self.is_finite)


class _MicroBatch(NamedTuple):
    is_finite: _Answer
    logits: Mapping[str, Tensor]
    targets: Mapping[str, Target]
    names: Sequence[str] | None


class FiniteLossCheck(TrainerCallback):
    """Looks at the losses of a step before its optimizer step.

    Args:
        model ([`ArtGraphViTForImageClassification`]): finds the rows that are to blame.
    """

    def __init__(self, model: ArtGraphViTForImageClassification):
        self.model = model
        self._micro_batches: list[_MicroBatch] = []

    def add(self, output: Any, targets: Mapping[str, Target], names: Sequence[str] | None) -> None:
        """Takes note of a micro-batch of the step that is under way, and of the targets of its losses."""
        losses = torch.stack([output.loss.detach(), *output.task_losses.values()])
        logits = {name: values.detach() for name, values in output.logits.items()}
        self._micro_batches.append(_MicroBatch(_Answer(losses), logits, targets, names))

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        batches, self._micro_batches = self._micro_batches, []
        for batch in batches:
            if not batch.is_finite:
                raise UserError(self._describe(batch, state.global_step + 1, args.process_index))

    @torch.no_grad()
    def _describe(self, batch: _MicroBatch, step: int, process: int) -> str:
        rows = len(next(iter(batch.logits.values())))
        losses = torch.stack([self._losses_of_row(batch, row) for row in range(rows)])  # (rows, tasks)
        where = f"Step {step}" + (f", process {process}" if process else "")
        stopped = "Training stopped before the weights changed; nothing that was saved is lost."
        bad = ~torch.isfinite(losses)
        if not bad.any():
            return f"{where}: the joined loss is not finite, though each row's loss is: lower learning_rate. {stopped}"
        tasks = [
            task.name for task, is_bad in zip(self.model.config.tasks, bad.any(0).tolist(), strict=True) if is_bad
        ]
        values = sorted({str(value) for value in losses[bad].tolist()})
        bad_rows = bad.any(1).nonzero().flatten().tolist()
        named = [repr(batch.names[row]) if batch.names else f"row {row} of its batch" for row in bad_rows]
        listed = ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
        hint = "look at these pictures" if len(bad_rows) < rows else "all rows of the batch: lower learning_rate"
        return f"{where}: the loss of {', '.join(tasks)} is {'/'.join(values)}, from {listed} ({hint}). {stopped}"

    def _losses_of_row(self, batch: _MicroBatch, row: int) -> Tensor:
        one = slice(row, row + 1)
        logits = {name: values[one] for name, values in batch.logits.items()}
        targets = {name: (target[one], weight[one]) for name, (target, weight) in batch.targets.items()}
        return self.model.loss_numerators(logits, targets)
