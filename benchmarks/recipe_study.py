"""The source recipe against the strong one, and against each of its options alone: macro F1 on the test split.

How: every recipe is trained with several seeds, on the same artworks, for the same number of epochs, by the same code
as scripts/train.py. A seed decides on the fresh weights, the order of the rows and the augmentation. Thresholds are
chosen on the validation split in every run, so each has two figures: at p > 0.5, and with its thresholds. The gain is
against the source recipe at p > 0.5 with the same seed; its 95 % interval is that of the mean over the seeds
(Student's t), so it holds for these artworks and other seeds. The strong recipe was put together from options that
gained here, on the validation and the test split alike, so its own figure is flattered a little by the choice.

Not among the options alone: stochastic depth (a ViT has none), larger pictures (they are no equal compute) and fixed
weights (whoever fixes them has to choose them).

The embedded dataset in its hard setting: long tails, wrong and forgotten labels, worn pictures; 500 artworks to train
on. A small ViT is trained on other paintings first, so that there is something to fine-tune. On 2 cores, one run a
core, the whole takes about an hour. Started again, it goes on: runs that are done are not repeated.

    python benchmarks/recipe_study.py --out benchmarks/recipe_study.md --plot benchmarks/recipe_study.png
    python benchmarks/recipe_study.py configs/artgraph.yaml --source /data/artgraph --study_folder runs/study

The second is the same study on ArtGraph: any options of train.py set the ground on which the recipes are compared.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, ClassVar

import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measure import machine
from scipy.stats import t as student
from transformers import AutoImageProcessor, HfArgumentParser

from artgraph_vit import ArtGraphViTForImageClassification
from artgraph_vit.data.demo import paint_artgraph
from artgraph_vit.data.options import DataArguments
from artgraph_vit.errors import UserError, run_script
from artgraph_vit.files import atomic_write
from artgraph_vit.publishing.card import CardOptions
from artgraph_vit.training.arguments import ArtGraphTrainingArguments, ModelArguments
from artgraph_vit.training.options import parse_options
from artgraph_vit.training.run import train as run

ROOT = Path(__file__).parents[1]
SOURCE, STRONG = "source recipe", "strong recipe"
# What the ground of the comparison decides, and the strong recipe does not.
GROUND = {"backbone", "min_count", "num_train_epochs", "frozen_epochs", "per_device_train_batch_size", "seed"}
GROUND |= {"learning_rate", "frozen_learning_rate", "output_dir", "dataloader_num_workers", "dataset_name", "language"}
GROUND |= {"recipe_name", "tune_thresholds"}  # the last in every run
# 1/(1 - decay) steps are about 1.3 epochs of ArtGraph's 81,500 train artworks, and of the 500 here.
EMBEDDED_SCALE = {"ema_decay": 0.95}
TWICE = "twice the ground's"
ALONE: dict[str, dict[str, Any]] = {
    "log variances start at the prior": {"log_variance_init": "auto"},
    "equal task weights": {"task_weighting": "equal"},
    "class weights: square root": {"class_weights": "sqrt"},
    "class weights: none": {"class_weights": "none"},
    "positives weigh up to 5": {"max_positive_weight": 5.0},
    "random crops": {"crop_scale": 0.6},
    "random flips": {"horizontal_flip": True},
    "random colours": {"color_jitter": 0.2},
    "mixup": {"mixup_alpha": 0.2},
    "label smoothing": {"label_smoothing": 0.1},
    "average of the weights": {"ema_decay": 0.9997},
    "layer-wise learning rates": {"layer_decay": 0.75},
    "twice the learning rate": {"learning_rate": TWICE},
    "cosine schedule with warm-up": {"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
    "cosine schedule, twice the learning rate": {
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "learning_rate": TWICE,
    },
    "pooling: mean": {"pooling": "mean"},
    "pooling: CLS and mean": {"pooling": "cls_mean"},
}
OPTION_CLASSES = (ModelArguments, DataArguments, CardOptions, ArtGraphTrainingArguments)


@dataclass
class StudyArguments:
    """The study itself."""

    _argument_group_name: ClassVar[str] = "study"

    study_folder: str = field(default="runs/recipe-study", metadata={"help": "Where the runs are kept."})
    seeds: int = field(default=3, metadata={"help": "Seeds of each option alone."})
    recipe_seeds: int = field(default=5, metadata={"help": "Seeds of the source recipe and the strong one."})
    only: list[str] = field(default_factory=list, metadata={"help": "Names of options; by default all of them."})
    parallel: int | None = field(
        default=None, metadata={"help": "Runs at a time; by default one a core, or one on a GPU."}
    )
    quick: bool = field(default=False, metadata={"help": "Tiny and short: shows that it runs, measures nothing."})
    out: Path | None = field(default=None, metadata={"help": "Write the table to this file too."})
    plot: Path | None = field(default=None, metadata={"help": "Draw the gains into this file."})

    def __post_init__(self) -> None:
        unknown = [name for name in self.only if name not in ALONE]
        if unknown:
            raise ValueError(f"only names {unknown[0]!r}; the options are {', '.join(ALONE)}.")
        if self.seeds < 2 or self.recipe_seeds < self.seeds:
            raise ValueError(
                f"seeds={self.seeds}, recipe_seeds={self.recipe_seeds}: an interval needs at least 2 seeds, and the "
                "recipes at least as many as the options."
            )


# ---- the recipes ----


def strong_recipe() -> dict[str, Any]:
    """What configs/artgraph-strong.yaml sets, but for the ground of the comparison."""
    strong, source = (
        yaml.safe_load((ROOT / "configs" / name).read_text(encoding="utf-8"))
        for name in ("artgraph-strong.yaml", "artgraph.yaml")
    )
    recipe = {name: value for name, value in strong.items() if name not in GROUND and source.get(name) != value}
    if float(strong["learning_rate"]) == 2 * float(source["learning_rate"]):
        recipe["learning_rate"] = TWICE
    return recipe


def recipes(given: StudyArguments, words: Sequence[str], is_embedded: bool) -> dict[str, dict[str, Any]]:
    """By name, what each sets beside the ground, which is given as the words of train.py's command line."""
    alone = {name: options for name, options in ALONE.items() if not given.only or name in given.only}
    scale = dict(EMBEDDED_SCALE if is_embedded else {})
    *_, args = parse_options(OPTION_CLASSES, words)
    chosen = {}
    for name, options in {SOURCE: {}, STRONG: strong_recipe(), **alone}.items():
        chosen[name] = {**options, **{option: scale[option] for option in scale if option in options}}
        if options.get("learning_rate") == TWICE:
            chosen[name]["learning_rate"] = 2 * args.learning_rate
    return chosen


