"""What a config may hold: numbers of a size that can be meant, and no code.

A config comes with a checkpoint from anywhere. Whatever it says is looked at before memory is taken for it. Travels to
the Hub with the weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

MAX_PARAMETERS = 50_000_000_000  # of a backbone, roughly counted; the largest vision transformer has 22 billion
# What the numbers of a backbone may be, by their name; the first line that fits. Each bound is several times what the
# largest published vision encoder has, and small enough that no one number exhausts a machine.
_BACKBONE_LIMITS = tuple(
    (re.compile(pattern), least, most, kind)
    for pattern, least, most, kind in (
        (r".*(dropout|dropout_prob|dropout_rate|drop_rate|drop_.*_rate|layerdrop)", 0, 1, "a probability"),
        (r"hidden_sizes?|hidden_dim|embed_dims?|embedding_size|d_model", 1, 32_768, "an integer"),
        (r"intermediate_size|mlp_dim", 1, 262_144, "an integer"),
        (r"num_hidden_layers", 1, 512, "an integer"),
        (r"layers|num_.*layers|(en|de)coder_layers|depths?|num_blocks|stage_num_blocks", 0, 512, "an integer"),
        (r".*heads", 0, 1_024, "an integer"),
        (r"image_size|input_size", 1, 65_536, "an integer"),
        (r"patch_sizes?|num_channels", 1, 4_096, "an integer"),
        (r"(pretrained_)?window_sizes?", 0, 128, "an integer"),  # the tables of a window grow with its fourth power
        (r"(mlp|expand)_ratios?|.*_multiplier|(width|depth)_coefficient", 0, 100, "a number"),
        (r"num_labels", 0, 100_000, "an integer"),
    )
)
# Of a name that the lines above do not know: a length, or anything else, such as a period or a token.
_MOST_OF_A_LENGTH, _MOST_OF_ALL = 1_000_000, 1 << 24
# By these a detector names the model under it, which transformers looks up on the Hub while it builds the config.
_OTHER_MODELS = ("backbone", "backbone_kwargs", "use_pretrained_backbone", "use_timm_backbone")
MAX_SIDE = 4_096  # pixels of a side that an image processor may make


def refuse_absurd(values: Mapping[str, Any], level: int = 1) -> None:
    """Looks at all values of a backbone's config, also in the configs within it.

    Raises:
        ValueError: names the value that cannot be meant, or that would bring code.
    """
    if level > 8:
        raise ValueError("backbone_config is nested more than 8 levels deep: use one that save_pretrained wrote.")
    refuse_code(values)
    for name, value in values.items():
        if name in ("id2label", "label2id"):
            if value is not None and not (isinstance(value, dict) and len(value) <= 100_000):
                raise ValueError(f"backbone_config: {name} must be a dict of at most 100,000 labels; remove it.")
        elif isinstance(value, Mapping):
            refuse_absurd(value, level + 1)
        else:
            _refuse_absurd_numbers(str(name), list(_leaves(value, level)), level)
    if _parameters(values) > MAX_PARAMETERS:
        raise ValueError(
            f"The sizes in backbone_config make more than {MAX_PARAMETERS // 10**9} billion parameters together: "
            "choose a smaller backbone."
        )


def _refuse_absurd_numbers(name: str, values: list, level: int) -> None:
    limits = next((limits for limits in _BACKBONE_LIMITS if limits[0].fullmatch(name)), None)
    for value in values:
        if isinstance(value, Mapping):
            refuse_absurd(value, level + 1)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"backbone_config: {name}={value}: use a finite number.")
        elif limits and value is not None:
            _, least, most, kind = limits
            is_number = type(value) is int or (type(value) is float and kind != "an integer")
            if not is_number or not least <= value <= most or (kind == "a probability" and value == 1):
                range_ = (
                    f"of at least {least:,} and below 1" if kind == "a probability" else f"from {least:,} to {most:,}"
                )
                raise ValueError(f"backbone_config: {name}={shortened(value)}: use {kind} {range_}.")
        elif type(value) is int and abs(value) > (_MOST_OF_A_LENGTH if _is_length(name) else _MOST_OF_ALL):
            raise ValueError(f"backbone_config: {name}={shortened(value)}: no number of a config is that large.")
    if (limits and len(values) > 512) or (name in ("depths", "num_blocks") and sum(filter(None, values)) > 512):
        raise ValueError(f"backbone_config: {name} is for more than 512 layers: choose a smaller backbone.")


def _is_length(name: str) -> bool:
    return name.endswith(("_size", "_sizes", "_dim", "_dims", "_channels"))


def _parameters(values: Mapping[str, Any]) -> float:
    """About how many parameters a backbone of these sizes has, rather too many than too few."""

    def numbers(*names: str) -> list[float]:
        return [n for name in names for n in _leaves(values.get(name), 1) if isinstance(n, (int, float))]

    stages = max(0, len(numbers("depths")) - 1)  # a Swin doubles its width from stage to stage
    width = max(
        [*numbers("hidden_size", "hidden_sizes", "hidden_dim", "d_model", "embed_dims"), 1]
        + [n * 2 ** min(stages, 20) for n in numbers("embed_dim", "embedding_size")]
    )
    ratio = max(numbers("mlp_ratio", "mlp_ratios") or [4])
    inner = max(numbers("intermediate_size", "mlp_dim") or [ratio * width])
    depth = max([*numbers("num_hidden_layers", "num_layers", "depth"), sum(numbers("depths")), 1])
    side = max(numbers("image_size") or [0]) // min(numbers("patch_size") or [16])
    return depth * width * (4 * width + 2 * inner) + side**2 * width


def refuse_code(values: Mapping[str, Any]) -> None:
    """Refuses what makes transformers fetch code, and what would stand in the place of its own parts."""
    for name, value in values.items():
        if str(name).endswith(("attn_implementation", "experts_implementation")):
            if any("/" in str(choice) for choice in (value.values() if isinstance(value, dict) else [value])):
                raise ValueError(
                    f"{name}={shortened(value)} is code on the Hub, which a config cannot bring: remove it."
                )
        elif name in ("dtype", "torch_dtype") and isinstance(value, str):
            if not isinstance(getattr(torch, value, None), torch.dtype):
                raise ValueError(f"{name}={shortened(value)}: use the name of a type of PyTorch, such as 'float32'.")
        elif name in _OTHER_MODELS and value:
            raise ValueError(
                f"A backbone's config cannot name another model to fetch ({name}={shortened(value)}): choose a vision "
                "encoder that is described by its own config."
            )
        elif name == "transformers_weights":
            raise ValueError("A config cannot name the file of its weights (transformers_weights): remove it.")
        elif str(name).startswith("__") or callable(getattr(PreTrainedConfig, str(name), None)):
            raise ValueError(f"A config cannot set {shortened(name)}, a part of transformers: remove it.")


def _leaves(value: Any, level: int) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        if level > 8:
            raise ValueError("backbone_config is nested more than 8 levels deep: use one that save_pretrained wrote.")
        for part in value:
            yield from _leaves(part, level + 1)
    else:
        yield value


def shortened(value: Any) -> str:
    """A value in a sentence: of something huge the beginning is enough."""
    if isinstance(value, (dict, list, tuple)) and len(value) > 5:
        return f"a {type(value).__name__} of {len(value):,}"
    text = f"a number of {value.bit_length():,} bits" if type(value) is int and abs(value) > 10**20 else repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 500 else f"{text[:500]}..."


def refuse_absurd_processor(image_processor: Any) -> None:
    """Looks at the sizes that an image processor makes, before it makes any.

    Raises:
        ValueError: if one cannot be meant.
    """
    for name in ("size", "crop_size", "pad_size"):
        sizes = getattr(image_processor, name, None) or {}
        for side in _leaves(list(dict(sizes).values()) if not isinstance(sizes, int) else [sizes], 1):
            if side is not None and (type(side) is not int or not 1 <= side <= MAX_SIDE):
                raise ValueError(
                    f"The image processor has {name}={shortened(side)}: use an integer from 1 to {MAX_SIDE:,}."
                )
