"""`AveragingTrainer`: what is evaluated and saved is the exponential moving average of the weights, if asked for.

a_t = d_t a_{t-1} + (1 - d_t) w_t after optimizer step t of the whole run, from a_0 = w_0, the weights before it. The
decay warms up, d_t = min(ema_decay, (1 + t)/(10 + t)), as in TensorFlow's ExponentialMovingAverage; averaging is from
Polyak & Juditsky, Acceleration of Stochastic Approximation by Averaging (1992). Notable:
- model.safetensors of a checkpoint holds the average, so that it is the model that was evaluated; the weights with
  which training goes on lie beside it, in training_weights.safetensors.
- The average takes the place of the weights within their own tensors, which DDP, FSDP2 and DeepSpeed know.
Private methods of `Trainer` are overridden where it has no hook: `_prepare_for_training`, `_load_from_checkpoint`,
`_load_best_model`, `_save_optimizer_and_scheduler`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification
from .arguments import ArtGraphTrainingArguments
from .engines import is_sharded, reshard, whole
from .multitask import MultiTaskTrainer

TRAINING_WEIGHTS = "training_weights.safetensors"


class WeightAverage(TrainerCallback):
    """The average of all parameters that have learned so far; the others equal theirs.

    Args:
        decay (`float`, *optional*): the share of the old average that each step keeps, once it is warm; by default
            nothing is averaged.
    """

    def __init__(self, decay: float | None):
        self.decay = decay
        self.clear()

    def clear(self) -> None:
        """Forgets the average."""
        self._weights: dict[str, nn.Parameter] = {}
        self._averages: dict[str, Tensor] = {}

    def follow(self, model: nn.Module) -> None:
        """Averages from now on all parameters that learn from now on, or have learned.

        Args:
            model (`nn.Module`): as it is trained, on its device and perhaps sharded.
        """
        if self.decay is None:
            return
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or name in self._averages:
                average = self._averages.get(name)
                self._weights[name] = parameter
                self._averages[name] = parameter.detach().clone() if average is None else average.to(parameter.device)

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self._weights:
            step = state.global_step + 1
            decay = min(self.decay, (1 + step) / (10 + step))
            averages = [self._averages[name] for name in self._weights]
            get_ema_multi_avg_fn(decay)(averages, list(self._weights.values()), step)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """The model's weights are the average meanwhile; all processes must ask for it."""
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        if self._weights:
            reshard(model)
            for name, parameter in self._weights.items():  # one at a time: no third copy of all weights
                weight = parameter.detach().clone()
                parameter.copy_(self._averages[name])
                self._averages[name].copy_(weight)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        """What is left of a run that does not end with its best checkpoint is the average."""
        self._exchange(model)
        self.clear()

    # ---- checkpoints ----

    def save(self, folder: str | Path, is_writer: bool) -> None:
        """Writes the weights with which training goes on; all processes must ask for it."""
        weights = {}
        for name, parameter in self._weights.items():
            weight = whole(parameter.detach())
            if is_writer:
                # Copied: those of DeepSpeed are views of one tensor.
                weights[name] = weight.to("cpu", copy=True, memory_format=torch.contiguous_format)
        if weights:
            save_file(weights, Path(folder) / TRAINING_WEIGHTS, metadata={"format": "pt"})

    def load(self, model: nn.Module, folder: str | Path) -> None:
        """Takes the average out of a model into which it was loaded, and loads the weights of training."""
        if self.decay is None:
            return
        weights: dict[str, Any] = load_file(Path(folder) / TRAINING_WEIGHTS)
        parameters = dict(model.named_parameters())
        self._averages = {name: parameters[name].detach().clone() for name in weights}
        options = StateDictOptions(full_state_dict=is_sharded(model), strict=False)
        set_model_state_dict(model, weights, options=options)


class AveragingTrainer(MultiTaskTrainer):
    """A [`MultiTaskTrainer`] that evaluates, saves and ends with the average, if `ema_decay` is given.

    Args:
        model ([`ArtGraphViTForImageClassification`]).
        args ([`ArtGraphTrainingArguments`]).
        kwargs: as for [`MultiTaskTrainer`].
    """

    def __init__(
        self, model: ArtGraphViTForImageClassification, args: ArtGraphTrainingArguments, **kwargs: Any
    ) -> None:
        self._average = WeightAverage(args.ema_decay)
        kwargs["callbacks"] = [self._average, *(kwargs.get("callbacks") or [])]
        super().__init__(model=model, args=args, **kwargs)

    def train(self, *args, **kwargs):
        self._average.clear()  # of a call that was interrupted
        return super().train(*args, **kwargs)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self._average.follow(self.model)
        return prepared

    def evaluation_loop(self, *args, **kwargs):
        """As in `Trainer`; during training of the average."""
        with self._average.in_place(self.model):
            return super().evaluation_loop(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `Trainer`; during training the average."""
        with self._average.in_place(self.model):
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self._average.save(output_dir, self.args.should_save)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._average.load(self.model if model is None else model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self._average.clear()  # the best checkpoint's weights are its average already
        super()._load_best_model()
