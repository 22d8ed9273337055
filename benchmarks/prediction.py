"""scripts/predict.py against the bare forward pass: pictures a second on all cores, ViT-B/16, batches of 32.

How: both on as many threads as there are cores. The bare pass runs the model on one batch of random floats again and
again, under `inference_mode`. Ours reads a folder of made JPEGs of 1,000 to 1,500 pixels with processes that decode,
and writes labels, scores and vectors into shards of one batch; its rate is that between the first shard and the last,
so that the start of the processes, some seconds once a run, is left out. Interleaved, medians, wall time. The heads
have as many labels as ArtGraph's.

Expect: some 0.94 in float32 and 0.96 in bfloat16. About 6 minutes.

.venv/bin/python benchmarks/prediction.py [--quick] [--out FILE]
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from input_pipeline import made_jpegs
from measure import arguments, compare, interleave, write_table
from transformers import ViTConfig, ViTImageProcessorPil

from artgraph_vit import ArtGraphPipeline, ArtGraphViTConfig, ArtGraphViTForImageClassification
from artgraph_vit.data import PictureTransform
from artgraph_vit.model.tasks import ARTGRAPH_TASKS
from artgraph_vit.serving.predict import open_pictures, predict_pictures

BATCH = 32
LABELS = {"artist": 243, "style": 32, "genre": 18, "tags": 429, "media": 31}
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def bare(model: ArtGraphViTForImageClassification, batches: int, bf16: bool) -> float:
    pixel_values = torch.randn(BATCH, 3, 224, 224)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model(pixel_values=pixel_values[:2])
        start = perf_counter()
        for _ in range(batches):
            model(pixel_values=pixel_values)
    return batches * BATCH / (perf_counter() - start)


def ours(pipe: ArtGraphPipeline, folder: Path, bf16: bool) -> float:
    with TemporaryDirectory() as out:
        predict_pictures(
            pipe,
            open_pictures(str(folder)),
            Path(out),
            PictureTransform(pipe.image_processor),
            embeddings=True,
            bf16=bf16,
            batch_size=BATCH,
            num_workers=os.cpu_count() or 1,
            shard_rows=BATCH,
            progress=False,
        )
        times = sorted(file.stat().st_mtime for file in Path(out, "data").iterdir())
    return (len(times) - 1) * BATCH / (times[-1] - times[0])


def main() -> None:
    args = arguments(__doc__)
    torch.set_num_threads(os.cpu_count() or 1)  # the other benchmarks work on one
    batches, rounds = (2, 1) if args.quick else (4, 3)
    size = TINY if args.quick else {}
    tasks = [task.with_labels(["other", *map(str, range(1, LABELS[task.name]))]) for task in ARTGRAPH_TASKS]
    config = ArtGraphViTConfig(backbone_config=ViTConfig(**size), tasks=tasks)
    pipe = ArtGraphPipeline(ArtGraphViTForImageClassification(config), ViTImageProcessorPil(), device="cpu")
    lines = []
    with TemporaryDirectory() as folder:
        jpegs = made_jpegs(4 if args.quick else 16, 1000, 1500)
        for number in range((batches + 1) * BATCH):
            Path(folder, f"{number:04d}.jpg").write_bytes(jpegs[number % len(jpegs)])
        for name, bf16 in (("float32", False), ("bfloat16", True)):
            cases = {
                "bare": lambda bf16=bf16: bare(pipe.model, batches, bf16),
                "ours": lambda bf16=bf16: ours(pipe, Path(folder), bf16),
            }
            rates = interleave(cases, rounds)
            target = "-" if bf16 else ">= 0.9"
            lines.append(
                compare(
                    f"predict.py, {name}, pictures a second, against the bare forward pass",
                    rates["ours"],
                    rates["bare"],
                    target,
                )
            )
    write_table(lines, args.out)


if __name__ == "__main__":
    main()
