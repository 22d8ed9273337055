"""From options to results: a run that trains a model, and what evaluates and tunes a trained one.

Whatever is written of a run is what was done, read from the trainer's state, not what its options asked for. All
processes of a launcher call the functions here, and the main one writes.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict
from transformers import BaseImageProcessor, TrainerCallback, set_seed
from transformers.utils import logging

from ..data import ArtGraphCollator, known_row_count, label_counts
from ..data.options import DataArguments
from ..errors import UserError
from ..evaluation.figures import draw_confusions, draw_figures
from ..evaluation.intervals import intervals_table, macro_f1_intervals
from ..evaluation.metrics import MultiTaskMetrics, majority_metrics
from ..evaluation.results import Results, metrics_of, results_table, tuning_table, write_labels
from ..evaluation.tuning import SHRUNK, TUNED, choose_tuning, compare_tuned
from ..files import atomic_write
from ..loading import MANIFEST, load_model
from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification
from ..model.tasks import Task
from ..publishing.card import CardOptions, write_card
from .arguments import ArtGraphTrainingArguments, ModelArguments, source_recipe
from .build import build_model, load_image_processor, load_pictures, load_splits
from .checkpoints import checkpoint_to_resume
from .class_statistics import label_batches
from .trainer import ArtGraphTrainer

logger = logging.get_logger(__name__)

FROZEN_TEST = "frozen_test"
PACKAGES = ("artgraph_vit", "torch", "transformers", "datasets", "accelerate", "huggingface_hub")
DATA_RECIPE = (
    *("min_count", "tasks", "split_seed", "streaming", "jpeg_scale", "crop_scale", "horizontal_flip", "color_jitter"),
)
# What a recipe is applied to, rather than a part of it.
GROUND = {"backbone", "backbone_revision", "from_scratch", "min_count", "tasks", "split_seed", "seed", "data_seed"}
GROUND |= {"streaming"}


# ---- training ----


def train(
    model_args: ModelArguments, data_args: DataArguments, card_args: CardOptions, args: ArtGraphTrainingArguments
) -> Results:
    """Trains a model, evaluates its best checkpoint on the test split, and writes its output folder; what is there, if
    it is to be resumed, is taken up again.

    Raises:
        UserError: says what is wrong with the options or the data, before any long work.
    """
    config = Path(str(args.output_dir)) / "config.json"
    if not args.tune_thresholds and config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("tuning"):
        raise UserError(
            f"The model in {args.output_dir} is finished and tuned, and this would write it anew, untuned: pass "
            "--tune_thresholds true, or choose another --output_dir."
        )
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    checkpoint_to_resume(args, args.resume_from_checkpoint)  # what is wrong with it, before the data is read

    set_seed(args.seed)
    image_processor = load_image_processor(model_args)
    splits, tasks = load_splits(data_args, args)
    _refuse_unmeasured(args, splits["validation"], tasks)
    model = build_model(model_args, tasks, splits["train"], data_args.missing_tasks == "unknown")
    data_seed = args.seed if args.data_seed is None else args.data_seed
    augmentation = data_args.augmentation(args.seed)
    pictures = load_pictures(splits, tasks, data_args, image_processor, augmentation, data_seed)
    trainer = ArtGraphTrainer(
        model=model,
        args=args,
        recipe=recipe_of(model_args, data_args),
        data_collator=ArtGraphCollator(tasks),
        train_dataset=pictures["train"],
        eval_dataset=pictures["validation"],
        processing_class=image_processor,
    )
    trainer.add_callback(FrozenPhaseTest(trainer, pictures["test"]))
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    results = finish_run(trainer, splits, pictures, model_args, data_args, card_args)
    trainer.accelerator.end_training()  # all processes leave together
    return results


class FrozenPhaseTest(TrainerCallback):
    """Evaluates the test split when phase `heads` ends, before its checkpoint is written: so the figure is in the
    run's log, and a resumed run has it as well."""

    def __init__(self, trainer: ArtGraphTrainer, test_rows: Dataset):
        self.trainer = trainer
        self.test_rows = test_rows

    def on_epoch_end(self, args, state, control, **kwargs):
        if 0 < args.frozen_epochs < args.num_train_epochs and state.epoch == args.frozen_epochs:
            asked = dataclasses.replace(control)  # an evaluation takes back what this epoch's end still has to do
            self.trainer.evaluate(self.test_rows, metric_key_prefix=FROZEN_TEST)
            return asked
        return control


