"""The card of a prepared dataset: `README.md` with its counts, and a histogram of each task's labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset
from huggingface_hub import DatasetCard, DatasetCardData
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..data.splits import divide_by_split
from ..data.vocabulary import known_row_count, label_counts
from ..model.tasks import Task

TEMPLATE = Path(__file__).with_name("dataset_card.md")
SHOWN_LABELS = 40


@dataclass
class DatasetCardOptions:
    """What the dataset's card says that the data does not."""

    _argument_group_name: ClassVar[str] = "dataset card"

    dataset_name: str = field(default="Artworks", metadata={"help": "What the dataset is called in its card."})
    data_license: str | None = field(default=None, metadata={"help": "Licence of the pictures and labels."})
    language: str | None = field(default=None, metadata={"help": "Language of the labels, such as en."})


def write_dataset_card(
    folder: Path, rows: Dataset, tasks: Sequence[Task], report: Mapping[str, Any], options: DatasetCardOptions
) -> None:
    """Writes `README.md` and `figures/<task>.png` of encoded rows with a column `split`, without counting those that
    the report leaves out."""
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
