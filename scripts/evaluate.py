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

from artgraph_vit.data.options import DataArguments, choice, option
from artgraph_vit.errors import run_script
from artgraph_vit.evaluation.intervals import FEWEST
from artgraph_vit.publishing.card import CardOptions
from artgraph_vit.training.arguments import ArtGraphTrainingArguments, ModelArguments
from artgraph_vit.training.options import parse_options
from artgraph_vit.training.run import evaluate


@dataclass
class EvaluationArguments:
    """What is evaluated."""

    _argument_group_name: ClassVar[str] = "evaluation"

    checkpoint: str = field(metadata={"help": "Folder or Hub id of a trained model."})
    revision: str | None = option(None, "Branch, tag or commit of the model on the Hub.")
    split: str = choice("test", ("train", "validation", "test"), "Which split.")
    results_dir: str = option("runs/evaluation", "Folder for results.json.")
    bootstrap: int = option(0, "Resamples for intervals of macro F1, such as 1000; 0 for no intervals.")
    compare_with: str | None = option(None, "Folder or Hub id of another model of the same tasks and labels.")

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
    options = vars(evaluation)
    args.output_dir = options.pop("results_dir")
    evaluate(data_args=data_args, args=args, **options)
    if args.process_index == 0:
        print(
            f"\nThe same figures are in {args.output_dir}/results.json, those of each label in labels.csv beside it."
        )


if __name__ == "__main__":
    run_script(main)
