"""configs/accelerate: what `accelerate launch` starts from each file, and two "machines" that train as one."""

import contextlib
import math
import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import types
from pathlib import Path

import psutil
import pytest
import yaml
from accelerate.commands import launch as accelerate_launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from transformers import TrainerState

from .processes import SCRIPT, assert_close, final_weights
from .tiny import tiny_trainer

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "accelerate"
SLURM = CONFIGS / "slurm.sh"
DEADLINE = 120  # seconds; the runs below take about a tenth of it
# For each file the type, the processes on one machine, the machines and the precision.
MEANING = {
    "one_cpu": (DistributedType.NO, 1, 1, "no"),
    "several_cpu": (DistributedType.MULTI_GPU, 2, 1, "no"),
    "one_gpu": (DistributedType.NO, 1, 1, "bf16"),
    "several_gpus": (DistributedType.MULTI_GPU, 4, 1, "bf16"),
    "several_machines": (DistributedType.MULTI_GPU, 4, 2, "bf16"),
}


@pytest.fixture
def launched(monkeypatch):
    """`launched(*arguments)`: what `accelerate launch` with these arguments would start, without starting it."""
    starts: list[types.SimpleNamespace] = []

    def several(options) -> None:
        starts.append(
            types.SimpleNamespace(
                processes=int(options.nproc_per_node),
                machines=int(str(options.nnodes).split(":")[-1]),
                rank=options.node_rank,
                endpoint=options.rdzv_endpoint,
                script=[options.training_script, *options.training_script_args],
                environment=dict(os.environ),
            )
        )

    def one(command, env):
        starts.append(
            types.SimpleNamespace(processes=1, machines=1, rank=0, script=command[1:], environment=dict(env))
        )
        return types.SimpleNamespace(wait=lambda: 0, returncode=0)

    def launch(*arguments: str) -> types.SimpleNamespace:
        with monkeypatch.context() as patch, contextlib.chdir(ROOT):
            patch.setattr("torch.distributed.run.run", several)
            patch.setattr(accelerate_launch.subprocess, "Popen", one)
            options = accelerate_launch.launch_command_parser().parse_args(list(arguments))
            accelerate_launch.launch_command(options)
        return starts.pop()

    return launch


def command_of(path: Path) -> list[str]:
    """The command in a file's second line, as a user fills it in."""
    command = path.read_text().splitlines()[1].removeprefix("#   ")
    words = shlex.split(command.replace("IP_OF_RANK_0", "127.0.0.1").replace("RANK", "1").replace("DATA", "/data"))
    assert words[:2] == ["accelerate", "launch"]
    return words[2:]


@pytest.mark.parametrize("name", MEANING)
def test_accelerate_reads_every_key_of_a_config(name):
    """Those that stand behind a default of the launcher it would ignore without a word."""
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == MEANING.keys()
    path = CONFIGS / f"{name}.yaml"
    assert load_config_from_file(str(path)).distributed_type == MEANING[name][0]
    options = accelerate_launch.launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    known = {*vars(options), "use_cpu"}  # which has no option of that name, but is looked at
    options, *_ = accelerate_launch._validate_launch_command(options)
    given = yaml.safe_load(path.read_text())
    del given["compute_environment"], given["distributed_type"]
    assert given.keys() <= known
    assert {key: getattr(options, key) for key in given} == given


@pytest.mark.parametrize("name", MEANING)
def test_the_command_in_a_config_starts_what_it_says(name, launched):
    path = CONFIGS / f"{name}.yaml"
    _, processes, machines, precision = MEANING[name]
    start = launched(*command_of(path))
    assert (start.processes, start.machines) == (processes, machines)
    assert start.environment["ACCELERATE_MIXED_PRECISION"] == precision
    if machines > 1:
        assert (start.rank, start.endpoint) == (1, "127.0.0.1:29500")

    script, config, *options = start.script
    assert (ROOT / script).is_file()
    recipe = yaml.safe_load((ROOT / config).read_text())
    if "--per_device_train_batch_size" in options:
        rows = int(options[options.index("--per_device_train_batch_size") + 1])
        assert rows * processes * machines == recipe["per_device_train_batch_size"]
    else:
        assert processes * machines == 1
    if name == "one_cpu":
        assert start.environment["ACCELERATE_USE_CPU"] == "True"
    if name == "several_cpu":
        assert "--use_cpu" in options
    if name == "one_gpu":
        assert start.environment["CUDA_VISIBLE_DEVICES"] == "0"


# ---- for real ----


