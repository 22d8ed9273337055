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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import send_to_device, slice_tensors
from transformers import EvalPrediction, ProgressCallback

from ..data import ArtGraphCollator, PixelNormalizer
from ..data.mixing import Mixing, targets_of
from ..data.streaming import StreamedArtworks
from ..errors import UserError
from ..evaluation.metrics import MultiTaskMetrics, kinds_of
from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification
from ..model.task_weighting import join_task_losses
from ..model.tasks import UNKNOWN
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
        is_mixed = args.mixup_alpha > 0 or args.cutmix_alpha > 0
        self._mixing = Mixing(args.mixup_alpha, args.cutmix_alpha, args.seed) if is_mixed else None
        if self.pop_callback(ProgressCallback):
            self.add_callback(EpochTable(self.running_losses, self.get_total_train_batch_size(args)))
        tasks = model.config.tasks
        self.metrics = MultiTaskMetrics(tasks, model.config.thresholds)  # of the last evaluation
        self._reset_evaluation()
        self._train_sums = torch.zeros(2, len(tasks), dtype=torch.float64)  # since the last log, like `_eval_sums`
        self._refuse_unknown_metric()

    def _refuse_unknown_metric(self) -> None:
        kinds = {task.name: ("loss", *kinds_of(task)) for task in self.config.tasks}
        known = {"loss", "avg_macro_f1"} | {f"{name}_{kind}" for name in kinds for kind in kinds[name]}
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
        if self._mixing is not None:
            for number, batch in enumerate(batches):
                place = (self.state.global_step, number, self.accelerator.process_index)
                batch["mix"] = self._mixing.draw(batch["pixel_values"].shape, *place)
        for batch in batches if own_rows else batches[:-1]:
            targets = send_to_device(targets_of(batch), device)
            sums += torch.stack(self.model.loss_denominators(**targets)).double()
        sums, is_known = self.accelerator.reduce(sums, reduction="sum")
        denominators = torch.where(is_known > 0, sums, 0.0)
        self._step_losses = None
        if self.config.weighting.needs_step_losses and (len(batches) > 1 or self.accelerator.num_processes > 1):
            self._step_losses = self._losses_of_step(batches, denominators)
        return batches, denominators

    @torch.no_grad()
    def _losses_of_step(self, batches: list[dict[str, Any]], denominators: torch.Tensor) -> torch.Tensor:
        """The losses of a step that is divided, `(T,)`, before the step: the weights of some rules depend on them.

        One more forward pass; the random state is forked, so that the one of the step draws the same dropout, and
        what the pass leaves in buffers, such as those of batch norms, is taken back.
        """
        self.model.train()
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        losses = torch.zeros_like(denominators)
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), self.compute_loss_context_manager():
            for batch in batches:
                inputs = self._model_inputs(self._prepare_inputs(batch))
                losses += torch.stack(list(self.model(**inputs, denominators=denominators).task_losses.values()))
        for buffer, before in buffers:
            buffer.copy_(before)
        return self.accelerator.reduce(losses, reduction="sum")

    def _model_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the model takes of a batch on the device; pictures are mixed here, where their pixels are floats."""
        inputs = {name: values for name, values in batch.items() if name not in ("names", "mix")}
        inputs = self.normalize_pixels(inputs) | targets_of(batch)
        if "mix" in batch:
            inputs["pixel_values"] = batch["mix"].pixels(inputs["pixel_values"])
        return inputs

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
        own = num_items_in_batch / self.accelerator.num_processes
        micro_batches = self.current_gradient_accumulation_steps
        outputs = model(
            **self._model_inputs(inputs),
            denominators=own,
            step_losses=self._step_losses,
            log_term_share=1 / micro_batches,
        )
        names = inputs.get("names")
        if names is not None and "mix" in inputs:
            names = inputs["mix"].names(names)
        self._finite.add(outputs, targets_of(inputs), names)
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
        """Adds the loss of each task since the last log, and the weight that such a loss has now, to training's."""
        if "loss" in logs and "learning_rate" in logs:
            losses = self._means(self.accelerator.reduce(self._train_sums, reduction="sum"))
            self._train_sums = torch.zeros_like(self._train_sums)
            logs |= {f"{name}_loss": loss for name, loss in losses.items()}
            logs |= {f"{name}_weight": weight for name, weight in self._task_weights(losses).items()}
        super().log(logs, start_time)

    def _task_weights(self, losses: dict[str, float]) -> dict[str, float]:
        names = [task.name for task in self.config.tasks]
        values = torch.tensor([losses.get(name, 0.0) for name in names], dtype=torch.float64)
        is_known = torch.tensor([name in losses for name in names])
        log_variances = whole(self.model.log_variances.detach()).double().cpu()
        weights, _ = self.config.weighting(values, is_known, log_variances)
        return dict(zip(names, weights.tolist(), strict=True))

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
        with self._evaluation():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args, **kwargs):
        """As in `Trainer`; it leaves training alone too."""
        with self._evaluation():
            return super().predict(*args, **kwargs)

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        self._reset_evaluation()  # one that was interrupted leaves its sums behind
        loaders = self.accelerator._dataloaders
        held = len(loaders)
        try:
            with torch.random.fork_rng(devices=[]):
                yield
        finally:
            del loaders[held:]  # accelerate would keep each, with its workers, until the end

    def _reset_evaluation(self) -> None:
        self.metrics.reset()
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
        self.metrics.update(logits, labels)
        denominators, _ = self.model.loss_denominators(labels)
        sums = torch.stack([self.model.loss_numerators(logits, labels), denominators]).double()
        self._eval_sums = self._eval_sums.to(sums.device) + sums
        return self._finish_evaluation() if compute_result else {}

    def _finish_evaluation(self) -> dict[str, float]:
        metrics = self.metrics.compute()
        known_rows = self.metrics.known_rows()
        numerators, denominators = self._eval_sums
        is_known = torch.tensor([rows > 0 for rows in known_rows.values()], device=numerators.device)
        losses = numerators / torch.where(is_known, denominators, 1.0)
        log_variances = whole(self.model.log_variances.detach())
        metrics["loss"] = join_task_losses(losses, is_known, log_variances, self.config.weighting).item()
        for name, loss, rows in zip(known_rows, losses.tolist(), known_rows.values(), strict=True):
            if rows:
                metrics[f"{name}_loss"] = loss
            metrics[f"{name}_known_rows"] = rows
        return metrics
