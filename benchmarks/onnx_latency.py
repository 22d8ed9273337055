"""What a prediction takes in onnxruntime, against torch: one picture, and a batch of 8.

How: ViT-B/16 at 224 pixels with random weights and ArtGraph's numbers of labels, exported by `export_onnx` as float32
and with int8 weights. Both libraries work on the CPU with one thread; a case is the median of some predictions in a
row, the cases are interleaved, and milliseconds are CPU time. torch's bfloat16 is autocast.

Expect: float32 a little faster, int8 three times as fast where the CPU has instructions for it. 6 minutes alone.

.venv/bin/python benchmarks/onnx_latency.py [--quick] [--out FILE]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime
import torch
from measure import arguments, compare, interleave, write_table
from transformers import ViTImageProcessorPil
from workload import TINY, VIT_B, make_model, now

from artgraph_vit.serving.onnx import Probabilities, export_onnx

TORCH, BFLOAT16 = "torch float32", "torch bfloat16"
FLOAT32, INT8 = "onnxruntime float32", "onnxruntime int8"


def one_thread(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@torch.inference_mode()
def in_torch(module: Probabilities, pixels: torch.Tensor, bfloat16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        module(pixels)


def milliseconds(predict: Callable[[], Any], predictions: int) -> float:
    times = []
    for _ in range(predictions):
        start = now()
        predict()
        times.append((now() - start) * 1000)
    return median(times)


def main() -> None:
    given = arguments(__doc__)
    vit, side, rounds, predictions = (TINY, 16, 1, 2) if given.quick else (VIT_B, 224, 7, 4)
    torch.set_num_threads(1)
    model = make_model(vit)
    image_processor = ViTImageProcessorPil(size={"height": side, "width": side})
    with TemporaryDirectory() as folder:
        files = export_onnx(model, image_processor, Path(folder) / "model.onnx", int8=True)
        float32, int8 = (one_thread(file.path) for file in files)
    module = Probabilities(model)
    rows = []
    for batch in (1, 8):
        pixels = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
        feed = {"pixel_values": pixels.numpy()}
        predict: dict[str, Callable[[], Any]] = {
            TORCH: partial(in_torch, module, pixels, False),
            BFLOAT16: partial(in_torch, module, pixels, True),
            FLOAT32: partial(float32.run, None, feed),
            INT8: partial(int8.run, None, feed),
        }
        for case in predict.values():  # a first time takes longer
            case()
        cases = {name: partial(milliseconds, case, predictions) for name, case in predict.items()}
        times = interleave(cases, rounds)
        what = "one picture" if batch == 1 else f"a batch of {batch}"
        for ours, other in ((FLOAT32, TORCH), (INT8, TORCH), (BFLOAT16, TORCH), (INT8, BFLOAT16)):
            rows.append(compare(f"{what}: ms, {ours} against {other}", times[ours], times[other], "none", ".1f"))
    sizes = [[file.size / 1e6] for file in files]
    rows.append(compare("MB of the file, int8 against float32", sizes[1], sizes[0], "none"))
    differences = [f"{file.difference:.1e}" for file in files]
    rows.append(("largest difference to torch, float32 against int8", *differences, "-", "<= 1e-4"))
    write_table(rows, given.out)


if __name__ == "__main__":
    main()
