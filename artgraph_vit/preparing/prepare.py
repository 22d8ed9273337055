"""`prepare_dataset`: shards, vocabulary, report and card of a dataset, in one folder that training reads.

The folder of a run that was stopped holds `.unfinished/` with the plan and what is done; a run goes on only with the
same plan, which is all that the bytes depend on, and the files are the same bytes as if it had not been stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.utils import logging

from ..data.sources.prepared import UNFINISHED, write_vocabulary
from ..data.splits import SHARES
from ..errors import UserError
from ..files import atomic_write, folder_lock, writing
from ..model.tasks import Task
from .dataset_card import DatasetCardOptions, write_dataset_card
from .duplicates import exact_duplicates, near_duplicates
from .encoding import PictureEncoder
from .shards import plan_shards, write_shards

logger = logging.get_logger(__name__)

REPORT = "report.json"
_WRITERS = ("datasets", "Pillow", "pyarrow", "transformers")  # other versions may write other bytes


def prepare_dataset(
    rows: Dataset,
    tasks: Sequence[Task],
    folder: Path,
    encoder: PictureEncoder,
    card: DatasetCardOptions,
    num_processes: int | None = None,
    on_bad_image: str = "skip",
    progress: bool = True,
    shard_rows: int = 1000,
) -> dict[str, Any]:
    """Writes `data/*.parquet`, `vocabulary.json`, `report.json`, `README.md` and `figures/`, or goes on with it.

    Args:
        rows (`Dataset`): encoded rows of all splits, with undecoded pictures and a column `split`.
        tasks (`Sequence[Task]`): with their labels.
        folder (`Path`): empty, or left by such a run.
        encoder ([`PictureEncoder`]): makes what is stored of a picture.
        card ([`DatasetCardOptions`]): what the card says that the data does not.
        num_processes (`int`, *optional*, defaults to the number of cores).
        on_bad_image (`str`, *optional*, defaults to `"skip"`): `"skip"` leaves pictures out that cannot be read,
            `"stop"` ends the run at the first.
        progress (`bool`, *optional*, defaults to `True`): show progress bars.
        shard_rows (`int`, *optional*, defaults to 1000): rows a shard.

    Returns:
        The report.

    Raises:
        UserError: if the folder holds something else, or cannot be written, or a split has no picture.
    """
    _refuse_missing_split(rows["split"][:], "has no artwork")
    plan = _plan(rows, tasks, encoder, shard_rows)
    with folder_lock(folder), writing(folder):
        report = _finished(folder)
        if report is None:
            work = _begin(folder, plan)
            outcomes = write_shards(
                plan_shards(rows, shard_rows), encoder, folder / "data", work, num_processes, on_bad_image, progress
            )
            good = [outcome for outcome in outcomes if "problem" not in outcome]
            _refuse_missing_split([outcome["split"] for outcome in good], "has no picture that can be read")
            report = {"plan": plan, "stored": encoder.description, **_report(outcomes, good, progress)}
            write_vocabulary(folder, tasks)
        elif report.get("plan") != plan:
            raise UserError(
                f"{folder} holds a dataset that was prepared from other data or with other options: choose another "
                "folder, or delete it."
            )
        else:
            logger.warning("%s is prepared already; its card is written anew.", folder)
        write_dataset_card(folder, rows, tasks, report, card)
        _finish(folder, report)
    return report


# ---- going on, and being done ----


def _finished(folder: Path) -> dict[str, Any] | None:
    """The report of a dataset that is whole, whatever its run left to tidy up."""
    path = folder / REPORT
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(report, dict):
            raise ValueError("it holds no object")
        return report
    except ValueError as error:
        raise UserError(f"{path} is no report of a prepared dataset ({error}): choose another folder.") from error


def _begin(folder: Path, plan: str) -> Path:
    """The work folder, which holds the plan as long as there is no report."""
    work, beginning = folder / UNFINISHED, folder / f"{UNFINISHED}.part"
    plan = "\n".join([plan, *(f"{name} {version(name)}" for name in _WRITERS)])
    if beginning.exists():
        shutil.rmtree(beginning)  # its run was stopped before it began
    if work.is_dir():
        if (work / "plan").read_text() != plan:
            raise UserError(
                f"{folder} was begun from other data, with other options or with other versions of the libraries: "
                "choose another folder, or delete it."
            )
        return work
    if any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and no dataset that was begun here: choose another folder.")
    beginning.mkdir()
    with atomic_write(beginning / "plan") as part:
        part.write_text(plan)
    beginning.rename(work)
    return work


def _finish(folder: Path, report: dict[str, Any]) -> None:
    """The report comes last: where it is, all is. The work folder goes then, in one step before its files do."""
    with atomic_write(folder / REPORT) as part:
        part.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    work, done = folder / UNFINISHED, folder / f"{UNFINISHED}.done"
    if done.exists():
        shutil.rmtree(done)
    if work.exists():
        work.rename(done)
        shutil.rmtree(done)


def _plan(rows: Dataset, tasks: Sequence[Task], encoder: PictureEncoder, shard_rows: int) -> str:
    """A hash of all that the bytes depend on; of a picture's file its name, size and date, of embedded ones all."""
    digest = hashlib.sha256()
    settings = [encoder.settings(), shard_rows, [task.to_dict() for task in tasks]]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for row in rows:
        image = row.pop("image")
        if image["bytes"] is not None:
            row["image"] = hashlib.sha256(image["bytes"]).hexdigest()
        else:
            stat = os.stat(image["path"]) if os.path.exists(image["path"]) else None
            row["image"] = stat and [stat.st_size, stat.st_mtime_ns]
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def _report(outcomes: list[dict], good: list[dict], progress: bool) -> dict[str, Any]:
    names, splits, digests = ([outcome[key] for outcome in good] for key in ("name", "split", "digest"))
    thumbnails = [bytes.fromhex(outcome["thumbnail"]) for outcome in good]
    return {
        "artworks": len(good),
        "left_out": [
            {"name": outcome["name"], "split": outcome["split"], "reason": outcome["problem"]}
            for outcome in outcomes
            if "problem" in outcome
        ],
        "duplicates": exact_duplicates(names, splits, digests),
        "near_duplicates_across_splits": near_duplicates(names, splits, digests, thumbnails, progress),
    }


def _refuse_missing_split(splits: Sequence[str], what: str) -> None:
    for split in SHARES:
        if split not in splits:
            raise UserError(f"The split {split!r} {what}: give it some, or leave all splits out to have them made.")
