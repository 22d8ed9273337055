"""Checkpoints that can be trusted: which one a run starts from, whether it is whole, and whether it is this run's.

A checkpoint that is not whole (see loading.py) is named, and the newest whole one is used. `RunRecord`, in
trainer_state.json, is what a checkpoint says of its run beyond what `Trainer` writes.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.utils import logging

from ..errors import UserError, one_line
from ..loading import MANIFEST, verify_checkpoint
from ..model.configuration_artgraph_vit import ArtGraphViTConfig
from .arguments import ArtGraphTrainingArguments, source_recipe

logger = logging.get_logger(__name__)


# ---- which checkpoint ----


def checkpoint_to_resume(args: TrainingArguments, wanted: str | bool | None) -> str | None:
    """The checkpoint that a run starts from, decided by the main process before anything is loaded.

    Args:
        args (`TrainingArguments`).
        wanted (`str` or `bool`, *optional*): a folder; `"last"` or `True` for the newest whole checkpoint in the
            output folder, which must exist; `"auto"` for the same, or a fresh start if there is none.

    Returns:
        The folder, or None for a fresh start.

    Raises:
        UserError: if the checkpoint asked for does not exist or is damaged, or if the output folder holds another run
            or cannot be written to.
    """
    decided: list[Any] = [None]
    if args.process_index == 0:
        try:
            decided = [_decide(Path(str(args.output_dir)), wanted)]
        except UserError as error:  # so that all processes end with the same sentence, and none waits for another
            decided = [error]
    if args.world_size > 1:
        broadcast_object_list(decided)
    (checkpoint,) = decided
    if isinstance(checkpoint, UserError):
        raise checkpoint
    if checkpoint is not None and not (Path(checkpoint) / TRAINER_STATE_NAME).is_file():
        raise UserError(
            f"Process {args.process_index} does not see {checkpoint}: put output_dir on a disk that all machines "
            "share, or pass --save_on_each_node true from the start."
        )
    return checkpoint


def _decide(folder: Path, wanted: str | bool | None) -> str | None:
    _check_writable(folder)
    if wanted in (None, False, "false", "", "auto"):
        held = _checkpoints(folder)
        if not held and (folder / "model.safetensors").exists():
            raise UserError(f"{folder} already holds a finished model: choose another --output_dir.")
        if wanted == "auto":
            newest = _newest_whole(folder)
            return None if newest is None else str(newest)
        if held:
            raise UserError(
                f"{folder} already holds a run ({held[0].name}): continue it with --resume_from_checkpoint last, or "
                "choose another --output_dir."
            )
        return None
    if wanted in (True, "true", "last"):
        newest = _newest_whole(folder)
        if newest is None:
            raise UserError(f"{folder} holds no whole checkpoint to resume from; leave --resume_from_checkpoint out.")
        return str(newest)
    checkpoint = Path(str(wanted))
    if not (checkpoint / TRAINER_STATE_NAME).is_file():
        raise UserError(f"{checkpoint} is not a checkpoint of a run: it has no {TRAINER_STATE_NAME}.")
    problem = verify_checkpoint(checkpoint)
    if problem:
        raise UserError(f"{checkpoint} is not whole: {problem}. Resume from another checkpoint.")
    return str(checkpoint)


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and re.fullmatch(r"\w+-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def _newest_whole(folder: Path) -> Path | None:
    for path in _checkpoints(folder):
        problem = verify_checkpoint(path)
        if problem is None:
            return path
        logger.warning_once("%s is not whole (%s) and is left out.", path, problem)
    return None


def rotate_checkpoints(folder: Path, limit: int | None, best: str | None) -> None:
    """Deletes the oldest checkpoints beyond `limit`; the newest, the best and folders called otherwise stay."""
    held = _checkpoints(folder)
    first = [held[0], *(path for path in held if best is not None and path.name == Path(best).name)]
    kept = list(dict.fromkeys([*first, *held]))[: len(held) if not limit else max(limit, len(set(first)))]
    for path in held:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def best_beside(checkpoint: str, state: TrainerState) -> Path:
    """The best checkpoint of a run, beside one of its others wherever they are now."""
    return Path(checkpoint).parent / f"checkpoint-{state.best_global_step}"


# ---- whether it is this run's ----


class RunRecord(TrainerCallback, ExportableState):
    """The record of a run; also sees to it that a checkpoint of an epoch's last step holds the epoch's end.

    Args:
        recipe (`dict`, *optional*): the options that decide what the run learns.
        train_rows (`int`, *optional*): in the train split.
        global_batch_size (`int`, *optional*): rows of an optimizer step, over all processes and micro-batches.
        processes (`int`, *optional*): how many there are.
        unlogged (`dict`, *optional*): what was summed up since the last log, see `ArtGraphTrainer`.
    """

    def __init__(
        self,
        recipe: dict[str, Any] | None = None,
        train_rows: int | None = None,
        global_batch_size: int | None = None,
        processes: int | None = None,
        unlogged: dict[str, Any] | None = None,
    ):
        self.recipe = recipe or {}
        self.train_rows = train_rows
        self.global_batch_size = global_batch_size
        self.processes = processes
        self.unlogged = unlogged
        self._save_at_epoch_end = False

    def state(self) -> dict[str, Any]:
        values = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {"args": values, "attributes": {}}

    @classmethod
    def read(cls, checkpoint: str | Path) -> RunRecord:
        """The record in a checkpoint.

        Raises:
            UserError: if there is none, or it is of a version whose optimizer was another.
        """
        state = json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        record = state.get("stateful_callbacks", {}).get(cls.__name__)
        if record is None:
            raise UserError(
                f"{checkpoint} was not written by ArtGraphTrainer: its {TRAINER_STATE_NAME} has no record."
            )
        if "phase" in record["args"]:
            raise UserError(
                f"{checkpoint} was written by artgraph_vit 0.1, whose optimizers this version cannot go on with: "
                "finish the run with that version, or start anew in another output_dir; its model loads as ever."
            )
        return cls(**record["args"])

    def check_same(self, saved: RunRecord, checkpoint: str | Path) -> None:
        """Compares this run with the one that wrote a checkpoint.

        Raises:
            UserError: says what differs, and what to do.
        """
        if saved.train_rows != self.train_rows:
            raise UserError(
                f"{checkpoint} was made on {saved.train_rows} train artworks, and this run has {self.train_rows}: "
                "resume with the same data, or start anew in another output_dir."
            )
        defaults = source_recipe()
        # An option that did not exist when the checkpoint was written had what is its default now.
        saved_recipe = {**{name: defaults.get(name) for name in self.recipe}, **saved.recipe}
        names = {**saved_recipe, **self.recipe}
        differing = [name for name in names if saved_recipe.get(name) != self.recipe.get(name)]
        if differing:
            made = ", ".join(f"{name}={saved_recipe.get(name)}" for name in differing)
            wanted = ", ".join(f"{name}={self.recipe.get(name)}" for name in differing)
            raise UserError(
                f"{checkpoint} was made with {made}, and this run has {wanted}: resume with the same values, or start "
                "anew in another output_dir."
            )
        if saved.global_batch_size != self.global_batch_size:
            raise UserError(
                f"{checkpoint} was made with {saved.global_batch_size} artworks a step, and this run has "
                f"{self.global_batch_size} on {self.processes} process(es): choose per_device_train_batch_size and "
                f"gradient_accumulation_steps so that processes x rows x accumulation is {saved.global_batch_size}."
            )
        if saved.processes != self.processes:
            logger.warning(
                "%s was made on %s process(es), and this run has %s: it goes on exactly, but for what is drawn at "
                "random, such as dropout.",
                *(checkpoint, saved.processes, self.processes),
            )

    # A checkpoint of an epoch's last step is written at the epoch's end, after its log and evaluation: resumed from,
    # it starts with the next epoch, and both would be missing from the history.

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_save and float(state.epoch).is_integer():
            control.should_save = False
            self._save_at_epoch_end = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self._save_at_epoch_end:
            control.should_save = True
            self._save_at_epoch_end = False


def check_checkpoint(checkpoint: str, model: PreTrainedModel, args: ArtGraphTrainingArguments) -> None:
    """What a run needs to go on from a checkpoint, looked for before training rather than at its end.

    Raises:
        UserError: if it is of another model, has no optimizer, or the best checkpoint so far is not beside it.
    """
    folder = Path(checkpoint)
    saved_tasks = ArtGraphViTConfig.from_pretrained(checkpoint).tasks
    tasks: Any = model.config.tasks
    if saved_tasks != tasks:
        differing = ", ".join(task.name for task in tasks if task not in saved_tasks) or "fewer"
        raise UserError(
            f"{checkpoint} was made for other tasks or labels than this run's ({differing} differ): resume with the "
            "same data and options, or start anew in another output_dir."
        )
    if not (folder / "optimizer.pt").exists():
        raise UserError(
            f"{checkpoint} holds no optimizer, as with --save_only_model: a run cannot go on from it; start anew in "
            "another output_dir."
        )
    _check_tensors(folder, model)
    saved = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
    if args.load_best_model_at_end and saved.best_global_step:
        best = best_beside(checkpoint, saved)
        problem = verify_checkpoint(best) if best.is_dir() else "it is missing"
        if problem:
            raise UserError(
                f"The best checkpoint so far, {best}, is not whole: {problem}. Bring it back, or pass "
                "--load_best_model_at_end false to end with the last weights."
            )


def _check_tensors(folder: Path, model: PreTrainedModel) -> None:
    """`Trainer` loads what fits and warns of the rest: a checkpoint must hold exactly the model's tensors."""
    found: dict[str, list[int]] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    kinds = {
        "missing": wanted.keys() - found.keys(),
        "unexpected": found.keys() - wanted.keys(),
        "of another shape": {name for name in wanted.keys() & found.keys() if wanted[name] != found[name]},
    }
    problems = [f"{len(names)} {kind} ({', '.join(sorted(names)[:3])})" for kind, names in kinds.items() if names]
    if problems:
        raise UserError(
            f"{folder} does not hold exactly the model's tensors: {', '.join(problems)}. It was made by another model "
            "or another version; nothing can be resumed from it."
        )


