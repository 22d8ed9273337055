"""From options to results: a run that trains a model, and what evaluates and tunes a trained one.

Whatever is written of a run is what was done, read from the trainer's state, not what its options asked for. All
processes of a launcher call the functions here, and the main one writes.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict
from transformers import BaseImageProcessor, TrainerCallback, set_seed
from transformers.utils import logging

from ..data import ArtGraphCollator, known_row_count
from ..data.options import DataArguments
from ..errors import UserError
from ..evaluation.figures import draw_confusions, draw_figures
from ..evaluation.intervals import intervals_table, macro_f1_intervals
from ..evaluation.metrics import MultiTaskMetrics, majority_metrics
from ..evaluation.results import Measured, Results, results_table, tuning_table, write_labels
from ..evaluation.tuning import SHRUNK, TUNED, choose_tuning, compare_tuned
from ..files import atomic_write
from ..loading import MANIFEST, load_model
from ..model.configuration_artgraph_vit import ArtGraphViTConfig
from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification
from ..model.tasks import Task
from ..publishing.card import CardOptions, write_card
from .arguments import ArtGraphTrainingArguments, ModelArguments
from .build import build_model, label_priors, load_image_processor, load_pictures, load_splits
from .checkpoints import checkpoint_to_resume
from .class_statistics import label_batches
from .recipe import departures, portable, recipe_of
from .trainer import ArtGraphTrainer

logger = logging.get_logger(__name__)

FROZEN_TEST = "frozen_test"
PACKAGES = ("artgraph_vit", "torch", "transformers", "datasets", "accelerate", "huggingface_hub")


# ---- training ----


def train(
    model_args: ModelArguments, data_args: DataArguments, card_args: CardOptions, args: ArtGraphTrainingArguments
) -> Results:
    """Trains a model, evaluates its best checkpoint on the test split, and writes its output folder; what is there, if
    it is to be resumed, is taken up again.

    Raises:
        UserError: says what is wrong with the options or the data, before any long work.
    """
    _refuse_to_untune(args)
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    checkpoint_to_resume(args, args.resume_from_checkpoint)  # what is wrong with it, before the data is read

    set_seed(args.seed)
    image_processor = load_image_processor(model_args)
    splits, tasks = load_splits(data_args, args)
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


def _refuse_to_untune(args: ArtGraphTrainingArguments) -> None:
    """A finished run that is started again writes its model anew, and what it was tuned to would be lost."""
    config = Path(str(args.output_dir)) / "config.json"
    if not args.tune_thresholds and config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("tuning"):
        raise UserError(
            f"The model in {args.output_dir} is finished and tuned, and this would write it anew, untuned: pass "
            "--tune_thresholds true, or choose another --output_dir."
        )


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
    results = evaluate_split(trainer, pictures["test"], "test", splits, recipe)
    trainer.save_model()
    trainer.save_state()
    if tuning is not None:
        _add_tuning(results, tuning)
    frozen = next((log for log in reversed(state.log_history) if f"{FROZEN_TEST}_loss" in log), None)
    results.frozen = Measured.of_log(frozen, names, f"{FROZEN_TEST}_") if frozen else None
    if args.load_best_model_at_end:  # else the weights are the last ones
        evaluated = [log for log in state.log_history if "eval_loss" in log]
        best: Any = next((log for log in evaluated if log["step"] == state.best_global_step), {})
        results.best_epoch, results.best_step = best.get("epoch"), best.get("step")
        results.best_validation_avg_macro_f1 = best.get("eval_avg_macro_f1")
    results.epochs, results.frozen_epochs = state.epoch, min(args.frozen_epochs, state.epoch or 0)
    results.departures = departures(recipe)
    results.card = dataclasses.asdict(card)
    results.data = {
        "source": portable(data_args.source),
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
            logger.exception(
                "The figures or the card in %s could not be made; the model and results.json are.", folder
            )
    return results


# ---- evaluation ----


def evaluate_split(
    trainer: ArtGraphTrainer, pictures: Any, split: str, splits: DatasetDict, recipe: Mapping[str, Any]
) -> Results:
    """Evaluates the trainer's model, and the guess that looks at no picture, on a split.

    Args:
        trainer ([`ArtGraphTrainer`]): its `metrics` are those of this evaluation afterwards.
        pictures (`Dataset`): the split as the trainer takes it.
        split (`str`): its name in `splits`.
        splits (`DatasetDict`): of encoded rows.
        recipe (`Mapping[str, Any]`): the options of the run.

    Raises:
        RuntimeError: if the metrics do not stem from all rows of the split, each once.
    """
    tasks = trainer.config.tasks
    names = [task.name for task in tasks]
    measured = Measured.of_log(trainer.evaluate(pictures, metric_key_prefix=split), names, f"{split}_")
    counted = {task.name: known_row_count(splits[split], task) for task in tasks}
    if measured.of_kind("known_rows") != counted:
        raise RuntimeError(f"Evaluated {measured.of_kind('known_rows')} known rows of {counted} in {split!r}.")
    guess = majority_metrics(tasks, label_priors(splits["train"], tasks), label_batches(splits[split], tasks))
    return Results(
        split=split,
        rows=len(splits[split]),
        measured=measured,
        majority=Measured.of_log(guess, names),
        seed=trainer.args.seed,
        recipe=dict(recipe),
        versions={package: _version(package) for package in PACKAGES},
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "not installed"


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
    model, image_processor = load_model(checkpoint, revision)
    tasks = model.config.tasks
    other = None if compare_with is None else load_model(compare_with)
    if other is not None and other[0].config.tasks != tasks:
        raise UserError(
            f"{compare_with} has other tasks or labels than {checkpoint}: only models with the same ones, in the same "
            "order, can be compared."
        )
    splits, _ = load_splits(data_args, args, tasks)

    def evaluated(
        model: ArtGraphViTForImageClassification, image_processor: BaseImageProcessor
    ) -> tuple[ArtGraphTrainer, Results]:
        pictures = load_pictures(splits, tasks, data_args, image_processor)
        trainer = _trainer(model, image_processor, args, pictures["validation"])
        trainer.metrics.keep_scores = bootstrap > 0
        return trainer, evaluate_split(trainer, pictures[split], split, splits, {"checkpoint": checkpoint})

    trainer, results = evaluated(model, image_processor)
    compared = None if other is None else evaluated(*other)[0].metrics.decisions()
    if trainer.is_world_process_zero():
        print(results_table(results))
        if bootstrap:
            own = trainer.metrics.decisions()
            results.intervals = macro_f1_intervals(tasks, own, None, bootstrap, args.seed)
            print("\n" + intervals_table(results.intervals))
            if compared is not None:
                found = macro_f1_intervals(tasks, own, compared, bootstrap, args.seed)
                results.comparison = {"checkpoint": compare_with, **found}
                print("\n" + intervals_table(found))
        _write_evaluation(results, trainer, Path(args.output_dir))
    trainer.accelerator.end_training()  # all processes leave together
    return results


def _trainer(
    model: ArtGraphViTForImageClassification,
    image_processor: BaseImageProcessor,
    args: ArtGraphTrainingArguments,
    eval_pictures: Any,
) -> ArtGraphTrainer:
    """One that evaluates a trained model."""
    collator = ArtGraphCollator(model.config.tasks)
    pictures = {"eval_dataset": eval_pictures, "processing_class": image_processor}
    return ArtGraphTrainer(model=model, args=args, data_collator=collator, **pictures)


# ---- tuning ----


def tune(trainer: ArtGraphTrainer, pictures: Mapping[str, Any], method: str = SHRUNK) -> dict[str, dict[str, Any]]:
    """Tunes the trainer's model on the validation split; its config has the result. What it had before is forgotten.

    Args:
        trainer ([`ArtGraphTrainer`]).
        pictures (`dict[str, Dataset]`): the splits as the trainer takes them.
        method (`str`, *optional*, defaults to `"shrunk"`): how thresholds are chosen, see [`choose_thresholds`].

    Returns:
        For "validation" and "test" what [`compare_tuned`] returns.

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
    tuned = choose_tuning(config.tasks, scores["validation"], method)
    for name in TUNED:
        setattr(config, name, tuned[name])
    trainer.metrics = MultiTaskMetrics(config.tasks, config.thresholds)
    for task in config.tasks:
        if task.name not in config.tuning["tasks"]:
            logger.warning("No artwork of the validation split has a known %s, which stays untuned.", task.name)
    return {
        split: compare_tuned(config.tasks, of_split, config.thresholds, config.temperatures)
        for split, of_split in scores.items()
    }


