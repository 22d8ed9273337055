"""Starting `tiny.py` in processes of its own."""

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("tiny.py")


def run_tiny(
    *arguments: object,
    processes: int = 1,
    check: bool = True,
    script: Path = SCRIPT,
    config: str | None = None,
    packages: str = "",
    **options,
) -> subprocess.CompletedProcess:
    """Runs tiny.py, or another script, on that many CPU processes, or with a file of configs/accelerate, and perhaps
    with a further folder of `packages`.
    """
    launcher = [sys.executable]
    if config is not None:
        path = SCRIPT.parents[2] / "configs" / "accelerate" / config
        launcher += ["-m", "accelerate.commands.launch", f"--config_file={path}", f"--num_processes={processes}"]
        launcher += ["--mixed_precision=no"]
    elif processes > 1:
        # A free port of its own: two tests at a time must not meet.
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*launcher, str(script), *map(str, arguments)]
    path = os.pathsep.join(filter(None, [str(SCRIPT.parents[2]), packages]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, **options)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def final_weights(folder: Path, process: int = 0) -> dict:
    return load_file(folder / f"final-{process}.safetensors")
