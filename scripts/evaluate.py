"""Evaluates any checkpoint on a split, and writes its results.

    accelerate launch scripts/evaluate.py configs/demo.yaml --checkpoint runs/demo --split test
    accelerate launch scripts/evaluate.py --checkpoint your-name/artgraph-vit --source /data/artgraph
    accelerate launch scripts/evaluate.py configs/demo.yaml --checkpoint runs/demo \\
        --bootstrap 1000 --compare_with runs/old

Expect a table of results beside the majority guess, and in --results_dir results.json, labels.csv with the figures of
each label, and pictures of the confusions. With --bootstrap macro F1 gets 95 % intervals, and with --compare_with the
difference to another model on the same artworks too. Labels, image processor, thresholds and class weights are each
checkpoint's own; give the same data options as in training to get the same split.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import datasets
from transformers.utils import logging

from artgraph_vit.data import ArtGraphCollator
from artgraph_vit.data.options import DataArguments
from artgraph_vit.errors import UserError, run_script
from artgraph_vit.evaluation.figures import draw_confusions
from artgraph_vit.evaluation.intervals import FEWEST, intervals_table, macro_f1_comparison, macro_f1_intervals
from artgraph_vit.evaluation.results import results_table, write_labels, write_results
from artgraph_vit.loading import load_model
from artgraph_vit.publishing.card import CardOptions
from artgraph_vit.training.arguments import ArtGraphTrainingArguments, ModelArguments
from artgraph_vit.training.build import load_pictures, load_splits
from artgraph_vit.training.options import parse_options
from artgraph_vit.training.outcome import collect_results
from artgraph_vit.training.trainer import ArtGraphTrainer


@dataclass
class EvaluationArguments:
    """What is evaluated."""

    _argument_group_name: ClassVar[str] = "evaluation"

    checkpoint: str = field(metadata={"help": "Folder or Hub id of a trained model."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model on the Hub."})
    split: str = field(default="test", metadata={"help": "Which split.", "choices": ("train", "validation", "test")})
    results_dir: str = field(default="runs/evaluation", metadata={"help": "Folder for results.json."})
    bootstrap: int = field(
        default=0, metadata={"help": "Resamples for intervals of macro F1, such as 1000; 0 for no intervals."}
    )
    compare_with: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of another model of the same tasks and labels."}
    )

    def __post_init__(self) -> None:
        if self.bootstrap != 0 and self.bootstrap < FEWEST:
            raise ValueError(f"bootstrap={self.bootstrap}: use at least {FEWEST} resamples, or 0 for no intervals.")
        if self.compare_with is not None and self.bootstrap == 0:
            raise ValueError("compare_with needs resamples for its intervals: pass --bootstrap 1000 too.")


def main() -> None:
    evaluation, _, data_args, _, args = parse_options(
        (EvaluationArguments, ModelArguments, DataArguments, CardOptions, ArtGraphTrainingArguments),
        description=__doc__.splitlines()[0],
    )
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    args.output_dir = evaluation.results_dir

    model, image_processor = load_model(evaluation.checkpoint, evaluation.revision)
    tasks = model.config.tasks
    other = load_model(evaluation.compare_with) if evaluation.compare_with is not None else None
    if other is not None and other[0].config.tasks != tasks:
        raise UserError(
            f"{evaluation.compare_with} has other tasks or labels than {evaluation.checkpoint}: only models with the "
            "same ones, in the same order, can be compared."
        )
    splits, _ = load_splits(data_args, args, tasks)

    def evaluated(model, image_processor) -> tuple[ArtGraphTrainer, dict[str, float]]:
        trainer = ArtGraphTrainer(
            model=model,
            args=args,
            data_collator=ArtGraphCollator(tasks),
            eval_dataset=load_pictures(splits, tasks, data_args, image_processor)[evaluation.split],
            processing_class=image_processor,
        )
        trainer.metrics.keep_rows = evaluation.bootstrap > 0
        return trainer, trainer.evaluate(metric_key_prefix=evaluation.split)

    trainer, metrics = evaluated(model, image_processor)
    recipe = {"checkpoint": evaluation.checkpoint}
    results = collect_results(metrics, evaluation.split, splits, tasks, recipe, args.seed)
    other_rows = evaluated(*other)[0].metrics.rows() if other is not None else None

    if trainer.is_world_process_zero():
        print(results_table(results, [task.name for task in tasks]))
        if evaluation.bootstrap:
            drawn = (evaluation.bootstrap, args.seed)
            results["intervals"] = macro_f1_intervals(tasks, trainer.metrics.rows(), *drawn)
            print("\n" + intervals_table(results["intervals"]))
        if other_rows is not None:
            found = macro_f1_comparison(tasks, trainer.metrics.rows(), other_rows, *drawn)
            results["comparison"] = {"checkpoint": evaluation.compare_with, **found}
            print("\n" + intervals_table(found))
        path = write_results(results, evaluation.results_dir)
        write_labels(trainer.metrics.label_rows(), evaluation.results_dir)
        draw_confusions(trainer.metrics.confusions(), {task.name: task.labels for task in tasks}, path.parent)
        print(f"\nThe same figures are in {path}, those of each label in labels.csv beside it.")
    trainer.accelerator.end_training()  # all processes leave together


if __name__ == "__main__":
    run_script(main)
