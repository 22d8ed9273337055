"""The options of a run: the model, and `TrainingArguments` with the source's recipe; data/arguments.py has the data.

The defaults are those of the published ArtGraph model: 35 epochs, 5 of them with a frozen backbone at 1e-3, then
5e-5; batches of 32, AdamW's defaults, constant learning rate, gradient clipping at 1, dropout 0.3 before the heads,
and the checkpoint with the best `avg_macro_f1`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import TrainingArguments
from transformers.utils import strtobool

from ..data.arguments import choice
from ..errors import UserError
from .deepspeed_config import follow_arguments, refuse_other_than_zero2

CLASS_WEIGHTS = ("balanced", "none")


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
        default=None, metadata={"help": "cls, mean or pooler; by default what fits the backbone."}
    )
    head_dropout: float = field(default=0.3, metadata={"help": "Probability of the dropout before the heads."})
    loss_epsilon: float = field(default=1e-8, metadata={"help": "The epsilon of the joined loss."})
    multilabel_reduction: str = choice(
        "known_rows",
        ("known_rows", "all_rows"),
        "What a multi-label loss is divided by; all_rows is the source's way.",
    )
    class_weights: str = choice(
        "balanced",
        CLASS_WEIGHTS,
        "Class weights of single-label losses, from the train split; balanced as in sklearn.",
    )


@dataclass
class ArtGraphTrainingArguments(TrainingArguments):
    """`TrainingArguments` with two phases and the source's recipe.

    New: `frozen_epochs` (5), `frozen_learning_rate` (1e-3), `cache_frozen_features` (True) and `feature_cache_dir`.
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

    cache_frozen_features: bool = field(
        default=True,
        metadata={"help": "Compute the features of the frozen backbone once, and train the heads on them."},
    )
    feature_cache_dir: str | None = field(
        default=None, metadata={"help": "Where these features are kept; by default in the Hugging Face cache."}
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
        needed = {"label_names": ["labels"], "remove_unused_columns": False, "batch_eval_metrics": True}
        for name, value in needed.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)!r}: ArtGraphTrainer needs {value!r}; leave it out.")
        if self.label_smoothing_factor or self.prediction_loss_only:
            raise ValueError("label_smoothing_factor and prediction_loss_only do not work with several tasks.")
        if self.bf16_full_eval or self.fp16_full_eval:
            raise ValueError("bf16_full_eval and fp16_full_eval would round the weights for good: use bf16 or fp16.")
        if self.push_to_hub:
            raise ValueError(
                "push_to_hub publishes Trainer's own card: leave it out, and run scripts/push.py afterwards."
            )
        if self.deepspeed or strtobool(os.environ.get("ACCELERATE_USE_DEEPSPEED", "false")):
            refuse_other_than_zero2(self.deepspeed)
        super().__post_init__()
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
        )
        return {name: getattr(getattr(self, name), "value", getattr(self, name)) for name in names}
