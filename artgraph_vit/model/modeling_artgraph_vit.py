"""`ArtGraphViTForImageClassification`: one vision transformer, one linear head a task.

pixel_values -> backbone -> pooled vector -> one dropout -> heads -> logits of each task -> joined loss.
Notable: the loss can be told the denominators of the whole optimizer step, so that its gradient does not depend on
how the rows were divided; a frozen backbone stays in eval mode and builds no graph; a checkpoint that does not hold
exactly the model's tensors is an error. This file travels to the Hub with the weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, cached_file

from .backbones import (
    count_prefix_tokens,
    default_pooling,
    has_cls_token,
    interpolation,
    refuse_unsuitable,
    set_options,
    without_pooler,
)
from .configuration_artgraph_vit import ArtGraphViTConfig, load_backbone_config
from .losses import (
    Target,
    join_losses,
    known_rows,
    multi_label_denominator,
    multi_label_numerator,
    single_label_denominator,
    single_label_numerator,
    soft_targets,
    task_weights,
)
from .tasks import THRESHOLD, Task, predicted_labels


@dataclass
class ArtGraphViTOutput(ModelOutput):
    """What the model returns.

    Args:
        loss (`FloatTensor` of shape `()`, *optional*, with `labels`): the joined loss.
        task_losses (`dict[str, FloatTensor]` of shape `()`, *optional*, with `labels`): the loss of each task, before
            it is weighted; 0 for a task without a known row.
        logits (`dict[str, FloatTensor]` of shape `(B, C)`): the scores of each task's labels.
        pooled (`FloatTensor` of shape `(B, hidden_size)`): the vector under the heads.
        hidden_states, attentions (`tuple[FloatTensor]`, *optional*): the backbone's, when asked for.
    """

    loss: Tensor | None = None
    task_losses: dict[str, Tensor] | None = None
    logits: dict[str, Tensor] | None = None
    pooled: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class TaskHead(nn.Linear):
    """From the pooled vector to the logits of one task, and their loss; knows what its loss needs of the labels.

    Buffers, float32 `(C,)`: `class_weights` of a single-label task; `positive_weights` of a multi-label task, where
    the config bounds them above 1.

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
        """Logits `(B, C)`, divided by the temperature by which the config calibrates them, where it does."""
        logits = super().forward(pooled)
        temperature = self.config.temperatures.get(self.task.name)
        return logits if temperature is None else logits / temperature

    def loss_numerator(self, logits: Tensor, target: Target) -> Tensor:
        """What the rows given add to the numerator of the task's loss: a scalar."""
        if self.task.is_multi_label:
            return multi_label_numerator(logits, target, getattr(self, "positive_weights", None))
        return single_label_numerator(logits, target, self.class_weights)

    def loss_denominator(self, target: Target) -> Tensor:
        """What the numerator is divided by: a scalar."""
        if self.task.is_multi_label:
            dtype = torch.promote_types(self.weight.dtype, torch.float32)
            return multi_label_denominator(target, self.config.multilabel_reduction, dtype)
        return single_label_denominator(target, self.class_weights)


