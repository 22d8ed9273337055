"""Starting `tiny.py` in processes of its own."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("tiny.py")


def run_tiny(
    *arguments: object, processes: int = 1, check: bool = True, script: Path = SCRIPT, **options
) -> subprocess.CompletedProcess:
    """Runs tiny.py, or another script, on that many CPU processes."""
    launcher = [sys.executable]
    if processes > 1:
        # A free port of its own: two tests at a time must not meet.
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*launcher, str(script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, **options)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def final_weights(folder: Path, process: int = 0) -> dict:
    return load_file(folder / f"final-{process}.safetensors")


def assert_close(actual: dict, expected: dict, tolerance: float = 0.0) -> None:
    """Tensors by name; by default to the last bit."""
    assert actual.keys() == expected.keys()
    for name in expected:
        one, other = torch.as_tensor(actual[name]), torch.as_tensor(expected[name])
        if tolerance == 0:
            assert torch.equal(one, other), name
        else:
            torch.testing.assert_close(one, other, atol=tolerance, rtol=10 * tolerance)


def relative_error(actual: dict, expected: dict) -> float:
    """In the norm of all tensors together."""
    assert actual.keys() == expected.keys()
    squares = [((actual[name] - expected[name]) ** 2).sum() for name in expected]
    return math.sqrt(sum(squares) / sum((tensor**2).sum() for tensor in expected.values()))


def without_times(entry: dict) -> dict:
    """Without what depends on the clock; `train_loss` is about the last call of `train` only."""
    return {name: value for name, value in entry.items() if not name.endswith(("time", "per_second", "train_loss"))}


def assert_same_logs(actual: list[dict], expected: list[dict]) -> None:
    """Log histories, floats to 1e-6."""
    histories = [[entry for entry in map(without_times, log) if len(entry) > 3] for log in (actual, expected)]
    assert len(histories[0]) == len(histories[1]) > 3
    for one, other in zip(*histories, strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-6)
