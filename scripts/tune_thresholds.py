"""Tunes a trained model on its validation split: thresholds, and temperatures that make probabilities honest.

    accelerate launch scripts/tune_thresholds.py configs/demo.yaml runs/demo
    accelerate launch scripts/tune_thresholds.py your-name/artgraph-vit --source /data/artgraph --save_to tuned

Expect a table of macro F1 by p > 0.5 and tuned, on validation and test, and in the folder a config.json by which the
model decides from now on; its results.json, labels.csv and card, where it has them, follow. Nothing is trained, and
tuning anew starts from the model's own scores. Give the same data options as in training to get the same splits.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import datasets
from transformers.utils import logging

from artgraph_vit.data import ArtGraphCollator
from artgraph_vit.data.options import DataArguments, choice
from artgraph_vit.errors import run_script
from artgraph_vit.evaluation.thresholds import METHODS, SHRUNK
from artgraph_vit.evaluation.tuning_table import tuning_table
from artgraph_vit.loading import load_model
from artgraph_vit.publishing.card import CardOptions
from artgraph_vit.training.arguments import ArtGraphTrainingArguments, ModelArguments
from artgraph_vit.training.build import load_pictures, load_splits
from artgraph_vit.training.options import parse_options
from artgraph_vit.training.trainer import ArtGraphTrainer
from artgraph_vit.training.tuning import (
    folder_to_tune,
    refuse_to_adjust_twice,
    results_to_update,
    tune,
    update_results,
    write_tuned_config,
)


@dataclass
class TuningArguments:
    """What is tuned, and how."""

    _argument_group_name: ClassVar[str] = "tuning"

    checkpoint: str = field(metadata={"help": "Folder or Hub id of a trained model."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model on the Hub."})
    method: str = choice(
        SHRUNK,
        METHODS,
        "One threshold a task (global), one a label (per_label), or the latter drawn to the former where a label has "
        "few positives.",
    )
    save_to: str | None = field(
        default=None, metadata={"help": "New folder for a tuned copy; by default the checkpoint is changed."}
    )


def main() -> None:
    tuning, _, data_args, _, args = parse_options(
        (TuningArguments, ModelArguments, DataArguments, CardOptions, ArtGraphTrainingArguments),
        positionals=("checkpoint",),
        description=__doc__.splitlines()[0],
    )
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    folder = folder_to_tune(tuning.checkpoint, tuning.save_to)
    args.output_dir = str(folder)

    model, image_processor = load_model(tuning.checkpoint, tuning.revision)
    if args.adjust_logits:
        refuse_to_adjust_twice(model)
    tasks = model.config.tasks
    splits, _ = load_splits(data_args, args, tasks)
    results = results_to_update(tuning.checkpoint, splits, tasks)
    pictures = load_pictures(splits, tasks, data_args, image_processor)
    trainer = ArtGraphTrainer(
        model=model,
        args=args,
        data_collator=ArtGraphCollator(tasks),
        eval_dataset=pictures["validation"],
        processing_class=image_processor,
    )
    measured = tune(trainer, splits, pictures, tuning.method, args.adjust_logits)

    if trainer.is_world_process_zero():
        if tuning.save_to is None:
            write_tuned_config(trainer.config, folder)
        else:
            model.save_pretrained(folder)
            image_processor.save_pretrained(folder)
    if results is not None:
        update_results(results, trainer, measured, pictures["test"], folder)
    if trainer.is_world_process_zero():
        print(tuning_table(measured, trainer.config))
        print(f"\nThe tuned model is in {folder}: its config.json says how.")
    trainer.accelerator.end_training()  # all processes leave together


if __name__ == "__main__":
    run_script(main)
