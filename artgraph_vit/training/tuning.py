"""A trained model is tuned on the validation split, and what its folder says of it is brought up to date.

The scores are collected as an evaluation collects its metrics: each row once, on any number of processes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers.utils import logging

from ..data import known_row_count
from ..errors import UserError
from ..evaluation.choose import TUNED, KeptScores, Scores, choose, measure
from ..evaluation.figures import draw_confusions
from ..evaluation.results import split_metrics, write_labels, write_results
from ..evaluation.thresholds import SHRUNK
from ..files import atomic_write
from ..loading import MANIFEST
from ..model.configuration_artgraph_vit import ArtGraphViTConfig
from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification
from ..model.tasks import Task
from ..publishing.card import CardOptions, write_card
from .recipe import departures
from .trainer import ArtGraphTrainer

logger = logging.get_logger(__name__)


def tune(
    trainer: ArtGraphTrainer,
    splits: DatasetDict,
    pictures: Mapping[str, Any],
    method: str = SHRUNK,
    adjust_logits: bool = False,
) -> dict[str, dict[str, Any]]:
    """Tunes the trainer's model on the validation split; its config has the result. What it had before is forgotten.

    Args:
        trainer ([`ArtGraphTrainer`]).
        splits (`DatasetDict`): of encoded rows; the train split gives the priors.
        pictures (`dict[str, Dataset]`): the same splits as the trainer takes them.
        method (`str`, *optional*, defaults to `"shrunk"`): how thresholds are chosen, see [`choose_thresholds`].
        adjust_logits (`bool`, *optional*, defaults to `False`): adjust the logits of single-label tasks too.

    Returns:
        For "validation" and "test" what [`measure`] returns.

    Raises:
        UserError: if no validation row has a known label, or the model is trained for rare classes already and its
            logits are to be adjusted.
    """
    config = trainer.config
    log_priors = None
    for name in TUNED:
        setattr(config, name, {})
    trainer.metrics.thresholds = {}
    scores = {split: collect_scores(trainer, pictures[split]) for split in ("validation", "test")}
    tuned = choose(config.tasks, scores["validation"], method, log_priors)
    for name in TUNED:
        setattr(config, name, tuned[name])
    trainer.metrics.thresholds = dict(config.thresholds)
    for task in config.tasks:
        if task.name not in config.tuning["tasks"]:
            logger.warning("No artwork of the validation split has a known %s, which stays untuned.", task.name)
    return {split: measure(config.tasks, of_split, tuned) for split, of_split in scores.items()}


def collect_scores(trainer: ArtGraphTrainer, rows: Any) -> Scores:
    """The logits and labels of all rows, each once, on each process."""
    own, kept = trainer.metrics, KeptScores(trainer.config.tasks)
    trainer.metrics = kept
    try:
        trainer.predict(rows)
    finally:
        trainer.metrics = own
    return kept.scores()


def refuse_to_adjust_twice(model: ArtGraphViTForImageClassification) -> None:
    """Class weights and logit adjustment in the loss have moved the logits towards rare classes already.

    Raises:
        UserError: names what did.
    """
    heads: Any = model.heads
    single = [task for task in model.config.tasks if not task.is_multi_label]
    if not single:
        raise UserError("This model has no single-label task, whose logits could be adjusted: leave it out.")
    if model.config.logit_adjustment:
        raise UserError(
            f"The model was trained with logit_adjustment={model.config.logit_adjustment:g} in its loss, and to "
            "adjust its logits again would correct for rare classes twice: leave it out."
        )
    for task in single:
        if not bool((heads[task.name].class_weights == 1).all()):
            raise UserError(
                f"The model was trained with class weights ({task.name}), and to adjust its logits too would correct "
                "for rare classes twice: leave it out, or train with --class_weights none."
            )


def folder_to_tune(checkpoint: str, save_to: str | None) -> Path:
    """Where the tuned model will be: in the folder of the checkpoint, or in a new one.

    Raises:
        UserError: if the checkpoint cannot be changed where it is, or the new folder holds something.
    """
    folder = Path(checkpoint)
    if save_to is not None:
        if Path(save_to).exists() and any(Path(save_to).iterdir()):
            raise UserError(f"--save_to {save_to} holds something already: choose a new folder.")
        return Path(save_to)
    if not folder.is_dir():
        raise UserError(
            f"{checkpoint!r} is no folder here whose config could be changed: pass --save_to FOLDER for a tuned copy."
        )
    if (folder / MANIFEST).exists():
        raise UserError(
            f"{checkpoint} is a checkpoint of training, which is sealed and stays as it is: pass --save_to FOLDER for "
            "a tuned copy."
        )
    return folder


def results_to_update(checkpoint: str, splits: DatasetDict, tasks: Sequence[Task]) -> dict[str, Any] | None:
    """The results of the run that left this folder; None if there are none.

    Raises:
        UserError: if they are of other artworks than the test split.
    """
    path = Path(checkpoint) / "results.json"
    if not path.is_file():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        was = {"split": results["split"], "rows": results["rows"], "known_rows": results["known_rows"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not of a finished run ({error!r}): remove it, or train again.") from error
    test = splits["test"]
    known_rows = {task.name: known_row_count(test, task) for task in tasks}
    if was != {"split": "test", "rows": len(test), "known_rows": known_rows}:
        raise UserError(
            f"{path} is of {was['rows']} artworks of the split {was['split']!r}, and the test split here has "
            f"{len(test)}, or others: give the same data options as in training."
        )
    return results


def write_tuned_config(config: ArtGraphViTConfig, folder: Path) -> None:
    """Changes what was tuned in the `config.json` of a folder, and nothing else there."""
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | {name: getattr(config, name) for name in TUNED}
    with atomic_write(path) as part:
        part.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def update_results(
    results: Mapping[str, Any], trainer: ArtGraphTrainer, measured: Mapping[str, Any], rows: Any, folder: Path
) -> None:
    """Evaluates the tuned model on the test split, and writes results, labels, confusions and, if there is one, card.

    Args:
        results (`dict`): of the model before.
        trainer ([`ArtGraphTrainer`]): all processes call it, and the main one writes.
        measured (`dict`): as [`tune`] returns it.
        rows (`Dataset`): the pictures of the test split.
        folder (`Path`).
    """
    tasks, metrics = trainer.config.tasks, trainer.evaluate(rows, metric_key_prefix="test")
    if not trainer.is_world_process_zero():
        return
    recipe = results.get("recipe", {}) | {
        "tune_thresholds": True,
    }
    updated = {
        **results,
        **split_metrics(metrics, "test", [task.name for task in tasks]),
        **tuning_results(measured),
        "recipe": recipe,
        "departures": departures(recipe),
    }
    write_results(updated, folder)
    write_labels(trainer.metrics.label_rows(), folder)
    draw_confusions(trainer.metrics.confusions(), {task.name: task.labels for task in tasks}, folder)
    if (folder / "README.md").is_file():
        known = {option.name for option in dataclasses.fields(CardOptions)}
        card = {name: value for name, value in (results.get("card") or {}).items() if name in known}
        write_card(updated, trainer.config, folder, CardOptions(**card))


def tuning_results(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What `results.json` says of tuning; its "metrics" are those of the tuned model."""
    return {"metrics_at_half": measured["test"]["metrics_at_half"], "tuning": dict(measured)}