def launch_machines(folder: Path, *arguments: object) -> tuple[list[int], str]:
    """Four processes under two launchers, which talk over the loopback interface: exit codes and ends of the logs.

    Whatever happens, none of their processes is left.
    """
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment["GLOO_SOCKET_IFNAME"] = loopback
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS / "several_machines.yaml"]
    command += ["--num_machines", 2, "--num_processes", 4, "--mixed_precision", "no"]
    command += ["--main_process_ip", "127.0.0.1", "--main_process_port", free_port(), "--machine_rank"]
    logs = [folder / f"machine-{rank}.log" for rank in (0, 1)]
    machines = []
    try:
        for rank, log in enumerate(logs):
            words = [str(word) for word in (*command, rank, SCRIPT, *arguments)]
            with log.open("w") as file:
                machines.append(subprocess.Popen(words, cwd=ROOT, env=environment, stdout=file, stderr=file))
        codes = [machine.wait(timeout=DEADLINE) for machine in machines]
    finally:
        for machine in machines:
            if machine.poll() is None:
                for process in (*psutil.Process(machine.pid).children(recursive=True), machine):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                machine.wait()
    return codes, "".join(log.read_text()[-3000:] for log in logs)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_two_machines_killed_and_resumed_train_the_model_of_one_process(tmp_path):
    """Four processes under two launchers, killed in phase `full`; the best checkpoint is not the last."""
    # Epoch 3 of 4 is best by this metric, so the best checkpoint is from before the kill and the last from after it.
    options = {"head_dropout": 0.0, "metric_for_best_model": "genre_macro_precision"}
    alone = tiny_trainer(tmp_path / "one", **options)
    alone.train()
    best = Path(alone.state.best_model_checkpoint).name
    assert best == "checkpoint-12"

    folder = tmp_path / "four"
    words = ['metric_for_best_model="genre_macro_precision"', "head_dropout=0.0", "per_device_train_batch_size=4"]

    codes, text = launch_machines(tmp_path, folder, *words, "--kill-at", 14)
    assert all(code != 0 for code in codes), text
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-8", "checkpoint-12"}
    assert not list(folder.glob("world-size-*"))
    codes, text = launch_machines(tmp_path, folder, *words, "--resume", "last", "--model-seed", 3)
    assert codes == [0, 0], text

    assert (folder / "world-size-4").exists()
    weights = [final_weights(folder, process) for process in range(4)]
    for other in weights[1:]:
        assert_close(other, weights[0])
    state = TrainerState.load_from_json(folder / "trainer_state.json")
    assert Path(state.best_model_checkpoint).name == best
    assert_close(load_file(folder / best / "model.safetensors"), weights[0])
    for checkpoint in ("checkpoint-8", best, "checkpoint-16"):  # the end of phase heads, the best, the last
        assert_close(*(load_file(run / checkpoint / "model.safetensors") for run in (folder, tmp_path / "one")), 1e-4)
    for one, other in zip(alone.state.log_history, state.log_history, strict=False):
        assert (one["step"], one["epoch"]) == (other["step"], other["epoch"])
        for name in ("loss", "eval_loss", "eval_avg_macro_f1"):
            assert math.isclose(one.get(name, 0.0), other.get(name, 0.0), rel_tol=1e-3), name


# ---- Slurm ----


@pytest.fixture
def slurm(tmp_path):
    """`slurm(*arguments, **environment)`: runs slurm.sh for two machines, with stand-ins for Slurm's programs."""
    programs = {
        "scontrol": 'test "$*" = "show hostnames node-[a-b]" && printf "node-a\\nnode-b\\n"',
        # Runs the command on each machine: what follows its own options.
        "srun": 'while [[ $1 == --* ]]; do shift; done; for id in 0 1; do SLURM_NODEID=$id "$@" || exit; done',
        "accelerate": "printf '%s\\0' \"$@\" >> launches; printf '\\n' >> launches",
    }
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    job = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "1234567",
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_CPUS_PER_TASK": "32",
    }

    def run(*arguments: str, **changes: str | None) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
        environment = {name: value for name, value in (job | changes).items() if value is not None}
        done = subprocess.run(
            [shutil.which("bash"), SLURM, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
        )
        log = tmp_path / "launches"
        lines = log.read_text().splitlines() if log.exists() else []
        return done, [line.split("\0")[:-1] for line in lines]

    return run


def test_slurm_starts_one_launcher_a_machine(slurm, launched):
    assert SLURM.stat().st_mode & stat.S_IXUSR
    assert {"#SBATCH --requeue", "set -euo pipefail"} <= set(SLURM.read_text().splitlines())
    own = ["configs/artgraph.yaml", "--source", "/data/art graph", "--per_device_train_batch_size", "4"]
    done, launches = slurm(*own)
    assert done.returncode == 0, done.stderr
    assert [words[0] for words in launches] == ["launch", "launch"]
    starts = [launched(*words[1:]) for words in launches]
    assert [start.rank for start in starts] == [0, 1]
    assert {start.endpoint for start in starts} == {"node-a:24567"}
    for start in starts:
        assert (start.processes, start.machines) == (4, 2)
        assert start.environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
        assert start.script == ["scripts/train.py", *own, "--resume_from_checkpoint", "auto"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLURM_GPUS_ON_NODE": None}, "ask for GPUs with --gpus-per-node"),
        ({"SLURM_JOB_NODELIST": "elsewhere"}, ""),  # scontrol fails
    ],
)
def test_slurm_script_stops_where_something_is_missing(slurm, changes, message):
    done, launches = slurm("configs/artgraph.yaml", **changes)
    assert done.returncode != 0
    assert message in done.stderr
    assert not launches
