"""`prepare_dataset`: shards, vocabulary, report and card of a dataset, in one folder that training reads.

A shard is a fixed stretch of the rows of a split. The folder of a run that was stopped holds `.unfinished/` with the
plan, which is all that the bytes depend on, and for each whole shard what became of its rows; a run goes on only with
the same plan, and its files are the same bytes as if it had not been stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from datasets import Dataset, Features, Image
from huggingface_hub import DatasetCard, DatasetCardData
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.decoding import Batch, Picture, Unreadable, default_workers, process_pictures
from ..data.options import option
from ..data.sources.datasets_source import UNFINISHED, write_vocabulary
from ..data.splits import SHARES, divide_by_split
from ..data.vocabulary import known_row_count, label_counts
from ..errors import UserError
from ..files import atomic_write, folder_lock, writing
from ..model.tasks import Task
from .duplicates import exact_duplicates, near_duplicates
from .encoding import EncodedPicture, PictureEncoder

logger = logging.get_logger(__name__)

REPORT = "report.json"
TEMPLATE = Path(__file__).with_name("dataset_card.md")
SHOWN_LABELS = 40
BATCH = 16  # pictures that a process gets at a time
OTHER_DATA = "other data, options or versions of the libraries: choose another folder, or delete it."
_WRITERS = ("datasets", "Pillow", "pyarrow", "transformers")  # other versions may write other bytes


@dataclass
class DatasetCardOptions:
    """What the dataset's card says that the data does not."""

    _argument_group_name: ClassVar[str] = "dataset card"

    dataset_name: str = option("Artworks", "What the dataset is called in its card.")
    data_license: str | None = option(None, "Licence of the pictures and labels.")
    language: str | None = option(None, "Language of the labels, such as en.")


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
        num_processes (`int`, *optional*): by default one a core, but no more than one for 256 pictures.
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
        if (folder / REPORT).is_file():  # the dataset is whole, whatever its run left to tidy up
            report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
            if report.get("plan") != plan:
                raise UserError(f"{folder} was prepared from {OTHER_DATA}")
            logger.warning("%s is prepared already; its card is written anew.", folder)
        else:
            work = _begin(folder, plan)
            shards = _plan_shards(rows, shard_rows, folder / "data", work)
            num_workers = default_workers(len(rows), num_processes)
            outcomes = _write_shards(shards, encoder, num_workers, on_bad_image, progress)
            good = [outcome for outcome in outcomes if "problem" not in outcome]
            bad = [outcome for outcome in outcomes if "problem" in outcome]
            _refuse_missing_split([outcome["split"] for outcome in good], "has no picture that can be read")
            report = {
                "plan": plan,
                "stored": encoder.description,
                "artworks": len(good),
                "left_out": [{"name": row["name"], "split": row["split"], "reason": row["problem"]} for row in bad],
                "duplicates": exact_duplicates(good),
                "near_duplicates_across_splits": near_duplicates(good, progress),
            }
            write_vocabulary(folder, tasks)
        _write_card(folder, rows, tasks, report, card)
        with atomic_write(folder / REPORT) as part:  # the report comes last: where it is, all is
            part.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if (folder / UNFINISHED).exists():
            shutil.rmtree(folder / UNFINISHED)
    return report


def _begin(folder: Path, plan: str) -> Path:
    """The work folder, which holds the plan as long as there is no report."""
    work = folder / UNFINISHED
    plan = "\n".join([plan, *(f"{name} {version(name)}" for name in _WRITERS)])
    if not (work / "plan").is_file():
        if any(path != work for path in folder.iterdir()):
            raise UserError(f"{folder} is not empty and no dataset that was begun here: choose another folder.")
        work.mkdir(exist_ok=True)
        with atomic_write(work / "plan") as part:
            part.write_text(plan)
    elif (work / "plan").read_text() != plan:
        raise UserError(f"{folder} was begun from {OTHER_DATA}")
    return work


def _plan(rows: Dataset, tasks: Sequence[Task], encoder: PictureEncoder, shard_rows: int) -> str:
    """A hash of all that the bytes depend on; of a picture's file its name, size and date, of embedded ones all."""
    settings = [encoder.settings(), shard_rows, [task.to_dict() for task in tasks]]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for row in rows:
        image = row.pop("image")
        if image["bytes"] is not None:
            row["image"] = hashlib.sha256(image["bytes"]).hexdigest()
        else:
            stat = os.stat(image["path"]) if os.path.exists(image["path"]) else None
            row["image"] = stat and [stat.st_size, stat.st_mtime_ns]
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


# ---- shards ----


class Shard(NamedTuple):
    """A file of a split, the record of what became of its rows, and the rows, whether or not they can be read."""

    path: Path
    record: Path
    split: str
    rows: Dataset


def _plan_shards(rows: Dataset, shard_rows: int, data: Path, work: Path) -> list[Shard]:
    shards = []
    for split, part in divide_by_split(rows).items():
        starts = range(0, len(part), shard_rows)
        for number, start in enumerate(starts):
            name = f"{split}-{number:05d}-of-{len(starts):05d}"
            stretch = part.select(range(start, min(start + shard_rows, len(part))))
            shards.append(Shard(data / f"{name}.parquet", work / f"{name}.json", str(split), stretch))
    return shards


