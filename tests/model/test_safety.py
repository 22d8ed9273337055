"""What a stranger's checkpoint or config may not do: run code, take all memory, or end in a traceback.

The malicious files here write a file when they are run; each test looks that it was never made. Memory and time are
measured in a process of its own, whose address space is bounded.
"""

import ast
import builtins
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    Dinov2Config,
    SiglipConfig,
    SwinConfig,
    ViTConfig,
)

from artgraph_vit import ArtGraphPipeline, ArtGraphViTConfig, ArtGraphViTForImageClassification, Task
from artgraph_vit.loading import load_model
from artgraph_vit.model.configuration_artgraph_vit import load_backbone_config
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
    assert (tmp_path / "made").exists()  # or the tests below would say nothing


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loader", [ArtGraphViTForImageClassification, AutoModelForImageClassification])
def test_pickled_weights_are_never_read(build_model, tmp_path, marker, form, loader):
    folder = tmp_path / "model"
    build_model().save_pretrained(folder)
    form(folder, marker)
    with pytest.raises(Exception, match=r"safetensors|header"):
        loader.from_pretrained(folder)


@pytest.mark.parametrize("form", FORMS)
def test_pickled_weights_of_a_backbone_are_never_read(tiny, tasks, tmp_path, marker, form):
    folder = tmp_path / "backbone"
    AutoModel.from_config(ViTConfig(**tiny)).save_pretrained(folder)
    form(folder, marker)
    with pytest.raises(Exception, match=r"safetensors|header"):
        ArtGraphViTForImageClassification.from_backbone(folder, tasks)


@pytest.mark.parametrize("form", FORMS)
def test_a_caller_cannot_switch_pickles_on(build_model, tmp_path, marker, form):
    folder = tmp_path / "model"
    build_model().save_pretrained(folder)
    form(folder, marker)
    with pytest.raises(Exception, match=r"safetensors|header"):
        ArtGraphViTForImageClassification.from_pretrained(folder, use_safetensors=False, weights_only=False)


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


def test_a_model_is_written_as_safetensors_only(build_model, tmp_path):
    build_model().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.suffix not in (".json", ".py")} == {"model.safetensors"}


# Code


