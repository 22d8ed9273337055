"""Predicts the labels of any number of pictures, into parquet shards.

    accelerate launch scripts/predict.py runs/demo /data/pictures predictions
    accelerate launch scripts/predict.py your-name/artgraph-vit user/dataset predictions --split train --embeddings

Expect a progress bar, and a folder that `datasets.load_dataset` reads: a row a picture, with labels and scores.
Started again after it was stopped, it goes on where it was; several processes, on any machines, divide the work.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import datasets
import torch
from transformers.utils import logging

from artgraph_vit import ArtGraphPipeline
from artgraph_vit.data import PictureTransform
from artgraph_vit.data.options import choice
from artgraph_vit.errors import UserError, run_script
from artgraph_vit.loading import load_model
from artgraph_vit.serving.predict import predict_pictures
from artgraph_vit.serving.source import open_pictures
from artgraph_vit.training.options import parse_options


@dataclass
class PredictArguments:
    """What is predicted, and how."""

    _argument_group_name: ClassVar[str] = "predicting"

    model: str = field(metadata={"help": "Folder or Hub id of a trained model."})
    source: str = field(
        metadata={"help": "Folder of pictures (with those in it), parquet files, or Hub id of a dataset."}
    )
    output_dir: str = field(metadata={"help": "Folder for the predictions."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model on the Hub."})
    split: str | None = field(default=None, metadata={"help": "Split of a Hub dataset; by default its first."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration name of a Hub dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub dataset."})
    image_column: str = field(default="image", metadata={"help": "Column with the pictures."})
    name_column: str | None = field(
        default=None, metadata={"help": "Column by which the results call a picture; by default name, or its path."}
    )
    top_k: int = field(default=5, metadata={"help": "Labels of a task with one label, the best first."})
    threshold: float | None = field(
        default=None, metadata={"help": "Of tasks with several labels, in place of the model's own."}
    )
    embeddings: bool = field(default=False, metadata={"help": "Add a vector and a thumbnail, for scripts/search.py."})
    batch_size: int = field(default=32, metadata={"help": "Pictures at a time, on each process."})
    num_workers: int | None = field(
        default=None,
        metadata={"help": "Processes that decode, for each that predicts; by default one a core."},
    )
    shard_rows: int = field(default=1000, metadata={"help": "Pictures a parquet file."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16, which is faster."})
    use_cpu: bool = field(default=False, metadata={"help": "Leave a GPU alone."})
    jpeg_scale: str = choice(
        "twice",
        ("twice", "once", "full"),
        "JPEGs are decoded at no less than twice (once) what the model takes, or in full, which is slower.",
    )

    def __post_init__(self) -> None:
        for name in ("top_k", "batch_size", "shard_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: use a whole number of at least 1.")
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"num_workers={self.num_workers}: use a whole number of at least 0.")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold={self.threshold}: use a number above 0 and below 1.")


def main() -> None:
    (args,) = parse_options(
        (PredictArguments,), positionals=("model", "source", "output_dir"), description=__doc__.splitlines()[0]
    )
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    # What accelerate and torchrun say; the processes need nothing of each other but these numbers.
    process_index, num_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_index, local_processes = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    on_gpu = torch.cuda.is_available() and not args.use_cpu

    if Path(args.output_dir).resolve().is_relative_to(Path(args.source).expanduser().resolve()):
        raise UserError(f"output_dir={args.output_dir!r} is in the source: choose a folder outside of it.")
    pictures = open_pictures(
        args.source, args.split, args.image_column, args.name_column, args.dataset_config, args.dataset_revision
    )
    model, image_processor = load_model(args.model, args.revision)
    pipe = ArtGraphPipeline(model, image_processor, device=f"cuda:{local_index}" if on_gpu else "cpu")
    num_workers = args.num_workers
    if num_workers is None:  # processes take seconds to start, so few pictures get none
        is_few = pictures.count is not None and pictures.count < 1000 * num_processes
        num_workers = 0 if is_few else max(1, (os.cpu_count() or 1) // local_processes)
    report = predict_pictures(
        pipe,
        pictures,
        Path(args.output_dir),
        PictureTransform(image_processor, args.jpeg_scale),
        top_k=args.top_k,
        threshold=args.threshold,
        embeddings=args.embeddings,
        bf16=args.bf16,
        batch_size=args.batch_size,
        num_workers=num_workers,
        shard_rows=args.shard_rows,
        process_index=process_index,
        num_processes=num_processes,
        progress=local_index == 0,
    )
    if report is not None:
        bad = len(report["bad_pictures"])
        print(
            f"The predictions for {report['pictures']} pictures are in {args.output_dir}/data."
            + f" {bad} could not be read: {args.output_dir}/report.json names them." * (bad > 0)
        )


if __name__ == "__main__":
    run_script(main)
