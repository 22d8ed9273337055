"""Each benchmark runs alone and writes its table. `--quick` measures nothing, so no time is looked at."""

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from artgraph_vit.training.arguments import ArtGraphTrainingArguments

FOLDER = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.slow
COLUMNS = ["what", "ours", "compared with", "ratio (min to max)", "target"]
LINES = {
    "training_step": 5,
    "frozen_features": 3,
    "evaluation_memory": 5,
    "scaling": 10,
    "input_pipeline": 19,
    "onnx_latency": 10,
    "prediction": 2,
    "unused_parameters": 1,
}
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """All of them at once: most of their time is spent on imports, by one core each."""
    folder = tmp_path_factory.mktemp("benchmarks")
    options = {field.name for field in dataclasses.fields(ArtGraphTrainingArguments)}
    processes = {}
    for name in LINES:
        if name == "frozen_features" and "cache_frozen_features" not in options:
            continue
        call = [sys.executable, FOLDER / f"{name}.py", "--quick", "--out", folder / f"{name}.md"]
        call += ["--plot", folder / "scaling.png"] if name == "scaling" else []
        processes[name] = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield folder, processes
    for process in processes.values():
        process.kill()


@pytest.mark.parametrize("name", LINES)
def test_a_benchmark_writes_a_table_of_finite_numbers(name, running):
    folder, processes = running
    if name not in processes:
        pytest.skip("this trainer has no cache_frozen_features")
    stdout, stderr = processes[name].communicate()
    assert processes[name].returncode == 0, stderr
    assert stdout == (folder / f"{name}.md").read_text()
    machine, empty, head, _, *lines = stdout.splitlines()
    assert re.search(r"\d+ cores, .*; torch \S+, transformers \S+; \d{4}-\d\d-\d\d$", machine)
    assert not empty
    assert _cells(head) == COLUMNS
    assert len(lines) == LINES[name]
    for line in lines:
        what, ours, other, ratio, _ = _cells(line)
        assert what
        assert "nan" not in (ours + other + ratio).lower()
        assert "inf" not in (ours + other + ratio).lower()
        if ours != "not measured":
            assert all(math.isfinite(float(number.replace(",", ""))) for number in NUMBER.findall(ours))
            assert NUMBER.search(ours)
            assert NUMBER.search(other)
    if name == "scaling":
        assert (folder / "scaling.png").read_bytes().startswith(b"\x89PNG")


def _cells(line: str) -> list[str]:
    assert line.startswith("| ")
    return [cell.strip() for cell in line.strip("|").split("|")]
