"""The model as it is exported, and how a file in onnxruntime compares with it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification
from ..model.tasks import THRESHOLD, Task, label_scores

PIXELS, EMBEDDING = "pixel_values", "embedding"


@dataclass
class Comparison:
    """How a file in onnxruntime compares with the model in torch.

    Args:
        pictures (`int`): how many were compared.
        difference (`float`): the largest, of all probabilities and entries of the embedding.
        agreement (`dict[str, float]`): for a single-label task the share of pictures whose best label is the same, for
            a multi-label task the share of the decisions for or against a label.
    """

    pictures: int = 0
    difference: float = 0.0
    agreement: dict[str, float] = field(default_factory=dict)


class Probabilities(nn.Module):
    """The model as it is exported: a float32 copy on the CPU, which gives `output_names`' tensors as a tuple."""

    def __init__(self, model: ArtGraphViTForImageClassification):
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float()
        self.tasks: list[Task] = list(model.config.tasks)
        self.output_names = [*(task.name for task in self.tasks), EMBEDDING]
        self.eval().requires_grad_(False)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """From float32 `(B, 3, H, W)` to float32 `(B, C)` of each task, and `(B, hidden_size)` of length 1."""
        output = self.model(pixel_values=pixel_values)
        probabilities = [label_scores(output.logits[task.name], task) for task in self.tasks]
        return *probabilities, nn.functional.normalize(output.pooled, dim=-1)


@torch.no_grad()
def compare_onnx(
    path: str | Path, model: ArtGraphViTForImageClassification | Probabilities, batches: Sequence[Tensor]
) -> Comparison:
    """Runs a file and the model it was made of on the same pixels; refuses nothing.

    Args:
        path (`str` or `Path`).
        model ([`ArtGraphViTForImageClassification`] or [`Probabilities`]).
        batches (`Sequence[Tensor]`): float32 `(B, 3, H, W)` each, of any sizes B.
    """
    onnxruntime = import_module("onnxruntime")
    module = model if isinstance(model, Probabilities) else Probabilities(model)
    thresholds = module.model.config.thresholds
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found, differences = Comparison(), [0.0]
    same: dict[str, list[Tensor]] = {task.name: [] for task in module.tasks}
    for pixels in batches:
        names = module.output_names
        expected = dict(zip(names, module(pixels), strict=True))
        outputs = session.run(names, {PIXELS: pixels.numpy()})
        given = {name: torch.from_numpy(values) for name, values in zip(names, outputs, strict=True)}
        differences += [(given[name] - expected[name]).abs().max().item() for name in names]
        for task in module.tasks:
            threshold = thresholds.get(task.name, THRESHOLD)
            equal = _decided(given[task.name], task, threshold) == _decided(expected[task.name], task, threshold)
            same[task.name].append(equal.flatten())
        found.pictures += len(pixels)
    found.difference = float(np.max(differences))  # not a number if one of them is none
    found.agreement = {name: torch.cat(values).double().mean().item() for name, values in same.items()}
    return found


def _decided(probabilities: Tensor, task: Task, threshold: float | Sequence[float]) -> Tensor:
    """The best label, int64 `(B,)`, of a single-label task; which labels apply, bool `(B, C)`, of another."""
    return probabilities > torch.tensor(threshold) if task.is_multi_label else probabilities.argmax(-1)
