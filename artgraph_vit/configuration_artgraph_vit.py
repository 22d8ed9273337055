"""`ArtGraphViTConfig`: a backbone's config, the tasks, and how their losses are joined.

The tasks carry their labels, so that a checkpoint gives names back without any other file. Unknown names and
values that cannot be meant are refused here, before any memory is taken. This file travels to the Hub.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import field, fields
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, ViTConfig

from .tasks import Task

POOLINGS = ("cls", "mean", "pooler")
MULTILABEL_REDUCTIONS = ("known_rows", "all_rows")
MAX_LABELS = 1_000_000  # over all tasks: far above any vocabulary, far below what exhausts a machine
# Names that transformers itself writes into a config.json although they are no fields of a config.
_WRITTEN_BY_TRANSFORMERS = {"auto_map", "model_type", "torch_dtype", "attn_implementation", "num_labels"} | {
    "custom_pipelines",
    "use_cache",
    "name_or_path",
    "output_attentions",
}


class ArtGraphViTConfig(PreTrainedConfig):
    """Configuration of [`ArtGraphViTForImageClassification`].

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*, defaults to ViT-B/16's):
            The config of any vision encoder that `AutoModel` knows.
        tasks (`list[Task]` or list of their JSON form, *optional*, defaults to none):
            The tasks in order; one head each. A model needs at least one.
        pooling (`str`, *optional*, defaults to `"cls"`):
            The vector under the heads: `"cls"` (the first token of the last hidden state), `"mean"` (the mean of
            the last hidden state) or `"pooler"` (the backbone's own `pooler_output`).
        head_dropout (`float`, *optional*, defaults to 0.3):
            Probability of the one dropout before the heads, in [0, 1).
        loss_epsilon (`float`, *optional*, defaults to 1e-8):
            The ε of the joined loss, in [0, 1e-6] (above that the loss has no minimum for small task losses).
        multilabel_reduction (`str`, *optional*, defaults to `"known_rows"`):
            What a multi-label loss is divided by: the rows with a known label, or `"all_rows"`.
        thresholds (`dict[str, float | list[float]]`, *optional*, defaults to none):
            Decision threshold of a multi-label task (one, or one a label), each in (0, 1); 0.5 where absent.

    Raises:
        ValueError: on a misspelt name or a value outside the ranges above.
    """

    model_type = "artgraph_vit"
    sub_configs = {"backbone_config": AutoConfig}
    keys_to_ignore_at_inference = ["task_losses", "pooled", "hidden_states", "attentions"]

    backbone_config: dict | PreTrainedConfig | None = None
    tasks: list = field(default_factory=list)
    pooling: str = "cls"
    head_dropout: float = 0.3
    loss_epsilon: float = 1e-8
    multilabel_reduction: str = "known_rows"
    thresholds: dict = field(default_factory=dict)

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_misspelt(kwargs)
        if self.backbone_config is None:
            self.backbone_config = ViTConfig()
        elif isinstance(self.backbone_config, dict):
            backbone = dict(self.backbone_config)
            self.backbone_config = AutoConfig.for_model(backbone.pop("model_type", "vit"), **backbone)
        self.tasks = [Task.from_dict(task) for task in self.tasks or ()]
        self.thresholds = dict(self.thresholds or {})
        self._check_values()
        super().__post_init__(**kwargs)

    @classmethod
    def _refuse_misspelt(cls, names: dict[str, Any]) -> None:
        known = {known.name for known in fields(cls)} | set(vars(PreTrainedConfig)) | _WRITTEN_BY_TRANSFORMERS
        for name in names:
            if name not in known and not name.startswith("_"):
                close = difflib.get_close_matches(name, known, n=1)
                hint = f": did you mean {close[0]!r}?" if close else "."
                raise ValueError(f"{cls.__name__} has no option {name!r}{hint}")

    def _check_values(self) -> None:
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"Each task needs a name of its own, got {', '.join(names)}.")
        if sum(task.num_labels for task in self.tasks) > MAX_LABELS:
            raise ValueError(f"The tasks have more than {MAX_LABELS:,} labels together, which cannot be meant.")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling={self.pooling!r}: use one of {', '.join(POOLINGS)}.")
        if self.multilabel_reduction not in MULTILABEL_REDUCTIONS:
            raise ValueError(
                f"multilabel_reduction={self.multilabel_reduction!r}: use one of {', '.join(MULTILABEL_REDUCTIONS)}."
            )
        for name in ("head_dropout", "loss_epsilon"):
            if not isinstance(getattr(self, name), (int, float)):
                raise ValueError(f"{name}={getattr(self, name)!r}: use a number.")
        if not 0 <= self.head_dropout < 1:
            raise ValueError(f"head_dropout={self.head_dropout}: use a probability of at least 0 and below 1.")
        if not 0 <= self.loss_epsilon <= 1e-6:
            raise ValueError(f"loss_epsilon={self.loss_epsilon}: use a number from 0 to 1e-6.")
        for name, threshold in self.thresholds.items():
            task = next((task for task in self.tasks if task.name == name and task.is_multi_label), None)
            values = threshold if isinstance(threshold, (list, tuple)) else [threshold]
            if task is None:
                raise ValueError(f"thresholds names {name!r}, which is not a multi-label task of this config.")
            if len(values) not in (1, task.num_labels) or not all(
                isinstance(value, (int, float)) and math.isfinite(value) and 0 < value < 1 for value in values
            ):
                raise ValueError(
                    f"thresholds[{name!r}] must be one number, or one for each of the {task.num_labels} labels, "
                    "above 0 and below 1."
                )

    @property
    def hidden_size(self) -> int:
        """Length of the pooled vector."""
        backbone: Any = self.backbone_config
        return backbone.hidden_size if hasattr(backbone, "hidden_size") else backbone.hidden_sizes[-1]

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "tasks": [task.to_dict() for task in self.tasks]}
