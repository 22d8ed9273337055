"""The options of a run: the model, and `TrainingArguments` with the source's recipe; data/options.py has the data.

The defaults are those of the published ArtGraph model: 35 epochs, 5 of them with a frozen backbone at 1e-3, then
5e-5; batches of 32, AdamW's defaults, constant learning rate, gradient clipping at 1, dropout 0.3 before the heads,
and the checkpoint with the best `avg_macro_f1`. An option of `TrainingArguments` works, or is refused here.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from transformers import SchedulerType, TrainingArguments
from transformers.training_args import OptimizerNames
from transformers.utils import strtobool

from ..data.options import DataArguments, choice
from ..errors import UserError
from ..model.configuration_artgraph_vit import ArtGraphViTConfig
from .class_statistics import CLASS_WEIGHTS

_OF_CONFIG = {option.name: option for option in fields(ArtGraphViTConfig)}


def of_config(name: str, **changes: Any) -> Any:
    """An option that the model's config declares, with its default, help and choices."""
    option = _OF_CONFIG[name]
    return field(**{"default": option.default, "metadata": dict(option.metadata), **changes})


@dataclass
class ModelArguments:
    """Which model is trained."""

    _argument_group_name: ClassVar[str] = "model"

    backbone: str = field(
        default="google/vit-base-patch16-224-in21k",
        metadata={"help": "Hub id or folder of the vision backbone; its image processor is used too."},
    )
    backbone_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the backbone."})
    from_scratch: bool = field(
        default=False, metadata={"help": "Take the backbone's config only and start from random weights."}
    )
    pooling: str | None = of_config(
        "pooling", default=None, metadata={"help": "cls, mean, cls_mean or pooler; by default what fits the backbone."}
    )
    image_size: int | None = of_config("image_size")
    drop_path_rate: float | None = field(
        default=None,
        metadata={"help": "Stochastic depth in the second phase; by default what the backbone's config says."},
    )
    head_dropout: float = of_config("head_dropout")
    loss_epsilon: float = of_config("loss_epsilon")
    task_weighting: str = of_config("task_weighting")
    task_weights: dict | str | None = of_config("task_weights")
    log_variance_init: str = field(
        default="0", metadata={"help": "Where log variances start: a number, or auto, from the losses at the prior."}
    )
    multilabel_reduction: str = of_config("multilabel_reduction")
    class_weights: str = choice(
        "balanced",
        tuple(CLASS_WEIGHTS),
        "Class weights of single-label losses, from the train split; balanced as in sklearn.",
    )
    max_positive_weight: float = of_config("max_positive_weight")
    label_smoothing: float = of_config("label_smoothing")

    def __post_init__(self) -> None:
        if self.drop_path_rate is not None and not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={self.drop_path_rate:g}: use a number from 0 to below 1, such as 0.1.")
        if isinstance(self.task_weights, str):
            try:
                self.task_weights = json.loads(self.task_weights)
            except json.JSONDecodeError as error:
                raise ValueError(f'task_weights={self.task_weights!r} is not JSON like {{"artist": 1.0}}.') from error
        if self.log_variance_init != "0" and self.task_weighting != "uncertainty":
            raise ValueError(
                f"log_variance_init={self.log_variance_init!r} is for task_weighting 'uncertainty', which learns log "
                f"variances, not for {self.task_weighting!r}: leave it out."
            )
        if self.log_variance_init != "auto":
            try:
                is_number = math.isfinite(float(self.log_variance_init))
            except ValueError:
                is_number = False
            if not is_number:
                raise ValueError(f"log_variance_init={self.log_variance_init!r}: use a number, or auto.")


