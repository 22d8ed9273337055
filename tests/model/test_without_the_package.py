"""A pushed model in an environment that has torch, transformers and Pillow, with what these need, and nothing else.

A process with the package pushes one model, another over it, and then code that leaves a mark where it runs. What is
loaded by the revision of the first push must be the first model with its own code.
"""

import ast
import json
import os
import re
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor

from artgraph_vit import ArtGraphPipeline, ArtGraphViTConfig, ArtGraphViTForImageClassification, Task
from artgraph_vit.model.tasks import MULTI_LABEL, SINGLE_LABEL
from tests.conftest import TINY
from tests.hub_server import HubServer

ROOT = Path(__file__).parents[2]
REPO = "tester/artgraph"
PUSH = f"""
import sys
from transformers.pipelines import PIPELINE_REGISTRY
assert "artwork-classification" not in PIPELINE_REGISTRY.get_supported_tasks()
from artgraph_vit import ArtGraphPipeline
from huggingface_hub import HfApi
first, second, code = sys.argv[1:]
ArtGraphPipeline.from_pretrained(first).push_to_hub("{REPO}")
print(HfApi().model_info("{REPO}").sha)
ArtGraphPipeline.from_pretrained(second).push_to_hub("{REPO}")
for name in ("pipeline", "modeling", "configuration"):
    HfApi().upload_file(path_or_fileobj=code, path_in_repo=f"{{name}}_artgraph_vit.py", repo_id="{REPO}")
"""
# `-I` leaves out the working folder and what the environment names, so that only the virtual environment counts.
WITHOUT_THE_PACKAGE = f"""
import json, os, sys
from importlib.util import find_spec
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

for name in ("artgraph_vit", "datasets", "accelerate", "sklearn"):
    assert find_spec(name) is None, name
assert "artwork-classification" not in PIPELINE_REGISTRY.get_supported_tasks()
revision, picture = sys.argv[1:]

def remote_code():
    return sorted(name for name in sys.modules if name.startswith("transformers_modules."))

refused = []
for asked in ({{"revision": revision}}, {{}}, {{"trust_remote_code": False}}):
    for load in (AutoModelForImageClassification.from_pretrained, lambda repo, **asked: pipeline(model=repo, **asked)):
        try:
            load("{REPO}", **asked)
        except ValueError as error:
            refused.append("trust_remote_code=True" in str(error))
assert remote_code() == [], remote_code()

options = {{"revision": revision, "trust_remote_code": True}}
before = set(sys.modules)
model = AutoModelForImageClassification.from_pretrained("{REPO}", **options).eval()
with torch.no_grad():
    logits = model(torch.linspace(-1, 1, 2 * 3 * 48 * 48).reshape(2, 3, 48, 48)).logits
pipe = pipeline(model="{REPO}", **options)
answers = pipe([picture, b"no picture", "http://127.0.0.1/"])
print("\\n" + json.dumps({{  # after a question that nobody answered
    "refused": refused,
    "logits": {{name: values.tolist() for name, values in logits.items()}},
    "answers": answers,
    "embedding": pipe.embed(picture).tolist(),
    "sentence": pipe.describe(answers[0]),
    "code": remote_code(),
    "prefix": sys.prefix,
}}))
"""


# The python files that save_pretrained writes beside the weights.
TRAVELLING = {
    *("configuration_artgraph_vit", "modeling_artgraph_vit", "pipeline_artgraph_vit"),
    *("backbones", "losses", "museum_label", "pictures", "tasks"),
}
NOT_CODE = {"config.json", "model.safetensors", "preprocessor_config.json"}
TASKS = [
    Task("artist", SINGLE_LABEL, ("a", "b", "other"), rare="other"),
    Task("genre", SINGLE_LABEL, ("portrait", "still life")),
    Task("tags", MULTI_LABEL, ("Tree", "boat", "moon"), rare="drop"),
]
# With and without what tuning may give a task; the backbone's own size is 16.
TUNED = {
    "pooling": "cls_mean",
    "image_size": 48,
    "temperatures": {"genre": 2.5, "tags": 4.0},
    "thresholds": {"tags": [0.99, 0.01, 0.99]},
}


