"""What a person sees while training: one progress bar, and one short table an epoch.

The bar names the phase, the epoch, the loss of each task and the rows per second; the table has a line a task: train
and validation loss, macro F1 on the validation split, and the task's weight 1/σ².
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

from transformers import ProgressCallback

SECONDS_BETWEEN_LOSSES = 2.0  # on the bar


class EpochTable(ProgressCallback):
    """Takes the place of `Trainer`'s progress bar, whose logs are long lines of JSON; `running_losses` gives the loss
    of each task since the last log."""

    def __init__(self, running_losses: Callable[[], dict[str, float]], rows_a_step: int):
        super().__init__()
        self.running_losses = running_losses
        self.rows_a_step = rows_a_step
        self._next_losses = 0.0

    def on_epoch_begin(self, args, state, control, **kwargs):
        super().on_epoch_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.unit, self.training_bar.unit_scale = "row", self.rows_a_step
            epoch = int(state.epoch or 0)
            phase = "heads" if epoch < args.frozen_epochs else "full"
            self.training_bar.set_description(f"phase {phase}, epoch {epoch + 1}/{args.num_train_epochs:g}")

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if self.training_bar is not None and time.monotonic() > self._next_losses:  # reading them makes a GPU wait
            self._next_losses = time.monotonic() + SECONDS_BETWEEN_LOSSES
            losses = {name: f"{loss:.3g}" for name, loss in self.running_losses().items()}
            self.training_bar.set_postfix(losses, refresh=False)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Nothing: the table says it, and trackers have it."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        super().on_evaluate(args, state, control, **kwargs)
        if self.training_bar is not None and "eval_avg_macro_f1" in (metrics or {}):
            trained = next((logs for logs in reversed(state.log_history) if "learning_rate" in logs), {})
            tasks = [task.name for task in kwargs["model"].config.tasks]
            self.training_bar.write(epoch_table(tasks, trained | metrics))


def epoch_table(tasks: Sequence[str], log: Mapping[str, float]) -> str:
    """The table of one epoch, from its train log and its evaluation together; what was not logged is nan."""
    lines = [f"epoch {log.get('epoch', 0):g}{'train loss':>20}{'val loss':>10}{'val F1':>9}{'weight':>9}"]
    for task in tasks:
        names = (f"{task}_loss", f"eval_{task}_loss", f"eval_{task}_macro_f1", f"{task}_weight")
        values = (log.get(name, math.nan) for name in names)
        lines.append("  {:<15.15} {:>10.4f}{:>10.4f}{:>9.3f}{:>9.3f}".format(task, *values))
    total = (log.get(name, math.nan) for name in ("loss", "eval_loss", "eval_avg_macro_f1"))
    return "\n".join([*lines, "  total / average {:>10.4f}{:>10.4f}{:>9.3f}".format(*total)])
