"""Exports a model as ONNX, which onnxruntime runs without torch, and checks it on pictures.

    python scripts/export_onnx.py runs/demo demo.onnx --int8
    python scripts/export_onnx.py your-name/artgraph-vit artgraph.onnx --pictures /data/pictures

Expect a table that compares each file with torch; --int8 writes a second one of a quarter of the size, which decides
otherwise here and there. A float32 file that differs from torch by more than 1e-4 is not written.
`python examples/predict_onnx.py demo.onnx painting.jpg` predicts with it.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from transformers import BaseImageProcessor
from transformers.utils import logging

from artgraph_vit.data.demo import paint_artwork
from artgraph_vit.errors import as_user_error, run_script
from artgraph_vit.loading import load_model
from artgraph_vit.model.pictures import read_picture
from artgraph_vit.model.pipeline_artgraph_vit import pictures_in_folder
from artgraph_vit.serving.onnx import comparison_table, export_onnx

PICTURES = 48  # to check on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or Hub id of a trained model")
    parser.add_argument("output", type=Path, help="file to write; ends in .onnx")
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    parser.add_argument("--int8", action="store_true", help="write OUTPUT-int8.onnx too, whose matrices are bytes")
    parser.add_argument(
        "--pictures", type=Path, help=f"folder of which {PICTURES} are checked, instead of painted ones"
    )
    args = parser.parse_args()
    logging.disable_progress_bar()
    model, image_processor = load_model(args.model, args.revision)
    files = export_onnx(model, image_processor, args.output, make_batches(args.pictures, image_processor), args.int8)
    print(comparison_table(files, model.config.tasks))


def make_batches(folder: Path | None, image_processor: BaseImageProcessor) -> list[Tensor]:
    """Pixels of a folder's pictures, else of painted ones, in batches of 1, 3 and 8, float32 `(B, 3, H, W)`."""
    pictures = (paint_artwork(index)[0] for index in range(PICTURES))
    with as_user_error(f"The pictures of {folder} cannot be read", "take it out of the folder."):
        if folder is not None:
            paths = pictures_in_folder(folder)[:PICTURES]
            pictures = (read_picture({"bytes": None, "path": str(path)}) for path in paths)
        pixels = torch.cat([image_processor(picture, return_tensors="pt")["pixel_values"] for picture in pictures])
    batches = (pixels[:1], pixels[1:4], *pixels[4:].split(8))
    return [batch for batch in batches if len(batch)]


if __name__ == "__main__":
    run_script(main)
