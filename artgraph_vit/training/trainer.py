"""`ArtGraphTrainer`: the `Trainer`, with two phases in one run and a gradient that does not depend on the division.

Notable:
- The denominators of the masked, weighted losses are summed over the whole optimizer step, all micro-batches on all
  processes, so a step's gradient is that of one large batch.
- Phase `heads` trains with a frozen backbone, then the model is wrapped anew and phase `full` starts with its own
  optimizer and schedule; epochs, steps, logs and checkpoints count on.
- Evaluation keeps counters and sums, never all logits.
Private methods of `Trainer` are overridden where it has no hook: `_prepare_for_training` and `_run_epoch` (phases),
`_load_optimizer_and_scheduler` (a phase starts without the last one's), `_save_checkpoint` (sealed before older ones
go), `_load_best_model` (only if whole), `_issue_warnings_after_load` (a tensor that was not loaded is an error).
tests/training holds each against the installed version.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import slice_tensors
from transformers import EvalPrediction, ProgressCallback, Trainer
from transformers.trainer_utils import rotate_checkpoints

from ..data import ArtGraphCollator
from ..errors import UserError
from ..losses import join_task_losses
from ..metrics import MultiTaskMetrics
from ..modeling_artgraph_vit import ArtGraphViTForImageClassification
from ..tasks import UNKNOWN
from .arguments import ArtGraphTrainingArguments
from .checkpoints import checkpoint_to_resume, damage, refuse_full_disk, saving, seal
from .features import FeatureRows, frozen_features
from .finite import FiniteLossCheck
from .progress import EpochTable
from .record import RunRecord

HEADS, FULL = "heads", "full"


class ArtGraphTrainer(Trainer):
    """Trains an [`ArtGraphViTForImageClassification`] in two phases.

    Args:
        model ([`ArtGraphViTForImageClassification`]).
        args ([`ArtGraphTrainingArguments`]).
        recipe (`Mapping`, *optional*): what else, beside the arguments, decides what is learned, such as the backbone;
            a checkpoint is resumed with the same recipe only.
        kwargs: as for `Trainer`; metrics are the trainer's own, so there is no `compute_metrics`.

    Raises:
        ValueError: if one process would drive several GPUs (`nn.DataParallel`).
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
        if args.n_gpu > 1:
            raise ValueError(
                f"One process sees {args.n_gpu} GPUs: start the script with `accelerate launch`, one process a GPU."
            )
        if isinstance(kwargs.get("data_collator"), ArtGraphCollator):
            kwargs["data_collator"] = dataclasses.replace(kwargs["data_collator"], with_names=True)
        self._record = RunRecord(recipe={**(recipe or {}), **args.recipe()})
        self._finite = FiniteLossCheck(model)
        kwargs["callbacks"] = [self._record, self._finite, *(kwargs.get("callbacks") or [])]
        super().__init__(model=model, args=args, compute_metrics=self._add_to_evaluation, **kwargs)
        self.config: Any = model.config
        if self.pop_callback(ProgressCallback):
            self.add_callback(EpochTable(self.running_losses, self.get_total_train_batch_size(args)))
        tasks = model.config.tasks
        self._metrics = MultiTaskMetrics(tasks, model.config.thresholds)
        self._eval_sums = torch.zeros(2, len(tasks), dtype=torch.float64)  # numerators and denominators
        self._train_sums = torch.zeros(2, len(tasks), dtype=torch.float64)  # since the last log, as above
        self._features: dict[str, FeatureRows | None] = {}

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any):
        """As in `Trainer`, but sure of its checkpoints.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): a folder, `"last"` or `True` for the newest whole
                checkpoint in the output folder, or `"auto"` for the same or else a fresh start.

        Raises:
            UserError: if the checkpoint is damaged or another run's, or the output folder is another run's or full.
        """
        checkpoint = checkpoint_to_resume(self.args, resume_from_checkpoint)
        self._record.train_rows = self._train_rows
        self._record.global_batch_size = self.get_total_train_batch_size(self.args)
        self._record.processes = self.args.world_size
        self._resumed = RunRecord.read(checkpoint) if checkpoint is not None else RunRecord()
        if checkpoint is not None:
            self._record.refuse_other(self._resumed, checkpoint)
            self._refuse_other_tasks(checkpoint)
        refuse_full_disk(self.args, self.model)
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    @property
    def _train_rows(self) -> int:
        rows: Any = self.train_dataset
        return len(rows)

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
        phase_steps = frozen_steps if self.phase == HEADS else max_steps - frozen_steps
        return super()._prepare_for_training(phase_steps, train_dataloader, resume_from_checkpoint)

    def _set_phase(self, phase: str) -> None:
        """Sets what learns, and takes off the wrapping, which knows the parameters that learned so far."""
        self._record.phase = phase
        self.model = self.accelerator.unwrap_model(
            self.model_wrapped, keep_fp32_wrapper=False, keep_torch_compile=False
        )
        self.model_wrapped = self.model
        self.optimizer = self.lr_scheduler = None
        self.accelerator._models.clear()
        self.accelerator._optimizers.clear()
        self.accelerator._schedulers.clear()
        if phase == HEADS:
            self.model.freeze_backbone()
        else:
            self.model.unfreeze_backbone()

    def _run_epoch(self, model, epoch, train_dataloader, resume_from_checkpoint, epochs_trained, **kwargs):
        if self._phase_of(epoch) != self.phase:
            self._prepare_for_training(self.state.max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None and epoch == epochs_trained:
            self._restore_unlogged(self._resumed.unlogged)
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

    def get_decay_parameter_names(self, model) -> list[str]:
        """All parameters but the log variances, as PyTorch's AdamW does it."""
        return [name for name, _ in model.named_parameters() if not name.endswith("log_variances")]

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        if self.phase == HEADS:
            for group in optimizer.param_groups:
                group["lr"] = self.args.frozen_learning_rate
        return optimizer

    # ---- one optimizer step ----

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of a step, and the denominators of its losses over all of them on all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        sums = torch.zeros(2, len(self.config.tasks), dtype=torch.float64, device=device)
        own_rows = self._drop_padding(batches)
        for batch in batches if own_rows else batches[:-1]:
            labels = {name: values.to(device) for name, values in batch["labels"].items()}
            sums += torch.stack(self.model.loss_denominators(labels)).double()
        denominators, is_known = self.accelerator.reduce(sums, reduction="sum")
        return batches, torch.where(is_known > 0, denominators, 0.0)

    def _drop_padding(self, batches: list[dict[str, Any]]) -> int:
        """Takes off the rows with which accelerate evens out an epoch's last batch; returns how many stay.

        It repeats rows of the epoch's start. Where all of a process's rows are such, one stays, for a process must
        take part in the step, but with its labels unknown.
        """
        rows = len(next(iter(batches[-1]["labels"].values())))
        # Not accelerate's `remainder`, which the loader of a resumed epoch does not know.
        remainder = self._train_rows % (self._train_batch_size * self.accelerator.num_processes)
        is_last = self.accelerator.gradient_state.end_of_dataloader
        if self.accelerator.num_processes == 1 or not is_last or remainder == 0 or self.args.dataloader_drop_last:
            return rows
        own = min(max(remainder - self._train_batch_size * self.accelerator.process_index, 0), rows)
        batches[-1] = slice_tensors(batches[-1], slice(max(own, 1)))
        if own == 0:
            for labels in batches[-1]["labels"].values():
                labels.fill_(UNKNOWN)
        return own

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The part of the step's loss that stems from these rows, times the processes, over which DDP averages.

        `num_items_in_batch` is what `get_batch_samples` returned: the step's denominators, `(T,)`.
        """
        names = inputs.pop("names", None)
        own = num_items_in_batch / self.accelerator.num_processes
        micro_batches = self.current_gradient_accumulation_steps
        outputs = model(**inputs, denominators=own, log_term_share=1 / micro_batches)
        self._finite.add(outputs, inputs["labels"], names)
        losses = torch.stack(list(outputs.task_losses.values()))
        self._train_sums = self._train_sums.to(losses.device)
        self._train_sums[0] += losses * own
        self._train_sums[1] += own / micro_batches
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def running_losses(self) -> dict[str, float]:
        """The loss of each task since the last log, over the known rows of this process."""
        return self._means(self._train_sums)

    def _means(self, sums: torch.Tensor) -> dict[str, float]:
        numerators, denominators = sums.tolist()
        return {
            task.name: numerator / denominator
            for task, numerator, denominator in zip(self.config.tasks, numerators, denominators, strict=True)
            if denominator > 0
        }

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the loss of each task since the last log, and its weight 1/σ², to the logs of training."""
        if "loss" in logs and "learning_rate" in logs:
            losses = self._means(self.accelerator.reduce(self._train_sums, reduction="sum"))
            self._train_sums = torch.zeros_like(self._train_sums)
            weights = torch.exp(-self.model.log_variances.detach().double()).tolist()
            logs |= {f"{name}_loss": loss for name, loss in losses.items()}
            logs |= {f"{task.name}_weight": weight for task, weight in zip(self.config.tasks, weights, strict=True)}
        super().log(logs, start_time)

    def floating_point_ops(self, inputs) -> int:
        """0: Trainer's estimate counts the pixels as tokens and is hundreds of times too high for a ViT."""
        return 0

    # ---- evaluation ----

    def get_eval_dataloader(self, eval_dataset=None):
        """Each dataset by its own rows: with persistent workers `Trainer` keeps one loader for all datasets that it is
        handed, and would evaluate the test split on the rows of the validation split.
        """
        if eval_dataset is None or isinstance(eval_dataset, str) or eval_dataset is self.eval_dataset:
            return super().get_eval_dataloader(eval_dataset)
        return self.get_test_dataloader(eval_dataset)

    def evaluate(self, eval_dataset=None, *args, **kwargs) -> dict[str, float]:
        """As in `Trainer`, but it leaves the random state of training alone: evaluating more often changes nothing."""
        if eval_dataset is None and self.is_in_train and self.phase == HEADS:
            eval_dataset = self._features.get("eval")
        with torch.random.fork_rng(devices=[]):
            return super().evaluate(eval_dataset, *args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Logits and labels of a batch; the loss is made of sums in the end, not of a mean of batch means."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(pixel_values=inputs.get("pixel_values"), pooled=inputs.get("pooled")).logits
        return None, logits, labels

    def _add_to_evaluation(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Called by `Trainer` with the gathered logits and labels of each batch, padding left out."""
        logits: Any = prediction.predictions
        labels: Any = prediction.label_ids
        self._metrics.update(logits, labels)
        denominators, _ = self.model.loss_denominators(labels)
        sums = torch.stack([self.model.loss_numerators(logits, labels), denominators]).double()
        self._eval_sums = self._eval_sums.to(sums.device) + sums
        return self._finish_evaluation() if compute_result else {}

    def _finish_evaluation(self) -> dict[str, float]:
        metrics = self._metrics.compute()
        known_rows = self._metrics.known_rows()
        numerators, denominators = self._eval_sums
        is_known = torch.tensor([rows > 0 for rows in known_rows.values()], device=numerators.device)
        losses = numerators / torch.where(is_known, denominators, 1.0)
        log_variances = self.model.log_variances.detach()
        metrics["loss"] = join_task_losses(losses, is_known, log_variances, self.config.loss_epsilon).item()
        for name, loss, rows in zip(known_rows, losses.tolist(), known_rows.values(), strict=True):
            if rows:
                metrics[f"{name}_loss"] = loss
            metrics[f"{name}_known_rows"] = rows
        self._metrics.reset()
        self._eval_sums = torch.zeros_like(self._eval_sums)
        return metrics

    # ---- checkpoints ----

    def _save_checkpoint(self, model, trial):
        """Writes a checkpoint, seals it, and only then lets `Trainer` delete older ones."""
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        self._record.unlogged = self._unlogged()
        if self.args.should_save and folder.exists():  # of a run that was killed: nothing of it may stay
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with saving(folder):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    (folder / "training_args.bin").unlink(missing_ok=True)  # pickled, and nothing reads it
                    seal(folder)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(folder.parent),
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _unlogged(self) -> dict[str, Any]:
        """What was summed up since the last log, over all processes; a resumed run goes on from there."""
        loss = self.accelerator.reduce(self._tr_loss.double(), reduction="mean").item()
        sums = self.accelerator.reduce(self._train_sums, reduction="sum").tolist()
        return {"loss": loss, "task_sums": sums, "last_logged_step": self._globalstep_last_logged}

    def _restore_unlogged(self, unlogged: dict[str, Any] | None) -> None:
        if unlogged is None:
            return
        self._tr_loss += unlogged["loss"]
        self._globalstep_last_logged = unlogged["last_logged_step"]
        if self.args.process_index == 0:  # the sums are over all processes, and will be summed up again
            self._train_sums = self._train_sums + torch.tensor(unlogged["task_sums"], dtype=torch.float64)

    def _load_best_model(self) -> None:
        problem = damage(Path(str(self.state.best_model_checkpoint)))
        if problem:
            raise UserError(
                f"The best checkpoint, {self.state.best_model_checkpoint}, is not whole: {problem}. Training is "
                "complete: pass --load_best_model_at_end false --resume_from_checkpoint last to keep its last state."
            )
        super()._load_best_model()

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
