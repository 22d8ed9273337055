"""One ONNX file that predicts without torch: probabilities of each task and an embedding, all it needs to know inside.

A file takes its name only after onnxruntime has given what torch gives; what its metadata cannot describe is refused;
nothing in it names a path of the machine that made it. onnx, onnxruntime and onnxscript are imported where they are
used.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BaseImageProcessor

from .. import __version__
from ..data import PixelNormalizer
from ..errors import UserError, as_user_error
from ..files import writing
from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification
from ..model.tasks import OTHER, THRESHOLD, Task, label_scores

PIXELS, EMBEDDING = "pixel_values", "embedding"
MAX_DIFFERENCE = 1e-4  # of a probability or an entry of the embedding, between onnxruntime and torch
MAX_LEVELS = 2  # of 255: two libraries that resize with the same filter round differently, and no more


@dataclass
class ExportedFile:
    """A file of `size` bytes, and how it compares in onnxruntime with the model in torch.

    Args:
        pictures (`int`): how many were compared.
        difference (`float`): the largest, of all probabilities and entries of the embedding.
        agreement (`dict[str, float]`): for a single-label task the share of pictures whose best label is the same, for
            a multi-label task the share of the decisions for or against a label.
    """

    path: Path
    size: int
    pictures: int
    difference: float
    agreement: dict[str, float]


def export_onnx(
    model: ArtGraphViTForImageClassification,
    image_processor: BaseImageProcessor,
    path: str | Path,
    batches: Sequence[Tensor] | None = None,
    int8: bool = False,
) -> list[ExportedFile]:
    """Writes a model as ONNX, and checks it in onnxruntime.

    The file takes `pixel_values`, float32 `(batch, 3, H, W)` with the H and W that the image processor makes. It gives
    probabilities `(batch, C)` under each task's name, and `embedding`, `(batch, hidden_size)`, of length 1.

    Args:
        model ([`ArtGraphViTForImageClassification`]): stays as it is.
        image_processor (`BaseImageProcessor`): the model's.
        path (`str` or `Path`): ends in `.onnx`; an older file there is replaced when the new one is whole and checked.
            Weights too large for one file stand in a second, `<path>.data`, which must stay beside it.
        batches (`Sequence[Tensor]`, *optional*): pixels to check the files on, float32 `(B, 3, H, W)`, of several
            sizes B; by default random ones of 1 and 3.
        int8 (`bool`, *optional*, defaults to `False`): also write `<name>-int8.onnx`, whose matrices are bytes.

    Returns:
        The files, float32 first.

    Raises:
        UserError: if the file cannot be written, the model cannot be exported, a task has a name that the file needs,
            the image processor does what the metadata cannot say, or onnxruntime gives something else than torch.
    """
    path = Path(path)
    if path.suffix != ".onnx" or not path.parent.is_dir():
        raise UserError(f"No ONNX file can be {str(path)!r}: give a name that ends in .onnx, in a folder that exists.")
    with as_user_error(
        "An export to ONNX needs more packages", "pip install 'artgraph_vit[onnx]'.", kinds=(ImportError,)
    ):
        for name in ("onnx", "onnxruntime", "onnxscript"):
            import_module(name)
    metadata = make_metadata(model, image_processor)
    module = Probabilities(model)
    crop = json.loads(metadata["preprocessing"])["crop"]
    shape = (3, crop["height"], crop["width"])
    if batches is None:
        random = torch.Generator().manual_seed(0)
        batches = [torch.randn(size, *shape, generator=random) for size in (1, 3)]
    # Made in a folder on the same disk, so that files take their names at once.
    with writing(path), tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
        written = [Path(folder) / path.name]
        _write_float32(module, shape, written[0], metadata)
        if int8:
            written.append(written[0].with_stem(f"{path.stem}-int8"))
            _write_int8(written[0], written[1])
        files = [_compare(file, module, batches) for file in written]
        if not files[0].difference <= MAX_DIFFERENCE:
            raise UserError(
                f"onnxruntime gives probabilities that differ by {files[0].difference:.2g} from torch's, of which "
                f"{MAX_DIFFERENCE:g} is allowed, so no file was written: try other versions of torch and onnxruntime."
            )
        for file in files:
            weights, stale = _weights_of(file.path), _weights_of(path.parent / file.path.name)
            stale.unlink(missing_ok=True)
            if weights.exists():
                weights.replace(stale)
            file.path = file.path.replace(path.parent / file.path.name)
    return files


def comparison_table(files: Sequence[ExportedFile], tasks: Sequence[Task]) -> str:
    """A plain-text table: a column a file, and what each has in common with torch."""
    columns = {}
    for file in files:
        column = {"size": f"{file.size / 1e6:.1f} MB", "largest difference": f"{file.difference:.1e}"}
        for task in tasks:
            what = "label decisions that agree" if task.is_multi_label else "best label agrees"
            column[f"{task.name}: {what}"] = f"{file.agreement[task.name]:.2%}"
        columns[str(file.path)] = column
    return f"ONNX against torch on {files[0].pictures} pictures\n{pd.DataFrame(columns).to_string()}"


class Probabilities(nn.Module):
    """The model as it is exported: a float32 copy on the CPU, which gives `output_names`' tensors as a tuple."""

    def __init__(self, model: ArtGraphViTForImageClassification):
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float()
        self.tasks = list(model.config.tasks)
        self.output_names = [*(task.name for task in self.tasks), EMBEDDING]
        self.eval().requires_grad_(False)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """From float32 `(B, 3, H, W)` to float32 `(B, C)` of each task, and `(B, hidden_size)` of length 1."""
        output = self.model(pixel_values=pixel_values)
        probabilities = [label_scores(output.logits[task.name], task) for task in self.tasks]
        return *probabilities, nn.functional.normalize(output.pooled, dim=-1)


