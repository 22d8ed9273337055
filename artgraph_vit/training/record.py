"""`RunRecord`: what a checkpoint says of its run beyond what `Trainer` writes, so that a resumed run is the same run.

It stands in trainer_state.json: the phase, whose optimizer the checkpoint holds; what the run that resumes must have
in common with it; and the sums that were not logged yet.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..errors import UserError
from .recipe import source_recipe


class RunRecord(TrainerCallback, ExportableState):
    """The record of a run; also sees to it that a checkpoint of an epoch's last step holds the epoch's end.

    Args:
        phase (`str`, *optional*): `"heads"` or `"full"`; None before training.
        recipe (`dict`, *optional*): the options that decide what the run learns.
        train_rows (`int`, *optional*): in the train split.
        global_batch_size (`int`, *optional*): rows of an optimizer step, over all processes and micro-batches.
        processes (`int`, *optional*): how many there are.
        unlogged (`dict`, *optional*): what was summed up since the last log, see `ArtGraphTrainer`.
    """

    def __init__(
        self,
        phase: str | None = None,
        recipe: dict[str, Any] | None = None,
        train_rows: int | None = None,
        global_batch_size: int | None = None,
        processes: int | None = None,
        unlogged: dict[str, Any] | None = None,
    ):
        self.phase = phase
        self.recipe = recipe
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
            UserError: if there is none.
        """
        state = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
        record = state.get("stateful_callbacks", {}).get(cls.__name__)
        if record is None:
            raise UserError(f"{checkpoint} was not written by ArtGraphTrainer: its trainer_state.json has no record.")
        return cls(**record["args"])

    def refuse_other(self, saved: RunRecord, checkpoint: str | Path) -> None:
        """Compares this run with the one that wrote a checkpoint.

        Raises:
            UserError: says what differs, and what to do.
        """
        if saved.train_rows != self.train_rows:
            raise UserError(
                f"{checkpoint} was made on {saved.train_rows} train artworks, and this run has {self.train_rows}: "
                "resume with the same data, or start anew in another output_dir."
            )
        recipe, defaults = self.recipe or {}, source_recipe()
        # An option that did not exist when the checkpoint was written had what is its default now.
        saved_recipe = {**{name: defaults.get(name) for name in recipe}, **(saved.recipe or {})}
        differing = [name for name in {**saved_recipe, **recipe} if saved_recipe.get(name) != recipe.get(name)]
        if differing:
            made = ", ".join(f"{name}={saved_recipe.get(name)}" for name in differing)
            wanted = ", ".join(f"{name}={recipe.get(name)}" for name in differing)
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