def run(*command, home, server, online=True):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": server.url, "HF_TOKEN": "hf_test", "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": str(int(not online)), "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [*map(str, command)], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200
    )
    assert child.returncode == 0, child.stderr[-4000:]
    return child.stdout.splitlines()[-1]


def needed(*names: str) -> set[str]:
    """The distributions that these need, themselves among them."""
    found: set[str] = set()
    open_names = list(names)
    while open_names:
        name = re.sub(r"[-_.]+", "-", open_names.pop()).lower()
        if name not in found:
            found.add(name)
            for one in map(Requirement, metadata.distribution(name).requires or ()):
                if one.marker is None or one.marker.evaluate({"extra": ""}):
                    open_names.append(one.name)
    return found


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    """The interpreter of a virtual environment, into which the needed parts of this one are linked."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in needed("torch", "transformers", "Pillow"):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two models of other weights in folders, a picture, and code that leaves a mark."""
    folder = tmp_path_factory.mktemp("made")
    pipes = []
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        config = ArtGraphViTConfig(backbone_config=ViTConfig(**TINY), tasks=TASKS, **TUNED)
        model = ArtGraphViTForImageClassification(config)
        for head in model.heads.values():
            torch.nn.init.normal_(head.weight)
        pipes.append(ArtGraphPipeline(model, ViTImageProcessor(size={"height": 48, "width": 48})))
        pipes[-1].save_pretrained(folder / name)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    (folder / "code.py").write_text(f"from pathlib import Path\nPath({str(folder / 'mark')!r}).touch()\n")
    return folder, pipes


@pytest.fixture(scope="module")
def pushed(made, tmp_path_factory):
    """The Hub, and the revision of the first push."""
    folder, _ = made
    with HubServer({"hf_test": "tester"}) as server:
        home = tmp_path_factory.mktemp("pushing") / "home"
        arguments = (folder / "first", folder / "second", folder / "code.py")
        revision = run(sys.executable, "-c", PUSH, *arguments, home=home, server=server)
        assert "touch()" in server.files("models", REPO)["pipeline_artgraph_vit.py"].decode()
        yield server, revision
        assert server.unknown_requests == []


@pytest.fixture(scope="module")
def load(made, pushed, bare_python, tmp_path_factory):
    """`load(online)`: what the process without the package says, and its cache, which stays."""
    (folder, _), (server, revision) = made, pushed
    home = tmp_path_factory.mktemp("without") / "home"

    def start(online: bool = True) -> tuple[dict, Path]:
        command = (bare_python, "-I", "-c", WITHOUT_THE_PACKAGE, revision, folder / "picture.png")
        return json.loads(run(*command, home=home, server=server, online=online)), home

    return start


@pytest.fixture(scope="module")
def loaded(load):
    return load()


def by_hand(pipe, picture: Path) -> tuple[dict, dict, torch.Tensor]:
    """Logits of the pixels that the child makes, scores of the picture, and its vector at length one."""
    model = pipe.model

    def pooled(pixels: torch.Tensor) -> torch.Tensor:
        tokens = model.backbone(pixels, interpolate_pos_encoding=True).last_hidden_state
        return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], -1)

    def calibrated(name: str, vectors: torch.Tensor) -> torch.Tensor:
        head = model.heads[name]
        return (vectors @ head.weight.T + head.bias) / TUNED["temperatures"].get(name, 1.0)

    pixels = torch.linspace(-1, 1, 2 * 3 * 48 * 48).reshape(2, 3, 48, 48)
    with Image.open(picture) as image, torch.no_grad():
        logits = {name: calibrated(name, pooled(pixels)) for name in model.heads}
        (vector,) = pooled(pipe.image_processor(image, return_tensors="pt")["pixel_values"])
        scores = {}
        for task in model.config.tasks:
            values = calibrated(task.name, vector)
            chances = torch.sigmoid(values) if task.is_multi_label else torch.softmax(values, 0)
            kept = chances > torch.tensor(TUNED["thresholds"][task.name]) if task.is_multi_label else chances > 0
            scores[task.name] = {task.labels[label]: chances[label].item() for label in kept.nonzero()[:, 0]}
    return logits, scores, vector / vector.norm()