class ArtGraphViTForImageClassification(PreTrainedModel):
    """A vision backbone with one classification head for each task of its config.

    Args:
        config ([`ArtGraphViTConfig`]): needs at least one task, and labels in each.

    Raises:
        ValueError: if a task has fewer than two labels (one, where several may apply).
    """

    config_class = ArtGraphViTConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the Trainer divides no loss of ours: see training/trainer.py
    _supports_sdpa = True
    _supports_flash_attn = True
    _keep_in_fp32_modules_strict = ["log_variances", "class_weights", "positive_weights"]

    def __init__(self, config: ArtGraphViTConfig):
        super().__init__(config)
        if not config.tasks:
            raise ValueError("The config has no task: pass tasks=[Task(...), ...] to ArtGraphViTConfig.")
        for task in config.tasks:
            if task.num_labels < (1 if task.is_multi_label else 2):
                raise ValueError(
                    f"Task {task.name!r} has {task.num_labels} label(s), so there is nothing to tell apart: "
                    "leave the task out or give it more labels."
                )
        refuse_unsuitable(config.backbone_config, config.pooling)
        self.backbone: PreTrainedModel = AutoModel.from_config(
            config.backbone_config, **without_pooler(config.backbone_config)
        )
        if config.pooling in ("cls", "cls_mean") and not has_cls_token(self.backbone):
            raise ValueError(f"pooling={config.pooling!r}: this backbone has no CLS token; use 'mean' or 'pooler'.")
        self._prefix_tokens, self._interpolation = count_prefix_tokens(self.backbone), interpolation(self.backbone)
        self.dropout = nn.Dropout(config.head_dropout)
        self.heads: Any = nn.ModuleDict({task.name: TaskHead(task, config) for task in config.tasks})
        self.log_variances = nn.Parameter(torch.zeros(len(config.tasks)))  # (tasks,), in the config's order
        self._backbone_is_frozen = False
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        name_or_path: str | os.PathLike,
        tasks: Sequence[Task],
        *,
        from_scratch: bool = False,
        revision: str | None = None,
        backbone_options: Mapping[str, Any] | None = None,
        **config_options: Any,
    ) -> ArtGraphViTForImageClassification:
        """Puts fresh heads on a vision backbone.

        Args:
            name_or_path (`str` or `PathLike`): a Hub id or a folder of any vision encoder that `AutoModel` knows;
                of an image-text model (CLIP, SigLIP) the vision tower is taken.
            tasks (`Sequence[Task]`): with their labels.
            from_scratch (`bool`, *optional*, defaults to `False`): take the backbone's config only, and train its
                weights from a random start.
            revision (`str`, *optional*): branch, tag or commit on the Hub.
            backbone_options (`Mapping`, *optional*): options of the backbone's own config, such as `drop_path_rate`.
            config_options: further options of [`ArtGraphViTConfig`]; `pooling` follows the backbone where it is not
                given: the CLS token where there is one (after CLIP's own norm), else the backbone's own pooler,
                else the mean.

        Raises:
            OSError: if there is no such model, or it has no safetensors weights.
            ValueError: if a tensor of the backbone is not in the checkpoint, or its config has no such option.
        """
        backbone_config = load_backbone_config(name_or_path, revision)
        set_options(backbone_config, backbone_options or {})
        if os.path.exists(name_or_path):
            backbone_config.name_or_path = ""  # a path of this machine means nothing to who loads the model
        if hasattr(backbone_config, "use_mask_token"):
            backbone_config.use_mask_token = False  # nothing is masked here: the parameter would never be trained
        chosen = {"pooling": "mean"} | config_options  # any backbone has a mean, until what fits it is known
        config = ArtGraphViTConfig(backbone_config=backbone_config, tasks=list(tasks), **chosen)
        model = cls(config)
        if "pooling" not in config_options:
            config.pooling = default_pooling(model.backbone)
        if not from_scratch:
            refuse_pickles(name_or_path, {"revision": revision})
            model.backbone, loading_info = AutoModel.from_pretrained(
                name_or_path,
                config=backbone_config,
                revision=revision,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, in a sentence
                **without_pooler(backbone_config),
            )
            refuse_incomplete({**loading_info, "unexpected_keys": ()}, name_or_path)
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers, but a tensor that is missing, unexpected or of another shape is an error.

        Raises:
            ValueError: names the tensors; pass `ignore_mismatched_sizes=True` to accept other shapes.
        """
        # A pickled checkpoint can run code when it is read.
        kwargs.update(use_safetensors=True, weights_only=True)
        refuse_pickles(pretrained_model_name_or_path, kwargs)
        accept_other_shapes = kwargs.pop("ignore_mismatched_sizes", False)
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        model, loading_info = loaded
        accepted: dict[str, Any] = {"mismatched_keys": []} if accept_other_shapes else {}
        refuse_incomplete({**loading_info, **accepted}, pretrained_model_name_or_path)
        return (model, loading_info) if output_loading_info else model

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers, but the tensors keep the names they have in memory, and the pipeline is saved too.

        Older releases named some backbones' tensors otherwise; files under those names are not what
        `Trainer` expects when it reads a checkpoint back (`from_pretrained` reads both).
        """
        # Here, since it imports this file. What this file imports anywhere is copied beside the weights.
        from .pipeline_artgraph_vit import TRAVELLING_PIPELINE

        self.config.custom_pipelines = {name: dict(about) for name, about in TRAVELLING_PIPELINE.items()}
        kwargs.setdefault("save_original_format", False)
        return super().save_pretrained(save_directory, **kwargs)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Mapping[str, Tensor] | None = None,
        pooled: Tensor | None = None,
        targets: Mapping[str, Target] | None = None,
        denominators: Tensor | None = None,
        log_term_share: float = 1.0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ArtGraphViTOutput | tuple:
        """From pictures to the logits of each task.

        Args:
            pixel_values (`FloatTensor` of shape `(B, 3, H, W)`): as the image processor of the backbone makes them.
            pooled (`FloatTensor` of shape `(B, hidden_size)`, *optional*): what the backbone gave for these pictures
                before, in place of `pixel_values`.
            labels (`dict[str, Tensor]`, *optional*): for each task int64 `(B,)` with -100 for unknown, or float
                `(B, C)` of 0/1 with -100 for an unknown row or entry.
            targets (`dict[str, Target]`, *optional*): in place of labels, what [`make_targets`] makes of them; mixed
                rows have no labels.
            denominators (`FloatTensor` of shape `(T,)`, *optional*): what to divide each task's numerator by, where
                the batch is a part of an optimizer step (0 for a task with no known row in the whole step);
                by default those of this batch.
            log_term_share (`float`, *optional*, defaults to 1): the part of the log σ terms this batch carries.
            output_hidden_states, output_attentions (`bool`, *optional*, default to the config's): return the
                backbone's.

        Returns:
            [`ArtGraphViTOutput`], or its values as a tuple with `return_dict=False`.

        Raises:
            ValueError: if `labels` does not name exactly the tasks of the config, or if not one of `pixel_values` and
                `pooled` is given.
        """
        if (pixel_values is None) == (pooled is None):
            raise ValueError("Give pixel_values, or what the backbone made of them as pooled, and not both.")
        if pixel_values is not None and not pixel_values.is_floating_point():
            raise ValueError("pixel_values are bytes: make floats of them with artgraph_vit.data.PixelNormalizer.")
        features: Any = {}
        if pooled is None:
            given = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
            asked = {name: getattr(self.config, name) if value is None else value for name, value in given.items()}
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self._backbone_is_frozen):
                # Some backbones know only one of the two.
                features = self.backbone(
                    pixel_values=pixel_values,
                    **self._at_other_size(pixel_values),
                    **{name: True for name, is_asked in asked.items() if is_asked},
                )
                pooled = self._pool(features)  # (B, hidden)
        dropped = self.dropout(pooled)
        logits = {name: head(dropped) for name, head in self.heads.items()}  # each (B, C)

        loss = task_losses = None
        if labels is not None:
            targets = self.make_targets(labels)
        if targets is not None:
            if denominators is None:
                sums, rows = self.loss_denominators(targets)
                denominators = torch.where(rows > 0, sums, 0.0)
            is_known = denominators > 0
            losses = self.loss_numerators(logits, targets) / torch.where(is_known, denominators, 1.0)  # (T,)
            loss = join_losses(losses, is_known, *self.task_weights(), log_term_share)
            task_losses = dict(zip(self.heads, losses.detach().unbind(), strict=True))

        output = ArtGraphViTOutput(
            loss=loss,
            task_losses=task_losses,
            logits=logits,
            pooled=pooled,
            hidden_states=features.get("hidden_states"),
            attentions=features.get("attentions"),
        )
        as_tuple = not (self.config.return_dict if return_dict is None else return_dict)
        return output.to_tuple() if as_tuple else output

    @property
    def dtype(self) -> torch.dtype:
        """The backbone's; the log variances, which come first, are float32 in every model."""
        return self.backbone.dtype

    def make_targets(self, labels: Mapping[str, Tensor]) -> dict[str, Target]:
        """Soft targets of labels as [`forward`] takes them; in training, smoothed as the config says.

        Raises:
            ValueError: if `labels` does not name exactly the tasks of the config.
        """
        if set(labels) != set(self.heads):
            raise ValueError(
                f"labels must name exactly the tasks {', '.join(self.heads)}; got {', '.join(labels) or 'none'}."
            )
        smoothing = self.config.label_smoothing if self.training else 0.0
        return {name: soft_targets(labels[name], head.task, smoothing) for name, head in self.heads.items()}

    def loss_numerators(self, logits: Mapping[str, Tensor], targets: Mapping[str, Target]) -> Tensor:
        """The numerator of each task's loss over the rows given, shape `(T,)`."""
        return torch.stack([head.loss_numerator(logits[name], targets[name]) for name, head in self.heads.items()])

    def loss_denominators(self, targets: Mapping[str, Target]) -> tuple[Tensor, Tensor]:
        """The denominator of each task's loss over the rows given, and how many of them are known, `(T,)` each."""
        sums = torch.stack([head.loss_denominator(targets[name]) for name, head in self.heads.items()])
        return sums, torch.stack([known_rows(targets[name]) for name in self.heads])

    def task_weights(self) -> tuple[Tensor, Tensor]:
        """By what each task's loss is multiplied, and what is added for it, `(T,)` each."""
        config = self.config
        fixed = [(config.task_weights or {}).get(task.name, 1.0) for task in config.tasks]
        return task_weights(config.task_weighting, self.log_variances, config.loss_epsilon, fixed)

    def freeze_backbone(self) -> None:
        """Only heads and log variances learn from now on: the backbone stays in eval mode and builds no graph.

        No flag of a parameter changes, so a model that is wrapped for several processes stays as it is.
        """
        self._backbone_is_frozen = True
        self.backbone.eval()

    def unfreeze_backbone(self) -> None:
        """Everything learns from now on."""
        self._backbone_is_frozen = False
        self.backbone.train(self.training)

    def train(self, mode: bool = True) -> ArtGraphViTForImageClassification:
        """As in PyTorch, but a frozen backbone stays in eval mode."""
        super().train(mode)
        if self._backbone_is_frozen:
            self.backbone.eval()
        return self

    def set_class_weights(self, class_weights: Mapping[str, Tensor]) -> None:
        """Sets the class weights, `(C,)` each and above 0, of the single-label tasks named.

        Raises:
            ValueError: if a name is not such a task's, or the weights do not fit it.
        """
        for name, weights in class_weights.items():
            task = next((task for task in self.config.tasks if task.name == name and not task.is_multi_label), None)
            if task is None:
                raise ValueError(f"{name!r} is not a single-label task of this model, so it has no class weights.")
            if weights.shape != (task.num_labels,) or not bool((weights > 0).all()):
                raise ValueError(f"The class weights of {name!r} must be {task.num_labels} numbers above 0.")
            self.heads[name].class_weights.copy_(weights)

    @torch.no_grad()
    def predict_labels(self, logits: Mapping[str, Tensor]) -> list[dict[str, list[str]]]:
        """The names of the labels predicted for each row: the best one of a single-label task, all those above
        their threshold of a multi-label task (may be none), in the order of their scores.
        """
        rows: list[dict[str, list[str]]] = [{} for _ in range(len(next(iter(logits.values()))))]
        for task in self.config.tasks:
            scores = logits[task.name]
            is_predicted = predicted_labels(scores, task, self.config.thresholds.get(task.name, THRESHOLD))
            for row, order, chosen in zip(rows, scores.argsort(-1, descending=True), is_predicted, strict=True):
                row[task.name] = [task.labels[label] for label in order.tolist() if chosen[label]]
        return rows

    def _pool(self, features: Any) -> Tensor:
        if self.config.pooling == "pooler":
            return features.pooler_output.flatten(1)  # (B, hidden); convolutional backbones give (B, hidden, 1, 1)
        tokens = features.last_hidden_state  # (B, tokens, hidden)
        if tokens.dim() != 3:
            raise ValueError(
                f"This backbone gives no tokens to take the {self.config.pooling} of: use pooling='pooler'."
            )
        if self.config.pooling == "cls":
            return tokens[:, 0]
        mean = tokens[:, self._prefix_tokens :].mean(1)
        return mean if self.config.pooling == "mean" else torch.cat([tokens[:, 0], mean], dim=-1)

    def _at_other_size(self, pixel_values: Any) -> dict[str, bool]:
        """What makes the backbone take pictures of the config's `image_size`, if that is not its own."""
        size = self.config.image_size
        if size is not None and pixel_values.shape[-2:] != (size, size):
            given = "x".join(map(str, pixel_values.shape[-2:]))
            raise ValueError(f"This model takes pictures of {size}x{size} pixels, not of {given}.")
        return {} if size is None else self._interpolation

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, TaskHead):
            init.normal_(module.weight, std=0.02)
            init.zeros_(module.bias)
            for buffer in module.buffers():
                init.ones_(buffer)
        elif module is self:
            init.zeros_(self.log_variances)
        else:
            super()._init_weights(module)


