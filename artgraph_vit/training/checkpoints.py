"""Checkpoints that can be trusted: which one a run starts from, and whether it is whole.

One that is not whole (see loading.py) is named, and the newest whole one is used.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import logging

from ..errors import UserError
from ..loading import MANIFEST, verify_checkpoint
from .arguments import ArtGraphTrainingArguments

logger = logging.get_logger(__name__)


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
    if checkpoint is not None and not (Path(checkpoint) / "trainer_state.json").is_file():
        raise UserError(
            f"Process {args.process_index} does not see {checkpoint}: put output_dir on a disk that all machines "
            "share, or pass --save_on_each_node true from the start."
        )
    return checkpoint


def _decide(folder: Path, wanted: str | bool | None) -> str | None:
    _refuse_read_only(folder)
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
    if not (checkpoint / "trainer_state.json").is_file():
        raise UserError(f"{checkpoint} is not a checkpoint of a run: it has no trainer_state.json.")
    problem = verify_checkpoint(checkpoint)
    if problem:
        raise UserError(f"{checkpoint} is not whole: {problem}. Resume from another checkpoint.")
    return str(checkpoint)


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and path.name.split("-")[1].isdecimal()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def _newest_whole(folder: Path) -> Path | None:
    for path in _checkpoints(folder):
        problem = verify_checkpoint(path)
        if problem is None:
            return path
        logger.warning_once("%s is not whole (%s) and is left out.", path, problem)
    return None


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
            else ("no checkpoint was written before it: mend the disk, or choose another --output_dir")
        )
        cause = " ".join(str(error).split())
        raise UserError(f"{folder} could not be written ({cause}); {last}.") from error


def _refuse_read_only(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): choose another --output_dir.") from error


def refuse_full_disk(args: ArtGraphTrainingArguments, model: PreTrainedModel) -> None:
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
