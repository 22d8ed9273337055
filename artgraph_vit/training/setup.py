"""From options to what a trainer needs: the three splits, the tasks with their labels, the model.

Everything a user can get wrong in the data is found here, before any training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset, DatasetDict
from transformers import AutoImageProcessor, BaseImageProcessor, TrainingArguments

from ..data import (
    DataError,
    build_vocabulary,
    encode_labels,
    find_bad_pictures,
    known_row_count,
    label_counts,
    leave_out,
    load_artworks,
    split_artworks,
)
from ..data.synthetic import paint_artgraph
from ..losses import balanced_class_weights
from ..modeling_artgraph_vit import ArtGraphViTForImageClassification
from ..tasks import Task
from .arguments import EMBEDDED, DataArguments, ModelArguments


def load_splits(
    data: DataArguments, args: TrainingArguments, tasks: Sequence[Task] | None = None
) -> tuple[DatasetDict, list[Task]]:
    """Reads, checks and splits the artworks.

    Args:
        data ([`DataArguments`]).
        args (`TrainingArguments`): gives the processes, the output folder and whether to show progress.
        tasks (`Sequence[Task]`, *optional*): the tasks of a trained model; by default a vocabulary is built.

    Returns:
        The splits "train", "validation" and "test" of encoded rows, and the tasks with their labels.

    Raises:
        DataError: says what is wrong in the data, and where.
    """
    source: str | Path = data.source
    if source == EMBEDDED:
        with args.main_process_first(desc="painting the embedded dataset"):
            source = paint_artgraph(
                data.embedded_folder, num_artworks=data.embedded_artworks, progress=not args.disable_tqdm
            )
    rows, found = load_artworks(
        source,
        tasks=[task.name for task in tasks] if tasks else data.tasks,
        columns=data.column_of_task,
        unknown_labels=data.unknown_labels,
        image_column=data.image_column,
        config_name=data.dataset_config,
        revision=data.dataset_revision,
    )
    tasks = list(tasks) if tasks else build_vocabulary(rows, found, data.min_count)
    rows = _without_bad_pictures(encode_labels(rows, tasks), data, args)
    return split_artworks(rows, data.stratify_by, data.split_seed), tasks


def build_model(
    model: ModelArguments, tasks: Sequence[Task], train_rows: Dataset
) -> tuple[ArtGraphViTForImageClassification, BaseImageProcessor]:
    """Puts heads for the tasks on the backbone, with class weights from the train rows.

    Raises:
        DataError: if no train row has a label of a task.
    """
    for task in tasks:
        if known_row_count(train_rows, task) == 0:
            raise DataError(
                f"No artwork of the train split has a known {task.name}: leave {task.name!r} out of tasks."
            )
    options = {} if model.pooling is None else {"pooling": model.pooling}
    built = ArtGraphViTForImageClassification.from_backbone(
        model.backbone,
        tasks,
        from_scratch=model.from_scratch,
        revision=model.backbone_revision,
        head_dropout=model.head_dropout,
        loss_epsilon=model.loss_epsilon,
        multilabel_reduction=model.multilabel_reduction,
        **options,
    )
    if model.class_weights == "balanced":
        single = [task for task in tasks if not task.is_multi_label]
        built.set_class_weights({task.name: balanced_class_weights(label_counts(train_rows, task)) for task in single})
    image_processor = AutoImageProcessor.from_pretrained(model.backbone, revision=model.backbone_revision)
    return built, image_processor


def label_priors(rows: Dataset, tasks: Sequence[Task]) -> dict[str, torch.Tensor]:
    """The share of the known rows that carry each label of a task: float `(C,)` a task."""
    return {task.name: label_counts(rows, task) / max(1, known_row_count(rows, task)) for task in tasks}


def _without_bad_pictures(rows: Dataset, data: DataArguments, args: TrainingArguments) -> Dataset:
    """One process checks, the others are told: so all train on the same rows."""
    found: list[dict[int, str]] = [{}]
    if args.process_index == 0:
        found = [find_bad_pictures(rows, progress=not args.disable_tqdm)]
    if args.world_size > 1:
        broadcast_object_list(found)
    report = Path(str(args.output_dir)) / "bad_pictures.json" if args.process_index == 0 else None
    return leave_out(rows, found[0], data.on_bad_image, report)