# ---- the ground ----


def embedded_ground(folder: Path, quick: bool) -> list[str]:
    """Options of the study on the embedded dataset: a small ViT that knows other paintings, and few, hard ones."""
    backbone = folder / "backbone"
    if not (backbone / "model.safetensors").is_file():
        paint_artgraph(folder / "other-paintings", 400 if quick else 2400, seed=1)
        torch.set_num_threads(1)  # so that it is the same backbone on any machine with the same libraries
        train(
            as_words(
                source=folder / "other-paintings",
                min_count=5 if quick else 25,
                backbone=ROOT / "configs" / "demo-backbone",
                from_scratch=True,
                num_train_epochs=1 if quick else 24,
                frozen_epochs=0,
                learning_rate=1e-3,
                head_dropout=0.1,
                lr_scheduler_type="cosine",
                warmup_steps=0.1,
                output_dir=folder / "first",
                resume_from_checkpoint="auto",
                report_to="none",
            )
        )
        _save_backbone(folder / "first", backbone)
    paintings, artworks = folder / "paintings", 200 if quick else 2000
    paint_artgraph(paintings, artworks, setting="hard")  # here, since runs that start together would all do it
    return as_words(
        source="embedded",
        embedded_setting="hard",
        embedded_artworks=artworks,
        embedded_folder=paintings,
        min_count=5 if quick else 15,
        backbone=backbone,
        num_train_epochs=2 if quick else 16,
        frozen_epochs=1 if quick else 2,
        frozen_learning_rate=1e-3,
        learning_rate=3e-4,
    )


