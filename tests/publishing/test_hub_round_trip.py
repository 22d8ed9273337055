"""Push to a Hub and load back over HTTP, with the real clients, into an empty cache."""

import json
import os
import pickle
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import constants
from PIL import Image
from transformers import ViTImageProcessor

from artgraph_vit import ArtGraphPipeline, ArtGraphViTForImageClassification
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


def run(server, home: Path, code: str) -> list[str]:
    """The lines that a process prints whose cache is empty."""
    hub = {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
    process = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **hub, "HF_HOME": str(home)}, cwd=ROOT, capture_output=True
    )
    assert process.returncode == 0, process.stderr.decode()[-3000:]
    return process.stdout.decode().splitlines()


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


@pytest.fixture(scope="module")
def made_run(tmp_path_factory) -> tuple[Path, dict]:
    """What `finish_run` leaves, with a tiny model and made figures; and the model's logits."""
    folder = tmp_path_factory.mktemp("made") / "run"
    model = tiny_model(seed=3).eval()
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    names = [task.name for task in model.config.tasks]
    metrics = {"avg_macro_f1": 0.5}
    for task in model.config.tasks:
        kind = "hamming_loss" if task.is_multi_label else "accuracy"
        keys = (kind, "macro_precision", "macro_recall", "macro_f1")
        metrics |= {f"{task.name}_{key}": 0.5 for key in keys} | {f"{task.name}_absent_labels": 0}
    measured = {"metrics": metrics, "majority_metrics": metrics, "frozen_metrics": None}
    of_tasks = {"task_losses": dict.fromkeys(names, 0.5), "known_rows": dict.fromkeys(names, 20)}
    results(rows=21, **measured, **of_tasks, card={"dataset_name": "made artworks"}).write(folder)
    state = {"best_model_checkpoint": "/home/me/run/checkpoint-4", "log_history": []}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (folder / "labels.csv").write_text("task,label\r\n")
    for name in ("figures/multiclassification_losses.png", "figures/confusion_genre.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\x89PNG made " + name.encode())
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pkl", ".secret.py"):
        (folder / name).write_bytes(pickle.dumps(name))
    (folder / "checkpoint-4").mkdir()
    (folder / "checkpoint-4" / "model.safetensors").write_bytes(b"a checkpoint")
    with torch.no_grad():
        logits = model(torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)).logits
    return folder, {name: values.tolist() for name, values in logits.items()}


