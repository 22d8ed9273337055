"""What the benchmarks share: interleaved runs, medians, and the table each of them writes.

Every table has the columns of `COLUMNS`, under a line that names the machine. A number with a bracket is a median,
with the smallest and the largest value over the rounds.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

COLUMNS = ("what", "ours", "compared with", "ratio (min to max)", "target")
NOT_MEASURED = "not measured"


def arguments(doc: str | None, **options: Any) -> argparse.Namespace:
    """`--quick`, `--out FILE`, and options of the script's own, given as name=default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small and short: shows that it runs, measures nothing")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    for name, default in options.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", default=default, type=type(default), help=f"by default {default}"
        )
    return parser.parse_args()


def interleave(cases: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list]:
    """Runs A B C A B C ...: what slows the machine for a while slows all of them. Returns what they returned."""
    results: dict[str, list] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            results[name].append(case())
    return results


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """The median, and the smallest and largest value where there are several."""
    bracket = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{median(values):{form}}{bracket}"


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Of the values of the same round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def compare(
    what: str,
    ours: Sequence[float],
    other: Sequence[float],
    target: str,
    form: str = ".2f",
    ratio: Sequence[float] | None = None,
) -> tuple[str, ...]:
    """A row of the table; `ratio` is ours over the other, unless it is given."""
    return what, spread(ours, form), spread(other, form), spread(ratio or ratios(ours, other), ".3f"), target


def write_table(rows: Sequence[Sequence[str]], out: Path | None) -> None:
    """To stdout and to `out`; each row has a cell for each of `COLUMNS`."""
    lines = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows)]
    text = "\n".join([machine(), "", *lines]) + "\n"
    print(text, end="")
    if out is not None:
        out.write_text(text, encoding="utf-8")


def machine() -> str:
    """CPU and GPU, versions and the day."""
    import torch  # here, because a child's peak memory is never below that of the process that started it

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"{cpu}, {os.cpu_count()} cores, {gpu}; {versions}; {date.today()}"
