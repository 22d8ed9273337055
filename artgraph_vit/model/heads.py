"""`TaskHead`: the linear layer of one task, and the loss that it is trained by. Travels to the Hub."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_artgraph_vit import ArtGraphViTConfig
from .losses import (
    multi_label_denominator,
    multi_label_numerator,
    single_label_denominator,
    single_label_numerator,
)
from .tasks import Task


class TaskHead(nn.Linear):
    """From the pooled vector to the logits of one task; carries what its loss needs to know of the labels.

    Buffers, float32 `(C,)`: `class_weights` of a single-label task; `log_prior`, the logarithm of each class's share
    of the train rows, where the config adjusts the logits in the loss; `positive_weights` of a multi-label task,
    where the config bounds them above 1.

    Args:
        task (`Task`).
        config ([`ArtGraphViTConfig`]).
    """

    def __init__(self, task: Task, config: ArtGraphViTConfig):
        super().__init__(config.hidden_size, task.num_labels)
        self.task, self.config = task, config
        if not task.is_multi_label:
            self.class_weights = nn.Buffer(torch.ones(task.num_labels))
        elif config.max_positive_weight > 1:
            self.positive_weights = nn.Buffer(torch.ones(task.num_labels))

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits `(B, C)`; with the offsets and the temperature by which the config calibrates them, where it does."""
        logits = super().forward(pooled)
        temperature = self.config.temperatures.get(self.task.name)
        return logits if temperature is None else logits / temperature

    def loss_numerator(self, logits: Tensor, labels: Tensor, share: Tensor | None = None) -> Tensor:
        """The numerator of the task's loss, a scalar; labels are smoothed in training only."""
        config = self.config
        smoothing = config.label_smoothing if self.training else 0.0
        if not self.task.is_multi_label:
            return single_label_numerator(logits, labels, self.class_weights, smoothing, share)
        weights = getattr(self, "positive_weights", None)
        return multi_label_numerator(logits, labels, smoothing, weights, share)

    def loss_denominator(self, labels: Tensor, share: Tensor | None = None) -> Tensor:
        """What the numerator is divided by, a scalar."""
        if self.task.is_multi_label:
            return multi_label_denominator(labels, self.config.multilabel_reduction, share)
        return single_label_denominator(labels, self.class_weights, share)

    @torch.no_grad()
    def init_weights(self) -> None:
        """A fresh head: small random weights, and nothing known of the labels."""
        init.normal_(self.weight, std=0.02)
        init.zeros_(self.bias)
        for name, buffer in self.named_buffers():
            (init.zeros_ if name == "log_prior" else init.ones_)(buffer)
