"""`ZeRO2Trainer`: DeepSpeed's ZeRO stage 2 as a third engine, which divides gradients and optimizer state.

Weights stay whole and float32 on each process, and --bf16 is autocast as everywhere. Notable:
- A phase has an engine of its own, made when the weights of a resumed run are loaded, since it copies them.
- The step waits for `optimizer.step`. accelerate takes it in `backward`, before any callback sees the gradient.
- A checkpoint holds what one of DDP holds: the state of the optimizer is put together and its parameters numbered, so
  that other engines, and other numbers of processes, go on from it.
Private methods of `Trainer` are overridden where it has no hook, for it hands all of a checkpoint to DeepSpeed:
`_prepare_for_training`, `_save_optimizer_and_scheduler`, `_load_optimizer_and_scheduler`, `_load_best_model`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper, DeepSpeedOptimizerWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from .engines import EngineTrainer


class _Gradient(DeepSpeedEngineWrapper):
    """The half of accelerate's wrapper that comes before the step."""

    def backward(self, loss: Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        self.engine.backward(loss, **kwargs)

    def get_global_grad_norm(self) -> float:
        norm = float(self.engine.optimizer.scaled_global_norm())
        return norm if norm >= 0 else float("nan")  # DeepSpeed says -1 for all that is not finite


class _Step(DeepSpeedOptimizerWrapper):
    """The other half: clips, steps, and gathers the weights."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine.optimizer)
        self._engine = engine

    def step(self) -> None:
        self._engine.step()


class ZeRO2Trainer(EngineTrainer):
    """A `Trainer` that works with DeepSpeed too, under the configuration of deepspeed_config.py."""

    deepspeed: nn.Module | None  # type: ignore[assignment]

    def __init__(self, model: PreTrainedModel, args: TrainingArguments, **kwargs: Any) -> None:
        super().__init__(model, args, **kwargs)
        if not self.is_deepspeed_enabled:
            return
        # Already DeepSpeed's number; accelerate would warn that it takes that one.
        self.accelerator.gradient_accumulation_steps = args.gradient_accumulation_steps
        if args.mixed_precision == "bf16":
            # Not around the model: DeepSpeed's engine switches such an autocast off.
            model.forward = torch.autocast(args.device.type, torch.bfloat16)(model.forward)  # type: ignore

    # ---- training ----

    def _unwrap(self) -> None:
        super()._unwrap()
        if self.is_deepspeed_enabled:
            if self.accelerator.deepspeed_engine_wrapped is not None:
                self.accelerator.deepspeed_engine_wrapped.engine.destroy()  # takes its hooks off the parameters
            self.deepspeed = self.accelerator.deepspeed_engine_wrapped = None

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        if not self.is_deepspeed_enabled or resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self._load_from_checkpoint(resume_from_checkpoint, self.model)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """As in `Trainer`; keeps the parameters, for DeepSpeed puts one flat tensor in the place of each group's."""
        optimizer = super().create_optimizer(model)
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        return optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        """As in `Trainer`, which calls it when the engine is there and its optimizer not yet in anyone's hands."""
        if self.is_deepspeed_enabled:
            engine = self.accelerator.deepspeed_engine_wrapped.engine
            self.accelerator.deepspeed_engine_wrapped = _Gradient(engine)
            self.optimizer = _Step(engine)
        return super().create_scheduler(num_training_steps, optimizer)

    def evaluation_loop(self, *args, **kwargs):
        if self.is_deepspeed_enabled and self.deepspeed is None:  # Trainer would ask for an engine of ZeRO stage 3
            self._move_model_to_device(self.model, self.args.device)
            self.accelerator._models.append(self.model)
            self.deepspeed = self.model
        return super().evaluation_loop(*args, **kwargs)

    # ---- checkpoints ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            # Copied: the parameters are views of one tensor, and save_pretrained would take them for tied ones.
            weights = {name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}
            self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = self._optimizer_state()
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)  # type: ignore[union-attr]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.is_deepspeed_enabled:
            path = Path(checkpoint) / OPTIMIZER_NAME
            self._set_optimizer_state(torch.load(path, map_location="cpu", weights_only=True))
        super()._load_optimizer_and_scheduler(checkpoint)  # with DeepSpeed the schedule alone

    def _load_best_model(self) -> None:
        # The weights alone, by the method above; the engine's copy of them stays behind: it trains no further.
        if self.is_deepspeed_enabled:
            super()._load_from_checkpoint(str(self.state.best_model_checkpoint), self.model)
        else:
            super()._load_best_model()

    # ---- the state of the optimizer ----

    # DeepSpeed's optimizer has one parameter a group, a process's part of all of the group's in a row. DeepSpeed
    # answers for each real parameter, once it is told of the states that AdamW has made for the flat ones.

    def _optimizer_state(self) -> dict[str, Any]:
        """What `state_dict` of the undivided optimizer would be, on the CPU; all processes must ask for it."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state, safe_get_full_optimizer_state

        optimizer: Any = self.deepspeed.basic_optimizer  # type: ignore[union-attr]
        states: dict[int, dict[str, Tensor]] = {}
        groups = []
        for group, parameters in zip(optimizer.param_groups, self._groups, strict=True):
            (flat,) = group["params"]
            lazy_init_hp_params_optimizer_state(parameters, flat, optimizer.state)
            groups.append({**group, "params": list(range(len(states), len(states) + len(parameters)))})
            for parameter in parameters:
                state = {
                    name: safe_get_full_optimizer_state(parameter, name) if value.shape == flat.shape else value
                    for name, value in optimizer.state[flat].items()
                }
                # Copied: of one count of steps for all parameters, AdamW would count each parameter's step.
                states[len(states)] = {name: value.to("cpu", copy=True) for name, value in state.items()}
        return {"state": states, "param_groups": groups}

    def _set_optimizer_state(self, saved: dict[str, Any]) -> None:
        from deepspeed.utils import lazy_init_hp_params_optimizer_state, safe_set_full_optimizer_state

        optimizer: Any = self.deepspeed.basic_optimizer  # type: ignore[union-attr]
        flats = [flat for group in optimizer.param_groups for flat in group["params"]]
        parts = list(zip(flats, self._groups, saved["param_groups"], strict=True))
        states = {}
        for number, (flat, parameters, group) in enumerate(parts):
            first = saved["state"][group["params"][0]]
            states[number] = {
                name: torch.zeros_like(flat) if value.shape == parameters[0].shape else value
                for name, value in first.items()
            }
        groups = [{**group, "params": [number]} for number, (_, _, group) in enumerate(parts)]
        optimizer.load_state_dict({"state": states, "param_groups": groups})
        for flat, parameters, group in parts:
            lazy_init_hp_params_optimizer_state(parameters, flat, optimizer.state)
            for parameter, number in zip(parameters, group["params"], strict=True):
                for name, value in saved["state"][number].items():
                    if value.shape == parameter.shape:
                        safe_set_full_optimizer_state(parameter, value.to(flat.device), name)
