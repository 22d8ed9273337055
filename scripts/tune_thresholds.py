"""Tunes a trained model on its validation split: thresholds, and temperatures that make probabilities honest.

    accelerate launch scripts/tune_thresholds.py configs/demo.yaml runs/demo
    accelerate launch scripts/tune_thresholds.py your-name/artgraph-vit --source /data/artgraph --save_to tuned

Expect a table of macro F1 by p > 0.5 and tuned, on validation and test, and in the folder a config.json by which the
model decides from now on; its results.json, labels.csv and card, where it has them, follow. Nothing is trained, and
tuning anew starts from the model's own scores. Give the same data options as in training to get the same splits.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from artgraph_vit.data.options import DataArguments, choice, option
from artgraph_vit.errors import run_script
from artgraph_vit.evaluation.tuning import METHODS, SHRUNK
from artgraph_vit.publishing.card import CardOptions
from artgraph_vit.training.arguments import ArtGraphTrainingArguments, ModelArguments
from artgraph_vit.training.options import parse_options
from artgraph_vit.training.run import tune_checkpoint


@dataclass
class TuningArguments:
    """What is tuned, and how."""

    _argument_group_name: ClassVar[str] = "tuning"

    checkpoint: str = field(metadata={"help": "Folder or Hub id of a trained model."})
    revision: str | None = option(None, "Branch, tag or commit of the model on the Hub.")
    method: str = choice(
        SHRUNK,
        METHODS,
        "One threshold a task (global), one a label (per_label), or the latter drawn to the former where a label has "
        "few positives.",
    )
    save_to: str | None = option(None, "New folder for a tuned copy; by default the checkpoint is changed.")


def main() -> None:
    tuning, _, data_args, _, args = parse_options(
        (TuningArguments, ModelArguments, DataArguments, CardOptions, ArtGraphTrainingArguments),
        positionals=("checkpoint",),
        description=__doc__.splitlines()[0],
    )
    folder = tune_checkpoint(data_args=data_args, args=args, **vars(tuning))
    if args.process_index == 0:
        print(f"\nThe tuned model is in {folder}: its config.json says how.")


if __name__ == "__main__":
    run_script(main)
