"""`ArtGraphViTConfig`: a backbone's config, the tasks, and how their losses are joined.

The tasks carry their labels, so that a checkpoint gives names back without any other file. A field with a `help` is
also an option of training, declared here alone. transformers takes any name for an option, so misspelt ones are
refused here; a config never brings code of its own. This file travels to the Hub with the weights.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable
from dataclasses import field, fields
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, ViTConfig

from .backbones import build_backbone_config, refuse_code
from .losses import MULTILABEL_REDUCTIONS, WEIGHTINGS
from .tasks import Task


def _is_number(value: Any, least: float, below: float = math.inf) -> bool:
    return type(value) in (int, float) and least <= value < below


# What the values of the fields may be, beside the choices of their metadata, and how to say so.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "image_size": (lambda value: value is None or (type(value) is int and value >= 1), "a whole number of pixels"),
    "head_dropout": (lambda value: _is_number(value, 0, 1), "a number of at least 0 and below 1"),
    # Above 1e-6 the joined loss has no minimum for small task losses.
    "loss_epsilon": (lambda value: _is_number(value, 0) and value <= 1e-6, "a number from 0 to 1e-6"),
    "max_positive_weight": (lambda value: _is_number(value, 1), "a number of at least 1"),
    "label_smoothing": (lambda value: _is_number(value, 0, 1), "a number of at least 0 and below 1"),
    "thresholds": (lambda value: isinstance(value, dict), "a dict with those of each task"),
    "temperatures": (lambda value: isinstance(value, dict), "a dict with that of each task"),
}
# Options of 0.1 with their defaults, with which they did nothing: a config.json of then still holds them.
_REMOVED: dict[str, Any] = {
    "max_task_weight": None,
    "task_weighting_temperature": 1.0,
    "multilabel_loss": "bce",
    "asymmetric_gamma_negative": 4.0,
    "asymmetric_gamma_positive": 1.0,
    "asymmetric_margin": 0.05,
    "logit_adjustment": 0.0,
    "logit_offsets": {},
}
_REMOVED_TASK_WEIGHTINGS = ("uncertainty_liebel", "soft_uncertainty", "log")
# Names that transformers writes into a config.json although they are no fields of a config.
_WRITTEN_BY_TRANSFORMERS = re.compile(
    "_.*|attn_implementation|auto_map|custom_pipelines|model_type|name_or_path|output_attentions|quantization_config|"
    "torch_dtype|use_cache"
)


def _option(default: Any, help: str, *choices: str) -> Any:
    """A field that is an option of training too."""
    return field(default=default, metadata={"help": help, **({"choices": choices} if choices else {})})


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
            The ε of the joined loss, in [0, 1e-6].
        task_weighting (`str`, *optional*, defaults to `"uncertainty"`):
            How the losses of the tasks are joined: by learned log variances, `"equal"` (their sum) or `"fixed"`.
        task_weights (`dict[str, float]`, *optional*, defaults to none):
            The weight of each task, at least 0, for `task_weighting="fixed"`.
        multilabel_reduction (`str`, *optional*, defaults to `"known_rows"`):
            What a multi-label loss is divided by: the rows with a known label, or `"all_rows"`.
        max_positive_weight (`float`, *optional*, defaults to 1):
            The most that a label's positives weigh more than its negatives; above 1 they weigh as much more as they
            are fewer, up to it.
        label_smoothing (`float`, *optional*, defaults to 0):
            The part of each label that training spreads over all labels, in [0, 1).
        thresholds (`dict[str, float | list[float]]`, *optional*, defaults to none):
            Decision threshold of a multi-label task (one, or one a label), each in (0, 1); 0.5 where absent.
        temperatures (`dict[str, float]`, *optional*, defaults to none):
            What the logits of a task are divided by, above 0.
        tuning (`dict`, *optional*, defaults to none):
            A record of how the last two were chosen.

    Raises:
        ValueError: on a misspelt name, a value outside the ranges above, or one that would bring code.
    """

    model_type = "artgraph_vit"
    sub_configs = {"backbone_config": AutoConfig}
    keys_to_ignore_at_inference = ["task_losses", "pooled", "hidden_states", "attentions"]

    backbone_config: dict | PreTrainedConfig | None = None
    tasks: list = field(default_factory=list)
    pooling: str = _option("cls", "The vector under the heads.", "cls", "mean", "cls_mean", "pooler")
    image_size: int | None = _option(
        None, "Pixels a side of the pictures, such as 384; by default the backbone's own."
    )
    head_dropout: float = _option(0.3, "Probability of the dropout before the heads.")
    loss_epsilon: float = _option(1e-8, "The epsilon of the joined loss.")
    task_weighting: str = _option("uncertainty", "How the losses of the tasks are joined.", *WEIGHTINGS)
    task_weights: dict | None = _option(None, 'For task_weighting fixed, as JSON: {"artist": 1.0, "tags": 10.0}.')
    multilabel_reduction: str = _option(
        "known_rows", "What a multi-label loss is divided by; all_rows is the source's way.", *MULTILABEL_REDUCTIONS
    )
    max_positive_weight: float = _option(
        1.0, "Positives of multi-label tasks weigh negatives/positives, at most this; 1 for no weights."
    )
    label_smoothing: float = _option(0.0, "Part of each label that is spread over all.")
    thresholds: dict = field(default_factory=dict)
    temperatures: dict = field(default_factory=dict)
    tuning: dict = field(default_factory=dict)

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_removed(kwargs)
        self._refuse_misspelt(kwargs)
        refuse_code({name: value for name, value in kwargs.items() if name != "auto_map"})
        if any(not str(label).startswith("LABEL_") for label in (self.id2label or {}).values()):  # transformers' own
            raise ValueError("id2label is no option here: give the labels of each task in tasks.")
        self.backbone_config = ViTConfig() if self.backbone_config is None else self.backbone_config
        if isinstance(self.backbone_config, PreTrainedConfig):
            vars(self.backbone_config).pop("auto_map", None)  # it names code, which is never read for a backbone
            refuse_code(self.backbone_config.to_dict())
        else:
            self.backbone_config = build_backbone_config(self.backbone_config)
        self.tasks = [Task.from_dict(task) for task in self.tasks or ()]
        self._check_values()
        self._check_values_of_tasks()
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, but what is given beside a config is checked as well."""
        # dtype, and what is changed in the config of a backbone, is transformers' affair.
        own = {known.name for known in fields(cls)} - {"dtype", "backbone_config"}
        given = {name: kwargs.pop(name) for name in own & set(kwargs)}
        return super().from_dict({**config_dict, **given}, **kwargs)

    def _refuse_removed(self, options: dict[str, Any]) -> None:
        """Takes the options that are gone out of `options`."""
        removed = {name: options.pop(name) for name in _REMOVED.keys() & options.keys()}
        changed = {name: value for name, value in removed.items() if value != _REMOVED[name]}
        if self.task_weighting in _REMOVED_TASK_WEIGHTINGS:
            changed["task_weighting"] = self.task_weighting
        for name, value in sorted(changed.items()):
            advice = "it served training only, so take it out of config.json and the model predicts as before"
            if name == "logit_offsets":
                advice = "add its numbers to the biases of the heads (heads.TASK.bias) and take it out of config.json"
            raise ValueError(f"{name}={value!r} is gone since version 0.2.0: {advice}.")

    @classmethod
    def _refuse_misspelt(cls, options: dict[str, Any]) -> None:
        known = {known.name for known in fields(cls)}
        for name in options:
            if name not in known and not _WRITTEN_BY_TRANSFORMERS.fullmatch(name):
                close = difflib.get_close_matches(name, known, n=1)
                hint = f": did you mean {close[0]!r}?" if close else "."
                raise ValueError(f"{cls.__name__} has no option {name!r}{hint}")

    def _check_values(self) -> None:
        for known in fields(self):
            value, choices = getattr(self, known.name), known.metadata.get("choices")
            if choices and value not in choices:
                raise ValueError(f"{known.name}={value!r}: use one of {', '.join(choices)}.")
        for name, (is_right, what) in _VALUES.items():
            if not is_right(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)!r}: use {what}.")

    def _check_values_of_tasks(self) -> None:
        """Weights, thresholds and temperatures: each of a task, and as many numbers as it has labels."""
        tasks, weights = {task.name: task for task in self.tasks}, self.task_weights
        if len(tasks) < len(self.tasks):
            raise ValueError(f"Each task needs a name of its own, got {', '.join(task.name for task in self.tasks)}.")
        if tasks and self.max_positive_weight > 1 and not any(task.is_multi_label for task in self.tasks):
            raise ValueError("max_positive_weight is for multi-label tasks, and there is none: leave it out.")
        if self.task_weighting != "fixed":
            if weights:
                raise ValueError(
                    f"task_weights are for task_weighting='fixed', not for {self.task_weighting!r}: leave them out."
                )
        elif not isinstance(weights, dict) or (tasks and weights.keys() != tasks.keys()):
            each = ", ".join(tasks) or "the tasks"
            raise ValueError(f"task_weighting='fixed' needs task_weights, one for each of {each}; got {weights!r}.")
        elif not all(_is_number(weight, 0) for weight in weights.values()):
            raise ValueError(f"task_weights={weights!r}: use numbers of at least 0.")
        for name, threshold in self.thresholds.items():
            if name not in tasks or not tasks[name].is_multi_label:
                raise ValueError(f"thresholds names {name!r}, which is not a multi-label task of this config.")
            values = threshold if isinstance(threshold, (list, tuple)) else [threshold]
            count = tasks[name].num_labels
            if len(values) not in (1, count) or not all(_is_number(value, 0, 1) and value > 0 for value in values):
                raise ValueError(
                    f"thresholds[{name!r}] must be one number, or one for each of the {count} labels, above 0 and "
                    "below 1."
                )
        for name, temperature in self.temperatures.items():
            if name not in tasks:
                raise ValueError(f"temperatures names {name!r}, which is not a task of this config.")
            if not _is_number(temperature, 0) or temperature == 0:
                raise ValueError(f"temperatures[{name!r}] must be a number above 0.")

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
        ValueError: if transformers has no such model of its own.
    """
    values, _ = PreTrainedConfig.get_config_dict(name_or_path, revision=revision)
    values.pop("auto_map", None)  # many models that transformers has by now still carry the code of their first days
    config = build_backbone_config({"model_type": None, **values})  # a file must say what it is of
    config.name_or_path = str(name_or_path)
    return getattr(config, "vision_config", config)