def _save_backbone(trained: Path, folder: Path) -> None:
    unfinished = folder.with_name("backbone.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    model = ArtGraphViTForImageClassification.from_pretrained(trained)
    model.backbone.save_pretrained(unfinished)
    AutoImageProcessor.from_pretrained(trained).save_pretrained(unfinished)
    unfinished.rename(folder)


# ---- the runs ----


def as_words(**options: Any) -> list[str]:
    """Options as they stand on the command line of train.py."""
    return [
        f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"
        for name, value in options.items()
        if value is not None
    ]


def train(words: Sequence[str]) -> dict[str, Any]:
    """One run, as scripts/train.py makes it with these options."""
    return vars(run(*parse_options(OPTION_CLASSES, words)))


def run_quietly(name: str, words: list[str], path: Path, threads: int) -> tuple[str, float]:
    """In another process: trains, and keeps the figures under `path`. Returns the name and the score."""
    torch.set_num_threads(threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".log"), "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        results = train([*words, *as_words(output_dir=path.with_suffix(""), resume_from_checkpoint="auto")])
    kept = {
        "options": words,
        "tuned": results["metrics"],
        "at_half": results["metrics_at_half"],
        "validation": results["tuning"]["validation"]["metrics_at_half"]["avg_macro_f1"],
        "best_epoch": results["best_epoch"],
    }
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(kept, indent=2), encoding="utf-8")
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)  # the figures are what is asked for
    return name, results["metrics"]["avg_macro_f1"]


