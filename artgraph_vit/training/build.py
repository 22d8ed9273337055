"""From options to what a trainer needs: the three splits, the tasks with their labels, the model.

Everything a user can get wrong in the data is found here, before any training.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset, DatasetDict
from PIL import Image
from transformers import AutoImageProcessor, BaseImageProcessor, TrainingArguments

from ..data import PictureTransform, find_bad_pictures, known_row_count, leave_out, with_pixels
from ..data.augmentation import Augmentation
from ..data.options import EMBEDDED, DataArguments, read_artworks
from ..data.sources.datasets_source import kept_vocabulary
from ..data.splits import divide_by_split
from ..data.streaming import stream_labels, stream_pictures
from ..errors import UserError, as_user_error
from ..model.backbones import refuse_unsuitable, set_options
from ..model.configuration_artgraph_vit import ArtGraphViTConfig, load_backbone_config
from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification
from ..model.tasks import Task
from .arguments import ModelArguments
from .class_statistics import set_label_statistics, start_log_variances_at_prior


def load_splits(
    data: DataArguments, args: TrainingArguments, tasks: Sequence[Task] | None = None
) -> tuple[DatasetDict, list[Task]]:
    """Reads, checks and splits the artworks, with the tasks of a trained model or, by default, those of a vocabulary
    that is built.

    Returns:
        The splits "train", "validation" and "test" of encoded rows, without pictures if they are to be streamed, and
        the tasks with their labels.

    Raises:
        UserError: says what is wrong in the data, and where.
    """
    if Path(data.source).expanduser().resolve() == Path(str(args.output_dir)).resolve():
        raise UserError(
            f"output_dir is the source itself, {data.source!r}: choose another folder for what a run leaves."
        )
    if data.streaming:
        return stream_labels(data.source, tasks or data.tasks, data.dataset_revision)
    if data.source == EMBEDDED:
        with args.main_process_first(desc="painting the embedded dataset"):
            data.paint_embedded(progress=not args.disable_tqdm)
    rows, tasks = read_artworks(data, tasks)
    # After the split: which pictures can be read does not decide who is in the test split.
    if data.source == EMBEDDED or kept_vocabulary(data.source, data.dataset_revision) is None:
        found: list[dict[int, str]] = [{}]
        if args.process_index == 0:  # one process checks, and tells the others
            found = [find_bad_pictures(rows, progress=not args.disable_tqdm)]
        if args.world_size > 1:
            broadcast_object_list(found)
        report = Path(str(args.output_dir)) / "bad_pictures.json" if args.process_index == 0 else None
        rows = leave_out(rows, found[0], data.on_bad_image, report)
    return divide_by_split(rows), tasks


def load_pictures(
    splits: DatasetDict,
    tasks: Sequence[Task],
    data: DataArguments,
    image_processor: BaseImageProcessor,
    augmentation: Augmentation | None = None,
    seed: int = 42,
) -> dict[str, Any]:
    """The splits as a trainer takes them, whose pictures are decoded when they are fetched: those of the train
    split with the augmentation, those of a stream in an order by the seed."""
    of_split = {split: augmentation if split == "train" else None for split in splits}
    if data.streaming:
        transforms = {split: PictureTransform(image_processor, data.jpeg_scale, of_split[split]) for split in splits}
        return stream_pictures(data.source, data.dataset_revision, transforms, splits, seed)
    pictures = {
        split: with_pixels(rows, image_processor, data.jpeg_scale, of_split[split]) for split, rows in splits.items()
    }
    pictures["train"][0]  # pictures that were prepared for another image processor are noticed before long work
    return pictures


def load_image_processor(model: ModelArguments) -> BaseImageProcessor:
    """The image processor of the backbone, for the chosen image size; also checks, before any data is read, all that
    can be known of the model.

    Raises:
        UserError: if there is no such backbone, or an option of the model has a wrong value.
    """
    with as_user_error(f"The backbone {model.backbone!r} cannot be used"):
        backbone_config = load_backbone_config(model.backbone, model.backbone_revision)
        refuse_unsuitable(backbone_config, model.pooling)
        image_processor = AutoImageProcessor.from_pretrained(
            model.backbone, revision=model.backbone_revision, trust_remote_code=False
        )
    with as_user_error("The options of the model are wrong"):
        set_options(backbone_config, _backbone_options(model))
        ArtGraphViTConfig(backbone_config=backbone_config, **_model_options(model))
        if model.image_size is None:
            return image_processor
        patch = getattr(backbone_config, "patch_size", None)
        if isinstance(patch, int) and model.image_size % patch:
            below = model.image_size // patch * patch
            near = f"{below} or {below + patch}" if below else f"{patch}"
            raise UserError(
                f"image_size={model.image_size} is no multiple of the backbone's patches of {patch}: use {near}."
            )
        return with_image_size(image_processor, model.image_size)


def with_image_size(image_processor: BaseImageProcessor, image_size: int) -> BaseImageProcessor:
    """A copy that makes square pictures of so many pixels a side; if it resizes and crops, it crops the same part.

    Raises:
        UserError: if it cannot.
    """
    resized: Any = copy.deepcopy(image_processor)
    sides = {name: side for name, side in dict(resized.size).items() if side}
    share = 1.0
    if getattr(resized, "do_center_crop", False):
        share = min(sides.values()) / min(side for side in dict(resized.crop_size).values() if side)
        resized.crop_size = type(resized.crop_size)(height=image_size, width=image_size)
    resized.size = type(resized.size)(**dict.fromkeys(sides, round(share * image_size)))
    made = resized(Image.new("RGB", (30, 20)), return_tensors="pt")["pixel_values"][0]
    if made.shape != (3, image_size, image_size):
        raise UserError(
            f"{type(image_processor).__name__} does not make pictures of image_size={image_size}: leave it out, or "
            "choose another backbone."
        )
    return resized


def _model_options(model: ModelArguments) -> dict[str, Any]:
    """The options that are the config's too; of those that were left out it knows the default."""
    names = {field.name for field in fields(ModelArguments)} & {field.name for field in fields(ArtGraphViTConfig)}
    return {name: getattr(model, name) for name in sorted(names) if getattr(model, name) is not None}


