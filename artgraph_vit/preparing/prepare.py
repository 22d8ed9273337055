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
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.utils import logging

from ..data.sources.prepared import write_vocabulary
from ..errors import UserError
from ..tasks import Task
from .dataset_card import DatasetCardOptions, write_dataset_card
from .duplicates import exact_duplicates, near_duplicates
from .encoding import PictureEncoder
from .shards import plan_shards, write_shards, written_whole

logger = logging.get_logger(__name__)

REPORT = "report.json"
UNFINISHED = ".unfinished"


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
        UserError: if the folder holds something else, or cannot be written.
    """
    plan = _plan(rows, tasks, encoder, shard_rows)
    work = folder / UNFINISHED
    if (folder / REPORT).is_file() and not work.exists():
        report = _read_report(folder)
        if report.get("plan") != plan:
            raise UserError(f"{folder} holds another prepared dataset: choose another folder, or delete it.")
        logger.warning("%s is prepared already.", folder)
        return report
    _begin(folder, work, plan)
    outcomes = write_shards(
        plan_shards(rows, shard_rows), encoder, folder / "data", work, num_processes, on_bad_image, progress
    )
    good = [outcome for outcome in outcomes if "problem" not in outcome]
    _refuse_empty_split(good)
    report = {"plan": plan, **_report(outcomes, good, progress)}
    write_vocabulary(folder, tasks)
    write_dataset_card(folder, rows, tasks, report, card)
    with written_whole(folder / REPORT) as part:
        part.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.rmtree(work)
    return report


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


def _begin(folder: Path, work: Path, plan: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if work.is_dir():
            if (work / "plan").read_text() != plan:
                raise UserError(
                    f"{folder} was begun from other data or with other options: choose another folder, or delete it."
                )
        elif any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and no dataset that was begun here: choose another folder.")
        else:
            part = folder / f"{UNFINISHED}.part"
            part.mkdir()
            (part / "plan").write_text(plan)
            part.rename(work)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose another folder.") from error


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
        "near_duplicates_across_splits": near_duplicates(names, splits, thumbnails, progress),
    }


def _refuse_empty_split(good: list[dict]) -> None:
    for split in ("train", "validation", "test"):
        if not any(outcome["split"] == split for outcome in good):
            raise UserError(f"No picture of the split {split!r} can be read, so there is nothing to prepare.")


def _read_report(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / REPORT} is not valid JSON ({error}): choose another folder.") from error
