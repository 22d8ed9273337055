"""`MultiTaskTrainer`: the `Trainer`, whose steps and evaluations are exact however their rows are divided.

Notable:
- The denominators of the masked, weighted losses are summed over the whole optimizer step, all micro-batches on all
  processes, so a step's gradient is that of one large batch. Rows that only even out an epoch's end count for nothing.
- Evaluation keeps counters and sums, never all logits, and counts each row once.
- A loss that is not finite stops training (finite.py).
Private methods of `Trainer` are overridden where it has no hook: `_get_dataloader` (a stream divides itself) and
`_get_grad_norm` (to look whether it is finite).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from accelerate.utils import slice_tensors
from transformers import EvalPrediction, ProgressCallback

from ..data import ArtGraphCollator, PixelNormalizer
from ..data.streaming import StreamedArtworks
from ..errors import UserError
from ..losses import join_task_losses
from ..metrics import MultiTaskMetrics
from ..modeling_artgraph_vit import ArtGraphViTForImageClassification
from ..tasks import UNKNOWN
from .arguments import ArtGraphTrainingArguments
from .engines import whole
from .finite import FiniteLossCheck
from .progress import EpochTable
from .zero2 import ZeRO2Trainer


class MultiTaskTrainer(ZeRO2Trainer):
    """Trains an [`ArtGraphViTForImageClassification`] in one phase.

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
        if isinstance(kwargs.get("data_collator"), ArtGraphCollator):
            kwargs["data_collator"] = dataclasses.replace(kwargs["data_collator"], with_names=True)
        self._finite = FiniteLossCheck(model)
        kwargs["callbacks"] = [self._finite, *(kwargs.get("callbacks") or [])]
        super().__init__(model=model, args=args, compute_metrics=self._add_to_evaluation, **kwargs)
        self.config: Any = model.config
        processor: Any = self.processing_class
        self._pixel_normalizer = PixelNormalizer(processor) if processor is not None else None
        if self.pop_callback(ProgressCallback):
            self.add_callback(EpochTable(self.running_losses, self.get_total_train_batch_size(args)))
        tasks = model.config.tasks
        self._metrics = MultiTaskMetrics(tasks, model.config.thresholds)
        self._reset_evaluation()
        self._train_sums = torch.zeros(2, len(tasks), dtype=torch.float64)  # since the last log, like `_eval_sums`
        self._refuse_unknown_metric()

    def _refuse_unknown_metric(self) -> None:
        kinds = ("loss", "accuracy", "hamming_loss", "macro_precision", "macro_recall", "macro_f1")
        known = {"loss", "avg_macro_f1"} | {f"{task.name}_{kind}" for task in self.config.tasks for kind in kinds}
        wanted = self.args.metric_for_best_model
        if wanted is not None and wanted.removeprefix("eval_") not in known:
            raise UserError(f"metric_for_best_model={wanted!r} is none of the metrics {', '.join(sorted(known))}.")

    @property
    def _train_rows(self) -> int:
        rows: Any = self.train_dataset
        return len(rows)

    def _get_dataloader(self, dataset, description, batch_size, *args, **kwargs):
        """As in `Trainer`; a stream divides itself among processes and workers, which accelerate must not repeat."""
        is_stream = isinstance(dataset, StreamedArtworks)
        if is_stream:
            if self.args.dataloader_drop_last or not self.args.dataloader_in_order:
                raise UserError(
                    "A stream needs dataloader_drop_last false and dataloader_in_order true, as by default."
                )
            dataset = dataset.part(self.accelerator.process_index, self.accelerator.num_processes, batch_size)
        dispatch = False if is_stream else self.args.accelerator_config.dispatch_batches  # type: ignore[union-attr]
        self.accelerator.dataloader_config.dispatch_batches = dispatch
        loader = super()._get_dataloader(dataset, description, batch_size, *args, **kwargs)
        return dataset.undivided(loader) if is_stream else loader

    def num_examples(self, dataloader) -> int:
        return getattr(dataloader.dataset, "total_dataset_length", None) or super().num_examples(dataloader)

    def get_decay_parameter_names(self, model) -> list[str]:
        """All parameters but the log variances, as PyTorch's AdamW does it."""
        return [name for name, _ in model.named_parameters() if not name.endswith("log_variances")]

    def normalize_pixels(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs on the device, with floats in place of the bytes in which pixels travel."""
        pixels = inputs.get("pixel_values")
        if pixels is None or pixels.dtype != torch.uint8:
            return inputs
        if self._pixel_normalizer is None:
            raise UserError("The pixels come as bytes: pass the image processor to the trainer as processing_class.")
        return {**inputs, "pixel_values": self._pixel_normalizer(pixels)}

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
        inputs = self.normalize_pixels(inputs)
        own = num_items_in_batch / self.accelerator.num_processes
        micro_batches = self.current_gradient_accumulation_steps
        outputs = model(**inputs, denominators=own, log_term_share=1 / micro_batches)
        self._finite.add(outputs, inputs["labels"], names)
        losses = torch.stack(list(outputs.task_losses.values()))
        self._train_sums = self._train_sums.to(losses.device)
        self._train_sums[0] += losses * own
        self._train_sums[1] += own / micro_batches
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _get_grad_norm(self, model, grad_norm=None):
        """As in `Trainer`, which asks for it at each step; fp16 may overflow, and its scaler then skips the step."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.mixed_precision != "fp16":
            self._finite.add_gradient_norm(whole(torch.as_tensor(norm)), self.state.global_step + 1)
        return norm

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
            weights = torch.exp(-whole(self.model.log_variances.detach()).double()).tolist()
            logs |= {f"{name}_loss": loss for name, loss in losses.items()}
            logs |= {f"{task.name}_weight": weight for task, weight in zip(self.config.tasks, weights, strict=True)}
        super().log(logs, start_time)

    def floating_point_ops(self, inputs) -> int:
        """0: Trainer's estimate counts the pixels as tokens and is hundreds of times too high for a ViT."""
        return 0

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

    # ---- evaluation ----

    def get_eval_dataloader(self, eval_dataset=None):
        """Each dataset by its own rows: with persistent workers `Trainer` keeps one loader for all datasets that it is
        handed, and would evaluate the test split on the rows of the validation split.
        """
        if eval_dataset is None or isinstance(eval_dataset, str) or eval_dataset is self.eval_dataset:
            return super().get_eval_dataloader(eval_dataset)
        return self.get_test_dataloader(eval_dataset)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """As in `Trainer`, but it leaves the random state of training alone: evaluating more often changes nothing."""
        self._reset_evaluation()  # one that was interrupted leaves its sums behind
        loaders = self.accelerator._dataloaders
        held = len(loaders)
        try:
            with torch.random.fork_rng(devices=[]):
                return super().evaluate(*args, **kwargs)
        finally:
            del loaders[held:]  # accelerate would keep each, with its workers, until the end

    def predict(self, *args, **kwargs):
        self._reset_evaluation()
        return super().predict(*args, **kwargs)

    def _reset_evaluation(self) -> None:
        self._metrics.reset()
        self._eval_sums = torch.zeros(2, len(self.config.tasks), dtype=torch.float64)  # numerators and denominators

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Logits and labels of a batch; the loss is made of sums in the end, not of a mean of batch means."""
        inputs = self.normalize_pixels(self._prepare_inputs(inputs))
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
        log_variances = whole(self.model.log_variances.detach())
        metrics["loss"] = join_task_losses(losses, is_known, log_variances, self.config.loss_epsilon).item()
        for name, loss, rows in zip(known_rows, losses.tolist(), known_rows.values(), strict=True):
            if rows:
                metrics[f"{name}_loss"] = loss
            metrics[f"{name}_known_rows"] = rows
        self._reset_evaluation()
        return metrics
