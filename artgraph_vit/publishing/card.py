"""The model card: `model_card.md` filled from the run's own results and config, with its `model-index`.

Nothing here touches the network, nothing in a run is executed, and nothing is invented: what nobody chose, such as a
licence, the card says is not chosen. Whatever a run or its author wrote stands in the card as plain text.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..data.options import option
from ..errors import UserError
from ..evaluation.figures import CONFUSION
from ..evaluation.results import Results, results_rows
from ..files import atomic_write
from ..model.configuration_artgraph_vit import ArtGraphViTConfig
from ..model.tasks import Task

TEMPLATE = Path(__file__).with_name("model_card.md")
FIGURES = {
    "figures/multiclassification_losses.png": "Losses of each task",
    "figures/multiclassification_macro_f1s.png": "Macro F1 of each task",
}
# Type and name on the Hub of each figure of a task, and what kind of average it is.
METRICS: dict[str, tuple[str, str, str | None]] = {
    "accuracy": ("accuracy", "Accuracy", None),
    "balanced_accuracy": ("balanced_accuracy", "Balanced accuracy", None),
    "top5_accuracy": ("top_5_accuracy", "Top-5 accuracy", None),
    "hamming_loss": ("hamming_loss", "Hamming loss", None),
    "mean_average_precision": ("mean_average_precision", "Mean average precision", "macro"),
    "micro_f1": ("f1", "Micro F1", "micro"),
    "macro_precision": ("precision", "Macro precision", "macro"),
    "macro_recall": ("recall", "Macro recall", "macro"),
    "macro_f1": ("f1", "Macro F1", "macro"),
}
# How the Hub writes each; its list of licences grows and no package carries it, so the Hub checks the rest.
FORMS = {
    "license": (r"[a-z0-9][a-z0-9.+-]*", "a licence as the Hub calls it, such as apache-2.0, cc-by-4.0 or other"),
    "license_link": (r"https?://[^\s<>()\[\]]+|LICENSE", "an https address, or LICENSE for a file in the folder"),
    "language": (r"[a-z]{2,3}|multilingual", "an ISO code of two or three letters, such as en or it"),
}


@dataclass
class CardOptions:
    """What the model card says that a run cannot know; what the Hub would not read of it is a `UserError`."""

    _argument_group_name: ClassVar[str] = "model card"

    repo_id: str | None = option(None, "Repository on the Hub, for the card's examples.")
    license: str | None = option(None, "Licence of the weights as the Hub calls it, such as apache-2.0 or other.")
    dataset_name: str = option("artworks", "What the dataset is called in the card.")
    dataset_id: str | None = option(None, "Hub id of the dataset.")
    data_license: str | None = option(None, "Licence of the pictures and labels.")
    language: list[str] | None = field(
        default=None, metadata={"help": "Language of the labels, as ISO codes such as en; und if none is meant."}
    )
    recipe_name: str | None = option(None, "What the card calls the recipe of the run.")
    license_name: str | None = option(None, "What the licence is called, if it is other.")
    license_link: str | None = option(None, "Address of its text, or LICENSE, a file in the output folder.")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, str):
                setattr(self, name, " ".join(value.split()) or None)
        given = [self.language] if isinstance(self.language, str) else self.language or []
        self.language = [code for codes in given for code in re.split(r"[\s,]+", codes) if code] or None
        for name, (form, expected) in FORMS.items():
            given = getattr(self, name)
            for one in given if isinstance(given, list) else [given]:
                if one and not re.fullmatch(form, one):
                    raise UserError(f"{name}={one!r}: give {expected}.")

    def missing(self) -> list[str]:
        """The options that the card of a published model needs and that have no value."""
        needed = ["license", *(["license_name", "license_link"] if self.license == "other" else []), "language"]
        return [name for name in needed if not getattr(self, name)]

    @classmethod
    def of_results(cls, results: Results) -> CardOptions:
        """As the run was started, or as they were given later."""
        return cls(**{name: results.card[name] for name in cls.__dataclass_fields__ if name in results.card})


def write_card(results: Results, config: ArtGraphViTConfig, folder: str | Path) -> Path:
    """Writes the card as `README.md` into the output folder of a run, by the options that its results hold."""
    path = Path(folder) / "README.md"
    files = [file.relative_to(folder).as_posix() for file in Path(folder).glob("figures/*")]
    text = render_card(results, config, Path(folder).name, CardOptions.of_results(results), files)
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def render_card(
    results: Results,
    config: ArtGraphViTConfig,
    folder_name: str,
    options: CardOptions,
    files: Sequence[str] = tuple(FIGURES),
) -> str:
    """Fills the template, and returns the text of the card, metadata first. Where no repository is known it is called
    by the name of its folder; of the `files` beside it the figures are shown."""
    backbone: Any = config.backbone_config
    base_model = None if results.recipe.get("from_scratch") else _hub_id(results.recipe.get("backbone"))
    dataset_id = options.dataset_id or _hub_id(results.data.get("source"))
    name = " ".join((options.repo_id or folder_name).split())
    measured = _eval_results(results, config, dataset_id, options.dataset_name)
    is_other = options.license == "other"
    confusions = {CONFUSION.format(task.name): f"What each {task.name} is taken for" for task in config.tasks}
    data = ModelCardData(
        language=options.language,
        license=options.license,
        license_name=options.license_name if is_other else None,
        license_link=options.license_link if is_other else None,
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["art", "artgraph", "multi-task", "vision", backbone.model_type],
        base_model=base_model,
        datasets=[dataset_id] if dataset_id else None,
        metrics=sorted({result.metric_type for result in measured}) or None,
        model_name=name,
        eval_results=measured or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        escape=escape,
        name=name,
        python_name=json.dumps(name, ensure_ascii=False),
        base_model=base_model,
        config=config,
        thresholds={task.name: _threshold(config, task) for task in config.tasks if task.is_multi_label},
        rows=results_rows(results),
        results=results,
        options=options,
        figures={path: title for path, title in {**FIGURES, **confusions}.items() if path in files},
    )
    return str(card)


def escape(text: object) -> str:
    """Makes a text plain in Markdown and HTML, on one line; also what would begin a list, a line or a heading."""
    plain = html.escape(" ".join(str(text).split()), quote=False)
    plain = re.sub(r"([\\`*{}\[\]|#!~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", plain)  # not the _ within a word
    return re.sub(r"^(\d*)([-+=]+(?=\s|$)|(?<=\d)[.)](?=\s|$))", r"\1\\\2", plain)


def _hub_id(name: str | None) -> str | None:
    is_id = name and re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and not Path(name).exists()
    return name if is_id else None


def _threshold(config: ArtGraphViTConfig, task: Task) -> str:
    """Above which probability a label of a task with several labels is predicted."""
    if task.name not in config.thresholds:
        return "0.5, as none was set"
    values = np.atleast_1d(config.thresholds[task.name])
    ends = f"{values.min():.3g}", f"{values.max():.3g}"
    return ends[0] if len(values) == 1 else f"one for each label, from {ends[0]} to {ends[1]}"


def _eval_results(
    results: Results, config: ArtGraphViTConfig, dataset_id: str | None, dataset_name: str
) -> list[EvalResult]:
    """Each figure of each task as an entry of the `model-index`, with the dataset and split it was measured on."""
    measured: list[tuple[str, str, str | None, float | None]] = [
        ("f1", "Average macro F1", "macro", results.metrics.get("avg_macro_f1"))
    ]
    measured += [
        (of, f"{title} ({task.name})", average, results.metrics.get(f"{task.name}_{kind}"))
        for task in config.tasks
        for kind, (of, title, average) in METRICS.items()
    ]
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset_id or "artworks",
            dataset_name=dataset_name,
            dataset_config=results.data.get("config"),
            dataset_revision=results.data.get("revision"),
            dataset_split=" ".join(results.split.split()),
            metric_type=metric_type,
            metric_name=title,
            metric_args={"average": average} if average else None,
            metric_value=value,
        )
        for metric_type, title, average, value in measured
        if value is not None and math.isfinite(value)
    ]