def recipe_of(model: ModelArguments, data: DataArguments) -> dict[str, Any]:
    """The options of model and data that decide what a run learns; with nothing of the machine it ran on."""
    of_data = {name: getattr(data, name) for name in DATA_RECIPE}
    return {**dataclasses.asdict(model), **of_data, "backbone": _portable(model.backbone)}


def departures(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of a recipe that differ from the source document's, which are the defaults."""
    defaults = {name: value for name, value in source_recipe().items() if name not in GROUND}
    return {name: value for name, value in recipe.items() if name in defaults and value != defaults[name]}


def _portable(name_or_path: str) -> str:
    """A name that says nothing of the machine: of a path its last part."""
    return Path(name_or_path).name if Path(name_or_path).exists() else name_or_path


def _refuse_unmeasured(args: ArtGraphTrainingArguments, validation_rows: Dataset, tasks: Sequence[Task]) -> None:
    """The metric by which the best checkpoint is chosen must be one that the validation split gives."""
    if not args.load_best_model_at_end:
        return
    known = [task.name for task in tasks if known_row_count(validation_rows, task)]
    wanted = str(args.metric_for_best_model).removeprefix("eval_")
    of_task = [task.name for task in tasks if wanted.startswith(f"{task.name}_")]
    if not known or (of_task and not set(of_task) & set(known)):
        raise UserError(
            f"The validation split has no label of {' or '.join(of_task) or 'any task'}, so "
            f"metric_for_best_model={wanted} cannot be measured: choose another, or pass --load_best_model_at_end "
            "false."
        )


def finish_run(
    trainer: ArtGraphTrainer,
    splits: DatasetDict,
    pictures: Mapping[str, Any],
    model_args: ModelArguments,
    data_args: DataArguments,
    card: CardOptions,
) -> Results:
    """Evaluates the best checkpoint on the test split and writes what a run leaves in its output folder.

    Weights, config, image processor and the code that travels; `trainer_state.json`, `results.json`, `labels.csv`,
    the figures and the card. With `tune_thresholds` the model is tuned on the validation split before.
    """
    args, state = trainer.args, trainer.state
    names = [task.name for task in trainer.config.tasks]
    tuning = tune(trainer, pictures) if args.tune_thresholds else None
    length = {"max_steps": args.max_steps} if args.max_steps > 0 else {"num_train_epochs": args.num_train_epochs}
    recipe = {
        **length,
        "global_batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        **recipe_of(model_args, data_args),
        **args.recipe(),
        "tune_thresholds": args.tune_thresholds,
    }
    results = evaluate_split(trainer, pictures, "test", splits, recipe, tuning)
    trainer.save_model()
    trainer.save_state()
    frozen = next((log for log in reversed(state.log_history) if f"{FROZEN_TEST}_loss" in log), None)
    results.frozen_metrics = metrics_of(frozen, names, f"{FROZEN_TEST}_") if frozen else None
    if args.load_best_model_at_end:  # else the weights are the last ones
        evaluated = [log for log in state.log_history if "eval_loss" in log]
        best: Any = next((log for log in evaluated if log["step"] == state.best_global_step), {})
        results.best_epoch, results.best_step = best.get("epoch"), best.get("step")
        results.best_validation_avg_macro_f1 = best.get("eval_avg_macro_f1")
    results.epochs, results.frozen_epochs = state.epoch, min(args.frozen_epochs, state.epoch or 0)
    results.departures = departures(recipe)
    results.card = dataclasses.asdict(card)
    results.data = {
        "source": _portable(data_args.source),
        "config": data_args.dataset_config,
        "revision": data_args.dataset_revision,
        **{f"{name}_rows": len(rows) for name, rows in splits.items()},
    }
    if trainer.is_world_process_zero():
        folder = Path(args.output_dir)
        (folder / "training_args.bin").unlink(missing_ok=True)  # pickled, and results.json says the same
        _write_evaluation(results, trainer, folder)
        try:
            boundary = args.frozen_epochs if results.epochs and results.epochs > args.frozen_epochs else 0
            draw_figures(state.log_history, names, folder, boundary, results.best_epoch)
            write_card(results, trainer.config, folder)
        except Exception:  # the run itself is whole and saved
            logger.exception("The figures or the card in %s could not be made; the model is saved.", folder)
    return results


# ---- evaluation ----


def evaluate_split(
    trainer: ArtGraphTrainer,
    pictures: Mapping[str, Any],
    split: str,
    splits: DatasetDict,
    recipe: Mapping[str, Any],
    tuning: dict[str, Any] | None = None,
) -> Results:
    """Evaluates the trainer's model, and the guess that looks at no picture, on the split of this name; the trainer's
    `metrics` are those of this evaluation afterwards. `tuning` is, of a model just tuned, what [`tune`] returned."""
    tasks = trainer.config.tasks
    names = [task.name for task in tasks]
    log: Mapping[str, Any] = trainer.evaluate(pictures[split], metric_key_prefix=split)
    known_rows = {name: log[f"{split}_{name}_known_rows"] for name in names}
    train_rows = splits["train"]
    priors = {task.name: label_counts(train_rows, task) / max(1, known_row_count(train_rows, task)) for task in tasks}
    return Results(
        split=split,
        rows=len(splits[split]),
        loss=log[f"{split}_loss"],
        task_losses={name: log[f"{split}_{name}_loss"] for name in names if known_rows[name]},
        known_rows=known_rows,
        metrics=metrics_of(log, names, f"{split}_"),
        majority_metrics=majority_metrics(tasks, priors, label_batches(splits[split], tasks)),
        seed=trainer.args.seed,
        recipe=dict(recipe),
        versions={package: importlib.import_module(package).__version__ for package in PACKAGES},
        tuning=tuning,
        metrics_at_half=tuning[split]["metrics_at_half"] if tuning else None,
    )


def _write_evaluation(results: Results, trainer: ArtGraphTrainer, folder: Path) -> None:
    results.write(folder)
    write_labels(trainer.metrics.label_rows(), folder)
    draw_confusions(trainer.metrics.confusions(), {task.name: task.labels for task in trainer.config.tasks}, folder)


def evaluate(
    checkpoint: str,
    data_args: DataArguments,
    args: ArtGraphTrainingArguments,
    revision: str | None = None,
    split: str = "test",
    bootstrap: int = 0,
    compare_with: str | None = None,
) -> Results:
    """Evaluates any checkpoint on a split; prints its results, and writes them into `args.output_dir`. The arguments
    are the options of scripts/evaluate.py.

    Raises:
        UserError: if a model cannot be loaded, or the other one has other tasks or labels.
    """
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    models = [load_model(checkpoint, revision)]
    tasks = models[0][0].config.tasks
    if compare_with is not None:
        models.append(load_model(compare_with))
        if models[1][0].config.tasks != tasks:
            raise UserError(
                f"{compare_with} has other tasks or labels than {checkpoint}: only models with the same ones, in the "
                "same order, can be compared."
            )
    splits, _ = load_splits(data_args, args, tasks)
    evaluated = []
    for model, image_processor in models:
        trainer, pictures = _evaluator(model, image_processor, splits, data_args, args)
        trainer.metrics.keep_scores = bootstrap > 0
        evaluated.append((trainer, evaluate_split(trainer, pictures, split, splits, {"checkpoint": checkpoint})))
    trainer, results = evaluated[0]
    if trainer.is_world_process_zero():
        print(results_table(results))
        if bootstrap:
            own, *others = [one.metrics.decisions() for one, _ in evaluated]
            results.intervals = macro_f1_intervals(tasks, own, None, bootstrap, args.seed)
            print("\n" + intervals_table(results.intervals))
            for other in others:
                compared = macro_f1_intervals(tasks, own, other, bootstrap, args.seed)
                results.comparison = {"checkpoint": compare_with, **compared}
                print("\n" + intervals_table(compared))
        _write_evaluation(results, trainer, Path(args.output_dir))
    trainer.accelerator.end_training()  # all processes leave together
    return results


def _evaluator(
    model: ArtGraphViTForImageClassification,
    image_processor: BaseImageProcessor,
    splits: DatasetDict,
    data_args: DataArguments,
    args: ArtGraphTrainingArguments,
) -> tuple[ArtGraphTrainer, dict[str, Any]]:
    """A trainer of a trained model, and the splits as it takes them."""
    pictures = load_pictures(splits, model.config.tasks, data_args, image_processor)
    trainer = ArtGraphTrainer(
        model=model,
        args=args,
        data_collator=ArtGraphCollator(model.config.tasks),
        eval_dataset=pictures["validation"],
        processing_class=image_processor,
    )
    return trainer, pictures


# ---- tuning ----


def tune(trainer: ArtGraphTrainer, pictures: Mapping[str, Any], method: str = SHRUNK) -> dict[str, dict[str, Any]]:
    """Tunes the trainer's model on the validation split, by a `method` of [`choose_thresholds`]; its config has the
    result, and what it had before is forgotten. Returns for "validation" and "test" what [`compare_tuned`] does.

    Raises:
        UserError: if no validation row has a known label.
    """
    config = trainer.config
    for name in TUNED:
        setattr(config, name, {})
    scores = {}
    for split in ("validation", "test"):
        trainer.metrics = MultiTaskMetrics(config.tasks, keep_scores=True)
        trainer.predict(pictures[split])
        scores[split] = trainer.metrics.scores()
    for name, value in choose_tuning(config.tasks, scores["validation"], method).items():
        setattr(config, name, value)
    trainer.metrics = MultiTaskMetrics(config.tasks, config.thresholds)
    for task in config.tasks:
        if task.name not in config.tuning["tasks"]:
            logger.warning("No artwork of the validation split has a known %s, which stays untuned.", task.name)
    return {
        split: compare_tuned(config.tasks, of_split, config.thresholds, config.temperatures)
        for split, of_split in scores.items()
    }


def tune_checkpoint(
    checkpoint: str,
    data_args: DataArguments,
    args: ArtGraphTrainingArguments,
    revision: str | None = None,
    method: str = SHRUNK,
    save_to: str | None = None,
) -> Path:
    """Tunes a trained model, in its folder or as a copy, and brings what the folder says of it up to date; prints what
    changed, and returns the folder. The arguments are the options of scripts/tune_thresholds.py.

    Raises:
        UserError: if the checkpoint cannot be changed where it is, or its results are of other artworks than these.
    """
    folder = Path(save_to or checkpoint)
    if save_to and folder.exists() and any(folder.iterdir()):
        raise UserError(f"--save_to {save_to} holds something already: choose a new folder.")
    if not save_to and (not folder.is_dir() or (folder / MANIFEST).exists()):
        raise UserError(
            f"{checkpoint} is no folder here, or a checkpoint of training, which stays as it was written: pass "
            "--save_to FOLDER for a tuned copy."
        )
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    args.output_dir = str(folder)
    model, image_processor = load_model(checkpoint, revision)
    splits, _ = load_splits(data_args, args, model.config.tasks)
    results = None
    if (Path(checkpoint) / "results.json").is_file():
        results = Results.read(checkpoint)
        known_rows = {task.name: known_row_count(splits["test"], task) for task in model.config.tasks}
        if (results.split, results.rows, results.known_rows) != ("test", len(splits["test"]), known_rows):
            raise UserError(
                f"{checkpoint}/results.json is of other artworks than the test split here: give the same data options "
                "as in training."
            )
    trainer, pictures = _evaluator(model, image_processor, splits, data_args, args)
    tuning = tune(trainer, pictures, method)
    if results is not None:
        recipe = {**results.recipe, "tune_thresholds": True}
        tuned = evaluate_split(trainer, pictures, "test", splits, recipe, tuning)
        changed = ("recipe", "loss", "task_losses", "metrics", "tuning", "metrics_at_half")
        results = dataclasses.replace(
            results, departures=departures(recipe), **{name: getattr(tuned, name) for name in changed}
        )
    if trainer.is_world_process_zero():
        if save_to:
            model.save_pretrained(folder)
            image_processor.save_pretrained(folder)
        else:  # nothing else in the folder's config changes
            values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            values |= {name: getattr(trainer.config, name) for name in TUNED}
            with atomic_write(folder / "config.json") as part:
                part.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if results is not None:
            _write_evaluation(results, trainer, folder)
            if (folder / "README.md").is_file():
                write_card(results, trainer.config, folder)
        print(tuning_table(tuning, trainer.config.thresholds, trainer.config.temperatures))
    trainer.accelerator.end_training()  # all processes leave together
    return folder
