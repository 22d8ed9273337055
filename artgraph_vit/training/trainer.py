"""`ArtGraphTrainer`: the `Trainer`, with two phases in one run and a gradient that does not depend on the division.

Notable:
- The denominators of the masked, weighted losses are summed over the whole optimizer step, all micro-batches on all
  processes, so a step's gradient is that of one large batch.
- Phase `heads` trains with a frozen backbone, then the model is wrapped anew and phase `full` starts with its own
  optimizer and schedule; epochs, steps, logs and checkpoints count on.
- Evaluation keeps counters and sums, never all logits.
Private methods of `Trainer` are overridden where it has no hook: `_prepare_for_training` and `_run_epoch` (phases),
`_load_optimizer_and_scheduler` (a phase starts without the last one's), `_issue_warnings_after_load` (a tensor that
was not loaded is an error). tests/training holds each against the installed version.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate.utils import slice_tensors
from transformers import EvalPrediction, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from ..losses import join_task_losses
from ..metrics import MultiTaskMetrics
from ..modeling_artgraph_vit import ArtGraphViTForImageClassification
from ..tasks import UNKNOWN
from .arguments import ArtGraphTrainingArguments
from .progress import EpochTable

HEADS, FULL = "heads", "full"


class PhaseRecord(TrainerCallback, ExportableState):
    """Writes into each checkpoint's trainer_state.json which phase its optimizer belongs to."""

    def __init__(self, phase: str | None = None, frozen_epochs: int | None = None):
        self.phase = phase
        self.frozen_epochs = frozen_epochs

    def state(self) -> dict[str, Any]:
        return {"args": {"phase": self.phase, "frozen_epochs": self.frozen_epochs}, "attributes": {}}


