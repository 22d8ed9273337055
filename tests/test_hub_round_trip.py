"""Push to a Hub and load back over HTTP, with the real clients, into an empty cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import ViTImageProcessor

from .hub_server import HubServer
from .training.tiny import tiny_model

ROOT = Path(__file__).parents[1]
TOKEN = "hf_test"
LOAD = """
import json, sys, torch
from artgraph_vit import ArtGraphViTForImageClassification
from transformers import AutoImageProcessor
model = ArtGraphViTForImageClassification.from_pretrained("tester/artgraph").eval()
processor = AutoImageProcessor.from_pretrained("tester/artgraph")
with torch.no_grad():
    logits = model(torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)).logits
print(json.dumps({"size": processor.size["height"], **{name: values.tolist() for name, values in logits.items()}}))
"""


@pytest.fixture
def server():
    with HubServer({TOKEN: "tester"}) as server:
        yield server
        assert server.unknown_requests == []


def run(server, tmp_path, *command, token=TOKEN):
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    environment.pop("HF_HUB_OFFLINE", None)
    environment.pop("HF_TOKEN", None)
    if token:
        environment["HF_TOKEN"] = token
    return subprocess.run(
        [sys.executable, *map(str, command)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def finished_run(tmp_path) -> tuple[Path, dict]:
    """What `finish_run` leaves, with a tiny model and made figures."""
    folder = tmp_path / "run"
    model = tiny_model(seed=3).eval()
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    names = [task.name for task in model.config.tasks]
    metrics = {"avg_macro_f1": 0.5}
    for task in model.config.tasks:
        kind = "hamming_loss" if task.is_multi_label else "accuracy"
        keys = (kind, "macro_precision", "macro_recall", "macro_f1")
        metrics |= {f"{task.name}_{key}": 0.5 for key in keys} | {f"{task.name}_absent_labels": 0}
    results = {
        "split": "test",
        "rows": 21,
        "loss": 1.0,
        "task_losses": dict.fromkeys(names, 0.5),
        "known_rows": dict.fromkeys(names, 20),
        "metrics": metrics,
        "majority_metrics": metrics,
        "frozen_metrics": None,
        "best_epoch": 4.0,
        "best_step": 16,
        "best_validation_avg_macro_f1": 0.6,
        "epochs": 4,
        "frozen_epochs": 2,
        "seed": 42,
        "recipe": {"backbone": "tiny"},
        "data": {"source": "made", "train_rows": 50, "validation_rows": 21, "test_rows": 21},
        "versions": {"torch": torch.__version__},
        "runtime_seconds": 1.0,
        "card": {"dataset_name": "made artworks"},
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "trainer_state.json").write_text("{}")
    (folder / "figures").mkdir()
    (folder / "figures" / "multiclassification_losses.png").write_bytes(b"\x89PNG made")
    (folder / "training_args.bin").write_bytes(b"pickled")
    (folder / "checkpoint-4").mkdir()
    (folder / "checkpoint-4" / "model.safetensors").write_bytes(b"a checkpoint")
    with torch.no_grad():
        logits = model(torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)).logits
    return folder, {name: values.tolist() for name, values in logits.items()}


def test_a_pushed_run_loads_into_an_empty_cache(server, tmp_path, finished_run):
    folder, logits = finished_run
    pushed = run(server, tmp_path, "scripts/push.py", folder, "tester/artgraph")
    assert pushed.returncode == 0, pushed.stderr[-3000:]
    files = server.files("models", "tester/artgraph", "main")
    assert {"README.md", "model.safetensors", "config.json", "results.json", "modeling_artgraph_vit.py"} <= set(files)
    assert files["figures/multiclassification_losses.png"] == b"\x89PNG made"
    assert not [name for name in files if name.endswith(".bin") or name.startswith("checkpoint-")]
    assert 'from_pretrained("tester/artgraph"' in files["README.md"].decode() or (
        "tester/artgraph" in files["README.md"].decode()
    )
    assert (
        len([message for message in server.commits("models", "tester/artgraph", "main") if "Upload" in message]) == 1
    )

    loaded = run(server, tmp_path / "empty", "-c", LOAD)
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    values = json.loads(loaded.stdout.splitlines()[-1])
    assert values.pop("size") == 32
    assert values == logits


def test_a_private_run_is_refused_without_a_token(server, tmp_path, finished_run):
    folder, _ = finished_run
    assert run(server, tmp_path, "scripts/push.py", folder, "tester/artgraph", "--private").returncode == 0
    refused = run(server, tmp_path / "anonymous", "-c", LOAD, token=None)
    assert refused.returncode != 0
    assert "tester/artgraph" in refused.stderr
    assert run(server, tmp_path / "owner", "-c", LOAD).returncode == 0


def test_push_to_a_branch(server, tmp_path, finished_run):
    folder, _ = finished_run
    pushed = run(server, tmp_path, "scripts/push.py", folder, "tester/artgraph", "--revision", "v1")
    assert pushed.returncode == 0, pushed.stderr[-3000:]
    assert "model.safetensors" in server.files("models", "tester/artgraph", "v1")
    assert "model.safetensors" not in server.files("models", "tester/artgraph", "main")


def test_the_models_own_push_to_hub_round_trips(server, tmp_path):
    code = (
        "from tests.training.tiny import tiny_model\n"
        "from transformers import ViTImageProcessor\n"
        "model = tiny_model(seed=3)\n"
        "model.push_to_hub('tester/artgraph')\n"
        "ViTImageProcessor(size={'height': 32, 'width': 32}).push_to_hub('tester/artgraph')\n"
    )
    pushed = run(server, tmp_path, "-c", code)
    assert pushed.returncode == 0, pushed.stderr[-3000:]
    loaded = run(server, tmp_path / "empty", "-c", LOAD)
    assert loaded.returncode == 0, loaded.stderr[-3000:]


def test_an_unfinished_run_is_not_pushed(server, tmp_path):
    (tmp_path / "run").mkdir()
    refused = run(server, tmp_path, "scripts/push.py", tmp_path / "run", "tester/artgraph")
    assert refused.returncode == 2
    assert "lacks config.json, preprocessor_config.json, results.json, model.safetensors" in refused.stderr
