"""One run from options to results: data, model, training, evaluation, and all that a run leaves in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
from transformers import set_seed
from transformers.utils import logging

from ..data import ArtGraphCollator
from ..data.options import DataArguments
from ..errors import UserError
from ..publishing.card import CardOptions
from .arguments import ArtGraphTrainingArguments, ModelArguments
from .build import build_model, load_image_processor, load_pictures, load_splits
from .checkpoints import checkpoint_to_resume
from .outcome import FrozenPhaseTest, finish_run
from .recipe import recipe_of
from .trainer import ArtGraphTrainer
from .tuning import refuse_to_adjust_twice


def train(
    model_args: ModelArguments, data_args: DataArguments, card_args: CardOptions, args: ArtGraphTrainingArguments
) -> dict[str, Any]:
    """Trains a model, evaluates its best checkpoint on the test split, and writes its output folder.

    All processes of a launcher call it; what is in the folder, if it is to be resumed, is taken up again.

    Returns:
        The results, as in `results.json`.

    Raises:
        UserError: says what is wrong with the options or the data, before any long work.
    """
    if args.adjust_logits and not args.tune_thresholds:
        raise UserError("adjust_logits is a part of tuning: pass --tune_thresholds true too.")
    _refuse_to_untune(args)
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    checkpoint_to_resume(args, args.resume_from_checkpoint)  # what is wrong with it, before the data is read

    set_seed(args.seed)
    image_processor = load_image_processor(model_args)
    splits, tasks = load_splits(data_args, args)
    model = build_model(model_args, tasks, splits["train"], data_args.missing_tasks == "unknown")
    if args.adjust_logits:
        refuse_to_adjust_twice(model)
    augmentation, data_seed = (
        data_args.augmentation(args.seed),
        args.seed if args.data_seed is None else args.data_seed,
    )
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