def test_the_library_never_trusts_remote_code():
    for path in [*ROOT.glob("artgraph_vit/**/*.py"), *ROOT.glob("scripts/**/*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant), where
                assert node.value.value is False, where
            # the name in a string is a key of a dict of options: fine in prose, which is longer than the name
            assert not (isinstance(node, ast.Constant) and node.value == "trust_remote_code"), where
            assert not (isinstance(node, ast.Name) and node.id == "trust_remote_code"), where


def test_nothing_of_the_library_unpickles_or_evaluates():
    unsafe = {"eval", "exec", "compile", "__import__"}
    for path in [*ROOT.glob("artgraph_vit/**/*.py"), *ROOT.glob("scripts/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in unsafe, f"{path.relative_to(ROOT)}:{node.lineno}"
            if isinstance(node, ast.Import):
                assert not {"pickle", "dill", "cloudpickle"} & {name.name for name in node.names}, path


def malicious_code(folder: Path, marker: Path, classes: tuple[str, ...], model_type: str, tiny: dict) -> Path:
    (folder).mkdir()
    (folder / "evil.py").write_text(
        f"open({str(marker)!r}, 'w')\nfrom transformers import ViTConfig as Evil, ViTModel as EvilModel\n"
    )
    names = {name: "evil.Evil" if "Config" in name else "evil.EvilModel" for name in classes}
    return write_config(folder, {**tiny, "model_type": model_type, "auto_map": names})


@pytest.mark.parametrize("from_scratch", [True, False])
def test_a_backbone_with_code_of_its_own_is_refused(tiny, tasks, tmp_path, marker, from_scratch):
    folder = malicious_code(tmp_path / "evil", marker, ("AutoConfig", "AutoModel"), "evil-vit", tiny)
    with pytest.raises(ValueError, match="model_type='evil-vit', which is no backbone of transformers") as caught:
        ArtGraphViTForImageClassification.from_backbone(folder, tasks, from_scratch=from_scratch)
    one_sentence(caught.value)


def test_of_a_backbone_that_transformers_knows_its_own_code_is_passed_over(tiny, tasks, tmp_path, marker):
    AutoModel.from_config(ViTConfig(**tiny)).save_pretrained(tmp_path / "weights")
    folder = malicious_code(tmp_path / "evil", marker, ("AutoConfig", "AutoModel"), "vit", tiny)
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn_implementation": "stranger/kernel"}, "code on the Hub, which a config cannot bring"),
        ({"_attn_implementation": "stranger/kernel"}, "code on the Hub"),
        ({"_experts_implementation": {"": "stranger/kernel:main"}}, "code on the Hub"),
        ({"backbone_config": {"attn_implementation": "stranger/kernel"}}, "code on the Hub"),
        ({"backbone_config": {"auto_map": {"AutoModel": "evil.Evil"}}}, "auto_map, code of its own, which is never"),
        ({"backbone_config": {"transformers_weights": "x.bin"}}, "cannot name the file of its weights"),
        ({"backbone_config": {"to_dict": 1}}, "A config cannot set 'to_dict', a part of transformers"),
        ({"backbone_config": {"__class__": 1}}, "A config cannot set '__class__'"),
        ({"backbone_config": {"x": {"__init__": 1}}}, "A config cannot set '__init__'"),
        ({"__dict__": {}}, "A config cannot set '__dict__'"),
        (
            {"backbone_config": {"model_type": "dpt", "backbone": "stranger/repo"}},
            "cannot name another model to fetch",
        ),
        ({"backbone_config": {"use_pretrained_backbone": True}}, "cannot name another model to fetch"),
        ({"to_dict": 1}, "no option 'to_dict'"),
        ({"attribute_map": {"a": "b"}}, "no option 'attribute_map'"),
        ({"dtype": "load"}, "dtype='load': use the name of a type of PyTorch"),
        ({"torch_dtype": "os"}, "torch_dtype='os': use the name"),
        ({"backbone_config": {"dtype": "load"}}, "dtype='load'"),
    ],
)
def test_a_config_cannot_bring_code(options, message, tmp_path):
    refused(options, message, tmp_path)


def test_what_looks_like_code_in_a_label_stays_a_text(tmp_path, marker):
    labels = [
        f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}{{% set x = open({str(marker)!r}, 'w') %}}",
        f"__import__('os').system('touch {marker}')",
        f"$(touch {marker})",
        f"!!python/object/apply:os.system ['touch {marker}']",
    ]
    ArtGraphViTConfig(tasks=[Task("genre", SINGLE_LABEL, tuple(labels))]).save_pretrained(tmp_path)
    assert ArtGraphViTConfig.from_pretrained(tmp_path).tasks[0].labels == tuple(labels)


# Configs that cannot be meant


def refused(options: dict, message: str, folder: Path, saved: bool = True) -> None:
    """In the constructor, and alike in each way to read it from a folder."""
    with pytest.raises(ValueError, match=message) as caught:
        ArtGraphViTConfig(**{"tasks": [GENRE], **options})
    sentence = one_sentence(caught.value)
    write_config(folder, {"model_type": "artgraph_vit", "tasks": [GENRE], **options})
    loaders = (ArtGraphViTConfig, AutoConfig, ArtGraphViTForImageClassification, AutoModelForImageClassification)
    for loader in loaders if saved else ():
        with pytest.raises(ValueError, match=message) as caught:
            loader.from_pretrained(folder)
        assert one_sentence(caught.value) == sentence


def test_more_tasks_than_can_be_meant_are_refused(tmp_path):
    refused({"tasks": [{**GENRE, "name": f"t{i}"} for i in range(1_001)]}, "has 1,001 tasks: give 1,000", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": 3}, "tasks=3: give a list of tasks"),
        ({"tasks": {"genre": GENRE}}, "give a list of tasks"),
        ({"tasks": ["genre"]}, "A task is given as a dict with name, problem_type and labels, not as 'genre'"),
        ({"tasks": [{**GENRE, "labels": 10**9}]}, "Task 'genre' has labels=1000000000: give a list of labels"),
        ({"tasks": [{**GENRE, "labels": None}]}, "Task 'genre' has labels=None: give a list of labels"),
        ({"tasks": [{**GENRE, "labels": "portrait"}]}, "Task 'genre' has labels='portrait': give a list of labels"),
        ({"tasks": [{**GENRE, "labels": {"a": 1}}]}, "give a list of labels"),
        ({"tasks": [{**GENRE, "labels": ["a", "b" * 1_001]}]}, "name or label of more than 1,000 characters"),
        ({"tasks": [{**GENRE, "name": "b" * 1_001}]}, "name or label of more than 1,000 characters"),
        ({"num_labels": 10**9}, "num_labels is no option here: give the labels of each task in tasks"),
        ({"num_labels": 3}, "num_labels is no option here"),
        ({"num_labels": -1}, "num_labels is no option here"),
        ({"num_labels": 2.0}, "num_labels is no option here"),
        ({"id2label": {"0": "a", "1": "b"}}, "id2label is no option here"),
        ({"label2id": {"a": 0, "b": 1}}, "label2id is no option here"),
        ({"head_dropout": -0.1}, "head_dropout=-0.1: use a probability"),
        ({"head_dropout": True}, "head_dropout=True: use a number"),
        ({"head_dropout": float("nan")}, "head_dropout=nan"),
        ({"head_dropout": float("inf")}, "head_dropout=inf"),
        ({"head_dropout": [0.1]}, r"head_dropout=\[0.1\]: use a number"),
        ({"loss_epsilon": False}, "loss_epsilon=False: use a number"),
        ({"thresholds": [0.5]}, r"thresholds=\[0.5\]: give a dict"),
        ({"pooling": ["cls"] * 100}, "pooling=a list of 100: use one of cls"),
        ({"pooling": "x" * 10**6}, "pooling='xxx"),
        ({"backbone_config": 3}, "backbone_config=3: give a dict"),
        ({"backbone_config": [{}]}, "give a dict, or a config of transformers"),
        ({"backbone_config": "google/vit-base-patch16-224"}, "give a dict"),
        ({"backbone_config": {"model_type": "evil"}}, "model_type='evil', which is no backbone of transformers"),
        ({"backbone_config": {"model_type": ["vit"]}}, r"model_type=\['vit'\]"),
        ({"backbone_config": {"model_type": "artgraph_vit"}}, "model_type='artgraph_vit', which is no backbone"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused_in_one_sentence(options, message, tmp_path):
    refused(options, message, tmp_path)


BACKBONES = [
    ({"num_labels": 10**9}, "num_labels=1000000000: use an integer from 0 to 100,000"),
    ({"num_labels": -1}, "num_labels=-1"),
    ({"num_labels": True}, "num_labels=True"),
    ({"id2label": {str(i): "" for i in range(100_001)}}, "id2label must be a dict of at most 100,000 labels"),
    ({"id2label": ["a"]}, "id2label must be a dict"),
    ({"inner": {"num_labels": 10**9}}, "num_labels=1000000000"),
    ({"model_type": "clip", "vision_config": {"num_labels": 10**9}}, "num_labels=1000000000"),
    ({"model_type": "clip", "text_config": {"num_labels": 10**9}}, "num_labels=1000000000"),
    ({"model_type": "clip", "text_config": {"vocab_size": 10**9}}, "vocab_size=1000000000: no number"),
    *(
        ({name: value}, f"{name}=")
        for name in ("hidden_size", "num_hidden_layers", "intermediate_size", "image_size", "patch_size")
        for value in (-1, 0, 1.5, True, "768", 10**9, 10**100, float("nan"))
    ),
    *(({name: value}, f"{name}=") for name in ("num_attention_heads", "num_channels") for value in (-1, 1.5, 10**9)),
    *(({"hidden_dropout_prob": value}, "hidden_dropout_prob=") for value in (-0.1, 1, 2, True, "0.1", float("nan"))),
    ({"attention_probs_dropout_prob": -1}, "attention_probs_dropout_prob=-1: use a probability of at least 0"),
    ({"layer_norm_eps": float("inf")}, "layer_norm_eps=inf: use a finite number"),
    ({"initializer_range": float("-inf")}, "initializer_range=-inf"),
    ({"pooler_output_size": 10**9}, "pooler_output_size=1000000000: no number of a config is that large"),
    ({"image_size": [224, 10**9]}, "image_size=1000000000"),
    ({"image_size": [[224, -1]]}, "image_size=-1"),
    ({"hidden_size": 32_768, "num_hidden_layers": 512}, "make more than 50 billion parameters together"),
    ({"hidden_size": 16_384, "image_size": 65_536, "patch_size": 1}, "make more than 50 billion parameters together"),
    ({"model_type": "swin", "depths": [10**9]}, "depths=1000000000"),
    ({"model_type": "swin", "depths": [300, 300]}, "depths is for more than 512 layers"),
    ({"model_type": "swin", "depths": [1] * 600}, "depths is for more than 512 layers"),
    ({"model_type": "swin", "depths": [2] * 60}, "hidden_size=55340232221128654848"),
    ({"model_type": "swin", "embed_dim": 10**9}, "embed_dim=1000000000"),
    ({"model_type": "swin", "window_size": 10**4}, "window_size=10000"),
    ({"model_type": "swin", "mlp_ratio": 1e12}, "mlp_ratio=1000000000000.0"),
    ({"model_type": "swin", "drop_path_rate": -0.1}, "drop_path_rate=-0.1"),
    ({"model_type": "convnext", "hidden_sizes": [64, 128, 256, 10**9]}, "hidden_sizes=1000000000"),
    ({"model_type": "dinov2", "layerscale_value": float("nan")}, "layerscale_value=nan"),
    ({"model_type": "dinov2_with_registers", "num_register_tokens": 10**9}, "num_register_tokens=1000000000"),
]


@pytest.mark.parametrize(("backbone", "message"), BACKBONES)
def test_a_backbone_that_cannot_be_meant_is_refused_in_one_sentence(backbone, message, tmp_path):
    refused({"backbone_config": backbone}, message, tmp_path / "model")
    write_config(tmp_path / "backbone", {"model_type": "vit", **backbone})
    with pytest.raises(ValueError, match=message) as caught:
        load_backbone_config(tmp_path / "backbone")
    one_sentence(caught.value)


@pytest.mark.parametrize(
    "backbone", [{"hidden_size": None}, {"qkv_bias": "yes"}, {"hidden_size": 768, "patch_size": {}}]
)
def test_what_transformers_refuses_in_a_backbone_is_one_sentence_too(backbone, tmp_path):
    refused({"backbone_config": backbone}, "The config of the backbone 'vit' cannot be used", tmp_path)


def test_a_backbone_that_is_an_object_is_looked_at_as_well():
    with pytest.raises(ValueError, match="hidden_dropout_prob=-1"):
        ArtGraphViTConfig(backbone_config=ViTConfig(hidden_dropout_prob=-1))
    with pytest.raises(ValueError, match="hidden_size=1000000000"):
        ArtGraphViTConfig(backbone_config=ViTConfig(hidden_size=10**9))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"head_dropout": -1.0}, "head_dropout=-1.0"),
        ({"num_labels": 10**9}, "num_labels is no option here"),
        ({"backbone_config": {"num_labels": 10**9}}, "num_labels=1000000000"),
        ({"tasks": 3}, "tasks=3"),
    ],
)
def test_what_is_given_beside_a_saved_config_is_looked_at_as_well(given, message, tmp_path):
    ArtGraphViTConfig(tasks=[GENRE]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        ArtGraphViTConfig.from_pretrained(tmp_path, **given)


def test_of_a_backbone_given_beside_a_saved_config_only_what_is_given_changes(tmp_path, tiny):
    ArtGraphViTConfig(tasks=[GENRE], backbone_config=ViTConfig(**tiny)).save_pretrained(tmp_path)
    loaded = ArtGraphViTConfig.from_pretrained(tmp_path, head_dropout=0.1, backbone_config={"qkv_bias": False})
    assert (loaded.head_dropout, loaded.backbone_config.qkv_bias, loaded.hidden_size) == (0.1, False, 16)
    assert loaded.tasks == [Task.from_dict(GENRE)]


@pytest.mark.parametrize("depth", [20, 400, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [('{"a": ', "}"), ("[", "]")])
def test_a_config_that_is_nested_without_end_is_refused(depth, opening, closing, tmp_path):
    nested = opening * depth + "1" + closing * depth
    (tmp_path / "config.json").write_text(f'{{"model_type": "artgraph_vit", "backbone_config": {{"x": {nested}}}}}')
    for loader in (ArtGraphViTConfig, ArtGraphViTForImageClassification):
        with pytest.raises(ValueError, match=r"nested more than 8 levels|is no config") as caught:
            loader.from_pretrained(tmp_path)
        one_sentence(caught.value)


@pytest.mark.parametrize("text", ["[1, 2]", "3", "null", '"text"'])
def test_a_file_that_is_no_config_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    for load in (ArtGraphViTConfig.from_pretrained, load_backbone_config):
        with pytest.raises(ValueError, match="is no config: use one that save_pretrained wrote"):
            load(tmp_path)


ABSURD = [
    ({"num_labels": 10**9}, "num_labels is no option here"),
    ({"backbone_config": {"num_labels": 10**9}}, "num_labels=1000000000"),
    ({"backbone_config": {"model_type": "clip", "text_config": {"num_labels": 10**9}}}, "num_labels=1000000000"),
    ({"backbone_config": {"hidden_size": 10**9}}, "hidden_size=1000000000"),
    ({"backbone_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers=1000000000"),
    ({"backbone_config": {"model_type": "swin", "depths": [10**9]}}, "depths=1000000000"),
]
BOUNDED = """
import resource, sys, time
from artgraph_vit import ArtGraphViTConfig, ArtGraphViTForImageClassification
task = {"name": "genre", "problem_type": "single_label_classification"}
loads = [
    lambda tasks=[task] * 10**6: ArtGraphViTConfig(tasks=tasks),
    lambda tasks=[{**task, "labels": ["a"] * (10**6 + 1)}]: ArtGraphViTConfig(tasks=tasks),
    *(lambda folder=folder: ArtGraphViTForImageClassification.from_pretrained(folder) for folder in sys.argv[1:]),
]
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
for load in loads:
    start = time.process_time()
    try:
        load()
    except ValueError as error:
        print(f"{type(error).__name__}: {error}")
    assert time.process_time() - start < 5
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the address space is bounded as Linux does it")
def test_the_refusal_takes_neither_memory_nor_time(tmp_path):
    folders = [
        write_config(tmp_path / str(number), {"model_type": "artgraph_vit", "tasks": [GENRE], **options})
        for number, (options, _) in enumerate(ABSURD)
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", BOUNDED, *map(str, folders)], capture_output=True, text=True, env=environment
    )
    assert process.returncode == 0, process.stderr[-2000:]
    lines = process.stdout.splitlines()
    messages = ["The config has 1,000,000 tasks", "more than 1,000,000 labels", *(message for _, message in ABSURD)]
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith("ValueError: ")
        assert message in line


# Large configs that are meant


@pytest.mark.parametrize(
    "config",
    [
        ViTConfig(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, image_size=512
        ),
        ViTConfig(
            hidden_size=1280, num_hidden_layers=32, num_attention_heads=16, intermediate_size=5120, patch_size=14
        ),
        ViTConfig(
            hidden_size=6144, num_hidden_layers=48, num_attention_heads=48, intermediate_size=24_576, patch_size=14
        ),
        ViTConfig(image_size=2048, num_labels=21_843),
        Dinov2Config(
            hidden_size=1536, num_hidden_layers=40, num_attention_heads=24, use_swiglu_ffn=True, image_size=518
        ),
        SwinConfig(embed_dim=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48], window_size=12, image_size=384),
        ConvNextConfig(hidden_sizes=[256, 512, 1024, 2048], depths=[3, 3, 27, 3], image_size=384, drop_path_rate=0.4),
        CLIPVisionConfig(hidden_size=1664, num_hidden_layers=48, num_attention_heads=16, intermediate_size=8192),
    ],
    ids=["ViT-L/16 512", "ViT-H/14", "ViT-22B", "ViT-B 2048", "DINOv2 giant", "Swin-L", "ConvNeXt-XL", "CLIP bigG"],
)
def test_a_large_backbone_that_is_meant_passes(config, tmp_path):
    made = ArtGraphViTConfig(backbone_config=config, tasks=[GENRE])
    made.save_pretrained(tmp_path)
    assert ArtGraphViTConfig.from_pretrained(tmp_path).backbone_config.to_dict() == config.to_dict()
    as_dict = ArtGraphViTConfig(backbone_config=config.to_dict(), tasks=[GENRE])
    assert as_dict.backbone_config.to_dict() == config.to_dict()


@pytest.mark.parametrize("config_class", [CLIPConfig, SiglipConfig])
def test_of_an_image_text_model_the_vision_tower_is_read(config_class, tmp_path):
    config_class().save_pretrained(tmp_path)
    assert type(load_backbone_config(tmp_path)) is type(config_class().vision_config)


def test_many_tasks_and_labels_that_are_meant_pass(tmp_path):
    tasks = [Task(f"task_{i}", SINGLE_LABEL, ("a", "b")) for i in range(999)]
    tasks.append(Task("artist", SINGLE_LABEL, (*(f"artist {i}" for i in range(100_000)), "é" * 1_000)))
    ArtGraphViTConfig(tasks=tasks).save_pretrained(tmp_path)
    assert ArtGraphViTConfig.from_pretrained(tmp_path).tasks == tasks


def test_a_config_made_of_its_own_values_passes():
    config = ArtGraphViTConfig(tasks=[GENRE])
    assert ArtGraphViTConfig(**config.to_dict()).to_dict() == config.to_dict()
    assert ArtGraphViTConfig(**json.loads(json.dumps(config.to_dict()))).tasks == config.tasks


def test_heads_that_are_absurd_together_with_the_backbone_are_refused():
    labels = [str(number) for number in range(400_000)]
    tasks = [{**GENRE, "labels": labels}]
    with pytest.raises(ValueError, match="The heads would have more than 5 billion parameters together") as caught:
        ArtGraphViTConfig(backbone_config={"hidden_size": 16_384, "num_hidden_layers": 1}, tasks=tasks)
    one_sentence(caught.value)


@pytest.mark.parametrize(
    "size", [{"height": 100_000, "width": 100_000}, {"shortest_edge": 10**9}, {"height": 0, "width": 8}]
)
def test_an_image_processor_that_makes_huge_pictures_is_refused(build_model, tmp_path, size):
    build_model().save_pretrained(tmp_path)
    content = {"image_processor_type": "ViTImageProcessor", "size": size}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"The image processor has size=.*: use an integer from 1 to 4,096") as caught:
        ArtGraphPipeline.from_pretrained(tmp_path)
    one_sentence(caught.value)
    with pytest.raises(ValueError, match="use an integer from 1 to 4,096"):
        load_model(str(tmp_path))
