"""The end of a run: the test split is evaluated, and everything that the run leaves is written.

The frozen phase is judged on the test split too, at its last epoch, before its checkpoint is written: so the figure
is in the run's log, and a resumed run has it as well.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import TrainerCallback
from transformers.utils import logging

from ..data import known_row_count
from ..data.options import DataArguments
from ..evaluation.figures import draw_confusions, draw_figures
from ..evaluation.metrics import majority_metrics
from ..evaluation.results import split_metrics, write_labels, write_results
from ..model.tasks import Task
from ..publishing.card import CardOptions, write_card
from .arguments import ModelArguments
from .build import label_priors
from .class_statistics import label_batches
from .recipe import departures, portable, recipe_of
from .trainer import ArtGraphTrainer
from .tuning import tune, tuning_results

logger = logging.get_logger(__name__)

FROZEN_TEST = "frozen_test"
PACKAGES = ("artgraph_vit", "torch", "transformers", "datasets", "accelerate", "huggingface_hub")


class FrozenPhaseTest(TrainerCallback):
    """Evaluates the test split when phase `heads` ends."""

    def __init__(self, trainer: ArtGraphTrainer, test_rows: Dataset):
        self.trainer = trainer
        self.test_rows = test_rows

    def on_epoch_end(self, args, state, control, **kwargs):
        if 0 < args.frozen_epochs < args.num_train_epochs and state.epoch == args.frozen_epochs:
            asked = dataclasses.replace(control)  # an evaluation takes back what this epoch's end still has to do
            self.trainer.evaluate(self.test_rows, metric_key_prefix=FROZEN_TEST)
            return asked
        return control


def collect_results(
    metrics: Mapping[str, float],
    split: str,
    splits: DatasetDict,
    tasks: list[Task],
    recipe: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """What `results.json` says of any evaluated split.

    Args:
        metrics (`Mapping[str, float]`): as `trainer.evaluate(metric_key_prefix=split)` returns them.
        split (`str`): its name in `splits`.
        splits (`DatasetDict`): of encoded rows.
        tasks (`list[Task]`).
        recipe (`Mapping[str, Any]`): the options of the run.
        seed (`int`): of the run.

    Raises:
        RuntimeError: if the metrics do not stem from all rows of the split, each once.
    """
    sorted_metrics = split_metrics(dict(metrics), split, [task.name for task in tasks])
    counted = {task.name: known_row_count(splits[split], task) for task in tasks}
    if sorted_metrics["known_rows"] != counted:
        raise RuntimeError(f"Evaluated {sorted_metrics['known_rows']} known rows of {counted} in the split {split!r}.")
    return {
        "split": split,
        "rows": len(splits[split]),
        **sorted_metrics,
        "majority_metrics": majority_metrics(
            tasks, label_priors(splits["train"], tasks), label_batches(splits[split], tasks)
        ),
        "frozen_metrics": None,
        "seed": seed,
        "recipe": dict(recipe),
        "versions": {package: _version(package) for package in PACKAGES},
    }


def finish_run(
    trainer: ArtGraphTrainer,
    splits: DatasetDict,
    pictures: Mapping[str, Any],
    model_args: ModelArguments,
    data_args: DataArguments,
    card: CardOptions,
) -> dict[str, Any]:
    """Evaluates the best checkpoint on the test split and writes what a run leaves in its output folder.

    Weights, config, image processor and the code that travels; `trainer_state.json`, `results.json`, `labels.csv`,
    the figures and the card. A figure or card that fails is logged and stops nothing. With `tune_thresholds` the model
    is tuned on the validation split before.

    Returns:
        The results, as in `results.json`.
    """
    args = trainer.args
    tasks = trainer.config.tasks
    names = [task.name for task in tasks]
    tuned = {}
    if args.tune_thresholds:
        tuned = tuning_results(tune(trainer, splits, pictures))
    metrics = trainer.evaluate(pictures["test"], metric_key_prefix="test")
    label_rows, confusions = trainer.metrics.label_rows(), trainer.metrics.confusions()
    folder = Path(args.output_dir)
    trainer.save_model()
    trainer.save_state()
    history = trainer.state.log_history
    frozen = next((logs for logs in reversed(history) if f"{FROZEN_TEST}_avg_macro_f1" in logs), None)
    best = next(
        (logs for logs in history if logs["step"] == trainer.state.best_global_step and "eval_loss" in logs), {}
    )
    if not args.load_best_model_at_end:
        best = {}  # the weights are the last ones
    rows_a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    recipe = {
        "num_train_epochs": args.num_train_epochs,
        "global_batch_size": rows_a_step,
        **recipe_of(model_args, data_args),
        **args.recipe(),
        "tune_thresholds": args.tune_thresholds,
    }
    results = collect_results(metrics, "test", splits, tasks, recipe, args.seed) | {
        **tuned,
        "frozen_metrics": split_metrics(frozen, FROZEN_TEST, names)["metrics"] if frozen else None,
        "best_epoch": best.get("epoch"),
        "best_step": best.get("step"),
        "best_validation_avg_macro_f1": best.get("eval_avg_macro_f1"),
        "epochs": args.num_train_epochs,
        "frozen_epochs": args.frozen_epochs,
        "departures": departures(recipe),
        "card": dataclasses.asdict(card),
        "data": {
            "source": portable(data_args.source),
            "config": data_args.dataset_config,
            "revision": data_args.dataset_revision,
            **{f"{name}_rows": len(rows) for name, rows in splits.items()},
        },
    }
    if trainer.is_world_process_zero():
        (folder / "training_args.bin").unlink(missing_ok=True)  # pickled, and results.json says the same
        write_results(results, folder)
        write_labels(label_rows, folder)
        try:
            draw_figures(history, names, folder, args.frozen_epochs, results["best_epoch"])
            draw_confusions(confusions, {task.name: task.labels for task in tasks}, folder)
            write_card(results, trainer.config, folder, card)
        except Exception:  # the run itself is whole and saved
            logger.exception(
                "The figures or the card in %s could not be made; the model and results.json are.", folder
            )
    return results


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "not installed"
