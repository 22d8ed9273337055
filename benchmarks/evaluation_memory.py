"""What an evaluation costs as rows become many: peak memory, and time against gathering all logits.

How: each case runs in a process of its own, whose peak resident memory the system reports (`getrusage`); interleaved,
medians. Labels are ArtGraph's: artist 243, style 32, genre 18, tags 429, media 31. Seconds are CPU time.
- "evaluation": `ArtGraphTrainer.evaluate` over rows that are made when fetched and never stored, with a stand-in
  backbone of 1 layer; 100,000 rows against 1,000.
- "metrics alone": the same logits and labels go batch by batch through `MultiTaskMetrics`; then they are gathered,
  concatenated and given to scikit-learn (accuracy or Hamming loss; macro precision, recall and F1). Making the logits
  is not timed; memory is what the peak rises by.

Expect: a few MB more at 100,000 rows, where gathering takes some hundred; and a fraction of its time. 5 minutes.

.venv/bin/python benchmarks/evaluation_memory.py [--quick] [--out FILE]
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from tempfile import TemporaryDirectory

from measure import arguments, compare, interleave, spread, write_table

BATCH = 64


def run(case: str, rows: int) -> dict[str, float]:
    """Runs a case in a fresh process. This one stays small: a child's peak starts with its parent's memory."""
    call = [sys.executable, __file__, "--case", case, "--rows", str(rows)]
    return json.loads(subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout)


def peak() -> float:
    """MB of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def evaluation(rows: int) -> dict[str, float]:
    from workload import TINY, RandomRows, make_model, make_trainer, now

    with TemporaryDirectory() as folder:
        model = make_model({**TINY, "num_hidden_layers": 1})
        trainer = make_trainer(folder, model, evaluation=RandomRows(rows, 16), per_device_eval_batch_size=BATCH)
        start = now()
        trainer.evaluate()
        return {"seconds": now() - start, "peak": peak()}


def logit_batches(rows: int) -> Iterator[tuple[dict, dict]]:
    """Batches of logits and labels as an evaluation sees them; each time the same."""
    import torch
    from workload import ARTGRAPH, make_batches

    labels = make_batches(8, BATCH, 16)
    for index in range(-(-rows // BATCH)):
        generator = torch.Generator().manual_seed(index)
        logits = {name: torch.randn(BATCH, size, generator=generator) for name, size in ARTGRAPH.items()}
        yield logits, labels[index % len(labels)]["labels"]


def metrics(rows: int) -> dict[str, float]:
    import torch
    from sklearn.metrics import accuracy_score, hamming_loss, precision_recall_fscore_support
    from workload import make_tasks, now

    from artgraph_vit.evaluation.metrics import MultiTaskMetrics

    for _ in logit_batches(8 * BATCH):  # memory of which every case needs some
        pass
    counters, counting, before = MultiTaskMetrics(make_tasks()), 0.0, peak()
    for logits, labels in logit_batches(rows):
        start = now()
        counters.update(logits, labels)
        counting += now() - start
    start = now()
    f1 = counters.compute()["avg_macro_f1"]
    found = {"counters seconds": counting + now() - start, "counters peak": peak() - before, "counters f1": f1}

    batches, f1s = list(logit_batches(rows)), []
    start = now()
    for task in make_tasks():
        logits = torch.cat([logits[task.name] for logits, _ in batches])
        labels = torch.cat([labels[task.name] for _, labels in batches])
        is_known = (labels != -100).reshape(len(labels), -1)[:, 0]
        logits, labels = logits[is_known].numpy(), labels[is_known].numpy()
        predicted = logits > 0 if task.is_multi_label else logits.argmax(-1)
        (hamming_loss if task.is_multi_label else accuracy_score)(labels, predicted)
        f1s.append(precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)[2])
    seconds = now() - start
    return found | {"sklearn seconds": seconds, "sklearn peak": peak() - before, "sklearn f1": sum(f1s) / len(f1s)}


def main() -> None:
    given = arguments(__doc__, case="", rows=100_000)
    if given.case:  # the fresh process
        print(json.dumps({"evaluation": evaluation, "metrics": metrics}[given.case](given.rows)))
        return

    few, many, rounds = (100, 1_000, 1) if given.quick else (1_000, given.rows, 3)
    cases = {
        "few": lambda: run("evaluation", few),
        "many": lambda: run("evaluation", many),
        "metrics": lambda: run("metrics", many),
    }
    runs = interleave(cases, rounds)
    found = {(case, key): [result[key] for result in results] for case, results in runs.items() for key in results[0]}
    growth = [b - a for a, b in zip(found["few", "peak"], found["many", "peak"], strict=True)]
    f1, sklearn_f1 = (found["metrics", f"{name} f1"][0] for name in ("counters", "sklearn"))
    alone = [
        compare(
            f"metrics alone: {unit} for {many:,} rows, against gathering and scikit-learn",
            found["metrics", f"counters {key}"],
            found["metrics", f"sklearn {key}"],
            "< 1",
        )
        for key, unit in (("seconds", "seconds"), ("peak", "MB"))
    ]
    write_table(
        [
            (
                f"evaluation: MB at the peak, {many:,} rows against {few:,}",
                spread(found["many", "peak"], ".0f"),
                spread(found["few", "peak"], ".0f"),
                f"difference {spread(growth, '.1f')}",
                "difference <= 50",
            ),
            compare(
                f"evaluation: seconds, {many:,} rows against {few:,}",
                found["many", "seconds"],
                found["few", "seconds"],
                f"<= {many // few}",
            ),
            *alone,
            (
                "metrics alone: average macro F1, against scikit-learn's",
                f"{f1:.12f}",
                f"{sklearn_f1:.12f}",
                f"difference {abs(f1 - sklearn_f1):.1e}",
                "difference <= 1e-9",
            ),
        ],
        given.out,
    )


if __name__ == "__main__":
    main()