def assert_scores(answer: dict, scores: dict):
    assert {name: {e["label"]: e["score"] for e in entries} for name, entries in answer.items()} == {
        name: pytest.approx(wanted, abs=1e-5) for name, wanted in scores.items()
    }


@pytest.mark.slow
def test_the_pinned_revision_gives_the_first_model_without_the_package(made, loaded):
    (folder, (first, second)), (said, _) = made, loaded
    logits, scores, vector = by_hand(first, folder / "picture.png")
    other_logits, _, other_vector = by_hand(second, folder / "picture.png")
    assert list(said["logits"]) == list(logits)
    for name, values in logits.items():
        assert said["logits"][name] == pytest.approx(values.numpy(), abs=1e-5)
        assert (other_logits[name] - values).abs().max() > 0.1  # the second model would not have passed
    assert_scores(said["answers"][0], scores)
    assert list(scores["tags"]) == ["boat"]  # by the thresholds: all three are above a half
    with_the_package = first(str(folder / "picture.png"))
    for name, entries in said["answers"][0].items():
        assert [entry["label"] for entry in entries] == [entry["label"] for entry in with_the_package[name]]
    assert_scores(with_the_package, scores)
    assert said["embedding"] == pytest.approx(vector.tolist(), abs=1e-5)
    assert (other_vector - vector).abs().max() > 0.01
    assert [list(answer) for answer in said["answers"][1:]] == [["error"], ["error"]]
    assert said["sentence"].endswith(".")


@pytest.mark.slow
def test_without_trust_it_is_refused_and_nothing_runs(made, loaded):
    (folder, _), (said, _) = made, loaded
    assert said["refused"] == [True] * 6
    assert not (folder / "mark").exists()


@pytest.mark.slow
def test_what_ran_came_from_the_pinned_revision_into_the_bare_environment(pushed, bare_python, loaded):
    (_, revision), (said, home) = pushed, loaded
    assert Path(said["prefix"]) == bare_python.parents[1]
    assert {name.rsplit(".", 1)[-1] for name in said["code"]} >= TRAVELLING
    copies = [*home.glob("modules/transformers_modules/**/*_artgraph_vit.py")]
    assert copies
    assert all(revision in copy.parts for copy in copies)


@pytest.mark.slow
def test_it_works_offline_from_its_cache(pushed, loaded, load):
    (server, _), (said, _) = pushed, loaded
    asked = len(server.requests)
    again, _ = load(online=False)
    assert {**again, "refused": None} == {**said, "refused": None}
    assert len(server.requests) == asked


def test_the_files_that_travel_import_each_other_torch_transformers_and_pillow_only(made):
    files = set((made[0] / "first").iterdir())
    code = {file for file in files if file.suffix == ".py"}
    assert {file.stem for file in code} == TRAVELLING
    assert {file.name for file in files - code} == NOT_CODE
    imported = set()
    for file in code:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert (node.level, node.module) in {(1, name) for name in TRAVELLING}, ast.unparse(node)
                imported.add(node.module)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                outside = {module.split(".")[0] for module in modules}
                assert outside <= {*sys.stdlib_module_names, "torch", "transformers", "PIL"}, ast.unparse(node)
    assert imported == TRAVELLING  # nothing travels that nothing asks for


@pytest.mark.slow
def test_what_is_pushed_is_what_it_takes(pushed):
    server, revision = pushed
    files = server.files("models", REPO, revision)
    assert set(files) - {"README.md", ".gitattributes"} == NOT_CODE | {f"{name}.py" for name in TRAVELLING}
    config = json.loads(files["config.json"])
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModelForImageClassification"}
    assert str(ROOT) not in files["config.json"].decode() + files["preprocessor_config.json"].decode()
