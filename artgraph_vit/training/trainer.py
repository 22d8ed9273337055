"""`ArtGraphTrainer`: two phases in one run, exact steps, exact evaluation, and checkpoints from which a run goes on.

From top to bottom: one optimizer step, the phases, what is logged, evaluation, checkpoints. Notable:
- The denominators of the masked, weighted losses are summed over the whole optimizer step, all micro-batches on all
  processes, so a step's gradient is that of one large batch. Rows that only even out an epoch's end count for nothing.
- The phases are parameter groups of one optimizer (phases.py). In phase `heads` the features of the backbone are
  computed once (features.py), if train pictures stay the same.
- Evaluation keeps counters and sums, never all logits, and counts each row once.
Three private methods of `Trainer` are overridden, where it has no hook; tests/training holds each against the
installed version: `_get_dataloader` (a stream divides itself, drop_last is about training alone, a loader draws from
no random state but its own), `_init_training_state` (a finished run trains no further), `_save_checkpoint` (whole
before older ones go).
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, EvalPrediction, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from ..data import ArtGraphCollator, PixelNormalizer
from ..data.augmentation import draw_mix
from ..data.batches import augmentation_of
from ..data.streaming import StreamedArtworks
from ..errors import UserError, as_user_error
from ..evaluation.metrics import MultiTaskMetrics, kinds_of
from ..loading import verify_checkpoint, write_manifest
from ..model.losses import join_losses, mix_targets
from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification
from .arguments import ArtGraphTrainingArguments
from .averaging import WeightAverage
from .checkpoints import (
    RunRecord,
    best_beside,
    check_checkpoint,
    check_free_space,
    checkpoint_to_resume,
    rotate_checkpoints,
    saving,
)
from .features import PhaseRows, frozen_features
from .finite import FiniteLossCheck
from .phases import HEADS, parameter_groups, phase_of, phase_schedule
from .progress import EpochTable

logger = logging.get_logger(__name__)


class ArtGraphTrainer(Trainer):
    """Trains an [`ArtGraphViTForImageClassification`] in two phases.

    Args:
        model ([`ArtGraphViTForImageClassification`]).
        args ([`ArtGraphTrainingArguments`]).
        recipe (`Mapping`, *optional*): what else, beside the arguments, decides what is learned, such as the backbone;
            a checkpoint is resumed with the same recipe only.
        kwargs: as for `Trainer`; metrics are the trainer's own, so there is no `compute_metrics`.

    Raises:
        ValueError: if an optimizer is given.
        UserError: if the metric for the best model is unknown.
    """

    loss_is_scaled_for_ga = True  # read by Trainer.training_step: `compute_loss` divides by the whole step's sums
    model: ArtGraphViTForImageClassification
    args: ArtGraphTrainingArguments

    def __init__(
        self,
        model: ArtGraphViTForImageClassification,
        args: ArtGraphTrainingArguments,
        recipe: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if "optimizers" in kwargs or "optimizer_cls_and_kwargs" in kwargs:
            raise ValueError("The phases are groups of the trainer's own optimizer: choose it by args.optim.")
        if isinstance(kwargs.get("data_collator"), ArtGraphCollator):
            kwargs["data_collator"] = dataclasses.replace(kwargs["data_collator"], with_names=True)
        self._record = RunRecord(recipe={**(recipe or {}), **args.recipe()})
        self._average = WeightAverage(args.ema_decay)
        self._finite = FiniteLossCheck(model)
        own = [self._record, self._average, self._finite, _PhaseChange(self)]
        kwargs["callbacks"] = [*own, *(kwargs.get("callbacks") or [])]
        with as_user_error("The options of training are wrong", kinds=(ImportError, RuntimeError, ValueError)):
            super().__init__(model=model, args=args, compute_metrics=self._add_to_evaluation, **kwargs)
        self.config: Any = model.config
        processor: Any = self.processing_class
        self.normalizer = PixelNormalizer(processor) if processor is not None else None
        self.metrics = MultiTaskMetrics(self.config.tasks, self.config.thresholds)  # of the last evaluation
        self._reset_evaluation()
        self._train_sums = torch.zeros(2, len(self.config.tasks), dtype=torch.float64)  # numerators and denominators
        self._phase_rows: dict[str, PhaseRows] = {}
        self._resumed = RunRecord()
        self._save_total_limit = args.save_total_limit
        if self.pop_callback(ProgressCallback):
            self.add_callback(EpochTable(self.running_losses, self.get_total_train_batch_size(args)))
        kinds = {task.name: ("loss", *kinds_of(task)) for task in self.config.tasks}
        known = {"loss", "avg_macro_f1"} | {f"{name}_{kind}" for name in kinds for kind in kinds[name]}
        if args.metric_for_best_model and args.metric_for_best_model.removeprefix("eval_") not in known:
            raise UserError(
                f"metric_for_best_model={args.metric_for_best_model!r} is none of the metrics "
                f"{', '.join(sorted(known))}."
            )

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any):
        """As in `Trainer`, but sure of its checkpoints.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): a folder, `"last"` or `True` for the newest whole
                checkpoint in the output folder, or `"auto"` for the same or else a fresh start.

        Raises:
            UserError: if the checkpoint is damaged or another run's, or the output folder is another run's or full.
        """
        args = self.args
        if self.config.temperatures:
            raise UserError(
                "This model was tuned, and would train through its temperatures: set the config's temperatures and "
                "thresholds to {} first, and tune it anew afterwards."
            )
        if self.steps_an_epoch == 0:
            raise UserError(
                f"dataloader_drop_last leaves no step: there are {self._train_rows} train artworks, and a batch of "
                f"all processes takes {self._train_batch_size * args.world_size}: take smaller ones, or leave it out."
            )
        checkpoint = checkpoint_to_resume(args, resume_from_checkpoint)
        self.add_callback(self.pop_callback(self._record))  # type: ignore[arg-type]  # last: it sees what others save
        self._record.train_rows, self._record.processes = self._train_rows, args.world_size
        self._record.global_batch_size = self.get_total_train_batch_size(args)
        self._resumed = RunRecord()
        if checkpoint is not None:
            self._resumed = RunRecord.read(checkpoint)
            self._record.check_same(self._resumed, checkpoint)
            check_checkpoint(checkpoint, self.model, args)
            logger.warning("Going on from %s.", checkpoint)
        check_free_space(args, self.model)
        self._average.checkpoint = checkpoint
        self.optimizer = self.lr_scheduler = None  # of a call before
        self._phase_rows = {}
        evaluates_first, args.eval_on_start = args.eval_on_start, args.eval_on_start and checkpoint is None
        # `Trainer` would rotate them itself: by any name that begins alike, and in the end all but the best.
        self._save_total_limit, args.save_total_limit = args.save_total_limit, None
        try:
            output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        except SafetensorError as error:  # of the best checkpoint, which was damaged meanwhile
            raise UserError(f"{self.state.best_model_checkpoint} cannot be read: {error}.") from error
        finally:
            args.eval_on_start, args.save_total_limit = evaluates_first, self._save_total_limit
        best = self.state.best_model_checkpoint if args.load_best_model_at_end else None
        problem = verify_checkpoint(Path(best)) if best is not None else None
        if problem:
            raise UserError(
                f"The best checkpoint, {best}, is not whole: {problem}. Training is complete: pass "
                "--load_best_model_at_end false --resume_from_checkpoint last to keep its last state."
            )
        return output

    @property
    def _train_rows(self) -> int:
        rows: Any = self.train_dataset
        return len(rows)

    @property
    def steps_an_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        batch = self._train_batch_size * self.args.world_size
        batches = self._train_rows // batch if self.args.dataloader_drop_last else math.ceil(self._train_rows / batch)
        return math.ceil(batches / self.args.gradient_accumulation_steps)

    # ---- one optimizer step ----

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of a step, with soft targets in the place of labels; and the denominators of its losses,
        `(T,)`, over all micro-batches on all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        sums = torch.zeros(2, len(self.config.tasks), dtype=torch.float64, device=device)
        self.model.train()
        for number, batch in enumerate(batches):
            own_rows = self._cut_padding(batch) if number == len(batches) - 1 else 1
            targets = self.model.make_targets(send_to_device(batch.pop("labels"), device))
            if self.args.mixup_alpha > 0:
                place = (self.state.global_step, number, self.accelerator.process_index)
                rows = len(next(iter(batch.values())))
                batch["mix"] = draw_mix(rows, self.args.mixup_alpha, self.args.seed, *place)
                targets = mix_targets(targets, batch["mix"].partners.to(device), batch["mix"].share)
            if own_rows:
                sums += torch.stack(self.model.loss_denominators(targets)).double()
            else:  # a row of padding, which stays since each process must take part in the step
                targets = {name: (0 * target, 0 * weight) for name, (target, weight) in targets.items()}
            batch["targets"] = targets
        sums, rows = self.accelerator.reduce(sums, reduction="sum")
        return batches, torch.where(rows > 0, sums, 0.0)

    def _cut_padding(self, batch: dict[str, Any]) -> int:
        """Cuts off the rows with which accelerate evens out an epoch's last batch, which repeat those of its start.

        Returns how many rows are a process's own; one stays where none is.
        """
        rows = len(next(iter(batch["labels"].values())))
        # Not accelerate's `remainder`, which the loader of a resumed epoch does not know.
        remainder = self._train_rows % (self._train_batch_size * self.accelerator.num_processes)
        is_last = self.accelerator.gradient_state.end_of_dataloader
        if self.accelerator.num_processes == 1 or not is_last or remainder == 0 or self.args.dataloader_drop_last:
            return rows
        own = min(max(remainder - self._train_batch_size * self.accelerator.process_index, 0), rows)
        for name, values in batch.items():
            is_labels = isinstance(values, Mapping)
            batch[name] = (
                {task: v[: max(own, 1)] for task, v in values.items()} if is_labels else values[: max(own, 1)]
            )
        return own

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The part of the step's loss that stems from these rows, times the processes, over which DDP averages.

        `num_items_in_batch` is what `get_batch_samples` returned: the step's denominators, `(T,)`.
        """
        own = num_items_in_batch / self.accelerator.num_processes
        micro_batches = self.current_gradient_accumulation_steps
        names, mix = inputs.pop("names", None), inputs.pop("mix", None)
        inputs = self.normalize_pixels(inputs)
        if mix is not None:
            inputs["pixel_values"] = mix.pixels(inputs["pixel_values"])
            pairs = zip(names or (), mix.partners, strict=bool(names))
            names = [f"{name} mixed with {names[partner]}" for name, partner in pairs] or None
        outputs = model(**inputs, denominators=own, log_term_share=1 / micro_batches)
        self._finite.add(outputs, inputs["targets"], names)
        losses = torch.stack(list(outputs.task_losses.values()))
        self._train_sums = self._train_sums.to(losses.device)
        self._train_sums[0] += losses * own
        self._train_sums[1] += own / micro_batches
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def normalize_pixels(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs on the device, with floats in place of the bytes in which pixels travel."""
        pixels = inputs.get("pixel_values")
        if pixels is None or pixels.dtype != torch.uint8:
            return inputs
        if self.normalizer is None:
            raise UserError("The pixels come as bytes: pass the image processor to the trainer as processing_class.")
        return {**inputs, "pixel_values": self.normalizer(pixels)}

    # ---- phases ----

    def get_optimizer_cls_and_kwargs(self, args, model=None):  # a static method of `Trainer`, called on the object
        """As in `Trainer`, with the groups of phases.py."""
        packages = f"optim={OptimizerNames(args.optim).value!r} cannot be used"
        with as_user_error(
            packages, "install what it needs, or leave it out.", (ImportError, ValueError, RuntimeError)
        ):
            optimizer_class, options = super().get_optimizer_cls_and_kwargs(args, model)
        decayed = self.get_decay_parameter_names(model)
        options["params"] = parameter_groups(model, decayed, args.weight_decay, args.layer_decay)
        return optimizer_class, options

    def get_decay_parameter_names(self, model) -> list[str]:
        """All parameters but the log variances, as PyTorch's AdamW does it."""
        return [name for name, _ in model.named_parameters() if not name.endswith("log_variances")]

    def create_scheduler(self, num_training_steps, optimizer=None):
        """The schedule of both phases, each of which starts it anew."""
        if self.lr_scheduler is None:
            frozen_steps = self.args.frozen_epochs * self.steps_an_epoch
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = phase_schedule(optimizer, self.args, num_training_steps, frozen_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def begin_training(self) -> None:
        """Takes up what a checkpoint says that `Trainer` does not; called when its state is loaded."""
        self._train_sums = torch.zeros_like(self._train_sums)
        unlogged = self._resumed.unlogged
        if unlogged is not None:
            self._tr_loss += unlogged["loss"]
            self._globalstep_last_logged = unlogged["last_logged_step"]
            if self.args.process_index == 0:  # the sums are over all processes, and will be summed up again
                sums = torch.tensor(unlogged["task_sums"], dtype=torch.float64)
                self._train_sums = self._train_sums + sums.to(self._train_sums.device)
        self.set_phase()

    def begin_epoch(self) -> None:
        """Sets what the epoch reads and what learns in it; called before its loader is iterated."""
        self.set_phase()
        if self.state.global_step == self.args.frozen_epochs * self.steps_an_epoch and self.optimizer is not None:
            self.optimizer.state.clear()  # also when a run is resumed here, with the state of phase heads
        epoch, steps_done = divmod(self.state.global_step, self.steps_an_epoch)
        StreamedArtworks.skip(
            self.callback_handler.train_dataloader, steps_done * self.args.gradient_accumulation_steps
        )
        augmentation = augmentation_of(self.train_dataset)
        if augmentation is not None:
            augmentation.set_epoch(epoch)

    def set_phase(self) -> None:
        """Freezes the backbone or not, and has phase `heads` read features in place of pictures, if it may."""
        is_frozen = phase_of(self.state.global_step // self.steps_an_epoch, self.args) == HEADS
        if self.eval_dataset is not None and self.args.eval_strategy != "no":
            self._rows_of_phase("eval", self.eval_dataset)
        if is_frozen:
            self.model.freeze_backbone()
        else:
            self.model.unfreeze_backbone()
        for rows in self._phase_rows.values():
            if is_frozen and self.args.cache_frozen_features and rows.features is None:
                rows.set_features(frozen_features(self, rows.rows))
            rows.read_features(is_frozen)

    # ---- rows ----

    def get_train_dataloader(self):
        return self._get_dataloader(
            *(self._rows_of_phase("train", self.train_dataset), "Training", self._train_batch_size),
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def get_eval_dataloader(self, eval_dataset=None):
        """A loader for each evaluation: with persistent workers `Trainer` would keep the first for all datasets."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if rows is None:
            raise ValueError("There is nothing to evaluate: pass eval_dataset.")
        is_own = rows is self.eval_dataset and self.is_in_train
        return self.get_test_dataloader(self._rows_of_phase("eval", rows) if is_own else rows)

    def _rows_of_phase(self, name: str, rows: Any) -> Any:
        if isinstance(rows, StreamedArtworks):
            return rows
        return self._phase_rows.setdefault(name, PhaseRows(rows))

    def _get_dataloader(self, dataset, description, batch_size, *args, is_training=False, **kwargs):
        is_stream = isinstance(dataset, StreamedArtworks)
        drop_last = self.args.dataloader_drop_last
        if is_stream:
            if drop_last:
                raise UserError("A stream needs dataloader_drop_last false, as by default.")
            dataset = dataset.part(self.accelerator.process_index, self.accelerator.num_processes, batch_size)
        dispatch = False if is_stream else self.args.accelerator_config.dispatch_batches  # type: ignore[union-attr]
        self.accelerator.dataloader_config.dispatch_batches = dispatch
        self.args.dataloader_drop_last = drop_last and is_training
        held = len(self.accelerator._dataloaders)
        try:
            loader = super()._get_dataloader(
                dataset, description, batch_size, *args, is_training=is_training, **kwargs
            )
        finally:
            self.args.dataloader_drop_last = drop_last
        if not is_training:
            del self.accelerator._dataloaders[held:]  # accelerate would keep each, with its workers, until the end
        # A loader draws the seed of its workers, which is needed for nothing here; from the global random state it
        # would do so at other times in a resumed run than in one that was not stopped.
        loader.base_dataloader.generator = torch.Generator().manual_seed(self.args.seed)
        return dataset.undivided(loader) if is_stream else loader

    def num_examples(self, dataloader) -> int:
        return getattr(dataloader.dataset, "total_dataset_length", None) or super().num_examples(dataloader)

    # ---- what is logged ----

    def running_losses(self) -> dict[str, float]:
        """The loss of each task since the last log, over the known rows of this process."""
        return self._means(self._train_sums)

    def _means(self, sums: torch.Tensor) -> dict[str, float]:
        return {name: n / d for name, n, d in zip(self.model.heads, *sums.tolist(), strict=True) if d > 0}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the loss of each task since the last log, and the weight that such a loss has now, to training's."""
        if "loss" in logs and "learning_rate" in logs:
            losses = self._means(self.accelerator.reduce(self._train_sums, reduction="sum"))
            self._train_sums = torch.zeros_like(self._train_sums)
            weights = self.model.task_weights()[0].tolist()
            logs |= {f"{name}_loss": loss for name, loss in losses.items()}
            logs |= {f"{name}_weight": weight for name, weight in zip(self.model.heads, weights, strict=True)}
        super().log(logs, start_time)

    def floating_point_ops(self, inputs) -> int:
        """0: Trainer's estimate counts the pixels as tokens and is hundreds of times too high for a ViT."""
        return 0

    # ---- evaluation ----

    def evaluation_loop(self, *args, **kwargs):
        """As in `Trainer`; during training, of the average of the weights, if there is one."""
        self._reset_evaluation()  # one that was interrupted leaves its sums behind
        with self._average.in_place():
            return super().evaluation_loop(*args, **kwargs)

    def _reset_evaluation(self) -> None:
        self.metrics.reset()
        self._eval_sums = torch.zeros(3, len(self.config.tasks), dtype=torch.float64)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Logits and labels of a batch; the loss is made of sums in the end, not of a mean of batch means."""
        inputs = self.normalize_pixels(self._prepare_inputs(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(pixel_values=inputs.get("pixel_values"), pooled=inputs.get("pooled")).logits
        return None, logits, inputs.get("labels")

    def _add_to_evaluation(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Called by `Trainer` with the gathered logits and labels of each batch, padding left out."""
        logits: Any = prediction.predictions
        labels: Any = prediction.label_ids
        self.metrics.update(logits, labels)
        targets = self.model.make_targets(labels)
        sums = torch.stack([self.model.loss_numerators(logits, targets), *self.model.loss_denominators(targets)])
        self._eval_sums = self._eval_sums.to(sums.device) + sums.double()
        if not compute_result:
            return {}
        metrics = self.metrics.compute()
        numerators, denominators, rows = self._eval_sums
        losses = numerators / torch.where(rows > 0, denominators, 1.0)
        metrics["loss"] = join_losses(losses, rows > 0, *self.model.task_weights()).item()
        known_rows = self.metrics.known_rows()
        for name, loss in zip(known_rows, losses.tolist(), strict=True):
            if known_rows[name]:
                metrics[f"{name}_loss"] = loss
            metrics[f"{name}_known_rows"] = known_rows[name]
        return metrics

    # ---- checkpoints ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `Trainer`; during training, the average of the weights, if there is one. Only if all are finite."""
        with self._average.in_place():
            if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
                raise UserError(
                    f"Step {self.state.global_step}: the weights are not finite any more, though the losses were: "
                    "lower learning_rate. They were not saved; resume from the last checkpoint."
                )
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model, trial):
        """Writes a checkpoint and the list of its files, and only then deletes older ones."""
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        loss = self.accelerator.reduce(self._tr_loss.double(), reduction="mean").item()
        sums = self.accelerator.reduce(self._train_sums, reduction="sum").tolist()
        self._record.unlogged = {"loss": loss, "task_sums": sums, "last_logged_step": self._globalstep_last_logged}
        if self.args.should_save and folder.exists():  # of a run that was killed: nothing of it may stay
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        with saving(folder):
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        with saving(folder):
            if self.args.should_save:
                (folder / "training_args.bin").unlink(missing_ok=True)  # pickled, and nothing reads it
                if not self.args.save_only_model:
                    self._average.save(folder)
                write_manifest(folder)
                rotate_checkpoints(folder.parent, self._save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

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
            self.state.best_model_checkpoint = str(best_beside(resume_from_checkpoint, saved))
        is_finished = saved.global_step >= max_steps
        for callback in self.callback_handler.callbacks:
            counted = saved.stateful_callbacks.get(type(callback).__name__)
            if isinstance(callback, ExportableState) and callback is not self._record and isinstance(counted, dict):
                vars(callback).update(counted["attributes"])
            if isinstance(callback, EarlyStoppingCallback):  # which alone ends a run for good before its last step
                is_finished |= callback.early_stopping_patience_counter >= callback.early_stopping_patience
        return (num_train_epochs, 0) if is_finished else done


class _PhaseChange(TrainerCallback):
    """Tells the trainer where training is."""

    def __init__(self, trainer: ArtGraphTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.begin_training()

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.begin_epoch()

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.model.unfreeze_backbone()
