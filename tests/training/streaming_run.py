"""A tiny two-phase training run from a stream; run as a script, it is what tests start on several processes and kill.

[torchrun] streaming_run.py OUTPUT_DIR [--kill-at STEP] [--resume-from STEP ...] [option=value ...]

It leaves OUTPUT_DIR/rows-RANK.json, the rows of each step of each run ("whole" and one a checkpoint resumed from),
OUTPUT_DIR/metrics-RANK.json and the final weights of each run, OUTPUT_DIR/RUN-RANK.safetensors.
"""

import argparse
import io
import json
import os
import sys
from pathlib import Path

import torch
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, List, Value
from PIL import Image as Pillow
from safetensors.torch import save_file
from transformers import set_seed

sys.path.insert(0, str(Path(__file__).parent))  # where torchrun does not look
from tiny import TASKS, KillAt, image_processor, tiny_model

from artgraph_vit.data import ArtGraphCollator
from artgraph_vit.data.batches import PictureTransform
from artgraph_vit.data.streaming import StreamedArtworks
from artgraph_vit.training.arguments import ArtGraphTrainingArguments
from artgraph_vit.training.trainer import ArtGraphTrainer

TRAIN_ROWS, EVAL_ROWS = 50, 21  # neither divides by the batch sizes
BUFFER, SEED = 20, 5


class NumberedPictures(PictureTransform):
    """Writes the number of each row it decodes into the row's first pixel, and as a line into a file."""

    def __init__(self, log: Path | None = None):
        super().__init__(image_processor())
        self.log = log

    def __call__(self, rows: dict[str, list]) -> dict[str, list]:
        ready = super().__call__(rows)
        for pixels, name in zip(ready["pixel_values"], rows["name"], strict=True):
            pixels[0, 0, 0] = 255 if name is None else int(name)
        if self.log:
            with open(self.log, "a") as file:  # the processes and workers append to it line by line
                file.write("".join(f"{name}\n" for name in rows["name"]))
        return ready


def numbers(pixel_values: torch.Tensor) -> list[int]:
    """The numbers of the rows of a batch `(B, 3, H, W)`; -100 for one that fills up."""
    return [-100 if number == 255 else number for number in pixel_values[:, 0, 0, 0].tolist()]


def raw_rows(count: int, seed: int, shards: int = 3) -> IterableDataset:
    """PNGs whose labels can be read off their colours; genre is always known, the other labels often are not."""
    generator = torch.Generator().manual_seed(seed)
    columns: dict[str, list] = {"image": [], "name": [], "artist": [], "genre": [], "tags": []}
    for number in range(count):
        artist, genre, unknown = torch.randint(0, 6, (3,), generator=generator).tolist()
        pixels = torch.randint(0, 60, (32, 32, 3), generator=generator, dtype=torch.uint8)
        pixels[..., artist % 3] += 120
        pixels[:16] += 70 * (genre % 2)
        file = io.BytesIO()
        Pillow.fromarray(pixels.numpy()).save(file, "PNG")
        columns["image"].append({"bytes": file.getvalue(), "path": None})
        columns["name"].append(str(number))
        columns["artist"].append(None if unknown < 2 else artist % 3)
        columns["genre"].append(genre % 2)
        columns["tags"].append(None if unknown == 2 else [genre % 2, 2])
    label = {task.name: ClassLabel(names=list(task.labels)) for task in TASKS}
    features = {"image": Image(), "name": Value("string"), **label, "tags": List(label["tags"])}
    rows = Dataset.from_dict(columns, features=Features(features))
    return rows.to_iterable_dataset(num_shards=min(shards, count))


def epoch_order(rows: IterableDataset, epoch: int) -> list[int]:
    """The order of an epoch as `datasets` alone gives it."""
    rows = rows.shuffle(seed=SEED, buffer_size=BUFFER).decode(False)
    rows.set_epoch(epoch)
    return [int(row["name"]) for row in rows]


class RecordingTrainer(ArtGraphTrainer):
    """Keeps the rows that count of each step."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.rows_of_step: dict[int, list[int]] = {}

    def compute_loss(self, model, inputs, **kwargs):
        known = inputs["targets"]["genre"][0].any(-1)  # but of a row that fills up
        self.rows_of_step.setdefault(self.state.global_step, []).extend(numbers(inputs["pixel_values"][known]))
        return super().compute_loss(model, inputs, **kwargs)


def streamed_trainer(output_dir, callbacks=(), head_dropout: float = 0.0, log=None, **options) -> RecordingTrainer:
    defaults = {
        "num_train_epochs": 4,
        "frozen_epochs": 2,
        "learning_rate": 2e-3,
        "frozen_learning_rate": 5e-3,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 8,
        "eval_strategy": "no",
        "save_strategy": "no",
        "save_total_limit": None,
        "load_best_model_at_end": False,
        "disable_tqdm": True,
        "use_cpu": True,
        "report_to": "none",
    }
    set_seed(42)
    return RecordingTrainer(
        # "all_rows": a row that only fills up would count, though its labels are unknown.
        model=tiny_model(head_dropout=head_dropout, multilabel_reduction="all_rows"),
        args=ArtGraphTrainingArguments(output_dir=str(output_dir), **(defaults | options)),
        data_collator=ArtGraphCollator(TASKS),
        train_dataset=StreamedArtworks(raw_rows(TRAIN_ROWS, 1), NumberedPictures(log), TRAIN_ROWS, BUFFER, SEED),
        eval_dataset=StreamedArtworks(raw_rows(EVAL_ROWS, 2), NumberedPictures(), EVAL_ROWS, shuffle_buffer=0),
        processing_class=image_processor(),
        callbacks=list(callbacks),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("options", nargs="*")
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--resume-from", type=int, nargs="*", default=[])
    given = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    options = {name: json.loads(value) for name, value in (option.split("=", 1) for option in given.options)}
    rows_of_run = {}
    rank = os.environ.get("RANK", "0")
    for checkpoint in [None, *given.resume_from]:
        callbacks = [KillAt(given.kill_at)] if given.kill_at is not None else []
        trainer = streamed_trainer(given.output_dir, callbacks, **options)
        trainer.train(resume_from_checkpoint=checkpoint and str(given.output_dir / f"checkpoint-{checkpoint}"))
        run = f"from-{checkpoint}" if checkpoint else "whole"
        rows_of_run[run] = trainer.rows_of_step
        weights = {name: tensor.contiguous() for name, tensor in trainer.model.state_dict().items()}
        save_file(weights, given.output_dir / f"{run}-{rank}.safetensors")
    metrics = streamed_trainer(given.output_dir, **options).evaluate()  # before any step, so for all runs the same
    (given.output_dir / f"rows-{rank}.json").write_text(json.dumps(rows_of_run))
    (given.output_dir / f"metrics-{rank}.json").write_text(json.dumps(metrics))
    (given.output_dir / f"world-size-{trainer.args.world_size}").touch()


if __name__ == "__main__":
    main()
