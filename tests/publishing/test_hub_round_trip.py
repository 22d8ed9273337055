"""Push to a Hub and load back over HTTP, with the real clients, into an empty cache."""

import json
import os
import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import constants
from PIL import Image
from transformers import AutoImageProcessor, ViTImageProcessor

from artgraph_vit import ArtGraphViTForImageClassification
from artgraph_vit.errors import UserError
from artgraph_vit.publishing.push import push_dataset
from tests.evaluation.made import results
from tests.hub_server import HubServer
from tests.training.tiny import tiny_model

ROOT = Path(__file__).parents[2]
TOKEN = "hf_test"
SAID = ("--license", "cc-by-4.0", "--language", "en")
ADDRESS = "/{repo_id}/resolve/{revision}/{filename}"
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
    with HubServer({TOKEN: "tester", "hf_guest": "guest"}) as server:
        yield server
        assert server.unknown_requests == []


def run(server, tmp_path, *command):
    """Python with an empty cache."""
    hub = {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    environment = {**os.environ, **hub, "HF_HOME": str(tmp_path / "home")}
    return subprocess.run(
        [sys.executable, *map(str, command)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def push(server, monkeypatch, capsys):
    """`push(folder, *options)` runs scripts/push.py in this process: its exit status, output and errors."""
    addresses = {"ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": server.url + ADDRESS}
    for name, value in {**addresses, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its retries
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def run_script(folder, *options, repo="tester/artgraph", said=SAID):
        monkeypatch.setattr(sys, "argv", ["push.py", *map(str, (folder, repo, *said, *options))])
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / "scripts" / "push.py"), run_name="__main__")
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return SimpleNamespace(code=code, output=printed.out, errors=printed.err)

    return run_script


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def card_of(files: dict[str, bytes]) -> dict:
    return yaml.safe_load(files["README.md"].decode().removeprefix("---\n").split("\n---\n")[0])


@pytest.fixture
def finished_run(tmp_path) -> tuple[Path, dict]:
    """What `finish_run` leaves, with a tiny model and made figures."""
    folder = tmp_path / "run"
    model = tiny_model(seed=3).eval()
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    metrics: dict = {"avg_macro_f1": 0.5}
    for task in model.config.tasks:
        kind = "hamming_loss" if task.is_multi_label else "accuracy"
        metrics |= {f"{task.name}_{key}": 0.5 for key in (kind, "macro_precision", "macro_recall", "macro_f1")}
    by_task = {task.name: 20 for task in model.config.tasks}
    changed = {
        "rows": 21,
        "task_losses": by_task,
        "known_rows": by_task,
        "metrics": metrics,
        "recipe": {"backbone": "tiny"},
    }
    changed |= {"majority_metrics": metrics, "frozen_metrics": None, "card": {"dataset_name": "made artworks"}}
    results(**changed).write(folder)
    state = {"best_model_checkpoint": "/home/me/run/checkpoint-4", "log_history": []}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (folder / "figures").mkdir()
    for name in ("multiclassification_losses", "confusion_genre"):
        (folder / "figures" / f"{name}.png").write_bytes(b"\x89PNG made " + name.encode())
    (folder / "labels.csv").write_text("task,label\r\n")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pkl", ".secret.py"):
        (folder / name).write_bytes(pickle.dumps(name))
    (folder / "checkpoint-4").mkdir()
    (folder / "checkpoint-4" / "model.safetensors").write_bytes(b"a checkpoint")
    with torch.no_grad():
        logits = model(torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)).logits
    return folder, {name: values.tolist() for name, values in logits.items()}


PUSHED = {
    *("README.md", "model.safetensors", "config.json", "preprocessor_config.json", "results.json"),
    *("trainer_state.json", "labels.csv"),
    *("figures/multiclassification_losses.png", "figures/confusion_genre.png"),
}


@pytest.mark.slow
def test_a_pushed_run_loads_into_an_empty_cache(server, push, tmp_path, finished_run):
    """By the package; and without it, and for who sees the card only, by the code that was pushed."""
    folder, logits = finished_run
    outside = tmp_path / "elsewhere.py"
    outside.write_text("secret = 1")
    (folder / "linked.py").symlink_to(outside)
    (folder / "notes.py").write_text("PASSWORD = 'x'")
    (folder / "logs").mkdir()
    (folder / "logs" / "notes.py").touch()
    pushed = push(folder)
    assert pushed.code == 0, pushed.errors
    assert (
        pushed.output
        == f"{server.url}/tester/artgraph/commit/{server.repos['models', 'tester/artgraph'].find('main').sha}\n"
    )
    files = server.files("models", "tester/artgraph", "main")
    code = {path.name for path in folder.glob("[!.]*.py")} - {"linked.py", "notes.py"}
    assert {"modeling_artgraph_vit.py", "pipeline_artgraph_vit.py", "tasks.py"} <= code
    assert set(files) == PUSHED | code
    assert json.loads(files["trainer_state.json"])["best_model_checkpoint"] == "checkpoint-4"
    assert server.commits("models", "tester/artgraph", "main") == ["initial commit", "Upload a trained ArtGraph ViT"]

    assert "](figures/confusion_genre.png)" in files["README.md"].decode()

    snippets = re.findall(r"```python\n(.*?)```", files["README.md"].decode(), re.S)
    assert len(snippets) == 3
    Image.new("RGB", (50, 40), "teal").save(tmp_path / "painting.jpg")
    here = f"import os\nos.chdir({str(tmp_path)!r})\n"
    by_package = run(server, tmp_path / "empty", "-c", LOAD + here + snippets[0])
    assert by_package.returncode == 0, by_package.stderr[-3000:]
    loaded, answers = by_package.stdout.splitlines()
    values = json.loads(loaded)
    assert values.pop("size") == 32
    assert values == logits
    assert re.match(r"\[\{'label': '(a|b|other)', 'score': 0\.", answers)

    no_package = "import sys\nsys.modules['artgraph_vit'] = None\n"
    by_code = run(server, tmp_path / "other", "-c", no_package + here + snippets[1] + snippets[2])
    assert by_code.returncode == 0, by_code.stderr[-3000:]
    listed, labels = by_code.stdout.splitlines()
    assert answers.startswith(listed)
    assert labels.endswith("torch.Size([1, 32])")
    assert "elsewhere" not in by_code.stdout


def test_a_private_run_is_refused_without_a_token(server, push, tmp_path, finished_run):
    """And a public repository is not called private."""
    folder, _ = finished_run
    assert push(folder, "--private").code == 0
    assert server.repos["models", "tester/artgraph"].private
    with pytest.raises(OSError, match="tester/artgraph"):
        ArtGraphViTForImageClassification.from_pretrained("tester/artgraph", cache_dir=tmp_path / "home", token=False)
    (tmp_path / "README.md").write_text("# Prepared pictures")
    push_dataset(tmp_path, "tester/pictures")
    with pytest.raises(
        UserError, match=r"pictures is there already and public: make it private in its settings first"
    ):
        push_dataset(tmp_path, "tester/pictures", private=True)
    push_dataset(tmp_path, "tester/others", private=True)
    assert server.repos["datasets", "tester/others"].private


def test_push_to_a_branch_and_as_a_pull_request(server, push, monkeypatch, finished_run):
    """Also by who may not write to the repository, and against a branch; of a branch that is not there, none."""
    folder, _ = finished_run
    assert push(folder, "--revision", "v1").code == 0
    assert "model.safetensors" in server.files("models", "tester/artgraph", "v1")
    (folder / "results.json").write_text((folder / "results.json").read_text().replace('"rows": 21', '"rows": 20'))
    monkeypatch.setenv("HF_TOKEN", "hf_guest")
    for number, options in enumerate([("--create-pr",), ("--create_pr", "--revision", "v1")], 1):
        pushed = push(folder, *options)
        assert pushed.code == 0, pushed.errors
        assert pushed.output == f"{server.url}/tester/artgraph/discussions/{number}\n"
        files = server.files("models", "tester/artgraph", f"refs/pr/{number}")
        assert json.loads(files["results.json"])["rows"] == 20
    assert server.files("models", "tester/artgraph", "main") == {}
    assert json.loads(server.files("models", "tester/artgraph", "v1")["results.json"])["rows"] == 21
    assert len(server.commits("models", "tester/artgraph", "refs/pr/2")) == 2
    for options, told in ((("--create-pr", "--revision", "v2"), "Revision Not Found"), ((), "You may not write to")):
        refused = push(folder, *options)
        assert refused.code == 2
        assert refused.errors.startswith(f"push.py: {folder} could not be pushed to tester/artgraph (")
        assert told in refused.errors
        assert refused.errors.count("\n") == 1


def test_what_is_said_is_remembered(server, push, finished_run):
    folder, _ = finished_run
    (folder / "LICENSE").write_text("Do as you like.")
    own = ("--license", "other", "--license-name", "Mine", "--license-link", "LICENSE", "--language", "en, it")
    assert push(folder, said=own).code == 0
    files = server.files("models", "tester/artgraph", "main")
    assert files["LICENSE"] == b"Do as you like."
    said = {"license": "other", "license_name": "Mine", "license_link": "LICENSE", "language": ["en", "it"]}
    assert {name: card_of(files)[name] for name in said} == said
    assert json.loads(files["results.json"])["card"] == {"dataset_name": "made artworks", **said}
    assert push(folder, said=()).code == 0
    assert len(server.commits("models", "tester/artgraph")) == 2
    assert push(folder, said=("--license", "mit")).code == 0
    assert "license_name" not in card_of(server.files("models", "tester/artgraph"))


def test_what_is_missing_is_an_error_that_names_the_options(server, push, finished_run):
    folder, _ = finished_run
    before = tree(folder)
    for said, options in {
        (): "--license and --language",
        ("--license", "mit"): "--language",
        ("--license", "other"): "--license_name and --license_link and --language",
    }.items():
        refused = push(folder, said=said)
        assert refused.code == 2
        assert refused.errors == f"push.py: The card needs what only you can say: give {options}.\n"
    assert "LICENSE, which" in push(folder, "--license=other", "--license-name=x", "--license-link=LICENSE").errors
    assert "license='Apache 2.0': give a licence as the Hub" in push(folder, said=("--license", "Apache 2.0")).errors
    assert server.requests == []
    refused = push(folder, "--license", "apache-2")
    assert '"license" must be one of' in refused.errors
    assert refused.errors.count("\n") == 1
    assert (tree(folder), server.repos) == (before, {})


def test_a_dry_run_lists_what_a_push_sends(server, push, finished_run):
    folder, _ = finished_run
    before = tree(folder)
    listed = push(folder, "--dry-run")
    assert listed.code == 0
    assert (tree(folder), server.requests) == (before, [])
    sizes = {name: int(size.replace(",", "")) for size, name in re.findall(r"^ +([\d,]+) (\S+)$", listed.output, re.M)}
    assert f"{sum(sizes.values()):,} bytes in {len(sizes)} files" in listed.output
    assert "Stays here: .secret.py, checkpoint-4/, optimizer.pt, scheduler.pkl, training_args.bin." in listed.output
    assert "give --license and --language" in push(folder, "--dry_run", said=()).output
    pushed = push(folder)
    assert pushed.code == 0
    files = server.files("models", "tester/artgraph")
    assert set(sizes) == set(files)
    changed = {"results.json"}  # remembers the answers
    assert {name: len(data) for name, data in files.items() if name not in changed} == {
        name: size for name, size in sizes.items() if name not in changed
    }


@pytest.mark.parametrize("place", [r"PUT /lfs/", r"POST .*/objects/batch", r"POST .*/commit/main"])
def test_an_upload_that_broke_off_is_repeated(server, push, finished_run, place):
    folder, _ = finished_run
    server.failures = [place]
    broken = push(folder)
    assert broken.code == 2
    assert re.fullmatch(
        rf"push.py: {folder} could not be pushed to tester/artgraph \(.*\): when that is mended, start again: .*\n",
        broken.errors.splitlines(keepends=True)[-1],
    )
    assert server.commits("models", "tester/artgraph") == ["initial commit"]
    server.failures = []
    repeated = push(folder, said=())  # what was answered is remembered
    assert repeated.code == 0, repeated.errors
    assert len(server.commits("models", "tester/artgraph")) == 2
    assert (
        server.files("models", "tester/artgraph")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    )
    sent = [request for request in server.requests if request.startswith("PUT ")]
    assert len(sent) == len(set(sent)) == 3  # the weights and two figures, each once
    assert push(folder).code == 0
    assert len(server.commits("models", "tester/artgraph")) == 2


def test_old_figures_do_not_stay_beside_new_ones(server, push, finished_run):
    folder, _ = finished_run
    assert push(folder).code == 0
    there = server.repos["models", "tester/artgraph"].find("main").files
    there |= {"figures/old.png": b"", "app.py": b"", "x/figures/a.png": b""}
    assert push(folder).code == 0
    files = set(server.files("models", "tester/artgraph"))
    assert files >= {"app.py", "x/figures/a.png", *PUSHED}
    assert "figures/old.png" not in files


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("model.safetensors", lambda path: path.write_bytes(pickle.dumps({"weight": 1})), "holds no whole model"),
        ("model.safetensors", lambda path: os.truncate(path, path.stat().st_size // 2), "holds no whole model"),
        (
            "model.safetensors",
            lambda path: path.rename(path.with_name("pytorch_model.bin")),
            "lacks model.safetensors",
        ),
        ("losses.py", lambda path: path.unlink(), "losses.py"),
        ("config.json", lambda path: path.write_text('{"model_type": '), "cannot be read"),
        (
            "config.json",
            lambda path: path.symlink_to(path.rename(path.parents[1] / "config")),
            "lacks config.json (a l",
        ),
        ("results.json", lambda path: path.write_text("[]"), "not of a finished run"),
    ],
)
def test_what_is_not_a_whole_run_is_not_pushed(server, push, finished_run, name, damage, told):
    folder, _ = finished_run
    damage(folder / name)
    refused = push(folder)
    assert refused.code == 2
    assert told in refused.errors
    assert refused.errors.count("\n") == 1
    assert server.requests == []


def test_the_models_own_push_to_hub_round_trips(server, push, tmp_path):  # `push` sets the client up
    model = tiny_model(seed=3)
    model.push_to_hub("tester/artgraph")
    ViTImageProcessor(size={"height": 32, "width": 32}).push_to_hub("tester/artgraph")
    loaded = ArtGraphViTForImageClassification.from_pretrained("tester/artgraph", cache_dir=tmp_path / "home")
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert AutoImageProcessor.from_pretrained("tester/artgraph", cache_dir=tmp_path / "home").size["height"] == 32


def test_no_network_is_told_in_one_sentence(push, monkeypatch, tmp_path, finished_run):
    """Of a dataset as of a model; what is no run is noticed before."""
    folder, _ = finished_run
    (tmp_path / "empty").mkdir()
    lacking = "lacks config.json, preprocessor_config.json, results.json, model.safetensors, modeling_artgraph_vit.py"
    assert lacking in push(tmp_path / "empty").errors
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused = push(folder)
    assert refused.code == 2
    assert refused.errors.startswith(f"push.py: {folder} could not be pushed to tester/artgraph (")
    (folder / "README.md").touch()
    with pytest.raises(UserError, match=r"could not be pushed to tester/artworks \(.*\): when that is mended"):
        push_dataset(folder, "tester/artworks")