@pytest.fixture
def folder(made_run, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(made_run[0], tmp_path / "run")


PUSHED = {
    *("README.md", "model.safetensors", "config.json", "preprocessor_config.json", "results.json"),
    *("trainer_state.json", "labels.csv"),
    *("figures/multiclassification_losses.png", "figures/confusion_genre.png"),
}


@pytest.mark.slow
def test_a_pushed_run_loads_into_an_empty_cache(server, push, tmp_path, folder, made_run):
    """By the package; and without it, and for who sees the card only, by the code that was pushed."""
    outside = tmp_path / "elsewhere.py"
    outside.write_text("secret = 1")
    (folder / "linked.py").symlink_to(outside)
    (folder / "notes.py").write_text("PASSWORD = 'x'")
    (folder / "logs").mkdir()
    (folder / "logs" / "notes.py").touch()
    pushed = push(folder)
    assert pushed.code == 0, pushed.errors
    commit = server.repos["models", "tester/artgraph"].find("main").sha
    assert pushed.output == f"{server.url}/tester/artgraph/commit/{commit}\n"
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
    loaded, answers = run(server, tmp_path / "empty", LOAD + here + snippets[0])
    values = json.loads(loaded)
    assert values.pop("size") == 32
    assert values == made_run[1]
    assert re.match(r"\[\{'label': '(a|b|other)', 'score': 0\.", answers)

    no_package = "import sys\nsys.modules['artgraph_vit'] = None\n"
    listed, labels = run(server, tmp_path / "other", no_package + here + snippets[1] + snippets[2])
    assert answers.startswith(listed)
    assert labels.endswith("torch.Size([1, 32])")


def test_a_private_run_is_refused_without_a_token(server, push, tmp_path, folder):
    assert push(folder, "--private").code == 0
    assert server.repos["models", "tester/artgraph"].private
    with pytest.raises(OSError, match="tester/artgraph"):
        ArtGraphViTForImageClassification.from_pretrained("tester/artgraph", cache_dir=tmp_path / "home", token=False)


def test_a_public_repository_is_not_called_private(server, push, tmp_path, folder):
    assert push(folder).code == 0
    refused = push(folder, "--private")
    assert refused.code == 2
    assert "tester/artgraph is there already and public: make it private in its settings first" in refused.errors
    (tmp_path / "README.md").write_text("# Prepared pictures")
    push_dataset(tmp_path, "tester/pictures")
    with pytest.raises(UserError, match="tester/pictures is there already and public"):
        push_dataset(tmp_path, "tester/pictures", private=True)
    push_dataset(tmp_path, "tester/others", private=True)
    assert server.repos["datasets", "tester/others"].private


def test_push_to_a_branch_and_as_a_pull_request(server, push, monkeypatch, folder):
    """Also by who may not write to the repository, and against a branch; of a branch that is not there, none."""
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
    refused = push(folder, "--create-pr", "--revision", "v2")
    assert refused.code == 2
    assert "Revision Not Found" in refused.errors


def test_who_may_not_write_is_told_in_one_line(server, push, monkeypatch, folder):
    assert push(folder).code == 0
    monkeypatch.setenv("HF_TOKEN", "hf_guest")
    refused = push(folder)
    assert refused.code == 2
    assert refused.errors.startswith(f"push.py: {folder} could not be pushed to tester/artgraph (")
    assert "You may not write to tester/artgraph" in refused.errors
    assert refused.errors.count("\n") == 1


def test_what_is_said_is_remembered(server, push, folder):
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


def test_what_is_missing_is_an_error_that_names_the_options(server, push, folder):
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
    assert (
        "The licence 'Apache 2.0' is not written as the Hub" in push(folder, said=("--license", "Apache 2.0")).errors
    )
    assert tree(folder) == before
    assert server.requests == []


def test_a_licence_that_the_hub_does_not_know_leaves_nothing(server, push, folder):
    before = tree(folder)
    refused = push(folder, "--license", "apache-2")
    assert refused.code == 2
    assert re.fullmatch(r'.*"license" must be one of.*\n', refused.errors)
    assert (tree(folder), server.repos) == (before, {})


def test_a_dry_run_lists_what_a_push_sends(server, push, folder):
    before = tree(folder)
    listed = push(folder, "--dry-run")
    assert listed.code == 0
    assert (tree(folder), server.requests) == (before, [])
    sizes = {name: int(size.replace(",", "")) for size, name in re.findall(r"^ +([\d,]+) (\S+)$", listed.output, re.M)}
    assert f"{sum(sizes.values()):,} bytes in {len(sizes)} files" in listed.output
    assert "Stays here: .secret.py, checkpoint-4/, optimizer.pt, scheduler.pkl, training_args.bin." in listed.output
    assert "Missing: figures/multiclassification_macro_f1s.png" in listed.output
    assert "give --license and --language" in push(folder, "--dry_run", said=()).output
    pushed = push(folder)
    assert pushed.code == 0
    files = server.files("models", "tester/artgraph")
    sent = {name: len(data) for name, data in files.items()}
    assert sent == {**sizes, "results.json": sent["results.json"]}  # which remembers the answers


@pytest.mark.parametrize("place", [r"PUT /lfs/", r"POST .*/objects/batch", r"POST .*/commit/main"])
def test_an_upload_that_broke_off_is_repeated(server, push, folder, place):
    server.failures = [place]
    broken = push(folder)
    assert broken.code == 2
    told = rf"push.py: {folder} could not be pushed to tester/artgraph \(.*\): when that is mended, start again: .*"
    assert re.fullmatch(told, broken.errors.splitlines()[-1])
    assert server.commits("models", "tester/artgraph") == ["initial commit"]
    server.failures = []
    repeated = push(folder, said=())  # what was answered is remembered
    assert repeated.code == 0, repeated.errors
    assert len(server.commits("models", "tester/artgraph")) == 2
    files = server.files("models", "tester/artgraph")
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    sent = [request for request in server.requests if request.startswith("PUT ")]
    assert len(sent) == len(set(sent)) == 3  # the weights and two figures, each once
    assert push(folder).code == 0
    assert len(server.commits("models", "tester/artgraph")) == 2


def test_old_weights_do_not_stay_beside_new_ones(server, push, folder):
    assert push(folder).code == 0
    there = server.repos["models", "tester/artgraph"].find("main").files
    there |= {"model-00001-of-00099.safetensors": b"", "figures/old.png": b"", "app.py": b"", "x/figures/a.png": b""}
    tiny_model(seed=3).save_pretrained(folder, max_shard_size="20KB")
    assert "holds two models" in push(folder).errors  # the whole one would be loaded, old as it is
    (folder / "model.safetensors").unlink()
    assert push(folder).code == 0
    files = set(server.files("models", "tester/artgraph"))
    assert {"app.py", "x/figures/a.png", "model.safetensors.index.json"} <= files
    assert not {"model.safetensors", "figures/old.png", "model-00001-of-00099.safetensors"} & files
    (folder / max(path.name for path in folder.glob("model-*"))).unlink()
    refused = push(folder)
    assert refused.code == 2
    assert "lacks model-000" in refused.errors


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("model.safetensors", lambda path: path.write_bytes(pickle.dumps({"weight": 1})), "holds no whole model"),
        ("model.safetensors", lambda path: os.truncate(path, path.stat().st_size // 2), "holds no whole model"),
        ("model.safetensors", lambda path: path.rename(path.with_name("model.bin")), "lacks model.safetensors"),
        ("losses.py", lambda path: path.unlink(), "lacks code that travels with the weights (losses.py)"),
        ("config.json", lambda path: path.write_text('{"model_type": '), "cannot be read"),
        (
            "config.json",
            lambda path: path.symlink_to(path.rename(path.parents[1] / "config")),
            "lacks config.json (a l",
        ),
        ("results.json", lambda path: path.write_text("[]"), "not of a finished run"),
    ],
)
def test_what_is_not_a_whole_run_is_not_pushed(server, push, folder, name, damage, told):
    damage(folder / name)
    refused = push(folder)
    assert refused.code == 2
    assert told in refused.errors
    assert refused.errors.count("\n") == 1
    assert server.requests == []


def test_the_models_own_push_to_hub_round_trips_also_a_revision_of_it(server, push, tmp_path):
    """`push` sets the client up."""
    states = []
    for seed in (3, 4):
        model = tiny_model(seed)
        ArtGraphPipeline(model, ViTImageProcessor(size={"height": 32, "width": 32})).push_to_hub("tester/artgraph")
        states.append((server.repos["models", "tester/artgraph"].find("main").sha, model.state_dict()))
    for revision, state in (states[0], states[1], ("main", states[1][1])):
        loaded = ArtGraphPipeline.from_pretrained("tester/artgraph", revision=revision, cache_dir=tmp_path / "home")
        assert all(tensor.equal(state[name]) for name, tensor in loaded.model.state_dict().items())
        assert loaded.image_processor.size["height"] == 32


def test_no_network_is_told_in_one_sentence(push, monkeypatch, tmp_path, folder):
    """Of a dataset as of a model; what is no run is noticed before."""
    (tmp_path / "empty").mkdir()
    lacking = "lacks config.json, preprocessor_config.json, results.json, model.safetensors"
    assert lacking in push(tmp_path / "empty").errors
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused = push(folder)
    assert refused.code == 2
    assert refused.errors.startswith(f"push.py: {folder} could not be pushed to tester/artgraph (")
    (folder / "README.md").touch()
    with pytest.raises(UserError, match=r"could not be pushed to tester/artworks \(.*\): when that is mended"):
        push_dataset(folder, "tester/artworks")
