"""One optimizer step of the real trainer in float64, whose gradient is recorded; and an evaluation of odd sizes.

python exact.py OUTPUT_DIR GLOBAL_BATCH [ACCUMULATION | ACCUMULATION:mixed ...]

With `mixed` each two neighbours are mixed, whatever the division, and the losses have all that they can have.
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from artgraph_vit.data import ArtGraphCollator
from artgraph_vit.data.augmentation import Mix
from artgraph_vit.training import trainer as trainer_module
from artgraph_vit.training.arguments import ArtGraphTrainingArguments
from artgraph_vit.training.trainer import ArtGraphTrainer
from tests.training.tiny import TASKS, RandomArtworks, tiny_model

EVAL_SIZES = (1, 3, 7, 21, 40)


class UnevenArtworks(RandomArtworks):
    """The first half knows no tags, and the first quarter almost no artists: some processes have no known row."""

    def __init__(self, rows: int, seed: int):
        super().__init__(rows, seed)
        for index, row in enumerate(self.rows):
            row["pixel_values"] = row["pixel_values"].double()
            if index < rows // 2:
                row["tags"] = None
            if index < rows // 4 and index:
                row["artist"] = None


class InOrder(ArtGraphTrainer):
    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)


def mix_neighbours(rows: int, *place) -> Mix:
    """In the place of `draw_mix`: the same rows are mixed by the same shares in any division into even batches."""
    return Mix((torch.arange(rows) ^ 1).clamp(max=rows - 1), share=0.3)


def joined_gradients(losses: list[torch.Tensor], model) -> dict[str, torch.Tensor]:
    """Of the loss joined by uncertainty, written out."""
    sigma = torch.exp(model.log_variances / 2)
    model.zero_grad()
    sum(loss / (s**2 + 1e-8) + torch.log(s + 1e-8) for loss, s in zip(losses, sigma, strict=True)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class KeepGradients(TrainerCallback):
    def __init__(self, path: Path):
        self.path = path

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = {
            name.removeprefix("module."): parameter.grad.clone() for name, parameter in model.named_parameters()
        }
        save_file(gradients, self.path.with_name(f"{self.path.name}-{state.global_step}.safetensors"))


def build_trainer(folder: Path, rows: int, what: str) -> ArtGraphTrainer:
    accumulation, _, mixed = what.partition(":")
    args = ArtGraphTrainingArguments(
        output_dir=str(folder),
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=int(accumulation),
        num_train_epochs=1,
        frozen_epochs=0,
        max_grad_norm=0.0,
        learning_rate=1e-3,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        disable_tqdm=True,
        use_cpu=True,
        mixup_alpha=1.0 if mixed else 0.0,
    )
    args.per_device_train_batch_size = rows // int(accumulation) // args.world_size
    options = {"label_smoothing": 0.1, "max_positive_weight": 4.0} if mixed else {}
    model = tiny_model(seed=0, head_dropout=0.0, **options).double()
    model.set_class_weights({"artist": torch.tensor([0.3, 5.0, 1.0]), "genre": torch.tensor([0.7, 1.9])})
    with torch.no_grad():
        model.log_variances.copy_(torch.tensor([0.4, -0.6, 0.2]))
    if mixed:
        model.heads["tags"].positive_weights.copy_(torch.tensor([1.5, 4.0, 2.0]))
    return InOrder(
        model=model,
        args=args,
        data_collator=ArtGraphCollator(TASKS),
        train_dataset=UnevenArtworks(rows + rows // 2, seed=1),  # the second step has half the rows
        callbacks=[KeepGradients(folder / f"gradients-{args.process_index}-{what}")],
    )


def main() -> None:
    folder, rows = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    trainer_module.draw_mix = mix_neighbours
    for what in sys.argv[3:]:
        build_trainer(folder, rows, what).train()

    trainer = build_trainer(folder, rows, "1")
    metrics = {}
    for size in EVAL_SIZES:
        for batch in (1, 4, 5):
            trainer.args.per_device_eval_batch_size = batch
            metrics[f"{size}/{batch}"] = trainer.evaluate(UnevenArtworks(size, seed=size))
    (folder / f"metrics-{trainer.args.process_index}.json").write_text(json.dumps(metrics))
    (folder / f"world-size-{trainer.args.world_size}").touch()
    trainer.accelerator.end_training()  # all leave together


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # all is done: threads of gloo that still run abort the end of an interpreter now and then