def _backbone_options(model: ModelArguments) -> dict[str, Any]:
    return {} if model.drop_path_rate is None else {"drop_path_rate": model.drop_path_rate}


def build_model(
    model: ModelArguments, tasks: Sequence[Task], train_rows: Dataset, keep_unknown: bool = False
) -> ArtGraphViTForImageClassification:
    """Puts heads for the tasks on the backbone, with class weights from the train rows.

    Raises:
        UserError: if no train row has a label of a task, unless with `keep_unknown`, or the backbone does not fit.
    """
    for task in tasks:
        if known_row_count(train_rows, task) == 0 and not keep_unknown:
            raise UserError(
                f"No artwork of the train split has a known {task.name}: leave {task.name!r} out of tasks, or keep "
                "its head with --missing_tasks unknown."
            )
    with as_user_error("The options of the model are wrong"):
        ArtGraphViTConfig(tasks=list(tasks), **_model_options(model))
    with as_user_error(f"The backbone {model.backbone!r} cannot be used"):
        built = ArtGraphViTForImageClassification.from_backbone(
            model.backbone,
            tasks,
            from_scratch=model.from_scratch,
            revision=model.backbone_revision,
            backbone_options=_backbone_options(model),
            **_model_options(model),
        )
    if model.image_size is not None:
        failed = f"The backbone {model.backbone!r} takes no pictures of image_size={model.image_size}"
        with (
            torch.no_grad(),
            as_user_error(failed, "leave it out, or choose another backbone.", kinds=(RuntimeError, ValueError)),
        ):
            built.eval()(pixel_values=torch.zeros(1, 3, model.image_size, model.image_size))
    set_label_statistics(built, train_rows, model.class_weights)
    if model.log_variance_init == "auto":
        start_log_variances_at_prior(built, train_rows)
    else:
        torch.nn.init.constant_(built.log_variances, float(model.log_variance_init))
    return built
