"""What is particular to a vision backbone: whether it suits, whether it has a pooler, and which pooling fits it.

Poolers differ: ViT's, DeiT's and BEiT's are optional and random where a checkpoint has none, so they are left out;
SigLIP's is an attention trained with the model; CLIP's is its normalised first token. Travels to the Hub.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from .limits import one_line, refuse_absurd, shortened

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
        raise ValueError("pooling='pooler': this backbone gives no pooled vector; use 'cls' or 'mean'.")


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
    names = [name for name, _ in backbone.named_parameters()]
    if any(name.endswith("cls_token") and not name.startswith("head.") for name in names):  # AIMv2's pooler has one
        return "cls"
    return "pooler" if has_pooler(backbone.config) else "mean"


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
