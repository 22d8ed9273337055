"""Trains a model from a YAML file of options; the command line overrides it.

    accelerate launch scripts/train.py                                   # the demo: configs/demo.yaml
    accelerate launch scripts/train.py configs/artgraph.yaml --source /data/artgraph

Expect progress bars, a table an epoch, and in the end a table of results and an output folder with the model, its
results, two figures and a model card.
"""

from pathlib import Path

import datasets
from transformers import set_seed
from transformers.utils import logging

from artgraph_vit.data import ArtGraphCollator
from artgraph_vit.data.arguments import DataArguments
from artgraph_vit.errors import run_script
from artgraph_vit.reporting.card import CardOptions
from artgraph_vit.reporting.results import results_table
from artgraph_vit.training.arguments import ArtGraphTrainingArguments, ModelArguments
from artgraph_vit.training.checkpoints import checkpoint_to_resume
from artgraph_vit.training.options import parse_options
from artgraph_vit.training.outcome import FrozenPhaseTest, finish_run, recipe_of
from artgraph_vit.training.setup import build_model, load_image_processor, load_pictures, load_splits
from artgraph_vit.training.trainer import ArtGraphTrainer

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"


def main() -> None:
    model_args, data_args, card_args, args = parse_options(
        (ModelArguments, DataArguments, CardOptions, ArtGraphTrainingArguments),
        default_config=DEMO,
        description=__doc__.splitlines()[0],
    )
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    checkpoint_to_resume(args, args.resume_from_checkpoint)  # what is wrong with it, before the data is read

    set_seed(args.seed)
    image_processor = load_image_processor(model_args)
    splits, tasks = load_splits(data_args, args)
    model = build_model(model_args, tasks, splits["train"], data_args.missing_tasks == "unknown")
    pictures = load_pictures(splits, tasks, data_args, image_processor, data_args.augmentation(args.seed))
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

    if trainer.is_world_process_zero():
        print(results_table(results, [task.name for task in tasks]))
        print(f"\nEverything is in {args.output_dir}: start with README.md (the model card) and figures/.")
    trainer.accelerator.end_training()  # all processes leave together


if __name__ == "__main__":
    run_script(main)