# Options of `TrainingArguments` that must have one value, and why not another.
_ONLY: dict[str, tuple[Any, str]] = {
    "label_names": (["labels"], "the collator gives labels under this name"),
    "remove_unused_columns": (False, "pictures are decoded when they are fetched, and labels stand in columns"),
    "batch_eval_metrics": (True, "metrics are counters, which are fed batch after batch"),
    "label_smoothing_factor": (0.0, "it knows one task only: use label_smoothing"),
    "prediction_loss_only": (False, "the metrics need the logits"),
    "include_for_metrics": ([], "metrics are the trainer's own"),
    "bf16_full_eval": (False, "it would round the weights for good: use bf16"),
    "fp16_full_eval": (False, "it would round the weights for good: use fp16"),
    "push_to_hub": (False, "it publishes Trainer's own card: run scripts/push.py afterwards"),
    "auto_find_batch_size": (False, "a run starts with the batch that its recipe says: choose a smaller one"),
    "enable_jit_checkpoint": (False, "it saves within a step, from where no run can go on exactly: use save_steps"),
    "restore_callback_states_from_checkpoint": (False, "what callbacks have counted goes on by itself"),
    "dataloader_in_order": (True, "a resumed run skips, and several processes pad, by the order of the batches"),
    "ignore_data_skip": (False, "a resumed run would see rows twice"),
    "train_sampling_strategy": ("random", "pictures have no lengths, and an order is drawn for each epoch"),
    "optim_target_modules": (None, "such an optimizer groups parameters itself, and the phases are groups"),
    "neftune_noise_alpha": (None, "it is for the embeddings of tokens"),
    "use_liger_kernel": (False, "it has kernels for language models only"),
    "deepspeed": (None, "DDP is the engine: with --bf16 and --gradient_checkpointing it trains a billion parameters"),
    "fsdp": (None, "DDP is the engine: with --bf16 and --gradient_checkpointing it trains a billion parameters"),
}
_ACCELERATOR = {"split_batches": False, "dispatch_batches": False, "even_batches": True, "use_seedable_sampler": True}
# The least that a number may be.
_LEAST = {
    **dict.fromkeys(("learning_rate", "frozen_learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon"), 0),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), 1),
    **dict.fromkeys(("gradient_accumulation_steps", "save_total_limit"), 1),
}
_ENGINES = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}


