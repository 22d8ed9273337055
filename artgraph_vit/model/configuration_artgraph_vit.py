"""`ArtGraphViTConfig`: a backbone's config, the tasks, and how their losses are joined.

The tasks carry their labels, so that a checkpoint gives names back without any other file. Unknown names and
values that cannot be meant are refused here, before any memory is taken; a config never brings code of its own.
This file travels to the Hub.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, ViTConfig

from .backbones import build_backbone_config
from .limits import MAX_PARAMETERS, MAX_SIDE, one_line, refuse_absurd, refuse_code, shortened
from .losses import MULTILABEL_REDUCTIONS, WEIGHTINGS
from .tasks import Task

POOLINGS = ("cls", "mean", "cls_mean", "pooler")
_CHOICES: dict[str, tuple[str, ...]] = {
    "pooling": POOLINGS,
    "task_weighting": WEIGHTINGS,
    "multilabel_reduction": MULTILABEL_REDUCTIONS,
}
# What each number may be, and how to say so.
_NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "head_dropout": (lambda value: 0 <= value < 1, "a probability of at least 0 and below 1"),
    "loss_epsilon": (lambda value: 0 <= value <= 1e-6, "a number from 0 to 1e-6"),
    # Between 0 and 1 the gradient of the focusing has no bound.
    "max_positive_weight": (lambda value: 1 <= value < math.inf, "a number of at least 1"),
    "label_smoothing": (lambda value: 0 <= value < 1, "a number of at least 0 and below 1"),
}
# Options of one way to do it, which would be ignored with another.
_ONLY_WITH: dict[str, tuple[str, tuple[str, ...]]] = {
    "loss_epsilon": ("task_weighting", ("uncertainty",)),
}
MAX_TASKS = 1_000
MAX_LABELS = 1_000_000  # over all tasks: far above any vocabulary, far below what exhausts a machine
MAX_LABEL_LENGTH = 1_000  # characters
# Names that transformers itself writes into a config.json although they are no fields of a config.
_WRITTEN_BY_TRANSFORMERS = (
    {
        "task_weighting_temperature",
        "asymmetric_gamma_negative",
        "asymmetric_gamma_positive",
        "asymmetric_margin",
        "logit_adjustment",
        "max_task_weight",
        "multilabel_loss",
        "logit_offsets",
    }
    | {"auto_map", "model_type", "torch_dtype", "attn_implementation", "num_labels"}
    | {
        "custom_pipelines",
        "quantization_config",
        "use_cache",
        "name_or_path",
        "output_attentions",
    }
)
# transformers gives every config two labels of no meaning; others would be a second list of labels beside the tasks.
_NO_LABELS: dict[str, tuple] = {
    "num_labels": (2,),
    "id2label": (None, {0: "LABEL_0", 1: "LABEL_1"}, {"0": "LABEL_0", "1": "LABEL_1"}),
    "label2id": (None, {"LABEL_0": 0, "LABEL_1": 1}),
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
            the patches' tokens), `"cls_mean"` (both, one after the other) or `"pooler"` (the backbone's own
            `pooler_output`).
        image_size (`int`, *optional*, defaults to the backbone's own):
            Pixels of a side of the pictures, to which position embeddings are interpolated.
        head_dropout (`float`, *optional*, defaults to 0.3):
            Probability of the one dropout before the heads, in [0, 1).
        loss_epsilon (`float`, *optional*, defaults to 1e-8):
            The ε of the joined loss, in [0, 1e-6] (above that the loss has no minimum for small task losses).
        task_weighting (`str`, *optional*, defaults to `"uncertainty"`):
            How the losses of the tasks are joined: a rule of task_weighting.py.
        max_task_weight (`float`, *optional*, defaults to none):
            What the weight of a task cannot exceed.
        task_weights (`dict[str, float]`, *optional*, defaults to none):
            The weight of each task, for `task_weighting="fixed"`.
        task_weighting_temperature (`float`, *optional*, defaults to 1):
            Of `task_weighting="soft_uncertainty"`: the larger, the more equal the weights.
        multilabel_reduction (`str`, *optional*, defaults to `"known_rows"`):
            What a multi-label loss is divided by: the rows with a known label, or `"all_rows"`.
        multilabel_loss (`str`, *optional*, defaults to `"bce"`):
            Binary cross-entropy, or `"asymmetric"`, with `asymmetric_gamma_negative` (4), `asymmetric_gamma_positive`
            (1) and `asymmetric_margin` (0.05).
        max_positive_weight (`float`, *optional*, defaults to 1):
            The most that a label's positives weigh more than its negatives; above 1 they weigh as much more as they
            are fewer, up to it.
        label_smoothing (`float`, *optional*, defaults to 0):
            The part of each label that training spreads over all labels, in [0, 1).
        logit_adjustment (`float`, *optional*, defaults to 0):
            τ: the loss of single-label tasks is taken of z + τ·log π, π the classes' shares of the train rows.
        thresholds (`dict[str, float | list[float]]`, *optional*, defaults to none):
            Decision threshold of a multi-label task (one, or one a label), each in (0, 1); 0.5 where absent.
        temperatures (`dict[str, float]`, *optional*, defaults to none):
            What the logits of a task are divided by, above 0.
        logit_offsets (`dict[str, list[float]]`, *optional*, defaults to none):
            What is added to the logits of a single-label task before, one number a label.
        tuning (`dict`, *optional*, defaults to none):
            A record of how the last three were chosen.

    Raises:
        ValueError: on a misspelt name or a value outside the ranges above.
    """

    model_type = "artgraph_vit"
    sub_configs = {"backbone_config": AutoConfig}
    keys_to_ignore_at_inference = ["task_losses", "pooled", "hidden_states", "attentions"]

    backbone_config: dict | PreTrainedConfig | None = None
    tasks: list = field(default_factory=list)
    pooling: str = "cls"
    image_size: int | None = None
    head_dropout: float = 0.3
    loss_epsilon: float = 1e-8
    task_weighting: str = "uncertainty"
    task_weights: dict | None = None
    multilabel_reduction: str = "known_rows"
    max_positive_weight: float = 1.0
    label_smoothing: float = 0.0
    thresholds: dict = field(default_factory=dict)
    temperatures: dict = field(default_factory=dict)
    tuning: dict = field(default_factory=dict)

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_misspelt(kwargs)
        self._refuse_other_labels(kwargs)
        refuse_code({**kwargs, "dtype": self.dtype})
        # Names that begin with an underscore are notes of transformers; as attributes they would replace its parts.
        kept = ("_name_or_path", "_attn_implementation")
        kwargs = {name: value for name, value in kwargs.items() if name in kept or not name.startswith("_")}
        if self.backbone_config is None:
            self.backbone_config = ViTConfig()
        elif isinstance(self.backbone_config, PreTrainedConfig):
            vars(self.backbone_config).pop("auto_map", None)  # it names code, which is never read for a backbone
            refuse_absurd(self.backbone_config.to_dict())
        else:
            self.backbone_config = build_backbone_config(self.backbone_config)
        self._refuse_absurd_tasks()
        self.tasks = [Task.from_dict(task) for task in self.tasks or ()]
        self._check_values()
        self._refuse_absurd_heads()
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers; a file that is nested too deeply, or no config at all, is a `ValueError`."""
        try:
            values, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
            if not isinstance(values, dict):
                raise TypeError
        except (RecursionError, AttributeError, TypeError) as error:  # what transformers makes of such files
            raise ValueError(
                f"The config.json of {str(pretrained_model_name_or_path)!r} is no config: use one that "
                "save_pretrained wrote."
            ) from error
        return values, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, but what is given beside a config is checked too, and any error is a `ValueError`."""
        given = {known.name: kwargs.pop(known.name) for known in fields(cls) if known.name in set(kwargs) - {"dtype"}}
        backbones = (config_dict.get("backbone_config"), given.get("backbone_config"))
        if all(isinstance(backbone, dict) for backbone in backbones):
            given["backbone_config"] = {**backbones[0], **backbones[1]}  # type: ignore[dict-item]
        try:
            return super().from_dict({**config_dict, **given}, **kwargs)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"This config cannot be used: {one_line(error)}.") from error

    @classmethod
    def _refuse_misspelt(cls, names: dict[str, Any]) -> None:
        known = {known.name for known in fields(cls)} | _WRITTEN_BY_TRANSFORMERS
        for name in names:
            if name not in known and not name.startswith("_"):
                close = difflib.get_close_matches(name, known, n=1)
                hint = f": did you mean {close[0]!r}?" if close else "."
                raise ValueError(f"{cls.__name__} has no option {name!r}{hint}")

    def _refuse_other_labels(self, options: Mapping[str, Any]) -> None:
        given = {"id2label": self.id2label, "label2id": self.label2id}
        if "num_labels" in options:
            given["num_labels"] = options["num_labels"]
        for name, value in given.items():
            if value not in _NO_LABELS[name] or isinstance(value, float):
                raise ValueError(f"{name} is no option here: give the labels of each task in tasks.")

    def _refuse_absurd_tasks(self) -> None:
        """Looks at the tasks before an object is made of each."""
        if not isinstance(self.tasks, (list, tuple, type(None))):
            raise ValueError(f"tasks={shortened(self.tasks)}: give a list of tasks.")
        if len(self.tasks or ()) > MAX_TASKS:
            raise ValueError(f"The config has {len(self.tasks):,} tasks: give {MAX_TASKS:,} at most.")
        total = 0
        for task in self.tasks or ():
            name, labels = (task.name, task.labels) if isinstance(task, Task) else (None, ())
            if isinstance(task, dict):
                name, labels = task.get("name"), task.get("labels", ())
                if not isinstance(labels, (list, tuple)):
                    raise ValueError(f"Task {shortened(name)} has labels={shortened(labels)}: give a list of labels.")
            elif not isinstance(task, Task):
                raise ValueError(
                    f"A task is given as a dict with name, problem_type and labels, not as {shortened(task)}."
                )
            total += len(labels)
            if total > MAX_LABELS:
                raise ValueError(f"The tasks have more than {MAX_LABELS:,} labels together, which cannot be meant.")
            if any(isinstance(text, str) and len(text) > MAX_LABEL_LENGTH for text in (name, *labels)):
                raise ValueError(
                    f"Task {shortened(name)} has a name or label of more than {MAX_LABEL_LENGTH:,} characters: cut it."
                )

    def _check_values(self) -> None:
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"Each task needs a name of its own, got {', '.join(names)}.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={shortened(getattr(self, name))}: use one of {', '.join(choices)}.")
        for name, (is_right, what) in _NUMBERS.items():
            value = getattr(self, name)
            if type(value) not in (int, float):
                raise ValueError(f"{name}={shortened(value)}: use a number.")
            if not is_right(value):  # also of nan
                raise ValueError(f"{name}={value}: use {what}.")
        size = self.image_size
        if size is not None and (type(size) is not int or not 1 <= size <= MAX_SIDE):
            raise ValueError(f"image_size={shortened(size)}: use an integer from 1 to {MAX_SIDE:,}.")
        self._check_task_weights()
        self._check_decisions()

    def _check_task_weights(self) -> None:
        for name, (option, wanted) in _ONLY_WITH.items():
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != default and getattr(self, option) not in wanted:
                raise ValueError(
                    f"{name}={shortened(value)} does nothing with {option}={getattr(self, option)!r}, only with "
                    f"{' or '.join(wanted)}: leave it out."
                )
        if self.tasks and self.max_positive_weight > 1 and not any(task.is_multi_label for task in self.tasks):
            raise ValueError("max_positive_weight is for multi-label tasks, and there is none: leave it out.")
        names = [task.name for task in self.tasks]
        if self.task_weighting != "fixed":
            if self.task_weights:
                raise ValueError(
                    f"task_weights are for task_weighting='fixed', not for {self.task_weighting!r}: leave them out."
                )
            return
        weights = self.task_weights
        if not isinstance(weights, dict) or (names and set(weights) != set(names)):
            raise ValueError(
                f"task_weighting='fixed' needs task_weights, one for each of {', '.join(names) or 'the tasks'}; "
                f"got {shortened(weights)}."
            )
        if not all(type(weight) in (int, float) and 0 <= weight < math.inf for weight in weights.values()):
            raise ValueError(f"task_weights={shortened(weights)}: use numbers of at least 0.")

    def _check_decisions(self) -> None:
        """Thresholds, temperatures and offsets: each of a task, and as many numbers as it has labels."""
        for name in ("thresholds", "temperatures", "tuning"):
            value = getattr(self, name)
            if not isinstance(value, (dict, type(None))):
                raise ValueError(f"{name}={shortened(value)}: give a dict with the {name} of each task.")
            setattr(self, name, dict(value or {}))
        by_name = {task.name: task for task in self.tasks}
        for name, threshold in self.thresholds.items():
            task = by_name.get(name)
            if task is None or not task.is_multi_label:
                raise ValueError(f"thresholds names {name!r}, which is not a multi-label task of this config.")
            values = threshold if isinstance(threshold, (list, tuple)) else [threshold]
            if len(values) not in (1, task.num_labels) or not all(
                isinstance(value, (int, float)) and math.isfinite(value) and 0 < value < 1 for value in values
            ):
                raise ValueError(
                    f"thresholds[{name!r}] must be one number, or one for each of the {task.num_labels} labels, "
                    "above 0 and below 1."
                )
        for name, temperature in self.temperatures.items():
            if name not in by_name:
                raise ValueError(f"temperatures names {name!r}, which is not a task of this config.")
            if type(temperature) not in (int, float) or not 0 < temperature < math.inf:
                raise ValueError(f"temperatures[{name!r}] must be a number above 0.")

    def _refuse_absurd_heads(self) -> None:
        if self.hidden_size * sum(task.num_labels for task in self.tasks) > MAX_PARAMETERS // 10:
            raise ValueError(
                f"The heads would have more than {MAX_PARAMETERS // 10**10} billion parameters together: give fewer "
                "labels or a smaller backbone."
            )

    @property
    def hidden_size(self) -> int:
        """Length of the pooled vector."""
        backbone: Any = self.backbone_config
        hidden = backbone.hidden_size if hasattr(backbone, "hidden_size") else backbone.hidden_sizes[-1]
        return 2 * hidden if self.pooling == "cls_mean" else hidden

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "tasks": [task.to_dict() for task in self.tasks]}


def load_backbone_config(name_or_path: str | os.PathLike, revision: str | None = None) -> Any:
    """The config of a vision encoder, from a folder or the Hub; of an image-text model, that of its vision tower.

    Code that lies beside the config is never run.

    Raises:
        OSError: if there is none.
        ValueError: if transformers has no such model of its own, or a value cannot be meant.
    """
    values, _ = ArtGraphViTConfig.get_config_dict(name_or_path, revision=revision)
    values.pop("auto_map", None)  # many models that transformers has by now still carry the code of their first days
    config = build_backbone_config({"model_type": None, **values})  # a file must say what it is of
    config.name_or_path = str(name_or_path)
    return getattr(config, "vision_config", config)