@torch.no_grad()
def _compare(path: Path, module: Probabilities, batches: Sequence[Tensor]) -> ExportedFile:
    session = import_module("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    parts = [session.run(module.output_names, {PIXELS: pixels.numpy()}) for pixels in batches]
    given = [torch.from_numpy(np.concatenate(output)) for output in zip(*parts, strict=True)]  # (pictures, C) each
    expected = [torch.cat(output) for output in zip(*map(module, batches), strict=True)]
    agreement = {}
    for task, one, other in zip(module.tasks, given, expected, strict=False):  # the embedding comes last
        if task.is_multi_label:
            threshold = torch.tensor(module.model.config.thresholds.get(task.name, THRESHOLD))
            same = (one > threshold) == (other > threshold)
        else:
            same = one.argmax(-1) == other.argmax(-1)
        agreement[task.name] = same.double().mean().item()
    differences = [(one - other).abs().max().item() for one, other in zip(given, expected, strict=True)]
    size = sum(file.stat().st_size for file in (path, _weights_of(path)) if file.exists())
    # Not a number if one of them is none.
    return ExportedFile(path, size, sum(map(len, batches)), float(np.max(differences)), agreement)


# ---- metadata ----


def make_metadata(model: ArtGraphViTForImageClassification, image_processor: BaseImageProcessor) -> dict[str, str]:
    """What stands beside the weights: `tasks` and `preprocessing` (JSON), `artgraph_vit_version`, `source_model`."""
    tasks = []
    for task in model.config.tasks:
        if task.name in (PIXELS, EMBEDDING):
            raise UserError(
                f"A task cannot be called {task.name!r} in an ONNX file: train a model that names it else."
            )
        entry: dict[str, Any] = {"name": task.name, "problem_type": task.problem_type, "labels": list(task.labels)}
        if task.is_multi_label:
            entry["threshold"] = model.config.thresholds.get(task.name, THRESHOLD)
        elif task.rare == OTHER and OTHER in task.labels:
            entry["other_label"] = OTHER
        tasks.append(entry)
    source = str(model.config.name_or_path or "")
    if Path(source).is_absolute() or (source and Path(source).exists()):
        source = Path(source).resolve().name  # where a folder stands is nobody's business
    return {
        "tasks": json.dumps(tasks, ensure_ascii=False),
        "preprocessing": json.dumps(describe_preprocessing(image_processor)),
        "artgraph_vit_version": __version__,
        "source_model": source,
    }


def describe_preprocessing(image_processor: BaseImageProcessor) -> dict[str, Any]:
    """An image processor in words that need no transformers: `resize`, `{"height", "width"}` or `{"shortest_edge"}`,
    where the other edge keeps the ratio, rounded down; `resample`, the filter as Pillow names it; `crop`, `{"height",
    "width"}` of the centre, the size that the model takes; `rescale_factor`, `mean` and `std`. If pixels made after
    these words are not those of the image processor, it is refused.
    """
    processor: Any = image_processor
    size = dict(processor.size)
    edge, crop_pct = size.get("shortest_edge"), getattr(processor, "crop_pct", None)
    resize = {"shortest_edge": edge} if edge else {name: size.get(name) for name in ("height", "width")}
    if edge and crop_pct:  # ConvNeXt's: a margin is cropped off small pictures, large ones are squeezed
        resize = {"shortest_edge": int(edge / crop_pct)} if edge < 384 else {"height": edge, "width": edge}
    factor, *mean_std = PixelNormalizer(image_processor).settings()
    description: dict[str, Any] = {"resize": resize, "resample": Image.Resampling(processor.resample).name}
    description |= {"rescale_factor": factor, "mean": mean_std[:3], "std": mean_std[3:]}
    noise = np.random.default_rng(0)  # in which a shift or another filter shows at once
    try:
        for sides in ((97, 61), (403, 640)):
            probe = Image.fromarray(noise.integers(0, 256, (*sides, 3), dtype=np.uint8))
            expected = np.asarray(processor(probe, return_tensors="pt")["pixel_values"][0])  # (3, H, W)
            description.setdefault("crop", dict(zip(("height", "width"), expected.shape[1:], strict=True)))
            levels = (preprocess(description, probe) - expected) * np.reshape(mean_std[3:], (3, 1, 1)) / factor
            if np.abs(levels).max() > MAX_LEVELS:
                raise ValueError("other pixels")
    except (ValueError, TypeError) as error:  # another shape, or a size of other names
        raise UserError(
            f"{type(image_processor).__name__} does more or less than to resize, crop the centre, rescale and "
            "normalise, which the file's metadata could not say: export a model with another image processor."
        ) from error
    return description


def preprocess(description: dict[str, Any], picture: Image.Image) -> np.ndarray:
    """Pixels of an RGB picture after the words of [`describe_preprocessing`], float32 `(3, H, W)`."""
    edge, crop = description["resize"].get("shortest_edge"), description["crop"]
    width, height = description["resize"].get("width"), description["resize"].get("height")
    if edge:
        width, height = (edge * side // min(picture.size) for side in picture.size)
    resized = picture.resize((width, height), Image.Resampling[description["resample"]])
    left, top = (width - crop["width"]) // 2, (height - crop["height"]) // 2
    cropped = resized.crop((left, top, left + crop["width"], top + crop["height"]))
    pixels = np.asarray(cropped) * description["rescale_factor"]  # (H, W, 3)
    normalised = (pixels - np.asarray(description["mean"])) / np.asarray(description["std"])
    return normalised.astype(np.float32).transpose(2, 0, 1)  # (3, H, W)


# ---- files ----


def _write_float32(module: Probabilities, shape: Sequence[int], path: Path, metadata: dict[str, str]) -> None:
    pixels = torch.zeros(2, *shape)
    # A backbone's own errors, or one of the many kinds of the exporter's.
    with torch.no_grad(), _quiet(), as_user_error("The model cannot be exported to ONNX", kinds=(Exception,)):
        module(pixels)
        program: Any = torch.onnx.export(
            module,
            (pixels,),
            dynamo=True,
            verbose=False,
            input_names=[PIXELS],
            dynamic_shapes={PIXELS: {0: torch.export.Dim("batch")}},
        )
    graph = program.model.graph
    for node in graph.all_nodes():
        node.metadata_props.clear()  # lines of code, with the paths of this machine
        node.doc_string = None
    made = [value for node in graph.all_nodes() for value in node.outputs]
    for value in [*made, *graph.initializers.values()]:
        value.metadata_props.clear()
        value.name = f"{value.name}.inner"  # no task has a dot in its name; a layer may be called like a task
    for value, name in zip(graph.outputs, module.output_names, strict=True):
        value.name = name
    program.model.metadata_props.clear()
    program.model.metadata_props.update(metadata)
    program.save(path)


def _write_int8(path: Path, smaller: Path) -> None:
    quantization = import_module("onnxruntime.quantization")
    with _quiet():
        quantization.quantize_dynamic(
            path,
            smaller,
            # Measured: with its convolutions as bytes too, a ConvNeXt takes 3.6 times as long and is a sixth smaller;
            # unsigned weights take a ViT twice as long. Signed ones may be less exact on CPUs without VNNI.
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=_weights_of(path).exists(),
        )


def _weights_of(path: Path) -> Path:
    """The second file, where torch puts weights that are too many for one."""
    return path.with_name(f"{path.name}.data")


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter and the quantiser speak of their own affairs."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)
