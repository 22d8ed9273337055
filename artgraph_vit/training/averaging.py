"""`WeightAverage`: what is evaluated and saved is the exponential moving average of the weights, if asked for.

a_t = d_t a_{t-1} + (1 - d_t) w_t after optimizer step t of the whole run, from a_0 = w_0, the weights before it. The
decay warms up, d_t = min(ema_decay, (1 + t)/(10 + t)), as in TensorFlow's ExponentialMovingAverage; averaging is from
Polyak & Juditsky, Acceleration of Stochastic Approximation by Averaging (1992). model.safetensors of a checkpoint
holds the average, so that it is the model that was evaluated; the weights with which training goes on lie beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

TRAINING_WEIGHTS = "training_weights.safetensors"


class WeightAverage(TrainerCallback):
    """The average of all parameters.

    Args:
        decay (`float`, *optional*): the share of the old average that each step keeps, once it is warm; by default
            nothing is averaged.
    """

    def __init__(self, decay: float | None):
        self.decay = decay
        self.checkpoint: str | None = None  # from which the run that begins is resumed
        self._weights: dict[str, nn.Parameter] = {}
        self._averages: dict[str, Tensor] = {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Averages from now on; of a resumed run the model holds the average, and the weights are read here."""
        self._weights, self._averages = {}, {}
        if self.decay is None:
            return
        self._weights = dict(model.named_parameters())
        self._averages = {name: parameter.detach().clone() for name, parameter in self._weights.items()}
        if self.checkpoint is not None:
            weights = load_file(Path(self.checkpoint) / TRAINING_WEIGHTS)
            with torch.no_grad():
                for name, parameter in self._weights.items():
                    parameter.copy_(weights[name])

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.decay is not None:
            step = state.global_step + 1
            decay = min(self.decay, (1 + step) / (10 + step))
            get_ema_multi_avg_fn(decay)(list(self._averages.values()), list(self._weights.values()), step)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model's weights are the average meanwhile."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._weights.items():  # one at a time: no third copy of all weights
            weight = parameter.detach().clone()
            parameter.copy_(self._averages[name])
            self._averages[name].copy_(weight)

    def on_train_end(self, args, state, control, **kwargs):
        """What is left of a run that does not end with its best checkpoint, which is an average, is the last one."""
        if not (args.load_best_model_at_end and state.best_model_checkpoint):
            self._exchange()
        self._weights, self._averages = {}, {}

    def save(self, folder: str | Path) -> None:
        """Writes the weights with which training goes on."""
        if self._weights:
            weights = {name: parameter.detach().cpu().contiguous() for name, parameter in self._weights.items()}
            save_file(weights, Path(folder) / TRAINING_WEIGHTS, metadata={"format": "pt"})
