"""A stranger's checkpoint or config runs no code: no pickle is read, and no module beside the weights is imported.

The malicious files here write a file when they are run; each test looks that it was never made.
"""

import ast
import builtins
import json
import pickle
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, ViTConfig

from artgraph_vit import ArtGraphViTConfig, ArtGraphViTForImageClassification, Task
from artgraph_vit.model.tasks import SINGLE_LABEL

ROOT = Path(__file__).parents[2]
GENRE = {"name": "genre", "problem_type": SINGLE_LABEL, "labels": ["portrait", "landscape"]}


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def marker(tmp_path):
    """The file that malicious code makes; it must not be there in the end."""
    path = tmp_path / "code-was-run"
    yield path
    assert not path.exists(), "code of the checkpoint was run"


@pytest.fixture(autouse=True)
def no_question(monkeypatch):
    """transformers asks on the terminal whether to run code; a server has nobody to answer."""
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("a question was asked on the terminal"))


def one_sentence(error: BaseException) -> str:
    message = str(error)
    assert "\n" not in message, message
    assert len(message) < 700, message
    return message


def write_config(folder: Path, values: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


# Weights


def as_pickle(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(marker)))


def as_torch_file(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"log_variances": Malicious(marker)}, folder / "pytorch_model.bin")


def as_index(folder: Path, marker: Path) -> None:
    as_pickle(folder, marker)
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00001.bin")
    index = {"metadata": {}, "weight_map": {"log_variances": "pytorch_model-00001-of-00001.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def as_index_of_safetensors(folder: Path, marker: Path) -> None:
    as_pickle(folder, marker)
    index = {"metadata": {}, "weight_map": {"log_variances": "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def in_disguise(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Malicious(marker)))


def torch_file_in_disguise(folder: Path, marker: Path) -> None:
    torch.save({"log_variances": Malicious(marker)}, folder / "model.safetensors")


FORMS = [as_pickle, as_torch_file, as_index, as_index_of_safetensors, in_disguise, torch_file_in_disguise]


def test_the_malicious_pickle_would_make_its_file(tmp_path):
    pickle.loads(pickle.dumps(Malicious(tmp_path / "made")))
    assert (tmp_path / "made").exists()  # or the next test would say nothing


@pytest.mark.parametrize("form", FORMS)
def test_pickled_weights_are_never_read_not_even_if_a_caller_asks_for_it(build_model, tasks, tmp_path, marker, form):
    model, backbone = tmp_path / "model", tmp_path / "backbone"
    build_model().save_pretrained(model)
    build_model().backbone.save_pretrained(backbone)
    form(model, marker)
    form(backbone, marker)
    for options in ({}, {"use_safetensors": False, "weights_only": False}):
        for loader in (ArtGraphViTForImageClassification, AutoModelForImageClassification):
            with pytest.raises(Exception, match=r"safetensors|header"):
                loader.from_pretrained(model, **options)
    with pytest.raises(Exception, match=r"safetensors|header"):
        ArtGraphViTForImageClassification.from_backbone(backbone, tasks)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_pickles_without_malice_that_an_index_names_are_refused_too(build_model, tmp_path, variant):
    model = build_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "weights.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(model.state_dict(), "weights.bin")}
    name = f"model.safetensors.index.{variant}.json" if variant else "model.safetensors.index.json"
    (tmp_path / name).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="safetensors") as caught:
        ArtGraphViTForImageClassification.from_pretrained(tmp_path, variant=variant)
    one_sentence(caught.value)


# Code


def test_the_library_trusts_no_remote_code_and_neither_unpickles_nor_evaluates():
    for path in [*ROOT.glob("artgraph_vit/**/*.py"), *ROOT.glob("scripts/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant), where
                assert node.value.value is False, where
            elif isinstance(node, ast.Constant):  # a key of a dict of options: fine in prose, which is longer
                assert node.value != "trust_remote_code", where
            elif isinstance(node, ast.Name):
                assert node.id != "trust_remote_code", where
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec", "compile", "__import__"}, where
            elif isinstance(node, ast.Import):
                assert not {"pickle", "dill", "cloudpickle"} & {name.name for name in node.names}, where


def malicious_code(folder: Path, marker: Path, model_type: str, tiny: dict) -> Path:
    folder.mkdir()
    (folder / "evil.py").write_text(
        f"open({str(marker)!r}, 'w')\nfrom transformers import ViTConfig as Evil, ViTModel as EvilModel\n"
    )
    names = {"AutoConfig": "evil.Evil", "AutoModel": "evil.EvilModel"}
    return write_config(folder, {**tiny, "model_type": model_type, "auto_map": names})


@pytest.mark.parametrize("from_scratch", [True, False])
def test_a_backbone_with_code_of_its_own_is_refused(tiny, tasks, tmp_path, marker, from_scratch):
    folder = malicious_code(tmp_path / "evil", marker, "evil-vit", tiny)
    with pytest.raises(ValueError, match="model_type='evil-vit', which is no backbone of transformers") as caught:
        ArtGraphViTForImageClassification.from_backbone(folder, tasks, from_scratch=from_scratch)
    one_sentence(caught.value)


def test_of_a_backbone_that_transformers_knows_its_own_code_is_passed_over(tiny, tasks, tmp_path, marker):
    AutoModel.from_config(ViTConfig(**tiny)).save_pretrained(tmp_path / "weights")
    folder = malicious_code(tmp_path / "evil", marker, "vit", tiny)
    (tmp_path / "weights" / "model.safetensors").rename(folder / "model.safetensors")
    model = ArtGraphViTForImageClassification.from_backbone(folder, tasks)
    assert type(model.backbone).__module__.startswith("transformers.models.vit.")
    model.save_pretrained(tmp_path / "saved")
    assert "evil" not in (tmp_path / "saved" / "config.json").read_text()
    ArtGraphViTForImageClassification.from_pretrained(tmp_path / "saved")


def test_a_model_whose_config_points_to_other_code_does_not_run_it(build_model, tmp_path, marker):
    folder = tmp_path / "model"
    build_model().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for path in folder.glob("*.py"):
        path.write_text(f"open({str(marker)!r}, 'w')\n")
    names = {name: reference.split("--")[-1] for name, reference in config["auto_map"].items()}
    write_config(folder, {**config, "auto_map": names, "custom_pipelines": {"x": {"impl": "evil.Evil"}}})
    ArtGraphViTForImageClassification.from_pretrained(folder)
    AutoModelForImageClassification.from_pretrained(folder)  # the package is imported: its own class is used
    ArtGraphViTConfig.from_pretrained(folder)
    AutoConfig.from_pretrained(folder)


CODE = "A config cannot bring code or weights of its own"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn_implementation": "stranger/kernel"}, CODE),
        ({"_attn_implementation": "stranger/kernel"}, CODE),
        ({"_experts_implementation": {"": "stranger/kernel:main"}}, CODE),
        ({"to_dict": 1}, "no option 'to_dict'"),
        ({"attribute_map": {"a": "b"}}, "no option 'attribute_map'"),
        ({"backbone_config": {"attn_implementation": "stranger/kernel"}}, CODE),
        ({"backbone_config": {"_attn_implementation": {"": "stranger/kernel"}}}, CODE),
        ({"backbone_config": {"auto_map": {"AutoModel": "evil.Evil"}}}, CODE),
        ({"backbone_config": {"model_type": "clip", "vision_config": {"auto_map": {"AutoModel": "evil.Evil"}}}}, CODE),
        ({"backbone_config": {"parts": [{"attn_implementation": "stranger/kernel"}]}}, CODE),
        ({"backbone_config": {"transformers_weights": "x.safetensors.index.json"}}, CODE),
        ({"backbone_config": {"model_type": "dpt", "backbone": "stranger/repo"}}, CODE),
        ({"backbone_config": {"model_type": "evil"}}, "model_type='evil', which is no backbone of transformers"),
        ({"backbone_config": {"model_type": "artgraph_vit"}}, "model_type='artgraph_vit', which is no backbone"),
    ],
)
def test_a_config_cannot_bring_code(options, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        ArtGraphViTConfig(**{"tasks": [GENRE], **options})
    sentence = one_sentence(caught.value)
    write_config(tmp_path, {"model_type": "artgraph_vit", "tasks": [GENRE], **options})
    for loader in (ArtGraphViTConfig, AutoConfig, ArtGraphViTForImageClassification, AutoModelForImageClassification):
        with pytest.raises(ValueError, match=message) as caught:
            loader.from_pretrained(tmp_path)
        assert one_sentence(caught.value) == sentence


def test_what_looks_like_code_in_a_label_stays_a_text(tmp_path, marker):
    labels = [
        f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}{{% set x = open({str(marker)!r}, 'w') %}}",
        f"__import__('os').system('touch {marker}')",
        f"$(touch {marker})",
        f"!!python/object/apply:os.system ['touch {marker}']",
    ]
    ArtGraphViTConfig(tasks=[Task("genre", SINGLE_LABEL, tuple(labels))]).save_pretrained(tmp_path)
    assert ArtGraphViTConfig.from_pretrained(tmp_path).tasks[0].labels == tuple(labels)
