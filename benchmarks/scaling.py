"""How the cost of training and of evaluation grows with rows, labels and tasks: linearly or better.

How: the backbone is a stand-in of 2 layers, so that what grows is what is timed: `train()` of one epoch, batch 32, and
`evaluate()`, batch 64, from call to return. Rows 4,000, 8,000 and 16,000 with ArtGraph's 753 labels; labels 753 and
7,530 in five tasks; tasks 1, 5 and 20 of 100 labels each, every second one multi-label, 4,000 rows. Rows lie ready in
memory. Cases are interleaved, a growth is the ratio to the first case of the same round, and the clock is that of
workload.py.

Expect: rows close to linear, labels and tasks well below it. About 4 minutes on 2 CPU cores. The plot has the line of
linear growth; what lies below it is better.

.venv/bin/python benchmarks/scaling.py [--quick] [--out FILE] [--plot FILE]
"""

from __future__ import annotations

from statistics import median
from tempfile import TemporaryDirectory

from matplotlib.figure import Figure
from measure import arguments, compare, interleave, ratios, write_table
from workload import ARTGRAPH, TINY, RandomRows, make_model, make_trainer, now

KINDS = ("training", "evaluation")


def run(rows: list, sizes: dict[str, int]) -> dict[str, float]:
    """Seconds of an epoch of training and of an evaluation."""
    with TemporaryDirectory() as folder:
        model = make_model({**TINY, "num_hidden_layers": 2}, sizes)
        options = {"num_train_epochs": 1, "per_device_train_batch_size": 32, "per_device_eval_batch_size": 64}
        trainer = make_trainer(folder, model, rows, rows, **options)
        start = now()
        trainer.train()
        trained = now()
        trainer.evaluate()
        return {"training": trained - start, "evaluation": now() - trained}


def some_tasks(count: int) -> dict[str, int]:
    return {f"{('style', 'tags')[index % 2]}_{index}": 100 for index in range(count)}


def main() -> None:
    given = arguments(__doc__, plot="")
    rows, rounds = (100, 1) if given.quick else (4_000, 7)
    more_labels = {name: 10 * size for name, size in ARTGRAPH.items()}
    work = {  # what grows -> by how much -> rows, labels a task
        "rows": {1: (rows, ARTGRAPH), 2: (2 * rows, ARTGRAPH), 4: (4 * rows, ARTGRAPH)},
        "labels": {1: (rows, ARTGRAPH), 10: (rows, more_labels)},
        "tasks": {count: (rows, some_tasks(count)) for count in (1, 5, 20)},
    }
    cases = {}
    for name, sizes in work.items():
        for factor, (count, labels) in sizes.items():
            source = RandomRows(count, TINY["image_size"], labels)
            stored = [source[index] for index in range(count)]
            cases[name, factor] = lambda stored=stored, labels=labels: run(stored, labels)
    next(iter(cases.values()))()  # the first call of all pays for imports
    found = interleave(cases, rounds)

    table, growths = [], {}
    for name, factor in cases:
        for kind in KINDS:
            seconds, first = ([result[kind] for result in found[name, of]] for of in (factor, 1))
            growths[name, factor, kind] = median(ratios(seconds, first))
            if factor > 1:
                what = f"{kind}: seconds, {name} {factor}x, against 1x"
                table.append(compare(what, seconds, first, f"linear is {factor}"))
    write_table(sorted(table), given.out)
    if given.plot:
        plot(growths, given.plot)


def plot(growths: dict[tuple[str, int, str], float], path: str) -> None:
    """One panel for training, one for evaluation."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), KINDS, strict=True):
        axes.plot([1, 20], [1, 20], "--", color="grey", label="linear")
        for name in ("rows", "labels", "tasks"):
            points = [(factor, growth) for (n, factor, k), growth in growths.items() if (n, k) == (name, kind)]
            axes.plot(*zip(*points, strict=True), "o-", label=name)
        axes.set(title=kind, xlabel="growth of the work", xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}x")
            axis.set_ticks([1, 2, 5, 10, 20])
            axis.set_minor_formatter("")
    axes.legend()
    figure.axes[0].set_ylabel("growth of the time")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