# ---- writing them ----


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Turns a disk that is full or broken into one sentence, and takes the half-written checkpoint away.

    Raises:
        UserError: names the folder, the cause and the checkpoint that is still there.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch says by a RuntimeError that it could not write; a process that is gone says it by one too.
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in ("container", "stream", "writ")):
            raise
        if folder.name.startswith("checkpoint-"):
            shutil.rmtree(folder, ignore_errors=True)
        held = [path for path in _checkpoints(folder.parent) if path != folder and (path / MANIFEST).exists()]
        last = (
            f"{held[0].name} is whole: mend the disk and pass --resume_from_checkpoint last"
            if held
            else "no checkpoint was written before it: mend the disk, or choose another --output_dir"
        )
        raise UserError(f"{folder} could not be written ({one_line(error)}); {last}.") from error


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): choose another --output_dir.") from error


def check_free_space(args: ArtGraphTrainingArguments, model: PreTrainedModel) -> None:
    """Looks whether one checkpoint finds room: the weights, AdamW's two averages of each, and that of `ema_decay`.

    Raises:
        UserError: says how much is free and how much is needed.
    """
    if not args.should_save or args.save_strategy == "no":
        return
    copies = 1 if args.save_only_model else 3 + (args.ema_decay is not None)
    needed = copies * sum(p.numel() * p.element_size() for p in model.parameters())
    free = shutil.disk_usage(str(args.output_dir)).free
    if free < needed:
        raise UserError(
            f"{args.output_dir} has {free / 1e6:,.1f} MB free, and a checkpoint of this model needs "
            f"{needed / 1e6:,.1f} MB: free some space, or choose another --output_dir."
        )
