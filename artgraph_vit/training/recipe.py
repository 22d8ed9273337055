"""The recipe of a run: the options that decide what it learns, and where they depart from the source document's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.options import DataArguments
from .arguments import ArtGraphTrainingArguments, ModelArguments

# What a recipe is applied to, rather than a part of it.
_GROUND = {"backbone", "backbone_revision", "from_scratch", "min_count", "tasks", "split_seed", "seed", "data_seed"}
_GROUND |= {"streaming"}


def recipe_of(model: ModelArguments, data: DataArguments) -> dict[str, Any]:
    """The options of model and data that decide what a run learns; with nothing of the machine it ran on."""
    chosen = {
        **dataclasses.asdict(model),
        "min_count": data.min_count,
        "tasks": data.tasks,
        "split_seed": data.split_seed,
        "streaming": data.streaming,
        "jpeg_scale": data.jpeg_scale,
        "crop_scale": data.crop_scale,
        "horizontal_flip": data.horizontal_flip,
        "color_jitter": data.color_jitter,
    }
    return {**chosen, "backbone": portable(model.backbone)}


def source_recipe() -> dict[str, Any]:
    """The source document's value of each option, by name: the defaults."""
    defaults: dict[str, Any] = {
        option.name: option.default
        for options in (ModelArguments, DataArguments, ArtGraphTrainingArguments)
        for option in dataclasses.fields(options)
    }
    return {**defaults, "global_batch_size": defaults["per_device_train_batch_size"], "mixed_precision": "no"}


def departures(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of a recipe that differ from the source document's, which are the defaults."""
    defaults = source_recipe()
    return {
        name: value
        for name, value in recipe.items()
        if name in defaults and name not in _GROUND and value != defaults[name]
    }


def portable(name_or_path: str) -> str:
    """A name that says nothing of the machine: of a path its last part."""
    return Path(name_or_path).name if Path(name_or_path).exists() else name_or_path
