"""The model card: `model_card.md` filled from the run's own results and config, with its `model-index`.

Nothing here touches the network, and nothing is invented: what nobody chose, such as a licence, the card says is not
chosen.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..configuration_artgraph_vit import ArtGraphViTConfig
from .results import results_rows

TEMPLATE = Path(__file__).with_name("model_card.md")


@dataclass
class CardOptions:
    """What the model card says that a run cannot know."""

    _argument_group_name: ClassVar[str] = "model card"

    repo_id: str | None = field(default=None, metadata={"help": "Repository on the Hub, for the card's examples."})
    license: str | None = field(default=None, metadata={"help": "Licence of the weights, such as apache-2.0."})
    dataset_name: str = field(default="artworks", metadata={"help": "What the dataset is called in the card."})
    dataset_id: str | None = field(default=None, metadata={"help": "Hub id of the dataset."})
    data_license: str | None = field(default=None, metadata={"help": "Licence of the pictures and labels."})


def write_card(
    results: Mapping[str, Any], config: ArtGraphViTConfig, folder: str | Path, options: CardOptions
) -> Path:
    """Writes the card as `README.md` into the output folder of a run."""
    path = Path(folder) / "README.md"
    path.write_text(render_card(results, config, Path(folder).name, options), encoding="utf-8")
    return path


def render_card(results: Mapping[str, Any], config: ArtGraphViTConfig, folder_name: str, options: CardOptions) -> str:
    """Fills the template.

    Args:
        results (`Mapping`): as in `results.json`.
        config ([`ArtGraphViTConfig`]).
        folder_name (`str`): names the model where no repository is known.
        options ([`CardOptions`]).

    Returns:
        The text of the card, metadata first.
    """
    backbone: Any = config.backbone_config
    base_model = _hub_id(results["recipe"].get("backbone")) if not results["recipe"].get("from_scratch") else None
    data = ModelCardData(
        license=options.license,
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["art", "artgraph", "multi-task", "vision", backbone.model_type],
        base_model=base_model,
        datasets=[options.dataset_id] if options.dataset_id else None,
        metrics=["accuracy", "f1"],
        model_name=options.repo_id or folder_name,
        eval_results=_eval_results(results, config, options),
    )
    names = [task.name for task in config.tasks]
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        repo_id=options.repo_id or folder_name,
        base_model=base_model,
        backbone_type=backbone.model_type,
        tasks=[
            {
                "name": task.name,
                "kind": "several labels" if task.is_multi_label else "one label",
                "count": task.num_labels,
                "has_other": task.rare == "other",
                "absent": results["metrics"].get(f"{task.name}_absent_labels"),
                "labels": ", ".join(escape(label) for label in task.labels),
            }
            for task in config.tasks
        ],
        rows=results_rows(results, names),
        results=results,
        recipe={name: value for name, value in results["recipe"].items() if value is not None},
        options=options,
        thresholds=config.thresholds,
    )
    return str(card)


def escape(text: str) -> str:
    """Makes a label plain text in Markdown and HTML."""
    return re.sub(r"([\\`*_{}\[\]|#!~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _hub_id(backbone: str | None) -> str | None:
    is_id = backbone is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", backbone) and not Path(backbone).exists()
    return backbone if is_id and not str(backbone).startswith(".") else None


def _eval_results(results: Mapping[str, Any], config: ArtGraphViTConfig, options: CardOptions) -> list[EvalResult]:
    named = {"avg_macro_f1": ("f1", "Average macro F1")}
    for task in config.tasks:
        named[f"{task.name}_macro_f1"] = ("f1", f"Macro F1 ({task.name})")
        if task.is_multi_label:
            named[f"{task.name}_hamming_loss"] = ("hamming_loss", f"Hamming loss ({task.name})")
        else:
            named[f"{task.name}_accuracy"] = ("accuracy", f"Accuracy ({task.name})")
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=options.dataset_id or "artworks",
            dataset_name=options.dataset_name,
            dataset_split=results["split"],
            metric_type=metric_type,
            metric_name=metric_name,
            metric_value=results["metrics"][name],
        )
        for name, (metric_type, metric_name) in named.items()
        if results["metrics"].get(name) is not None and math.isfinite(results["metrics"][name])
    ]