class ArtGraphTrainer(Trainer):
    """Trains an [`ArtGraphViTForImageClassification`] in two phases.

    Args:
        model ([`ArtGraphViTForImageClassification`]).
        args ([`ArtGraphTrainingArguments`]).
        kwargs: as for `Trainer`; metrics are the trainer's own, so there is no `compute_metrics`.

    Raises:
        ValueError: if one process would drive several GPUs (`nn.DataParallel`).
    """

    loss_is_scaled_for_ga = True  # read by Trainer.training_step: `compute_loss` divides by the whole step's sums
    model: ArtGraphViTForImageClassification
    args: ArtGraphTrainingArguments

    def __init__(
        self, model: ArtGraphViTForImageClassification, args: ArtGraphTrainingArguments, **kwargs: Any
    ) -> None:
        if args.n_gpu > 1:
            raise ValueError(
                f"One process sees {args.n_gpu} GPUs: start the script with `accelerate launch`, one process a GPU."
            )
        self._record = PhaseRecord(frozen_epochs=args.frozen_epochs)
        kwargs["callbacks"] = [self._record, *(kwargs.get("callbacks") or [])]
        super().__init__(model=model, args=args, compute_metrics=self._add_to_evaluation, **kwargs)
        self.config: Any = model.config
        if self.pop_callback(ProgressCallback):
            self.add_callback(EpochTable)
        tasks = model.config.tasks
        self._metrics = MultiTaskMetrics(tasks, model.config.thresholds)
        self._eval_sums = torch.zeros(2, len(tasks), dtype=torch.float64)  # numerators and denominators
        self._train_sums = torch.zeros(2, len(tasks), dtype=torch.float64)  # since the last log, as above

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
        self.model = self.accelerator.unwrap_model(self.model_wrapped, keep_fp32_wrapper=False)
        self.model_wrapped = self.model
        self.optimizer = self.lr_scheduler = None
        self.accelerator._models.clear()
        self.accelerator._optimizers.clear()
        self.accelerator._schedulers.clear()
        if phase == HEADS:
            self.model.freeze_backbone()
        else:
            self.model.unfreeze_backbone()

    def _run_epoch(self, model, epoch, train_dataloader, **kwargs):
        if self._phase_of(epoch) != self.phase:
            self._prepare_for_training(self.state.max_steps, train_dataloader, None)
        super()._run_epoch(model=self.model_wrapped, epoch=epoch, train_dataloader=train_dataloader, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint is None:
            return
        saved = self.state.stateful_callbacks.get(type(self._record).__name__, {}).get("args", {})
        if saved.get("frozen_epochs") != self.args.frozen_epochs:
            raise ValueError(
                f"{checkpoint} was made with frozen_epochs={saved.get('frozen_epochs')}, and this run has "
                f"{self.args.frozen_epochs}: resume with the same value."
            )
        if saved["phase"] == self.phase:  # else it is the last of phase `heads`, and `full` has its own optimizer
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
        rows = len(batches[-1]["pixel_values"])
        state = self.accelerator.gradient_state
        if self.accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return rows
        own = min(max(state.remainder - rows * self.accelerator.process_index, 0), rows)
        batches[-1] = slice_tensors(batches[-1], slice(max(own, 1)))
        if own == 0:
            for labels in batches[-1]["labels"].values():
                labels.fill_(UNKNOWN)
        return own

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The part of the step's loss that stems from these rows, times the processes, over which DDP averages.

        `num_items_in_batch` is what `get_batch_samples` returned: the step's denominators, `(T,)`.
        """
        own = num_items_in_batch / self.accelerator.num_processes
        micro_batches = self.current_gradient_accumulation_steps
        outputs = model(**inputs, denominators=own, log_term_share=1 / micro_batches)
        losses = torch.stack(list(outputs.task_losses.values()))
        self._train_sums = self._train_sums.to(losses.device)
        self._train_sums[0] += losses * own
        self._train_sums[1] += own / micro_batches
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the loss of each task since the last log, and its weight 1/σ², to the logs of training."""
        if "loss" in logs and "learning_rate" in logs:
            numerators, denominators = self.accelerator.reduce(self._train_sums, reduction="sum").tolist()
            self._train_sums = torch.zeros_like(self._train_sums)
            weights = torch.exp(-self.model.log_variances.detach().double()).tolist()
            for task, numerator, denominator, weight in zip(
                self.config.tasks, numerators, denominators, weights, strict=True
            ):
                if denominator > 0:
                    logs[f"{task.name}_loss"] = numerator / denominator
                logs[f"{task.name}_weight"] = weight
        super().log(logs, start_time)

    def floating_point_ops(self, inputs) -> int:
        """0: Trainer's estimate counts the pixels as tokens and is hundreds of times too high for a ViT."""
        return 0

    # ---- evaluation ----

    def get_eval_dataloader(self, eval_dataset=None):
        """Each dataset by its own rows: with persistent workers `Trainer` keeps one loader for every dataset that it is
        handed, and would evaluate the test split on the rows of the validation split.
        """
        if eval_dataset is None or isinstance(eval_dataset, str) or eval_dataset is self.eval_dataset:
            return super().get_eval_dataloader(eval_dataset)
        return self.get_test_dataloader(eval_dataset)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """As in `Trainer`, but it leaves the random state of training alone: evaluating more often changes nothing."""
        with torch.random.fork_rng(devices=[]):
            return super().evaluate(*args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Logits and labels of a batch; the loss is made of sums in the end, not of a mean of batch means."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(pixel_values=inputs["pixel_values"]).logits
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

    def _issue_warnings_after_load(self, load_result) -> None:
        if load_result.missing_keys or load_result.unexpected_keys:
            raise ValueError(
                "The checkpoint does not hold exactly the model's tensors: "
                f"{len(load_result.missing_keys)} missing ({', '.join(load_result.missing_keys[:3])}), "
                f"{len(load_result.unexpected_keys)} unexpected ({', '.join(load_result.unexpected_keys[:3])}). "
                "It was made by another model or another version; nothing can be resumed from it."
            )
