"""Evaluates any checkpoint on a split, and writes its results.

    accelerate launch scripts/evaluate.py configs/demo.yaml --checkpoint runs/demo --split test
    accelerate launch scripts/evaluate.py --checkpoint your-name/artgraph-vit --source /data/artgraph

Expect a table of results beside the majority guess, and results.json in --results_dir. Labels, image processor and
class weights are the checkpoint's own; give the same data options as in training to get the same split.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import datasets
from transformers.utils import logging

from artgraph_vit.data import ArtGraphCollator
from artgraph_vit.data.arguments import DataArguments
from artgraph_vit.errors import run_script
from artgraph_vit.reporting.card import CardOptions
from artgraph_vit.reporting.results import results_table, write_results
from artgraph_vit.training.arguments import ArtGraphTrainingArguments, ModelArguments
from artgraph_vit.training.options import parse_options
from artgraph_vit.training.outcome import collect_results
from artgraph_vit.training.setup import load_checkpoint, load_pictures, load_splits
from artgraph_vit.training.trainer import ArtGraphTrainer


@dataclass
class EvaluationArguments:
    """What is evaluated."""

    _argument_group_name: ClassVar[str] = "evaluation"

    checkpoint: str = field(metadata={"help": "Folder or Hub id of a trained model."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model on the Hub."})
    split: str = field(default="test", metadata={"help": "Which split.", "choices": ("train", "validation", "test")})
    results_dir: str = field(default="runs/evaluation", metadata={"help": "Folder for results.json."})


def main() -> None:
    evaluation, _, data_args, _, args = parse_options(
        (EvaluationArguments, ModelArguments, DataArguments, CardOptions, ArtGraphTrainingArguments),
        description=__doc__.splitlines()[0],
    )
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    args.output_dir = evaluation.results_dir

    model, image_processor = load_checkpoint(evaluation.checkpoint, evaluation.revision)
    tasks = model.config.tasks
    splits, _ = load_splits(data_args, args, tasks)
    pictures = load_pictures(splits, tasks, data_args, image_processor)[evaluation.split]
    trainer = ArtGraphTrainer(
        model=model,
        args=args,
        data_collator=ArtGraphCollator(tasks),
        eval_dataset=pictures,
        processing_class=image_processor,
    )
    metrics = trainer.evaluate(metric_key_prefix=evaluation.split)
    recipe = {"checkpoint": evaluation.checkpoint}
    results = collect_results(metrics, evaluation.split, splits, tasks, recipe, args.seed)

    if trainer.is_world_process_zero():
        path = write_results(results, evaluation.results_dir)
        print(results_table(results, [task.name for task in tasks]))
        print(f"\nThe same figures are in {path}.")
    trainer.accelerator.end_training()  # all processes leave together


if __name__ == "__main__":
    run_script(main)
