"""Trains a model from a YAML file of options; the command line overrides it.

    accelerate launch scripts/train.py                                   # the demo: configs/demo.yaml
    accelerate launch scripts/train.py configs/artgraph.yaml --source /data/artgraph

Expect progress bars, a table an epoch, and in the end a table of results and an output folder with the model, its
results, its figures and a model card.
"""

from pathlib import Path

from artgraph_vit.data.options import DataArguments
from artgraph_vit.errors import run_script
from artgraph_vit.evaluation.results import results_table
from artgraph_vit.publishing.card import CardOptions
from artgraph_vit.training.arguments import ArtGraphTrainingArguments, ModelArguments
from artgraph_vit.training.options import parse_options
from artgraph_vit.training.run import train

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"


def main() -> None:
    model_args, data_args, card_args, args = parse_options(
        (ModelArguments, DataArguments, CardOptions, ArtGraphTrainingArguments),
        default_config=DEMO,
        description=__doc__.splitlines()[0],
    )
    results = train(model_args, data_args, card_args, args)
    if args.process_index == 0:
        print(results_table(results))
        print(f"\nEverything is in {args.output_dir}: start with README.md (the model card) and figures/.")


if __name__ == "__main__":
    run_script(main)