def run_all(
    given: StudyArguments, chosen: Mapping[str, dict[str, Any]], ground: Sequence[str]
) -> dict[str, dict[int, dict[str, Any]]]:
    """Trains what is not there yet. By recipe and seed, the figures of the runs."""
    folder = Path(given.study_folder)
    wanted, waiting = {}, {}
    for name, overrides in chosen.items():
        for seed in range(given.recipe_seeds if name in (SOURCE, STRONG) else given.seeds):
            run_name = f"{'-'.join(name.split())}-{seed}".replace(":", "")
            path = folder / "runs" / f"{run_name}.json"
            kept_in = {"feature_cache_dir": folder / "features", "disable_tqdm": True, "report_to": "none"}
            words = [*ground, *as_words(**overrides, seed=seed, tune_thresholds=True, **kept_in)]
            wanted[name, seed] = path
            if not path.is_file():
                waiting[name, seed] = (f"{name}, seed {seed}", words, path)
            elif json.loads(path.read_text(encoding="utf-8"))["options"] != words:
                raise UserError(f"{path} is of a run with other options: delete it, or choose another --study_folder.")
    parallel = given.parallel or (1 if torch.cuda.is_available() else os.cpu_count() or 1)
    threads = max(1, (os.cpu_count() or 1) // parallel)
    # Seed by seed, so that a study that is stopped has something of each recipe.
    order = sorted(waiting, key=lambda key: key[1])
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(parallel, mp_context=context) as pool:
        futures = [pool.submit(run_quietly, *waiting[key], threads) for key in order]
        for number, future in enumerate(as_completed(futures), start=1):
            if future.exception() is not None:
                pool.shutdown(wait=False, cancel_futures=True)
                raise UserError(
                    f"A run ended in an error ({future.exception()}); the logs are in {folder / 'runs'}."
                ) from future.exception()
            name, score = future.result()
            print(f"[{number}/{len(futures)}] {name}: {score:.4f}", flush=True)
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for (name, seed), path in wanted.items():
        found.setdefault(name, {})[seed] = json.loads(path.read_text(encoding="utf-8"))
    return found


# ---- what came of it ----


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval by Student's t."""
    return mean(values), float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def gains(found: Mapping[str, Mapping[int, Mapping]], name: str, kind: str) -> list[float]:
    """By seed: how far a recipe is above the source recipe at p > 0.5."""
    return [
        run[kind]["avg_macro_f1"] - found[SOURCE][seed]["at_half"]["avg_macro_f1"] for seed, run in found[name].items()
    ]


def table(found: Mapping[str, Mapping[int, Mapping]]) -> str:
    """Markdown: for each recipe its scores, its gain, and the tasks."""
    tasks = [key.removesuffix("_macro_f1") for key in found[SOURCE][0]["at_half"] if key.endswith("_macro_f1")]
    tasks.remove("avg")
    names = ["recipe", "seeds", "validation", "test, p > 0.5", "gain", "test, with thresholds", "gain"]
    names += [f"{task} F1" for task in tasks]
    lines = [machine(), "", _line(names), _line(["---", *["---:"] * (len(names) - 1)])]
    for name, runs in found.items():
        cells = [name, str(len(runs)), f"{mean(run['validation'] for run in runs.values()):.3f}"]
        for kind in ("at_half", "tuned"):
            score, half = interval([run[kind]["avg_macro_f1"] for run in runs.values()])
            gain, gain_half = interval(gains(found, name, kind))
            is_sure = abs(gain) > gain_half
            cells += [f"{score:.3f} ± {half:.3f}"]
            is_zero = name == SOURCE and kind == "at_half"
            cells += ["" if is_zero else f"{'**' * is_sure}{gain:+.3f} ± {gain_half:.3f}{'**' * is_sure}"]
        kind = "at_half" if name == SOURCE else "tuned"
        cells += [f"{mean(run[kind][f'{task}_macro_f1'] for run in runs.values()):.3f}" for task in tasks]
        lines.append(_line(cells))
    note = (
        "avg_macro_f1; validation at p > 0.5. Bold: the 95 % interval of the gain excludes zero, which of so many "
        "figures one in twenty does by chance. The columns of the tasks are of the test split, with thresholds, but "
        "for the source recipe, which has none."
    )
    return "\n".join([*lines, "", note]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def draw(found: Mapping[str, Mapping[int, Mapping]], path: Path) -> None:
    """The gains with their intervals, the largest first."""
    order = sorted(found, key=lambda name: mean(gains(found, name, "tuned")))
    figure = Figure(figsize=(8.6, 1.2 + 0.3 * len(order)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for kind, label, colour, shift in (
        ("at_half", "at p > 0.5", "#0072B2", 0.14),
        ("tuned", "with thresholds", "#E69F00", -0.14),
    ):
        for place, name in enumerate(order):
            gain, half = interval(gains(found, name, kind))
            if name == SOURCE and kind == "at_half":
                continue  # 0 by definition
            axes.errorbar(
                gain, place + shift, xerr=half, fmt="o", color=colour, capsize=3, markersize=4, linewidth=1.4,
                label=label if place == len(order) - 1 else None,
            )  # fmt: skip
    axes.axvline(0, color="#555555", linewidth=1)
    axes.set_yticks(range(len(order)), order)
    axes.set_xlabel("gain in test avg_macro_f1 over the source recipe\nat p > 0.5, with its 95 % interval")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = HfArgumentParser(StudyArguments, allow_abbrev=False, description=__doc__.splitlines()[0])
    try:
        given, words = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    except ValueError as error:
        parser.error(str(error))
    folder = Path(given.study_folder)
    folder.mkdir(parents=True, exist_ok=True)
    is_embedded = not any(word.endswith(".yaml") or word.startswith("--source") for word in words)
    if is_embedded:
        words = [*embedded_ground(folder, given.quick), *words]
    chosen = recipes(given, words, is_embedded)
    for overrides in chosen.values():  # what is wrong, before any of them is trained
        parse_options(OPTION_CLASSES, [*words, *as_words(**overrides)])
    found = run_all(given, chosen, words)
    text = table(found)
    print(text, end="")
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")
    if given.plot is not None:
        draw(found, given.plot)


if __name__ == "__main__":
    run_script(main)
