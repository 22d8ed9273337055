"""Predicts the labels of any number of pictures, into parquet shards.

    accelerate launch scripts/predict.py runs/demo /data/pictures predictions
    accelerate launch scripts/predict.py your-name/artgraph-vit user/dataset predictions --split train --embeddings

Expect a progress bar, and a folder that `datasets.load_dataset` reads: a row a picture, with labels and scores.
Started again after it was stopped, it goes on where it was; several processes, on any machines, divide the work.
"""

import argparse
import os
from pathlib import Path

import datasets
import torch
from transformers.utils import logging

from artgraph_vit import ArtGraphPipeline
from artgraph_vit.data import PictureTransform
from artgraph_vit.errors import UserError, run_script
from artgraph_vit.loading import load_model
from artgraph_vit.serving.predict import open_pictures, predict_pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", help="folder or Hub id of a trained model")
    add("source", help="folder of pictures (with those in it), parquet files, or Hub id of a dataset")
    add("output_dir", type=Path, help="folder for the predictions")
    add("--revision", help="branch, tag or commit of the model on the Hub")
    add("--split", help="split of a Hub dataset; by default its first")
    add("--dataset_config", help="configuration name of a Hub dataset")
    add("--dataset_revision", help="branch, tag or commit of a Hub dataset")
    add("--image_column", default="image", help="column with the pictures")
    add("--name_column", help="column by which the results call a picture; by default name, or its path")
    add("--top_k", type=int, default=5, help="labels of a task with one label, the best first; by default 5")
    add("--threshold", type=float, help="of tasks with several labels, in place of the model's own")
    add("--embeddings", action="store_true", help="add a vector and a thumbnail, for scripts/search.py")
    add("--batch_size", type=int, default=32, help="pictures at a time, on each process; by default 32")
    add("--num_workers", type=int, help="processes that decode, for each that predicts; by default one a core")
    add("--shard_rows", type=int, default=1000, help="pictures a parquet file; by default 1000")
    add("--bf16", action="store_true", help="compute in bfloat16, which is faster")
    add("--use_cpu", action="store_true", help="leave a GPU alone")
    add(
        "--jpeg_scale",
        choices=("twice", "once", "full"),
        default="twice",
        help="JPEGs are decoded at no less than twice (once) what the model takes, or in full, which is slower",
    )
    args = parser.parse_args()
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    # What accelerate and torchrun say; the processes need nothing of each other but these numbers.
    process_index, num_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_index, local_processes = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    on_gpu = torch.cuda.is_available() and not args.use_cpu

    if args.output_dir.resolve().is_relative_to(Path(args.source).expanduser().resolve()):
        raise UserError(f"output_dir={str(args.output_dir)!r} is in the source: choose a folder outside of it.")
    pictures = open_pictures(
        args.source, args.split, args.image_column, args.name_column, args.dataset_config, args.dataset_revision
    )
    model, image_processor = load_model(args.model, args.revision)
    num_workers = args.num_workers
    if num_workers is None:  # processes take seconds to start, so few pictures get none
        is_few = pictures.count is not None and pictures.count < 1000 * num_processes
        num_workers = 0 if is_few else max(1, (os.cpu_count() or 1) // local_processes)
    report = predict_pictures(
        ArtGraphPipeline(model, image_processor, device=f"cuda:{local_index}" if on_gpu else "cpu"),
        pictures,
        args.output_dir,
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
