"""Exports a model as ONNX, which onnxruntime runs without torch, and checks it on pictures.

    python scripts/export_onnx.py runs/demo demo.onnx --int8
    python scripts/export_onnx.py your-name/artgraph-vit artgraph.onnx --pictures /data/pictures

Expect a table that compares each file with torch; --int8 writes a second one of a quarter of the size, which decides
otherwise here and there. A float32 file that differs from torch by more than 1e-4 is not written.
`python examples/predict_onnx.py demo.onnx painting.jpg` predicts with it.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import BaseImageProcessor
from transformers.utils import logging

from artgraph_vit.data import PictureTransform, PixelNormalizer
from artgraph_vit.data.demo import paint_artwork
from artgraph_vit.errors import UserError, run_script
from artgraph_vit.loading import load_model
from artgraph_vit.model.museum_label import listed
from artgraph_vit.model.pipeline_artgraph_vit import pictures_in_folder
from artgraph_vit.model.tasks import Task
from artgraph_vit.serving.onnx import ExportedFile, check_output, export_onnx
from artgraph_vit.training.options import parse_options

PICTURES = 48  # to check on
BATCH_SIZES = (1, 3, 8)
WEIGHTS = ("float32", "int8")


@dataclass
class ExportArguments:
    """What is exported."""

    _argument_group_name: ClassVar[str] = "export"

    model: str = field(metadata={"help": "Folder or Hub id of a trained model."})
    output: str = field(metadata={"help": "The file to write; ends in .onnx."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model on the Hub."})
    int8: bool = field(default=False, metadata={"help": "Write OUTPUT-int8.onnx too, whose matrices are bytes."})
    pictures: str | None = field(
        default=None,
        metadata={
            "help": f"Folder whose first {PICTURES} pictures the files are checked on; by default painted ones."
        },
    )


def main() -> None:
    (options,) = parse_options(
        (ExportArguments,), positionals=("model", "output"), description=(__doc__ or "").splitlines()[0]
    )
    check_output(Path(options.output))
    logging.disable_progress_bar()
    pictures = find_pictures(Path(options.pictures)) if options.pictures else paint_pictures()
    model, image_processor = load_model(options.model, options.revision)
    batches = make_batches(pictures, image_processor)
    files = export_onnx(model, image_processor, options.output, batches, options.int8)
    print(comparison_table(files, model.config.tasks))


def paint_pictures() -> Iterator[dict[str, Any]]:
    """The first of the embedded dataset, undecoded."""
    for index in range(PICTURES):
        file = io.BytesIO()
        paint_artwork(index)[0].save(file, "JPEG", quality=92)
        yield {"bytes": file.getvalue(), "path": None}


def find_pictures(folder: Path) -> list[dict[str, Any]]:
    """The first of a folder and of those below it, undecoded."""
    try:
        paths = pictures_in_folder(folder)
    except ValueError as error:
        raise UserError(str(error)) from error
    return [{"bytes": None, "path": str(path)} for path in paths[:PICTURES]]


def make_batches(pictures: Sequence | Iterator, image_processor: BaseImageProcessor) -> list[Tensor]:
    """Batches of several sizes, float32 `(B, 3, H, W)`."""
    transform, normalizer = PictureTransform(image_processor, "full"), PixelNormalizer(image_processor)
    remaining, sizes, batches = iter(pictures), cycle(BATCH_SIZES), []
    while chunk := list(islice(remaining, next(sizes))):
        try:
            batches.append(normalizer(torch.stack([transform.pixels(picture) for picture in chunk])))
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"A picture cannot be read: {error}; take it out of the folder.") from error
    return batches


def comparison_table(files: Sequence[ExportedFile], tasks: Sequence[Task]) -> str:
    """A plain-text table: a column a file, and what each has in common with torch."""
    rows = [
        ("", list(WEIGHTS[: len(files)])),
        ("size", [f"{file.size / 1e6:.1f} MB" for file in files]),
        ("largest difference", [f"{file.difference:.1e}" for file in files]),
    ]
    for task in tasks:
        what = "label decisions that agree" if task.is_multi_label else "best label agrees"
        rows.append((f"{task.name}: {what}", [f"{file.agreement[task.name]:.2%}" for file in files]))
    first = max(len(name) for name, _ in rows)
    width = max(len(cell) for _, cells in rows for cell in cells)
    head, *lines = [f"{name:<{first}}  " + "  ".join(f"{cell:>{width}}" for cell in cells) for name, cells in rows]
    rule = "-" * len(head)
    sizes = listed([str(size) for size in BATCH_SIZES])
    title = f"ONNX against torch on {files[0].pictures} pictures, in batches of {sizes}"
    names = " and ".join(str(file.path) for file in files)
    return "\n".join([title, rule, head, rule, *lines, rule, f"Written: {names}."])


if __name__ == "__main__":
    run_script(main)
