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

_CLS_TOKENS = ("cls_token", "class_embedding")
_PREFIX_TOKENS = (*_CLS_TOKENS, "distillation_token", "register_tokens")
# An index of weights that a config names may name pickles; a backbone's own `backbone` is a model on the Hub.
_BRINGS_CODE = ("auto_map", "transformers_weights", "backbone")
_UNSUITABLE = {
    "vit_mae": "hides a random part of each picture, also when it predicts",
    "siglip2_vision_model": "takes patches of pictures of many shapes, not pixel_values of one",
}


def build_backbone_config(values: Any) -> PreTrainedConfig:
    """The config of a backbone from its JSON form.

    Raises:
        ValueError: if it is none of transformers' own, or names code.
    """
    if not isinstance(values, dict):
        raise ValueError(f"backbone_config={values!r}: give a dict, or a config of transformers.")
    model_type = values.get("model_type", "vit")
    if model_type == "artgraph_vit" or model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"The backbone has model_type={model_type!r}, which is no backbone of transformers: choose a vision "
            "encoder that AutoModel knows without code of its own."
        )
    refuse_code(values)
    try:
        return CONFIG_MAPPING[model_type].from_dict({name: values[name] for name in values if name != "model_type"})
    except Exception as error:  # errors of many kinds, some of them over several lines
        reason = " ".join(str(error).split())
        raise ValueError(f"The config of the backbone {model_type!r} cannot be used: {reason}") from error


def refuse_code(values: Any) -> None:
    """Looks through a config, and those within it, for what would have transformers run other code than its own.

    Raises:
        ValueError: names it.
    """
    for value in values if isinstance(values, (list, tuple)) else ():
        refuse_code(value)
    for name, value in values.items() if isinstance(values, Mapping) else ():
        is_implementation = str(name).endswith(("attn_implementation", "experts_implementation"))
        if "/" in str(value) if is_implementation else value and name in _BRINGS_CODE:
            raise ValueError(f"A config cannot bring code or weights of its own ({name}={value!r}): remove it.")
        refuse_code(value)


def refuse_unsuitable(backbone_config: Any, pooling: str | None = None) -> None:
    """Raises:
    ValueError: says why, if the backbone cannot be used, or not with this pooling.
    """
    model_type = backbone_config.model_type
    if type(backbone_config) not in MODEL_MAPPING:
        raise ValueError(f"The backbone {model_type!r} is none that AutoModel knows: choose a vision encoder.")
    backbone_class: Any = MODEL_MAPPING[type(backbone_config)]
    takes = backbone_class.main_input_name
    problem = _UNSUITABLE.get(model_type, "" if takes == "pixel_values" else f"takes {takes}, not pictures")
    if problem:
        raise ValueError(f"The backbone {model_type!r} {problem}: choose another.")
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
    is_clip = any(
        "class_embedding" in name for name in _tokens(backbone)
    )  # whose pooler is its CLS token, after a norm
    if has_cls_token(backbone) and not is_clip:
        return "cls"
    return "pooler" if has_pooler(backbone.config) else "mean"


def has_cls_token(backbone: PreTrainedModel) -> bool:
    """Whether the first token of the last hidden state is one of the whole picture."""
    return any(name.endswith(_CLS_TOKENS) for name in _tokens(backbone))


def count_prefix_tokens(backbone: PreTrainedModel) -> int:
    """How many tokens come before those of the patches: CLS, distillation and register tokens."""
    tokens = _tokens(backbone).values()  # (hidden,) or (1, tokens, hidden) each
    return sum(1 if token.dim() == 1 else token.shape[-2] for token in tokens)


def interpolation(backbone: PreTrainedModel) -> dict[str, bool]:
    """The argument that fits position embeddings to pictures of another size, where a backbone asks to be told."""
    takes_it = "interpolate_pos_encoding" in signature(backbone.forward).parameters
    return {"interpolate_pos_encoding": True} if takes_it else {}


def _tokens(backbone: PreTrainedModel) -> dict[str, Any]:
    """The learned tokens that come before those of the patches, by name; not those of AIMv2's pooler."""
    parameters = backbone.named_parameters()
    return {name: token for name, token in parameters if name.endswith(_PREFIX_TOKENS) and name[:5] != "head."}
