"""What an engine must get right, on one start of its processes: see main.

python engine_run.py OUTPUT_DIR PICTURES PROCESSES
"""

import contextlib
import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from artgraph_vit.errors import UserError
from artgraph_vit.training.engines import is_sharded, whole
from tests.training.exact import build_trainer
from tests.training.tiny import EVAL_ROWS, TRAIN_ROWS, StopAt, Stopped, artworks, tiny_trainer

# The artists are told apart in phase heads already, which ends at step 8: the best checkpoint is one of it.
OPTIONS = {
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "logging_strategy": "steps",
    "logging_steps": 3,
    "metric_for_best_model": "artist_macro_f1",
    "head_dropout": 0.0,
}
WORDS = [f"{name}={json.dumps(value)}" for name, value in OPTIONS.items()]  # for tiny.py
# By folder, where its run stops: `killed` holds a run that was killed behind the boundary, at step 9.
STOPS = {"killed": (13,), "stopped": (3,)}
# In the folder `averaged`: an average of the weights, stopped behind the boundary and in phase full. It is evaluated
# without being saved too, for to save it would mend what an evaluation left behind.
AVERAGED = {"ema_decay": 0.5, "layer_decay": 0.6, "lr_scheduler_type": "cosine", "warmup_steps": 0.25, "eval_steps": 1}
ROWS = 64
ENGINE_RUN = Path(__file__)
ACCUMULATIONS = (1, 4)


def report(folder: Path, process: int = 0) -> dict:
    """What main found out."""
    return json.loads((folder / f"report-{process}.json").read_text())


class Precision(TrainerCallback):
    """The precision of what the optimizer moves, and of what the heads compute."""

    def __init__(self):
        self.dtypes = set()

    def watch(self, model) -> None:
        model.heads["artist"].register_forward_hook(lambda head, inputs, output: self.dtypes.add(f"{output.dtype}"))

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        self.dtypes |= {f"weights {p.dtype}" for group in optimizer.param_groups for p in group["params"]}


def save_final(trainer, path: Path) -> None:
    weights = {name: whole(tensor).contiguous() for name, tensor in trainer.model.state_dict().items()}
    if trainer.is_world_process_zero():
        save_file(weights, path)


def train_without_weights(folder: Path, **options) -> dict:
    """Each process's loss is not finite: what the error begins with, and whether the heads are what they were."""
    trainer = tiny_trainer(folder, **options)
    torch.nn.init.constant_(trainer.model.log_variances, torch.nan)
    before = trainer.model.heads["artist"].weight.detach().clone()
    try:
        trainer.train()
    except UserError as error:
        return {
            "error": str(error).split(",")[0].split(":")[0],
            "is_same": torch.equal(whole(trainer.model.heads["artist"].weight.detach()), before),
        }
    return {}


def main() -> None:
    folder, painted, rows = Path(sys.argv[1]), Path(sys.argv[2]), 16 // int(sys.argv[3])
    torch.set_num_threads(1)
    options = {"head_dropout": 0.0, "per_device_train_batch_size": rows}

    trainer = tiny_trainer(folder / "whole", **(OPTIONS | options))
    trainer.train()
    metrics = {"best": trainer.evaluate()}
    trainer.save_state()
    save_final(trainer, folder / "whole.safetensors")

    for name, stops in STOPS.items():
        for step in (*stops, None):  # each goes on from the checkpoint of the one before
            callbacks = [] if step is None else [StopAt(step)]
            trainer = tiny_trainer(folder / name, 0 if step == 3 else 7, callbacks, **(OPTIONS | options))
            with contextlib.suppress(Stopped):
                trainer.train(resume_from_checkpoint="auto")
        trainer.evaluate()
        trainer.save_state()
        save_final(trainer, folder / f"{name}.safetensors")

    averaged = OPTIONS | AVERAGED | options
    for step in (9, 13, None):
        callbacks = [] if step is None else [StopAt(step)]
        trainer = tiny_trainer(folder / "averaged", 0 if step == 9 else 7, callbacks, **averaged)
        with contextlib.suppress(Stopped):
            trainer.train(resume_from_checkpoint="auto")
    save_final(trainer, folder / "averaged-best.safetensors")
    trainer = tiny_trainer(folder / "averaged", 7, **averaged, load_best_model_at_end=False)
    trainer.train(resume_from_checkpoint="last")
    save_final(trainer, folder / "averaged-last.safetensors")

    if (folder / "moved").exists():  # what another engine left
        trainer = tiny_trainer(folder / "moved", 7, **(OPTIONS | options))
        trainer.train(resume_from_checkpoint="last")
        save_final(trainer, folder / "moved.safetensors")

    # An evaluation before training, then frozen features, then everything.
    pictures = (artworks(painted, TRAIN_ROWS, 1), artworks(painted, EVAL_ROWS, 2))
    trainer = tiny_trainer(folder / "cached", datasets=pictures, feature_cache_dir=str(folder / "cache"), **options)
    metrics["before"] = trainer.evaluate()
    trainer.train()
    metrics["after"] = trainer.evaluate()
    save_final(trainer, folder / "cached.safetensors")

    seen = Precision()
    trainer = tiny_trainer(folder / "bf16", callbacks=[seen], bf16=True, load_best_model_at_end=False, **options)
    seen.watch(trainer.model)
    trainer.train()
    save_final(trainer, folder / "bf16.safetensors")

    spoilt = train_without_weights(folder / "spoilt", **options)
    for accumulation in ACCUMULATIONS:  # gradients, in float64 but for DeepSpeed
        trainer = build_trainer(folder, ROWS, str(accumulation))
        trainer.train()
    found = {"metrics": metrics, "dtypes": sorted(seen.dtypes), "spoilt": spoilt}
    found["engine"] = type(trainer.model if is_sharded(trainer.model) else trainer.model_wrapped).__name__
    (folder / f"report-{trainer.args.process_index}.json").write_text(json.dumps(found))
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # all is done: threads of gloo that still run abort the end of an interpreter now and then