@dataclass
class ArtGraphTrainingArguments(TrainingArguments):
    """`TrainingArguments` with two phases and the source's recipe.

    New: `frozen_epochs` (5), `frozen_learning_rate` (1e-3), `layer_decay` (1, see phases.py), `ema_decay` (None, see
    averaging.py), `mixup_alpha` (0, see augmentation.py), `tune_thresholds` (False), `cache_frozen_features` (True)
    and `feature_cache_dir`. Other defaults than those of `TrainingArguments`:

    - 35 epochs, batches of 32, learning rate 5e-5 without decay, weight decay 0.01: the recipe (AdamW's defaults);
    - evaluation, logging and a checkpoint each epoch; the best by `avg_macro_f1` is loaded at the end, two are kept;
    - `batch_eval_metrics`: metrics are counters, so memory does not grow with the rows;
    - `label_names=["labels"]`, `remove_unused_columns=False`: labels are a dict, pictures are decoded when fetched;
    - `ddp_find_unused_parameters=True`: in phase `heads` the backbone gets no gradient;
    - `logging_nan_inf_filter=False`: it would hide a broken loss, and waits for the GPU at each step.

    Raises:
        ValueError: if an option has a value with which the trainer would be wrong.
        UserError: if the launcher's processes would train apart, or it asks for another engine than DDP.
    """

    _argument_group_name: ClassVar[str] = "training"

    frozen_epochs: int = field(
        default=5, metadata={"help": "Epochs of the first phase: backbone frozen, only the heads learn."}
    )
    frozen_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of the first phase."})
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "Second phase: each block of the backbone learns this times slower than the next one."},
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Evaluate and save an exponential moving average of the weights that keeps this a step."},
    )
    cache_frozen_features: bool = field(
        default=True,
        metadata={"help": "Compute the features of the frozen backbone once, and train the heads on them."},
    )
    feature_cache_dir: str | None = field(
        default=None, metadata={"help": "Where these features are kept; by default in the Hugging Face cache."}
    )
    mixup_alpha: float = field(
        default=0.0,
        metadata={"help": "Mix train pictures in pairs, with shares from Beta(alpha, alpha); 0 for no mixup."},
    )
    tune_thresholds: bool = field(
        default=False,
        metadata={"help": "In the end, choose temperatures and thresholds on the validation split, and save them."},
    )

    output_dir: str = field(default="runs/artgraph-vit", metadata={"help": "Folder for all that a run leaves."})
    num_train_epochs: float = field(default=35, metadata={"help": "Epochs of both phases together."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Rows a batch and device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Rows an evaluation batch and device."})
    learning_rate: float = field(default=5e-5, metadata={"help": "Learning rate of the second phase."})
    weight_decay: float = field(default=0.01, metadata={"help": "Of every parameter but the log variances."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Schedule, started anew in each phase."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: epoch, steps or no."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: epoch, steps, best or no."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log: epoch, steps or no."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep; the best one always is."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint's weights."})
    metric_for_best_model: str | None = field(default="avg_macro_f1", metadata={"help": "What best means."})
    greater_is_better: bool | None = field(default=True, metadata={"help": "Whether more of it is better."})
    label_names: list[str] | None = field(default_factory=lambda: ["labels"], metadata={"help": "Leave as it is."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Leave as it is."})
    batch_eval_metrics: bool = field(default=True, metadata={"help": "Leave as it is."})
    ddp_find_unused_parameters: bool | None = field(default=True, metadata={"help": "Needed by phase heads."})
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "A checkpoint folder to go on from; 'last' for the newest whole one in output_dir; 'auto' for the "
            "same, or a fresh start if there is none."
        },
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide a loss that is not finite."})

    def __post_init__(self) -> None:
        self._check_numbers()
        for name, (value, reason) in _ONLY.items():
            given = getattr(self, name)
            if given != value and given not in (None, "", []):
                raise ValueError(f"{name}={given!r}: leave it out; {reason}.")
        for variable, engine in _ENGINES.items():
            if strtobool(os.environ.get(variable, "false")):
                raise UserError(
                    f"The launcher asks for {engine}: use configs/accelerate/several_gpus.yaml. {_ONLY['fsdp'][1]} on "
                    "a GPU of 80 GB."
                )
        self._check_best_is_saved()
        super().__post_init__()
        self._check_schedule()
        if int(os.environ.get("WORLD_SIZE", 1)) != self.world_size:  # each would train alone, into one folder
            raise UserError("The launcher's processes do not see each other, for there is no GPU: pass --use_cpu.")
        if self.n_gpu > 1:  # nn.DataParallel, with which a batch is no batch of the recipe
            raise UserError(
                f"One process sees {self.n_gpu} GPUs: start the script with `accelerate launch`, one process a GPU."
            )
        if self.device.type == "cpu" and self.mixed_precision == "fp16":  # Trainer would train in float32 instead
            raise ValueError("fp16 needs a GPU: leave it out, or use bf16, which CPUs have too.")
        if not self.ddp_find_unused_parameters and self.frozen_epochs and self.world_size > 1:
            raise ValueError("ddp_find_unused_parameters: the backbone gets no gradient in phase heads: leave it out.")
        division: Any = self.accelerator_config
        for name, value in _ACCELERATOR.items():
            if bool(getattr(division, name)) != value:
                raise ValueError(f"accelerator_config: {name} must be {str(value).lower()}, as by default.")
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # there is no device to copy to, and torch warns of it at each epoch

    def _check_numbers(self) -> None:
        if self.num_train_epochs <= 0:
            raise ValueError(f"num_train_epochs={self.num_train_epochs:g}: use a number above 0.")
        if not 0 <= self.frozen_epochs <= self.num_train_epochs or self.frozen_epochs != int(self.frozen_epochs):
            raise ValueError(
                f"frozen_epochs={self.frozen_epochs}: use a whole number from 0 to num_train_epochs "
                f"({self.num_train_epochs:g})."
            )
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay:g}: use a number above 0, at most 1, such as 0.75.")
        if self.layer_decay < 1 and self.frozen_epochs == self.num_train_epochs:
            raise ValueError("layer_decay is for the second phase, and there is none: leave it out.")
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(f"warmup_steps={self.warmup_steps:g}: use a whole number, or a part of a phase below 1.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay:g}: use a number between 0 and 1, such as 0.999.")
        if not 0 <= self.mixup_alpha < math.inf:
            raise ValueError(f"mixup_alpha={self.mixup_alpha:g}: use a number of at least 0, which turns it off.")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{name}={value:g}: use a number of at least {least}.")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name):g}: use a number from 0 to below 1.")
        if self.dataloader_persistent_workers and not self.dataloader_num_workers:
            raise ValueError("dataloader_persistent_workers needs workers: give dataloader_num_workers too.")
        wanted = str(self.metric_for_best_model).removeprefix("eval_")
        is_loss = wanted == "loss" or wanted.endswith("_loss")
        if self.greater_is_better is not None and self.greater_is_better == is_loss:
            raise ValueError(
                f"metric_for_best_model={wanted} is best where it is {'small' if is_loss else 'large'}: pass "
                f"--greater_is_better {str(not is_loss).lower()} too."
            )

    def _check_best_is_saved(self) -> None:
        """The best checkpoint must be one that exists."""
        if not self.load_best_model_at_end:
            return
        if self.eval_strategy == "no":
            raise ValueError("load_best_model_at_end needs evaluations: give eval_strategy epoch or steps.")
        is_saved = self.save_strategy in ("best", self.eval_strategy)
        if self.save_strategy == "steps" and is_saved:
            is_saved = (self.eval_steps or self.logging_steps) == self.save_steps
        if not is_saved:
            raise ValueError(
                "load_best_model_at_end needs a checkpoint at each evaluation: give save_strategy and save_steps as "
                "eval_strategy and eval_steps, or --save_strategy best."
            )

    def _check_schedule(self) -> None:
        schedule = SchedulerType(self.lr_scheduler_type).value
        if schedule in ("reduce_lr_on_plateau", "greedy"):
            raise ValueError(f"lr_scheduler_type={schedule!r} knows no phases: use constant, linear or cosine.")
        if self.warmup_steps and schedule == "constant":
            raise ValueError(
                f"warmup_steps={self.warmup_steps:g} does nothing with lr_scheduler_type={schedule!r}: use cosine or "
                "constant_with_warmup, or leave warmup_steps out."
            )
        optimizer = OptimizerNames(self.optim).value
        if any(word in optimizer for word in ("lomo", "galore", "apollo", "layerwise")):
            raise ValueError(f"optim={optimizer!r} groups parameters itself, as the phases do: choose another.")

    def recipe(self) -> dict[str, Any]:
        """The options that decide what a run learns; those of when to log and save, and how fast, are left out."""
        names: tuple[str, ...] = (
            *("frozen_epochs", "frozen_learning_rate", "learning_rate", "lr_scheduler_type", "warmup_steps"),
            *("weight_decay", "max_grad_norm", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"),
            *("seed", "mixed_precision", "lr_scheduler_kwargs", "data_seed", "dataloader_drop_last"),
            *("ema_decay", "layer_decay", "mixup_alpha"),
        )
        if not str(SchedulerType(self.lr_scheduler_type).value).startswith("constant"):
            names += ("num_train_epochs", "max_steps")  # over which the rate changes
        return {name: getattr(getattr(self, name), "value", getattr(self, name)) for name in names}


def source_recipe() -> dict[str, Any]:
    """The source document's value of each option, by name: the defaults."""
    classes = (ModelArguments, DataArguments, ArtGraphTrainingArguments)
    defaults = {option.name: option.default for options in classes for option in fields(options)}
    return {**defaults, "global_batch_size": defaults["per_device_train_batch_size"], "mixed_precision": "no"}
