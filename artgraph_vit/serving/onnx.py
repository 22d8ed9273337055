"""One ONNX file that predicts without torch: probabilities of each task and an embedding, all it needs to know inside.

pixel_values -> model -> softmax or sigmoid of each task, L2-normalised pooled vector -> file -> the check.
Notable: a file takes its name only after onnxruntime has given what torch gives, in batches of several sizes; labels,
thresholds and preprocessing stand in its metadata, and what cannot be described there is refused; nothing in it names
a path of the machine that made it. onnx, onnxruntime and onnxscript are imported where they are used.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BaseImageProcessor

from .. import __version__
from ..errors import UserError
from ..model.modeling_artgraph_vit import ArtGraphViTForImageClassification
from ..model.tasks import OTHER, THRESHOLD
from .comparison import EMBEDDING, PIXELS, Comparison, Probabilities, compare_onnx
from .preprocessing import describe_preprocessing

MAX_DIFFERENCE = 1e-4  # of a probability or an entry of the embedding, between onnxruntime and torch
MAX_WEIGHTS = 1_900_000_000  # bytes: a file of ONNX ends at 2 GiB; beyond, the weights stand in a second one


@dataclass
class ExportedFile:
    """A file that was written, and how it compares with the model.

    Args:
        path (`Path`).
        weights (`str`): `"float32"` or `"int8"`.
        size (`int`): bytes, with those of a second file `<name>.data` where there is one.
        comparison ([`Comparison`]).
    """

    path: Path
    weights: str
    size: int
    comparison: Comparison


def require_onnx() -> None:
    """Raises a `UserError` if a package of the extra `onnx` is missing."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        try:
            import_module(name)
        except ImportError as error:
            raise UserError(
                f"An export to ONNX needs the package {name}: install it with pip install 'artgraph_vit[onnx]'."
            ) from error


def refuse_output(path: str | Path) -> None:
    """Raises a `UserError` if a file cannot be written there, which is better known before the work than after it."""
    path = Path(path)
    if path.suffix != ".onnx":
        raise UserError(f"{str(path)!r} is no name for an ONNX file: let it end in .onnx.")
    if path.is_dir():
        raise UserError(f"{str(path)!r} is a folder: give the name of a file in it that ends in .onnx.")
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {str(path.parent)!r} to write {path.name} into: make it first.")


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
            Weights of more than 1.9 GB stand in a second file, `<path>.data`, which must stay beside it.
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
    refuse_output(path)
    require_onnx()
    metadata = make_metadata(model, image_processor)
    module = Probabilities(model)
    crop = json.loads(metadata["preprocessing"])["crop"]
    shape = (3, crop["height"], crop["width"])
    if batches is None:
        random = torch.Generator().manual_seed(0)
        batches = [torch.randn(size, *shape, generator=random) for size in (1, 3)]
    with _folder_beside(path) as folder:
        written = folder / path.name
        is_large = _write_float32(module, shape, written, metadata)
        files = [_checked(written, "float32", module, batches)]
        if int8:
            smaller = written.with_stem(f"{path.stem}-int8")
            _write_int8(written, smaller, is_large)
            files.append(_checked(smaller, "int8", module, batches))
        for file in files:
            file.path = _take_name(file.path, path.parent)
    return files


def make_metadata(model: ArtGraphViTForImageClassification, image_processor: BaseImageProcessor) -> dict[str, str]:
    """What stands in the file beside the weights: `tasks` and `preprocessing`, both JSON, `artgraph_vit_version` and
    `source_model`.

    Raises:
        UserError: if a task has a name that the file needs, or the image processor cannot be described.
    """
    tasks = []
    for task in model.config.tasks:
        if task.name in (PIXELS, EMBEDDING):
            raise UserError(
                f"The task {task.name!r} has the name of the file's {'input' if task.name == PIXELS else 'vector'}: "
                "train a model whose task has another name."
            )
        entry: dict[str, Any] = {"name": task.name, "problem_type": task.problem_type, "labels": list(task.labels)}
        if task.is_multi_label:
            entry["threshold"] = model.config.thresholds.get(task.name, THRESHOLD)
        elif task.rare == OTHER and OTHER in task.labels:
            entry["other_label"] = OTHER
        tasks.append(entry)
    return {
        "tasks": json.dumps(tasks, ensure_ascii=False),
        "preprocessing": json.dumps(describe_preprocessing(image_processor)),
        "artgraph_vit_version": __version__,
        "source_model": _public_name(str(model.config.name_or_path or "")),
    }


def _checked(path: Path, weights: str, module: Probabilities, batches: Sequence[Tensor]) -> ExportedFile:
    comparison = compare_onnx(path, module, batches)
    if weights == "float32" and not comparison.difference <= MAX_DIFFERENCE:
        raise UserError(
            f"onnxruntime gives probabilities that differ by {comparison.difference:.2g} from torch's, of which "
            f"{MAX_DIFFERENCE:g} is allowed, so no file was written: try other versions of torch and onnxruntime."
        )
    return ExportedFile(path, weights, sum(file.stat().st_size for file in _with_data(path)), comparison)


def _write_float32(module: Probabilities, shape: Sequence[int], path: Path, metadata: dict[str, str]) -> bool:
    """Returns whether the weights stand in a second file, since one cannot hold so many."""
    pixels = torch.zeros(2, *shape)
    try:
        with torch.no_grad():
            module(pixels)
        with _quiet():
            program: Any = torch.onnx.export(
                module,
                (pixels,),
                dynamo=True,
                verbose=False,
                input_names=[PIXELS],
                dynamic_shapes={PIXELS: {0: torch.export.Dim("batch")}},
            )
    except Exception as error:  # a backbone's own, or one of the many kinds of the exporter's
        reason = str(error.__cause__ or error).strip() or type(error).__name__
        raise UserError(f"The model cannot be exported to ONNX: {reason.splitlines()[0]}") from error
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
    is_large = sum(value.const_value.nbytes for value in graph.initializers.values()) > MAX_WEIGHTS
    import_module("onnx_ir").save(program.model, path, external_data=f"{path.name}.data" if is_large else None)
    return is_large


def _write_int8(path: Path, smaller: Path, is_large: bool) -> None:
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
            use_external_data_format=is_large,
        )


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A folder on the same disk, so that files made in it take their names at once; gone in the end."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.stem}-", dir=path.parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{str(path)!r} cannot be written: {error.strerror or error}; choose another place."
        ) from error


def _take_name(written: Path, folder: Path) -> Path:
    path = folder / written.name
    data = path.with_name(f"{path.name}.data")
    if data.exists() or len(_with_data(written)) > 1:
        path.unlink(missing_ok=True)  # rather no file for a moment than one with another one's weights
        data.unlink(missing_ok=True)
    for file in reversed(_with_data(written)):  # the weights first
        file.replace(folder / file.name)
    return path


def _with_data(path: Path) -> list[Path]:
    return [file for file in (path, path.with_name(f"{path.name}.data")) if file.exists()]


def _public_name(name_or_path: str) -> str:
    """A Hub id as it is; of a folder the last part, since where it stands is nobody's business."""
    path = Path(name_or_path).expanduser()
    return path.resolve().name if name_or_path and (path.exists() or path.is_absolute()) else name_or_path


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter and the quantiser speak of their own affairs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
