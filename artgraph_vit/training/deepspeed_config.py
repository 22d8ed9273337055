"""What a DeepSpeed configuration may say: ZeRO stage 2, and nothing that the training arguments decide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerate.utils import DeepSpeedPlugin
from transformers.integrations.deepspeed import is_deepspeed_available

from ..errors import UserError

if TYPE_CHECKING:
    from .arguments import ArtGraphTrainingArguments

_SECTIONS = {
    *("zero_optimization", "gradient_clipping", "gradient_accumulation_steps", "train_batch_size"),
    *("train_micro_batch_size_per_gpu", "steps_per_print", "wall_clock_breakdown"),
}


def refuse_other_than_zero2(given: Any) -> None:
    """Looks at a configuration before it is merged with the training arguments.

    Args:
        given (`str` or `dict`, *optional*): `--deepspeed`; without it the launcher's is looked at.

    Raises:
        UserError: says what does not work.
    """
    if not is_deepspeed_available():
        raise UserError(
            "DeepSpeed is asked for and not installed: pip install 'artgraph_vit[deepspeed]', or use "
            "configs/accelerate/fsdp2.yaml."
        )
    config = DeepSpeedPlugin(hf_ds_config=given or None).deepspeed_config
    zero = config["zero_optimization"]
    offloads = [name for name in ("offload_optimizer", "offload_param") if _device(zero, name) != "none"]
    if zero.get("stage") != 2 or offloads:
        found = " and ".join([f"stage {zero.get('stage')}", *offloads])
        raise UserError(
            f"Of DeepSpeed only ZeRO stage 2 without offloading works here, not {found}: use "
            "configs/accelerate/deepspeed_zero2.yaml, or configs/accelerate/fsdp2.yaml, which divides the weights too."
        )
    others = sorted(config.keys() - _SECTIONS)
    if others:
        raise UserError(
            f"Leave {', '.join(others)} out of the DeepSpeed configuration: precision, optimizer and schedule are "
            "those of the options, such as --bf16, which keeps weights and log variances in float32."
        )


def _device(zero: dict[str, Any], section: str) -> str:
    return str((zero.get(section) or {}).get("device", "none"))


def follow_arguments(args: ArtGraphTrainingArguments) -> None:
    """Sets what DeepSpeed would do otherwise than the other engines.

    Raises:
        UserError: if fp16 is asked for.
    """
    if args.mixed_precision == "fp16":
        raise UserError("DeepSpeed's fp16 would round the weights and the log variances: use --bf16 instead.")
    config: dict[str, Any] = args.deepspeed_plugin.deepspeed_config
    # Sections that say nothing: accelerate would switch them on with --bf16, and they round the log variances.
    config |= {"bf16": {}, "fp16": {}}
    config.setdefault("gradient_clipping", args.max_grad_norm)
    config.setdefault("train_micro_batch_size_per_gpu", args.per_device_train_batch_size)
