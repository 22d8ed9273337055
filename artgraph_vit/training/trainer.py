"""`ArtGraphTrainer`: two phases in one run, and checkpoints from which a run goes on as if it had never stopped.

Notable:
- Phase `heads` trains with a frozen backbone, then the model is wrapped anew and phase `full` starts with its own
  optimizer and schedule; epochs, steps, logs and checkpoints count on.
- In phase `heads` the features of the backbone are computed once (features.py), if train pictures stay the same.
- Checkpoints are sealed (checkpoints.py) and carry the record of their run (record.py).
Private methods of `Trainer` are overridden where it has no hook: `_init_training_state` (a finished run, callbacks),
`_prepare_for_training` and `_run_epoch` (phases),
`_load_optimizer_and_scheduler` (a phase starts without the last one's), `_save_checkpoint` (sealed before older ones
go), `_load_best_model` (only if whole), `_issue_warnings_after_load` (a tensor that was not loaded is an error).
tests/training holds each against the installed version.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import logging

from ..data.batches import augmentation_of
from ..data.streaming import StreamedArtworks
from ..errors import UserError
from ..loading import verify_checkpoint, write_manifest
from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification
from .arguments import ArtGraphTrainingArguments
from .averaging import AveragingTrainer
from .checkpoints import checkpoint_to_resume, refuse_full_disk, saving
from .features import FeatureRows, frozen_features
from .layer_decay import layer_scales, parameter_groups
from .record import RunRecord

logger = logging.get_logger(__name__)

HEADS, FULL = "heads", "full"


class ArtGraphTrainer(AveragingTrainer):
    """Trains an [`ArtGraphViTForImageClassification`] in two phases.

    Args:
        model ([`ArtGraphViTForImageClassification`]).
        args ([`ArtGraphTrainingArguments`]).
        recipe (`Mapping`, *optional*): what else, beside the arguments, decides what is learned, such as the backbone;
            a checkpoint is resumed with the same recipe only.
        kwargs: as for [`MultiTaskTrainer`].

    Raises:
        UserError: if `layer_decay` is asked for and the backbone names no blocks.
    """

    def __init__(
        self,
        model: ArtGraphViTForImageClassification,
        args: ArtGraphTrainingArguments,
        recipe: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._record = RunRecord(recipe={**(recipe or {}), **args.recipe()})
        kwargs["callbacks"] = [self._record, *(kwargs.get("callbacks") or [])]
        self._layer_scales = layer_scales(model, args.layer_decay) if args.layer_decay < 1 else {}
        super().__init__(model=model, args=args, **kwargs)
        self._features: dict[str, FeatureRows | None] = {}

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any):
        """As in `Trainer`, but sure of its checkpoints.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): a folder, `"last"` or `True` for the newest whole
                checkpoint in the output folder, or `"auto"` for the same or else a fresh start.

        Raises:
            UserError: if the checkpoint is damaged or another run's, or the output folder is another run's or full.
        """
        if self.config.temperatures or self.config.logit_offsets:
            raise UserError(
                "This model was tuned, and would train through its temperatures and offsets: set the config's "
                "temperatures, logit_offsets and thresholds to {} first, and tune it anew afterwards."
            )
        checkpoint = checkpoint_to_resume(self.args, resume_from_checkpoint)
        self._record.train_rows = self._train_rows
        self._record.global_batch_size = self.get_total_train_batch_size(self.args)
        self._record.processes = self.args.world_size
        self._resumed = RunRecord.read(checkpoint) if checkpoint is not None else RunRecord()
        self._features.clear()
        if checkpoint is not None:
            self._record.refuse_other(self._resumed, checkpoint)
            self._refuse_other_tasks(checkpoint)
            self._refuse_other_engine(checkpoint)
            self._refuse_incomplete(checkpoint)
            if self._resumed.processes != self._record.processes:
                logger.warning(
                    "%s was made on %s process(es), and this run has %s: it goes on exactly, but for what is drawn at "
                    "random, such as dropout.",
                    *(checkpoint, self._resumed.processes, self._record.processes),
                )
            logger.warning("Going on from %s.", checkpoint)
        refuse_full_disk(self.args, self.model)
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ):
        """As in `Trainer`; a finished run trains no further, and what callbacks have counted goes on."""
        done = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None:
            return done
        saved = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
        if self.args.load_best_model_at_end and saved.best_global_step:  # beside the checkpoint, wherever it is now
            self.state.best_model_checkpoint = str(_best_beside(resume_from_checkpoint, saved))
        for callback in self.callback_handler.callbacks:
            counted = saved.stateful_callbacks.get(type(callback).__name__)
            if isinstance(callback, ExportableState) and callback is not self._record and isinstance(counted, dict):
                vars(callback).update(counted["attributes"])
        control = saved.stateful_callbacks.get("TrainerControl", {}).get("args", {})
        stopped_early = control.get("should_training_stop") and saved.global_step < saved.max_steps == max_steps
        if stopped_early or saved.global_step >= max_steps:
            return num_train_epochs, 0
        return done

    # ---- phases ----

    @property
    def phase(self) -> str | None:
        """`"heads"` or `"full"`; None before training."""
        return self._record.phase

    def _phase_of(self, epoch: int) -> str:
        return HEADS if epoch < self.args.frozen_epochs else FULL

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        epochs_done = int(self.state.epoch or 0)
        self._set_phase(self._phase_of(epochs_done))
        steps_an_epoch = math.ceil(len(train_dataloader) / self.args.gradient_accumulation_steps)
        frozen_steps = min(max_steps, self.args.frozen_epochs * steps_an_epoch)
        steps = {HEADS: frozen_steps, FULL: max_steps - frozen_steps}
        for phase, number in steps.items():
            if 0 < number < self.args.get_warmup_steps(number):
                raise UserError(
                    f"warmup_steps={self.args.warmup_steps:g} is longer than phase {phase}, which has {number} steps: "
                    "give fewer, or a part of each phase, such as 0.1."
                )
        phase_steps = steps[self.phase or FULL]
        return super()._prepare_for_training(phase_steps, train_dataloader, resume_from_checkpoint)

    def _set_phase(self, phase: str) -> None:
        """Sets what learns."""
        self._record.phase = phase
        self._unwrap()
        if phase == HEADS:
            self.model.freeze_backbone()
        else:
            self.model.unfreeze_backbone()

    def _run_epoch(self, model, epoch, train_dataloader, resume_from_checkpoint, epochs_trained, **kwargs):
        if self._phase_of(epoch) != self.phase:
            self._prepare_for_training(self.state.max_steps, train_dataloader, None)
        is_resumed = resume_from_checkpoint is not None and epoch == epochs_trained
        StreamedArtworks.skip(train_dataloader, kwargs["steps_trained_in_current_epoch"] if is_resumed else 0)
        if is_resumed:
            self._restore_unlogged(self._resumed.unlogged)
        augmentation = augmentation_of(self.train_dataset)
        if augmentation is not None:
            augmentation.set_epoch(epoch)
        if self.phase == HEADS and self.args.cache_frozen_features:
            if "train" not in self._features:
                self._features["train"] = frozen_features(self, self.train_dataset)
                self._features["eval"] = frozen_features(self, self.eval_dataset)
            if self._features["train"] is not None:
                train_dataloader = self._feature_dataloader(self._features["train"])
        super()._run_epoch(
            model=self.model_wrapped,
            epoch=epoch,
            train_dataloader=train_dataloader,
            resume_from_checkpoint=resume_from_checkpoint,
            epochs_trained=epochs_trained,
            **kwargs,
        )

    def _feature_dataloader(self, rows: FeatureRows) -> torch.utils.data.DataLoader:
        """The rows in the order of the pictures; without workers, since nothing is decoded."""
        return self.accelerator.prepare(
            torch.utils.data.DataLoader(
                rows,
                batch_size=self._train_batch_size,
                sampler=self._get_train_sampler(rows),
                collate_fn=self.data_collator,
                drop_last=self.args.dataloader_drop_last,
            )
        )

    def _load_optimizer_and_scheduler(self, checkpoint):
        # Where the phases differ, the checkpoint is the last of phase `heads`, and `full` has its own optimizer.
        if checkpoint is not None and self._resumed.phase == self.phase:
            super()._load_optimizer_and_scheduler(checkpoint)

    def get_optimizer_cls_and_kwargs(self, args, model=None):  # a static method of `Trainer`, called on the object
        """As in `Trainer`, with a group for each layer of the backbone where they learn at different rates."""
        optimizer_class, options = super().get_optimizer_cls_and_kwargs(args, model)
        if self.phase == FULL and self._layer_scales:
            decayed = self.get_decay_parameter_names(model)
            options["params"] = parameter_groups(
                model, self._layer_scales, decayed, args.learning_rate, args.weight_decay
            )
        return optimizer_class, options

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        if self.phase == HEADS:
            for group in optimizer.param_groups:
                group["lr"] = self.args.frozen_learning_rate
        return optimizer

    def evaluate(self, eval_dataset=None, *args, **kwargs) -> dict[str, float]:
        """As in `Trainer`; during phase `heads` on the features of the evaluation split."""
        if eval_dataset is None and self.is_in_train and self.phase == HEADS:
            eval_dataset = self._features.get("eval")
        return super().evaluate(eval_dataset, *args, **kwargs)

    # ---- checkpoints ----

    def _save_checkpoint(self, model, trial):
        """Writes a checkpoint, seals it, and only then lets `Trainer` delete older ones."""
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        self._finite.raise_if_a_gradient_was_not_finite()
        self._record.unlogged = self._unlogged()
        if self.args.should_save and folder.exists():  # of a run that was killed: nothing of it may stay
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with saving(folder):
                super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            with saving(folder):
                if self.args.should_save:
                    (folder / "training_args.bin").unlink(missing_ok=True)  # pickled, and nothing reads it
                    write_manifest(folder)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(folder.parent),
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()

    def _load_best_model(self) -> None:
        problem = verify_checkpoint(Path(str(self.state.best_model_checkpoint)))
        if problem:
            raise UserError(
                f"The best checkpoint, {self.state.best_model_checkpoint}, is not whole: {problem}. Training is "
                "complete: pass --load_best_model_at_end false --resume_from_checkpoint last to keep its last state."
            )
        super()._load_best_model()

    def _refuse_incomplete(self, checkpoint: str) -> None:
        """What a checkpoint must have beside it, looked for before training rather than at its end."""
        if not any(Path(checkpoint).glob("optimizer*")):
            raise UserError(
                f"{checkpoint} holds no optimizer, as with --save_only_model: a run cannot go on from it; start "
                "anew in another output_dir."
            )
        saved = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        if self.args.load_best_model_at_end and saved.best_global_step:
            best = _best_beside(checkpoint, saved)
            problem = verify_checkpoint(best) if best.is_dir() else "it is missing"
            if problem:
                raise UserError(
                    f"The best checkpoint so far, {best}, is not whole: {problem}. Bring it back, or pass "
                    "--load_best_model_at_end false to end with the last weights."
                )

    def _refuse_other_tasks(self, checkpoint: str) -> None:
        saved = type(self.config).from_pretrained(checkpoint)
        if saved.tasks != self.config.tasks:
            differing = [task.name for task in self.config.tasks if task not in saved.tasks]
            raise UserError(
                f"{checkpoint} was made for other tasks or labels than this run's ({', '.join(differing) or 'fewer'} "
                "differ): resume with the same data and options, or start anew in another output_dir."
            )

    def _issue_warnings_after_load(self, load_result) -> None:
        if load_result.missing_keys or load_result.unexpected_keys:
            raise UserError(
                "The checkpoint does not hold exactly the model's tensors: "
                f"{len(load_result.missing_keys)} missing ({', '.join(load_result.missing_keys[:3])}), "
                f"{len(load_result.unexpected_keys)} unexpected ({', '.join(load_result.unexpected_keys[:3])}). "
                "It was made by another model or another version; nothing can be resumed from it."
            )


def _best_beside(checkpoint: str, state: TrainerState) -> Path:
    return Path(checkpoint).parent / f"checkpoint-{state.best_global_step}"
