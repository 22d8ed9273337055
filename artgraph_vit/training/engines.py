"""`EngineTrainer`: the `Trainer`, with FSDP2 as an engine that may stand in the place of DDP.

FSDP2 turns the model into one of sharded parameters, for good and in place. Notable:
- The model is sharded once; a later phase gives it another optimizer, since accelerate can prepare it only once.
- It computes under autocast, as everywhere: FSDP2's own mixed precision would make the loss and the log variances
  half precision too.
- A checkpoint holds model.safetensors and no second, pickled copy of the weights; any number of processes reads it.
Private methods of `Trainer` are overridden where it has no hook: `_prepare_for_training`, `_load_from_checkpoint`,
`_load_best_model`, `_save_optimizer_and_scheduler`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import _IncompatibleKeys
from transformers import PreTrainedModel, Trainer
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SCHEDULER_NAME
from transformers.utils import strtobool

from ..errors import UserError


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may hold a part; all processes must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def reshard(model: nn.Module) -> None:
    """Lets go of gathered parameters, as an evaluation with FSDP2 leaves them.

    No optimizer must be given these, and they do not follow when the parts are changed.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def _own_class(model: nn.Module) -> Iterator[None]:
    """FSDP2 puts a class of its own over the model's, and a checkpoint would get the code of that one."""
    sharded = type(model)
    if isinstance(model, FSDPModule):
        model.__class__ = sharded.__bases__[1]
    try:
        yield
    finally:
        model.__class__ = sharded


class EngineTrainer(Trainer):
    """A `Trainer` that works with FSDP2.

    Raises:
        UserError: if FSDP is asked for and would not be in use, or is configured in a way that does not work.
    """

    model: PreTrainedModel

    def __init__(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        if strtobool(os.environ.get("ACCELERATE_USE_FSDP", "false")) and not self.is_fsdp_enabled:
            raise UserError(
                "The launcher asks for FSDP, which accelerate uses on GPUs only, one a process: leave --use_cpu out, "
                "or use configs/accelerate/several_cpu.yaml."
            )
        if self.is_fsdp_enabled:
            self._set_up_fsdp2(model)

    def _set_up_fsdp2(self, model: PreTrainedModel) -> None:
        plugin: Any = self.accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2 or plugin.state_dict_type.name != "FULL_STATE_DICT":
            raise UserError(
                "Of FSDP only version 2 with fsdp_state_dict_type FULL_STATE_DICT works here, whose checkpoints "
                "from_pretrained reads: use configs/accelerate/fsdp2.yaml."
            )
        plugin.mixed_precision_policy = None
        # torch_compile of the whole model would go past the hooks with which FSDP2 gathers it.
        self.accelerator.state.dynamo_plugin.use_regional_compilation = True
        if plugin.transformer_cls_names_to_wrap is None:  # a backbone also names blocks that only its relatives have
            present = {type(module).__name__ for module in model.modules()}
            plugin.transformer_cls_names_to_wrap = sorted(present & set(model._no_split_modules or ()))
        # accelerate would shard what this returns once more: the patch embedding, in a block that is sharded already.
        model.get_input_embeddings = lambda: None  # type: ignore

    # ---- training ----

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager:
        """Other engines have the autocast in the forward method, where accelerate puts none under FSDP2."""
        return self.accelerator.autocast() if self.is_fsdp_enabled else super().autocast_smart_context_manager()

    def _unwrap(self) -> None:
        """Takes off the wrapping, which knows the parameters that learned so far, and forgets their optimizer."""
        if is_sharded(self.model):
            reshard(self.model)
        else:
            self.model = self.accelerator.unwrap_model(
                self.model_wrapped, keep_fp32_wrapper=False, keep_torch_compile=False
            )
            self.model._is_accelerate_prepared = False  # type: ignore[assignment]  # else autocast is not put on again
            self.model_wrapped = self.model
            self.accelerator._models.clear()
        self.optimizer = self.lr_scheduler = None
        self.accelerator._optimizers.clear()
        self.accelerator._schedulers.clear()

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        if not is_sharded(self.model):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self.create_optimizer(self.model)
        self.optimizer = self.accelerator.prepare_optimizer(self.optimizer)
        self.create_scheduler(num_training_steps=max_steps)
        if resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._load_scaler(resume_from_checkpoint)
        for name in ("model", "optimizer", "lr_scheduler"):
            setattr(self.callback_handler, name, getattr(self, name))
        self.callback_handler.train_dataloader = train_dataloader
        return self.model, train_dataloader

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        if self.is_fsdp_enabled and not self.accelerator._models:  # accelerate shards no model without an optimizer
            self._move_model_to_device(self.model, self.args.device)
            self.accelerator._models.append(self.model)
        return super().evaluate(*args, **kwargs)

    # ---- checkpoints ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with _own_class(self.model):
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        plugin, scheduler = self.accelerator.state.fsdp_plugin, self.lr_scheduler
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save and scheduler is not None:
            torch.save(scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            self._load_whole(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_whole(self, checkpoint: str) -> None:
        weights: dict[str, Any] = {}
        for path in sorted(Path(checkpoint).glob("model*.safetensors")):
            weights |= load_file(path)
        names = self.model.state_dict().keys()
        # torch fills in what is missing without a word, so it has to be looked for before.
        self._issue_warnings_after_load(
            _IncompatibleKeys(sorted(names - weights.keys()), sorted(weights.keys() - names))
        )
        set_model_state_dict(self.model, weights, options=StateDictOptions(full_state_dict=True))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled:
            self._load_whole(str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _refuse_other_engine(self, checkpoint: str) -> None:
        """FSDP2 names the parameters in the state of an optimizer; DDP and DeepSpeed number them, both alike."""
        other = OPTIMIZER_NAME if self.is_fsdp_enabled else OPTIMIZER_NAME_BIN
        if (Path(checkpoint) / other).exists():
            made, here = ("without", "uses it") if self.is_fsdp_enabled else ("with", "does not use it")
            raise UserError(
                f"{checkpoint} was made {made} FSDP2, and this run {here}: resume with the configuration of "
                "accelerate that it was made with (DDP and DeepSpeed go on from each other's), or start anew in "
                "another output_dir."
            )