def _add_tuning(results: Results, tuning: dict[str, Any]) -> None:
    """Results that were measured after tuning get what they were before."""
    results.tuning = tuning
    results.at_half = Measured.of_log(tuning["test"]["metrics_at_half"], list(results.measured.tasks))


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
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    folder = _folder_to_tune(checkpoint, save_to)
    args.output_dir = str(folder)
    model, image_processor = load_model(checkpoint, revision)
    tasks = model.config.tasks
    splits, _ = load_splits(data_args, args, tasks)
    results = _results_to_update(checkpoint, splits, tasks)
    pictures = load_pictures(splits, tasks, data_args, image_processor)
    trainer = _trainer(model, image_processor, args, pictures["validation"])
    tuning = tune(trainer, pictures, method)
    if trainer.is_world_process_zero():
        if save_to is None:
            _write_tuned_config(trainer.config, folder)
        else:
            model.save_pretrained(folder)
            image_processor.save_pretrained(folder)
    if results is not None:
        results.recipe["tune_thresholds"] = True
        results.departures = departures(results.recipe)
        results.measured = evaluate_split(trainer, pictures["test"], "test", splits, results.recipe).measured
        _add_tuning(results, tuning)
        if trainer.is_world_process_zero():
            _write_evaluation(results, trainer, folder)
            if (folder / "README.md").is_file():
                write_card(results, trainer.config, folder)
    if trainer.is_world_process_zero():
        print(tuning_table(tuning, trainer.config.thresholds, trainer.config.temperatures))
    trainer.accelerator.end_training()  # all processes leave together
    return folder


def _folder_to_tune(checkpoint: str, save_to: str | None) -> Path:
    """The folder of the checkpoint, if it can be changed where it is, or a new one."""
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
            f"{checkpoint} is a checkpoint of training, which stays as it was written: pass --save_to FOLDER for "
            "a tuned copy."
        )
    return folder


def _results_to_update(checkpoint: str, splits: DatasetDict, tasks: list[Task]) -> Results | None:
    """The results of the run that left this folder, if there are any, which must be of the test split here."""
    if not (Path(checkpoint) / "results.json").is_file():
        return None
    results, test = Results.read(checkpoint), splits["test"]
    known_rows = {task.name: known_row_count(test, task) for task in tasks}
    own = ("test", len(test), known_rows)
    if (results.split, results.rows, results.measured.of_kind("known_rows")) != own:
        raise UserError(
            f"{checkpoint}/results.json is of {results.rows} artworks of the split {results.split!r}, and the test "
            f"split here has {len(test)}, or others: give the same data options as in training."
        )
    return results


def _write_tuned_config(config: ArtGraphViTConfig, folder: Path) -> None:
    """Changes what was tuned in the `config.json` of a folder, and nothing else there."""
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | {name: getattr(config, name) for name in TUNED}
    with atomic_write(path) as part:
        part.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
