"""The options of a run: the model, and `TrainingArguments` with the source's recipe; data/arguments.py has the data.

The defaults are those of the published ArtGraph model: 35 epochs, 5 of them with a frozen backbone at 1e-3, then
5e-5; batches of 32, AdamW's defaults, constant learning rate, gradient clipping at 1, dropout 0.3 before the heads,
and the checkpoint with the best `avg_macro_f1`.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import SchedulerType, TrainingArguments
from transformers.utils import strtobool

from ..data.options import choice
from ..errors import UserError
from ..model.configuration_artgraph_vit import MULTILABEL_LOSSES, MULTILABEL_REDUCTIONS
from ..model.task_weighting import LEARNING_RULES, RULES
from .class_statistics import CLASS_WEIGHTS
from .deepspeed_config import follow_arguments, refuse_other_than_zero2


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
    pooling: str | None = field(
        default=None, metadata={"help": "cls, mean, cls_mean or pooler; by default what fits the backbone."}
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "Pixels a side of the pictures, such as 384; by default what the backbone was trained on."},
    )
    drop_path_rate: float | None = field(
        default=None,
        metadata={"help": "Stochastic depth in the second phase; by default what the backbone's config says."},
    )
    head_dropout: float = field(default=0.3, metadata={"help": "Probability of the dropout before the heads."})
    loss_epsilon: float = field(default=1e-8, metadata={"help": "The epsilon of the joined loss."})
    task_weighting: str = choice("uncertainty", tuple(RULES), "How the losses of the tasks are joined.")
    max_task_weight: float | None = field(
        default=None, metadata={"help": "The weight that no task's loss exceeds; by default there is no limit."}
    )
    task_weights: dict | str | None = field(
        default=None, metadata={"help": 'For task_weighting fixed, as JSON: {"artist": 1.0, "tags": 10.0}.'}
    )
    task_weighting_temperature: float = field(
        default=1.0, metadata={"help": "For task_weighting soft_uncertainty: the larger, the more equal the weights."}
    )
    log_variance_init: str = field(
        default="0", metadata={"help": "Where log variances start: a number, or auto, from the losses at the prior."}
    )
    multilabel_reduction: str = choice(
        "known_rows",
        MULTILABEL_REDUCTIONS,
        "What a multi-label loss is divided by; all_rows is the source's way.",
    )
    class_weights: str = choice(
        "balanced",
        tuple(CLASS_WEIGHTS),
        "Class weights of single-label losses, from the train split; balanced as in sklearn.",
    )
    logit_adjustment: float = field(
        default=0.0,
        metadata={"help": "Tau of the logit adjustment in single-label losses; with class_weights none. 1 is usual."},
    )
    multilabel_loss: str = choice("bce", MULTILABEL_LOSSES, "Loss of multi-label tasks.")
    asymmetric_gamma_negative: float = field(default=4.0, metadata={"help": "Focusing of the asymmetric loss."})
    asymmetric_gamma_positive: float = field(default=1.0, metadata={"help": "The same for positives."})
    asymmetric_margin: float = field(default=0.05, metadata={"help": "Probability below which a negative is free."})
    max_positive_weight: float = field(
        default=1.0,
        metadata={"help": "Positives of multi-label tasks weigh negatives/positives, at most this; 1 for no weights."},
    )
    label_smoothing: float = field(default=0.0, metadata={"help": "Part of each label that is spread over all."})
    head_bias: str = choice("zero", ("zero", "prior"), "Where the biases of the heads start.")

    def __post_init__(self) -> None:
        if self.drop_path_rate is not None and not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={self.drop_path_rate:g}: use a number from 0 to below 1, such as 0.1.")
        if self.log_variance_init != "0" and self.task_weighting not in LEARNING_RULES:
            raise ValueError(
                f"log_variance_init={self.log_variance_init!r} is for a task_weighting that learns log variances "
                f"({', '.join(LEARNING_RULES)}), not for {self.task_weighting!r}: leave it out."
            )
        if self.logit_adjustment and self.class_weights != "none":
            raise ValueError(
                f"logit_adjustment={self.logit_adjustment:g} with class_weights={self.class_weights!r} would correct "
                "for rare classes twice: choose class_weights none, or leave logit_adjustment out."
            )
        if isinstance(self.task_weights, str):
            try:
                self.task_weights = json.loads(self.task_weights)
            except json.JSONDecodeError as error:
                raise ValueError(f'task_weights={self.task_weights!r} is not JSON like {{"artist": 1.0}}.') from error
        if self.log_variance_init != "auto":
            try:
                is_number = math.isfinite(float(self.log_variance_init))
            except ValueError:
                is_number = False
            if not is_number:
                raise ValueError(f"log_variance_init={self.log_variance_init!r}: use a number, or auto.")


@dataclass
class ArtGraphTrainingArguments(TrainingArguments):
    """`TrainingArguments` with two phases and the source's recipe.

    New: `frozen_epochs` (5), `frozen_learning_rate` (1e-3), `layer_decay` (1, see parameter_groups.py), `ema_decay`
    (None, see averaging.py), `mixup_alpha` and `cutmix_alpha` (0, see data/mixing.py), `tune_thresholds` (False,
    see tuning.py), `cache_frozen_features` (True) and `feature_cache_dir`.
    Other defaults than those of `TrainingArguments`:

    - 35 epochs, batches of 32, learning rate 5e-5 without decay, weight decay 0.01: the recipe (AdamW's defaults);
    - evaluation, logging and a checkpoint each epoch; the best by `avg_macro_f1` is loaded at the end, two are kept;
    - `batch_eval_metrics`: metrics are counters, so memory does not grow with the rows;
    - `label_names=["labels"]`, `remove_unused_columns=False`: labels are a dict, pictures are decoded when fetched;
    - `ddp_find_unused_parameters=False`: every head is in every graph;
    - `logging_nan_inf_filter=False`: it would hide a broken loss, and waits for the GPU at each step.

    Raises:
        ValueError: if an option above has a value with which the trainer would be wrong.
        UserError: if the launcher's processes would train apart, or with a DeepSpeed that does not work here.
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
    cutmix_alpha: float = field(
        default=0.0,
        metadata={
            "help": "Paste a box of one train picture into another, of an area from Beta(alpha, alpha); 0 for no "
            "cutmix. With mixup too, each is taken for half of the batches."
        },
    )

    tune_thresholds: bool = field(
        default=False,
        metadata={"help": "In the end, choose temperatures and thresholds on the validation split, and save them."},
    )
    adjust_logits: bool = field(
        default=False,
        metadata={
            "help": "When tuning, take as much of the classes' prior out of single-label scores as macro F1 wants; of "
            "a model trained with class_weights none."
        },
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
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Not needed here."})
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "A checkpoint folder to go on from; 'last' for the newest whole one in output_dir; 'auto' for the "
            "same, or a fresh start if there is none."
        },
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide a loss that is not finite."})

    def __post_init__(self) -> None:
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
        if self.layer_decay < 1 and (self.optim_target_modules is not None or "lomo" in self.optim):
            raise ValueError(f"layer_decay does not work with optim={self.optim}, which groups parameters itself.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay:g}: use a number between 0 and 1, such as 0.999.")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name):g}: use a number of at least 0, which turns it off.")
        needed = {"label_names": ["labels"], "remove_unused_columns": False, "batch_eval_metrics": True}
        for name, value in needed.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)!r}: ArtGraphTrainer needs {value!r}; leave it out.")
        wanted = str(self.metric_for_best_model).removeprefix("eval_")
        if self.greater_is_better and (wanted == "loss" or wanted.endswith("_loss")):
            raise ValueError(
                f"metric_for_best_model={wanted} is best where it is small: pass --greater_is_better false too."
            )
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor knows one task only: use label_smoothing.")
        if self.prediction_loss_only:
            raise ValueError("prediction_loss_only does not work with several tasks.")
        if self.bf16_full_eval or self.fp16_full_eval:
            raise ValueError("bf16_full_eval and fp16_full_eval would round the weights for good: use bf16 or fp16.")
        if self.push_to_hub:
            raise ValueError(
                "push_to_hub publishes Trainer's own card: leave it out, and run scripts/push.py afterwards."
            )
        if self.deepspeed or strtobool(os.environ.get("ACCELERATE_USE_DEEPSPEED", "false")):
            refuse_other_than_zero2(self.deepspeed)
        super().__post_init__()
        schedule = SchedulerType(self.lr_scheduler_type).value
        if self.warmup_steps and schedule in ("constant", "reduce_lr_on_plateau", "greedy"):
            raise ValueError(
                f"warmup_steps={self.warmup_steps:g} does nothing with lr_scheduler_type={schedule!r}: use cosine or "
                "constant_with_warmup, or leave warmup_steps out."
            )
        if self.deepspeed_plugin is not None:
            follow_arguments(self)
        if int(os.environ.get("WORLD_SIZE", 1)) != self.world_size:  # each would train alone, into one folder
            raise UserError("The launcher's processes do not see each other, for there is no GPU: pass --use_cpu.")
        if self.device.type == "cpu" and self.mixed_precision == "fp16":  # Trainer would train in float32 instead
            raise ValueError("fp16 needs a GPU: leave it out, or use bf16, which CPUs have too.")
        division: Any = self.accelerator_config
        if division.split_batches or not division.even_batches or division.dispatch_batches:
            raise ValueError(
                "accelerator_config: split_batches and dispatch_batches must be false and even_batches true, as by "
                "default."
            )
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # there is no device to copy to, and torch warns of it at each epoch

    def recipe(self) -> dict[str, Any]:
        """The options that decide what a run learns; those of when to log and save, and how fast, are left out."""
        names = (
            *("frozen_epochs", "frozen_learning_rate", "learning_rate", "lr_scheduler_type", "warmup_steps"),
            *("weight_decay", "max_grad_norm", "optim", "adam_beta1", "adam_beta2", "adam_epsilon", "seed"),
            *("mixed_precision", "lr_scheduler_kwargs", "data_seed", "dataloader_drop_last"),
            *("ema_decay", "layer_decay", "mixup_alpha", "cutmix_alpha"),
        )
        return {name: getattr(getattr(self, name), "value", getattr(self, name)) for name in names}
