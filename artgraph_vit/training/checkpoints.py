"""Which checkpoint a run starts from, decided before anything is loaded.

`resume_from_checkpoint` is a path, `last` (the newest in the output folder; it must exist) or `auto` (the same, or a
fresh start if there is none). Without it, an output folder that holds checkpoints is another run's, and kept safe.
"""

from __future__ import annotations

from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ..errors import UserError


def checkpoint_to_resume(args: TrainingArguments) -> str | None:
    """The folder of the checkpoint to resume from, or None for a fresh start.

    Raises:
        UserError: if the checkpoint asked for does not exist, or the output folder holds another run.
    """
    wanted = args.resume_from_checkpoint
    folder = str(args.output_dir)
    newest = get_last_checkpoint(folder) if Path(folder).is_dir() else None
    if wanted in (None, False, "false", ""):
        if newest is not None:
            raise UserError(
                f"{args.output_dir} already holds a run ({Path(newest).name}): continue it with "
                "--resume_from_checkpoint last, or choose another --output_dir."
            )
        return None
    if wanted == "auto":
        return newest
    if wanted in (True, "true", "last"):
        if newest is None:
            raise UserError(
                f"{args.output_dir} holds no checkpoint to resume from; leave --resume_from_checkpoint out."
            )
        return newest
    if not (Path(wanted) / "trainer_state.json").is_file():
        raise UserError(f"{wanted} is not a checkpoint of a run: it has no trainer_state.json.")
    return str(wanted)