def _write_shards(
    shards: Sequence[Shard], encoder: PictureEncoder, num_workers: int, on_bad_image: str, progress: bool
) -> list[dict[str, Any]]:
    """Writes those that are not there yet; returns of each row what its record in the work folder says."""
    shards[0].path.parent.mkdir(exist_ok=True)
    missing = [shard for shard in shards if not (shard.path.is_file() and shard.record.is_file())]

    def batches() -> Iterator[Batch]:
        """Pictures that have the number of their shard; no batch holds those of two."""
        for number, shard in enumerate(missing):
            for rows in shard.rows.select_columns(["name", "image"]).iter(BATCH):
                yield [Picture(number, *pair) for pair in zip(rows["name"], rows["image"], strict=True)]

    left = sum(len(shard.rows) for shard in missing)
    with tqdm(total=left, desc="Preparing", unit="picture", disable=not progress) as bar:
        results: list[EncodedPicture | Unreadable] = []
        for batch, found in process_pictures(batches(), encoder, num_workers):
            for picture, result in zip(batch, found, strict=True):
                if on_bad_image == "stop" and isinstance(result, Unreadable):
                    raise UserError(
                        f"The picture {picture.name!r} cannot be read ({result.reason}): mend it, or pass "
                        "on_bad_image=skip to leave such pictures out."
                    )
            results += found
            bar.update(len(batch))
            shard = missing[batch[0].number]
            if len(results) == len(shard.rows):
                _write_shard(shard, results, encoder.suffix)
                results = []
    return [outcome for shard in shards for outcome in json.loads(shard.record.read_text(encoding="utf-8"))]


def _write_shard(shard: Shard, results: Sequence[EncodedPicture | Unreadable], suffix: str) -> None:
    stored, outcomes, kept = [], [], []
    for index, (name, result) in enumerate(zip(shard.rows["name"][:], results, strict=True)):
        about = {"name": name, "split": shard.split}
        if isinstance(result, Unreadable):
            outcomes.append({**about, "problem": result.reason})
        else:
            kept.append(index)
            stored.append({"bytes": result.data, "path": f"{Path(name).stem}{suffix}"})
            outcomes.append({**about, "digest": result.digest, "thumbnail": result.thumbnail.hex()})
    labels = shard.rows.select(kept).remove_columns("image")
    features = Features({"image": Image(), **labels.features})
    with atomic_write(shard.path) as part:
        Dataset.from_dict({"image": stored, **labels.to_dict()}, features=features).to_parquet(part)
    with atomic_write(shard.record) as part:
        part.write_text(json.dumps(outcomes, ensure_ascii=False), encoding="utf-8")


def _refuse_missing_split(splits: Sequence[str], what: str) -> None:
    for split in SHARES:
        if split not in splits:
            raise UserError(f"The split {split!r} {what}: give it some, or leave all splits out to have them made.")


# ---- card ----


def _write_card(
    folder: Path, rows: Dataset, tasks: Sequence[Task], report: Mapping[str, Any], options: DatasetCardOptions
) -> None:
    """Writes `README.md` and `figures/<task>.png`; what the report leaves out is not counted."""
    left_out = {(entry["name"], entry["split"]) for entry in report["left_out"]}
    keys = list(zip(rows["name"][:], rows["split"][:], strict=True))
    rows = rows.select([index for index, key in enumerate(keys) if key not in left_out])
    parts = divide_by_split(rows)
    (folder / "figures").mkdir(exist_ok=True)
    summaries = []
    for task in tasks:
        counts = label_counts(rows, task).tolist()
        _histogram(task, counts).savefig(folder / "figures" / f"{task.name}.png", dpi=110, metadata={"Software": None})
        known = {split: known_row_count(part, task) for split, part in parts.items()}
        fewest, most = min(filter(None, counts), default=0), max(counts)
        summaries.append({"task": task, "known": known, "fewest": fewest, "most": most})
    data_files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in parts]
    data = DatasetCardData(
        license=options.data_license,
        language=options.language,
        pretty_name=options.dataset_name,
        task_categories=["image-classification"],
        tags=["art"],
        configs=[{"config_name": "default", "data_files": data_files}],
    )
    card = DatasetCard.from_template(
        data,
        template_path=str(TEMPLATE),
        options=options,
        summaries=summaries,
        pictures={split: len(part) for split, part in parts.items()},
        report=report,
        folder=folder.resolve().name,
    )
    (folder / "README.md").write_text(str(card), encoding="utf-8")


def _histogram(task: Task, counts: Sequence[int]) -> Figure:
    """How many artworks carry each label, most first; of many labels the first forty."""
    ordered = sorted(zip(counts, task.labels, strict=True), key=lambda pair: (-pair[0], pair[1]))
    shown = ordered[:SHOWN_LABELS]
    figure = Figure(figsize=(7, 1.1 + 0.19 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.barh([label.replace("$", r"\$") for _, label in shown], [count for count, _ in shown], color="#0072B2")
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    rest = ordered[SHOWN_LABELS:]
    more = f"; {len(rest)} more labels on {rest[0][0]} artworks or fewer" if rest else ""
    axes.set_title(f"{task.name}: {task.num_labels} labels{more}", fontsize=10, loc="left")
    axes.set_xlabel("artworks")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
