"""A tiny two-phase training run on random pictures; run as a script, it is the process that tests start and kill.

python tiny.py OUTPUT_DIR [--kill-at STEP] [--kill-in-save STEP:STAGE] [--model-seed N] [--resume WHAT] [option=value]

It leaves the final weights in OUTPUT_DIR/final-RANK.safetensors and what the log said in trainer_state.json.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import save_file
from transformers import TrainerCallback, ViTConfig, ViTImageProcessor, set_seed

from artgraph_vit import ArtGraphViTConfig, ArtGraphViTForImageClassification, Task
from artgraph_vit.data import ArtGraphCollator, encode_labels, with_pixels
from artgraph_vit.training import trainer as trainer_module
from artgraph_vit.training.arguments import ArtGraphTrainingArguments
from artgraph_vit.training.trainer import ArtGraphTrainer

TASKS = [
    Task("artist", "single_label_classification", ("a", "b", "other"), rare="other"),
    Task("genre", "single_label_classification", ("portrait", "still life")),
    Task("tags", "multi_label_classification", ("Tree", "boat", "moon"), rare="drop"),
]
TRAIN_ROWS, EVAL_ROWS = 50, 21  # neither divides by the batch sizes


class RandomArtworks(torch.utils.data.Dataset):
    """Pictures whose labels can be read off their colours; about a third of the labels is unknown."""

    def __init__(self, rows: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.rows = []
        for _ in range(rows):
            artist, genre, unknown = torch.randint(0, 6, (3,), generator=generator).tolist()
            tags = torch.nonzero(torch.rand(3, generator=generator) < 0.4).flatten().tolist()
            pixels = torch.randn(3, 32, 32, generator=generator) * 0.3
            pixels[artist % 3] += 1.0
            pixels[:, :16] += genre % 2
            for tag in tags:
                pixels[tag, 16:, 8 * tag : 8 * tag + 8] -= 2.0
            self.rows.append(
                {
                    "pixel_values": pixels,
                    "artist": None if unknown in (0, 1) else artist % 3,
                    "genre": genre % 2,
                    "tags": None if unknown == 2 else tags,
                }
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


def artworks(folder, rows: int, seed: int, size: int = 32) -> Dataset:
    """The rows of a dataset whose pictures lie in a folder, where they are painted if they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(rows):
        path = folder / f"{seed}-{index}.png"
        if not path.exists():
            random = np.random.default_rng((seed, index))  # whichever are there already
            Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
        paths.append({"path": str(path), "bytes": None})
    labels = np.random.default_rng(seed + 100)
    raw = Dataset.from_dict(
        {
            "image": paths,
            "name": [f"{seed}-{index}.png" for index in range(rows)],
            "split": [None] * rows,
            "artist": [labels.choice(["a", "b", "other", None]) for _ in range(rows)],
            "genre": [labels.choice(["portrait", "still life"]) for _ in range(rows)],
            "tags": [[t for t in ("Tree", "boat", "moon") if labels.random() < 0.4] or None for _ in range(rows)],
        }
    ).cast_column("image", ImageFeature(decode=False))
    return with_pixels(encode_labels(raw, TASKS).remove_columns("split"), image_processor(size))


def image_processor(size: int = 32) -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": size, "width": size})


class KillAt(TrainerCallback):
    """Ends the process without warning, as a power cut does."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            kill()


class Stopped(Exception):
    """What `StopAt` raises."""


class StopAt(TrainerCallback):
    """Ends the training of this process at a step by an exception, where a new process would cost time."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Stopped


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_save(trainer: ArtGraphTrainer, step: int, stage: str) -> None:
    """Ends the process in the saving of a step: with the optimizer's file `torn`, or `unsealed`, without manifest."""

    def instead(owner, name: str, do) -> None:
        original = getattr(owner, name)

        def patched(*args, **kwargs):
            if trainer.state.global_step == step:
                do(original, *args, **kwargs)
                kill()
            return original(*args, **kwargs)

        setattr(owner, name, patched)

    def tear(original, folder) -> None:
        original(folder)
        path = Path(folder) / "optimizer.pt"
        os.truncate(path, path.stat().st_size // 2)

    if stage == "torn":
        instead(trainer, "_save_optimizer_and_scheduler", tear)
    else:
        assert stage == "unsealed"
        instead(trainer_module, "write_manifest", lambda original, *args: None)


def tiny_model(seed: int = 0, **config) -> ArtGraphViTForImageClassification:
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    backbone = ViTConfig(image_size=32, patch_size=8, **size)
    return ArtGraphViTForImageClassification(ArtGraphViTConfig(backbone_config=backbone, tasks=TASKS, **config))


def tiny_trainer(
    output_dir, seed: int = 0, callbacks=(), head_dropout: float = 0.1, datasets=None, model=None, **options
) -> ArtGraphTrainer:
    defaults = {
        "num_train_epochs": 4,
        "frozen_epochs": 2,
        "learning_rate": 2e-3,
        "frozen_learning_rate": 5e-3,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 8,
        "save_total_limit": None,
        "disable_tqdm": True,
        "use_cpu": True,
        "report_to": "none",
    }
    args = ArtGraphTrainingArguments(output_dir=str(output_dir), **(defaults | options))
    train, evaluation = datasets or (RandomArtworks(TRAIN_ROWS, seed=1), RandomArtworks(EVAL_ROWS, seed=2))
    return ArtGraphTrainer(
        model=model or tiny_model(seed, head_dropout=head_dropout),
        args=args,
        data_collator=ArtGraphCollator(TASKS),
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=image_processor(),
        callbacks=list(callbacks),
    )


def end_workers(trainer: ArtGraphTrainer) -> None:
    """Ends persistent workers; the garbage collector, to which a trainer is left, waits 5 seconds for each."""
    trainer.callback_handler.train_dataloader = trainer.callback_handler.eval_dataloader = None
    trainer.accelerator._dataloaders.clear()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("options", nargs="*")
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--model-seed", type=int, default=0)
    parser.add_argument("--kill-in-save", help="STEP:STAGE")
    parser.add_argument("--kill-process", type=int, default=0)
    parser.add_argument("--resume")
    parser.add_argument("--pictures", type=Path, help="folder for a dataset of pictures instead of random pixels")
    given = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    options = {name: json.loads(value) for name, value in (option.split("=", 1) for option in given.options)}
    set_seed(42)
    if given.pictures is not None:
        options["datasets"] = (artworks(given.pictures, TRAIN_ROWS, 1), artworks(given.pictures, EVAL_ROWS, 2))
    trainer = tiny_trainer(given.output_dir, given.model_seed, **options)
    if given.kill_process == trainer.args.process_index:
        if given.kill_at is not None:
            trainer.add_callback(KillAt(given.kill_at))
        if given.kill_in_save is not None:
            step, stage = given.kill_in_save.split(":")
            kill_in_save(trainer, int(step), stage)
    trainer.train(resume_from_checkpoint=given.resume)
    metrics = trainer.evaluate()
    trainer.save_state()
    (given.output_dir / f"world-size-{trainer.args.world_size}").touch()
    weights = {name: tensor.contiguous() for name, tensor in trainer.model.state_dict().items()}
    save_file(weights, given.output_dir / f"final-{trainer.args.process_index}.safetensors")
    (given.output_dir / f"metrics-{trainer.args.process_index}.json").write_text(json.dumps(metrics))
    trainer.accelerator.end_training()  # all leave together


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # all is done: threads of gloo that still run abort the end of an interpreter now and then
