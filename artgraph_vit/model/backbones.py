"""What is particular to a vision backbone: whether it suits, whether it has a pooler, and which pooling fits it.

Poolers differ: ViT's, DeiT's and BEiT's are optional and random where a checkpoint has none, so they are left out;
SigLIP's is an attention trained with the model; CLIP's is its normalised first token. Travels to the Hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from .limits import one_line, refuse_absurd, shortened

_CLS_TOKENS = ("cls_token", "class_embedding")
_PREFIX_TOKENS = (*_CLS_TOKENS, "distillation_token", "register_tokens")
_UNSUITABLE = {
    "vit_mae": "hides a random part of each picture, also when it predicts",
    "siglip2_vision_model": "takes patches of pictures of many shapes, not pixel_values of one",
}


def refuse_unsuitable(backbone_config: Any, pooling: str | None = None) -> None:
    """Raises:
    ValueError: says why, if the backbone cannot be used, or not with this pooling.
    """
    model_type = backbone_config.model_type
    if type(backbone_config) not in MODEL_MAPPING:
        raise ValueError(f"The backbone {model_type!r} is none that AutoModel knows: choose a vision encoder.")
    if model_type in _UNSUITABLE:
        raise ValueError(f"The backbone {model_type!r} {_UNSUITABLE[model_type]}: choose another.")
    if pooling == "pooler" and not has_pooler(backbone_config):
        raise ValueError("pooling='pooler': this backbone gives no pooled vector; use 'cls', 'mean' or 'cls_mean'.")


def set_options(backbone_config: Any, options: Mapping[str, Any]) -> None:
    """Sets options of a backbone's config, such as `drop_path_rate`.

    Raises:
        ValueError: names the one that this kind of backbone does not have.
    """
    for name, value in options.items():
        if not hasattr(backbone_config, name):
            raise ValueError(
                f"{name}: the backbone {backbone_config.model_type!r} has no such option; leave it out, or choose "
                "another backbone."
            )
        setattr(backbone_config, name, value)


def without_pooler(backbone_config: Any) -> dict[str, bool]:
    """The argument that leaves out a pooler of the kind that checkpoints often lack."""
    backbone_class: Any = MODEL_MAPPING[type(backbone_config)]
    return {"add_pooling_layer": False} if "add_pooling_layer" in signature(backbone_class).parameters else {}


def has_pooler(backbone_config: Any) -> bool:
    """Whether the backbone gives a `pooler_output` that was trained with it."""
    return not without_pooler(backbone_config) and all(
        getattr(backbone_config, name, True)
        for name in ("vision_use_head", "use_head")  # SigLIP's, AIMv2's
    )


def default_pooling(backbone: PreTrainedModel) -> str:
    """The pooling that fits a backbone: `"cls"`, `"pooler"` (its own, trained with it) or `"mean"`."""
    if has_cls_token(backbone) and not _is_clip(backbone):  # CLIP's pooler is its CLS token, after a norm
        return "cls"
    return "pooler" if has_pooler(backbone.config) else "mean"


def has_cls_token(backbone: PreTrainedModel) -> bool:
    """Whether the first token of the last hidden state is one of the whole picture."""
    return any(name.endswith(_CLS_TOKENS) for name in _token_names(backbone))


def count_prefix_tokens(backbone: PreTrainedModel) -> int:
    """How many tokens come before those of the patches: CLS, distillation and register tokens."""
    parameters = dict(backbone.named_parameters())
    tokens = [parameters[name] for name in _token_names(backbone)]
    return sum(1 if token.dim() == 1 else token.shape[-2] for token in tokens)  # (hidden,) or (1, tokens, hidden)


def interpolation(backbone: PreTrainedModel) -> dict[str, bool]:
    """The argument that fits position embeddings to pictures of another size, where a backbone asks to be told."""
    takes_it = "interpolate_pos_encoding" in signature(backbone.forward).parameters
    return {"interpolate_pos_encoding": True} if takes_it else {}


def _token_names(backbone: PreTrainedModel) -> list[str]:
    names = [name for name, _ in backbone.named_parameters()]
    return [name for name in names if name.endswith(_PREFIX_TOKENS) and not name.startswith("head.")]  # AIMv2's pooler


def _is_clip(backbone: PreTrainedModel) -> bool:
    return any(name.endswith("class_embedding") for name, _ in backbone.named_parameters())


def build_backbone_config(values: Any) -> PreTrainedConfig:
    """The config of a backbone from its JSON form.

    Raises:
        ValueError: if it is none, if it names code of its own, or if a value cannot be meant.
    """
    if not isinstance(values, dict):
        raise ValueError(f"backbone_config={shortened(values)}: give a dict, or a config of transformers.")
    values = dict(values)
    model_type = values.pop("model_type", "vit")
    if "auto_map" in values:
        raise ValueError("backbone_config has auto_map, code of its own, which is never run: remove it.")
    if not isinstance(model_type, str) or model_type == "artgraph_vit" or model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"The backbone has model_type={shortened(model_type)}, which is no backbone of transformers: choose a "
            "vision encoder that AutoModel knows without code of its own."
        )
    refuse_absurd(values)
    try:
        config = CONFIG_MAPPING[model_type].from_dict(values)
    except Exception as error:  # errors of many kinds, some of them over several lines
        raise ValueError(f"The config of the backbone {model_type!r} cannot be used: {one_line(error)}") from error
    refuse_absurd(config.to_dict())  # what is given may be too much only together with the model's defaults
    return config