def refuse_pickles(name_or_path: str | os.PathLike, options: Mapping[str, Any]) -> None:
    """An index of safetensors files may name pickles as well, which transformers would read."""
    hub = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
    variant = f".{options['variant']}" if options.get("variant") else ""
    index = cached_file(
        str(name_or_path),
        f"model.safetensors.index{variant}.json",
        **{name: options[name] for name in hub if options.get(name) is not None},
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    files = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values() if index is not None else ()
    if not all(str(name).endswith(".safetensors") for name in files):
        raise ValueError(
            f"The checkpoint {str(name_or_path)!r} names weights that are no safetensors files, and these may run "
            "code when they are read: save it again as safetensors."
        )


def refuse_incomplete(loading_info: Mapping[str, Any], name_or_path: str | os.PathLike) -> None:
    problems = {
        "lacks": loading_info["missing_keys"],
        "has another shape for": loading_info["mismatched_keys"],
        "holds, but the model has no place for,": loading_info["unexpected_keys"],
    }
    for problem, names in problems.items():
        if names:
            listed = ", ".join(sorted(map(str, names))[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise ValueError(
                f"The checkpoint {str(name_or_path)!r} {problem} {len(names)} tensor(s): {listed}. It was made by "
                "another model or is damaged; nothing was loaded in part."
            )


ArtGraphViTConfig.register_for_auto_class()
ArtGraphViTForImageClassification.register_for_auto_class("AutoModelForImageClassification")
