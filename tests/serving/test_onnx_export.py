"""ONNX files: what onnxruntime makes of them is compared with torch here, not by the code that wrote them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image, ImageOps
from transformers import (
    AutoImageProcessor,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    ConvNextConfig,
    ConvNextImageProcessorPil,
    DeiTImageProcessorPil,
    Dinov2Config,
    EfficientNetImageProcessorPil,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
    ViTImageProcessorPil,
)

import artgraph_vit
from artgraph_vit import ArtGraphViTConfig, ArtGraphViTForImageClassification, Task
from artgraph_vit.data.demo import paint_artwork
from artgraph_vit.errors import UserError
from artgraph_vit.model.tasks import MULTI_LABEL, SINGLE_LABEL
from artgraph_vit.serving import onnx as onnx_export
from artgraph_vit.serving.onnx import describe_preprocessing, export_onnx, preprocess

from .conftest import ROOT, run_script

TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TRANSFORMER |= {"image_size": 16, "patch_size": 8}
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
BACKBONES = {
    "siglip": (SiglipVisionConfig(**TRANSFORMER), "pooler"),  # has an inner value that is called embedding
    "clip": (CLIPVisionConfig(**TRANSFORMER), "cls"),
    "dinov2": (Dinov2Config(**{**TRANSFORMER, "image_size": 32}), "mean"),  # interpolates its positions
    "swin": (SwinConfig(**SWIN), "mean"),
    "convnext": (ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2), "pooler"),
}


def processor(side: int = 16, **options) -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": side, "width": side}, **options)


def run_onnx(path: Path, pixels: torch.Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"pixel_values": pixels.numpy()}), strict=True))


@torch.no_grad()
def run_torch(model: ArtGraphViTForImageClassification, pixels: torch.Tensor) -> dict[str, np.ndarray]:
    """In the closed forms."""
    output = model.eval()(pixel_values=pixels)
    expected = {"embedding": output.pooled.numpy() / np.linalg.norm(output.pooled.numpy(), axis=1, keepdims=True)}
    for task in model.config.tasks:
        logits = output.logits[task.name].double().numpy()
        powers = np.exp(logits)
        expected[task.name] = 1 / (1 + 1 / powers) if task.is_multi_label else powers / powers.sum(1, keepdims=True)
    return expected


def assert_same(
    path: Path, model: ArtGraphViTForImageClassification, sizes: tuple = (1, 3, 7), side: int = 16
) -> None:
    for size in sizes:
        pixels = torch.randn(size, 3, side, side)
        given, expected = run_onnx(path, pixels), run_torch(model, pixels)
        assert set(given) == set(expected)
        for name, values in expected.items():
            assert given[name].dtype == np.float32
            assert given[name].shape == values.shape
            np.testing.assert_allclose(given[name], values, atol=1e-5, err_msg=name)


@pytest.fixture
def wide(build_model):
    """A model of which most is matrices."""
    return build_model(backbone_config=ViTConfig(**{**TRANSFORMER, "hidden_size": 96, "intermediate_size": 384}))


THRESHOLDS = [0.1, 0.2, 0.3, 0.4, 0.6]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A file, and the model it was made of, which was read from a folder."""
    folder = tmp_path_factory.mktemp("somebody")
    tasks = [
        Task("artist", SINGLE_LABEL, ("ada", "bea", "cleo", "other"), rare="other"),
        Task("genre", SINGLE_LABEL, ("landscape", "portrait", "still life")),
        Task("tags", MULTI_LABEL, ("Tree", "boat", "female-portraits", "sea", "sky"), rare="drop"),
    ]
    config = ArtGraphViTConfig(
        backbone_config=ViTConfig(**TRANSFORMER), tasks=tasks, thresholds={"tags": THRESHOLDS}, head_dropout=0.9
    )
    torch.manual_seed(0)
    model = ArtGraphViTForImageClassification(config)
    for head in model.heads.values():
        torch.nn.init.normal_(head.weight)
    model.save_pretrained(folder / "a-run")
    model = ArtGraphViTForImageClassification.from_pretrained(folder / "a-run").train()
    (file,) = export_onnx(model, processor(resample=3, image_mean=[0.1, 0.2, 0.3]), folder / "model.onnx")
    assert model.training  # it stays as it is; the file has no dropout, or it would differ
    assert {path.name for path in folder.iterdir()} == {"a-run", "model.onnx"}
    return file, model


def test_a_file_gives_what_torch_gives_at_any_batch_size(exported):
    file, model = exported
    assert_same(file.path, model)
    assert file.size == file.path.stat().st_size
    assert file.pictures == 4

    session = onnxruntime.InferenceSession(str(file.path), providers=["CPUExecutionProvider"])
    assert [(given.name, given.shape) for given in session.get_inputs()] == [("pixel_values", ["batch", 3, 16, 16])]
    shapes = {"artist": 4, "genre": 3, "tags": 5, "embedding": 16}
    assert [(output.name, output.shape) for output in session.get_outputs()] == [
        (name, ["batch", size]) for name, size in shapes.items()
    ]


def test_the_metadata_says_all_that_is_needed(exported):
    file, _ = exported
    session = onnxruntime.InferenceSession(str(file.path), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    artist, genre, tags = json.loads(metadata["tasks"])
    assert artist == {
        "name": "artist",
        "problem_type": SINGLE_LABEL,
        "labels": ["ada", "bea", "cleo", "other"],
        "other_label": "other",
    }
    assert genre == {"name": "genre", "problem_type": SINGLE_LABEL, "labels": ["landscape", "portrait", "still life"]}
    assert tags == {
        "name": "tags",
        "problem_type": MULTI_LABEL,
        "labels": ["Tree", "boat", "female-portraits", "sea", "sky"],
        "threshold": THRESHOLDS,
    }
    how = json.loads(metadata["preprocessing"])
    assert how["resize"] == how["crop"] == {"height": 16, "width": 16}
    assert how["resample"] == "BICUBIC"
    assert [how["rescale_factor"], *how["mean"], *how["std"]] == pytest.approx([1 / 255, 0.1, 0.2, 0.3] + [0.5] * 3)
    assert metadata["source_model"] == "a-run"
    assert metadata["artgraph_vit_version"] == artgraph_vit.__version__
    for path in (ROOT, file.path.parent, Path(torch.__file__).parents[1]):
        assert str(path).encode() not in file.path.read_bytes()


@pytest.mark.parametrize(
    "name", ["siglip", *(pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES if name != "siglip")]
)
def test_backbones_and_tasks_that_are_called_like_inner_values(name, build_model, tmp_path):
    backbone_config, pooling = BACKBONES[name]
    names = ("batch", "softmax", "val_0", "linear", "relu", "Softmax_1")
    tasks = [Task(name, SINGLE_LABEL, ("a", "b")) for name in names]
    model = build_model(backbone_config=backbone_config, pooling=pooling, tasks=tasks)
    (file,) = export_onnx(model, processor(), tmp_path / "model.onnx")
    assert_same(file.path, model)


def test_int8_is_smaller_and_its_agreement_is_counted(wide, tmp_path):
    batches = [torch.randn(size, 3, 16, 16) for size in (5, 1, 3)]
    # A model in bfloat16 is exported as the float32 it stands for.
    files = export_onnx(wide.bfloat16(), processor(), tmp_path / "model.onnx", batches, int8=True)
    wide.float()
    assert [file.path.name for file in files] == ["model.onnx", "model-int8.onnx"]
    assert files[1].size < 0.45 * files[0].size
    assert_same(files[0].path, wide)
    sessions = [onnxruntime.InferenceSession(str(file.path)) for file in files]
    assert sessions[0].get_modelmeta().custom_metadata_map.items() <= (
        sessions[1].get_modelmeta().custom_metadata_map.items()
    )
    for file in files:
        same, differences = {"artist": [], "genre": [], "tags": []}, []
        for pixels in batches:
            given, expected = run_onnx(file.path, pixels), run_torch(wide, pixels)
            differences += [np.abs(given[name] - expected[name]).max() for name in expected]
            for name in ("artist", "genre"):
                same[name] += list(given[name].argmax(1) == expected[name].argmax(1))
            same["tags"] += list(((given["tags"] > 0.5) == (expected["tags"] > 0.5)).flatten())
        assert file.pictures == 9
        assert file.difference == pytest.approx(max(differences), abs=1e-6)
        assert file.agreement == pytest.approx({name: np.mean(equal) for name, equal in same.items()})
    assert files[1].difference > 1e-4
    vectors = [
        run_onnx(files[1].path, pixels)["embedding"] * run_torch(wide, pixels)["embedding"] for pixels in batches
    ]
    assert min(cosines.sum(1).min() for cosines in vectors) > 0.99  # on CPUs without VNNI too


def test_a_file_that_differs_is_not_written(exported, build_model, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an older file")
    monkeypatch.setattr(onnx_export, "_write_float32", lambda *args: shutil.copy(exported[0].path, args[2]))
    with pytest.raises(UserError, match=r"differ by 0\.\d+ from torch's"):
        export_onnx(build_model(), processor(), path)
    assert path.read_bytes() == b"an older file"
    assert [path] == list(tmp_path.iterdir())


def test_weights_too_many_for_one_file_stand_in_a_second(wide, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.onnx._internal.exporter._onnx_program, "_LARGE_MODEL_THRESHOLD", 1000)
    files = export_onnx(wide, processor(), tmp_path / "model.onnx", int8=True)
    names = {"model.onnx", "model.onnx.data", "model-int8.onnx", "model-int8.onnx.data"}
    assert {path.name for path in tmp_path.iterdir()} == names
    for file in files:
        assert file.path.stat().st_size < file.size
    moved = Path(shutil.move(tmp_path, tmp_path.with_name("moved")))
    assert_same(moved / "model.onnx", wide)
    assert run_onnx(moved / "model-int8.onnx", torch.randn(2, 3, 16, 16))["artist"].shape == (2, 4)


PROCESSORS = {
    "vit": processor(),
    "deit": DeiTImageProcessorPil(size={"height": 20, "width": 22}, crop_size={"height": 16, "width": 16}),
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    "dinov2": BitImageProcessorPil(size={"shortest_edge": 19}, crop_size={"height": 16, "width": 16}),
    "siglip": SiglipImageProcessorPil(size={"height": 16, "width": 16}),
    "convnext": ConvNextImageProcessorPil(size={"shortest_edge": 224}),
    "large convnext": ConvNextImageProcessorPil(size={"shortest_edge": 384}),
    "raw": processor(do_rescale=False, do_normalize=False),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_words_for_preprocessing_are_enough(name):
    image_processor = PROCESSORS[name]
    description = json.loads(json.dumps(describe_preprocessing(image_processor)))
    for size in ((401, 253), (253, 401), (17, 300), (9, 9)):
        picture = paint_artwork(size[0])[0].resize(size)
        expected = image_processor(picture, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(preprocess(description, picture), expected, atol=1e-5)


@pytest.mark.parametrize(
    "image_processor",
    [
        processor(do_resize=False),
        EfficientNetImageProcessorPil(size={"height": 16, "width": 16}, rescale_offset=True),
        CLIPImageProcessorPil(size={"shortest_edge": 16}, do_center_crop=False),
        CLIPImageProcessorPil(size={"longest_edge": 16, "shortest_edge": 8}, do_center_crop=False),
    ],
    ids=["size of the picture", "offset", "no crop", "longest edge"],
)
def test_what_the_metadata_cannot_say_is_refused(image_processor, build_model, tmp_path):
    with pytest.raises(UserError, match="does more or less than to resize, crop the centre"):
        export_onnx(build_model(), image_processor, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def save_pictures(folder: Path) -> dict[str, Image.Image]:
    """Three files, and what a viewer shows of each."""
    folder.mkdir()
    paintings = [paint_artwork(index)[0].resize((150, 90)) for index in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    paintings[0].convert("CMYK").save(folder / "turned.jpg", quality=95, exif=exif)
    paintings[1].convert("L").save(folder / "grey.png")
    transparent = paintings[2].convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(transparent.size))
    transparent.save(folder / "transparent.png")
    turned = Image.open(folder / "turned.jpg").convert("RGB").transpose(Image.Transpose.ROTATE_270)
    on_white = Image.composite(paintings[2], Image.new("RGB", (150, 90), "white"), transparent.getchannel("A"))
    return {
        "turned.jpg": turned,
        "grey.png": ImageOps.grayscale(paintings[1]).convert("RGB"),
        "transparent.png": on_white,
    }


def test_the_script_exports_a_tuned_model_and_the_example_predicts_with_it(build_model, tmp_path, capsys):
    folder, path = tmp_path / "model", tmp_path / "model.onnx"
    tuned = {
        "temperatures": {"genre": 40.0, "tags": 40.0},  # scores near a half, so that the thresholds alone decide
        "thresholds": {"tags": [0.1, 0.9, 0.1, 0.9, 0.1]},
        "pooling": "cls_mean",
        "image_size": 24,
    }
    model = build_model(backbone_config=ViTConfig(**TRANSFORMER), **tuned)  # of a backbone for 16x16 pixels
    torch.nn.init.normal_(model.backbone.embeddings.position_embeddings)  # so that interpolating wrongly shows
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 27}, crop_size={"height": 24, "width": 24}).save_pretrained(folder)
    shown = save_pictures(tmp_path / "pictures")
    stale = tmp_path / "model.onnx.data"
    stale.write_bytes(b"weights of an older file")
    run_script("export_onnx.py", folder, path, "--int8", "--pictures", tmp_path / "pictures")
    assert not stale.exists()
    out = capsys.readouterr().out
    assert "on 3 pictures" in out
    for file in (path, tmp_path / "model-int8.onnx"):
        assert f"{file.stat().st_size / 1e6:.1f} MB" in out
        assert str(file) in out
    for line in ("artist: best label agrees", "tags: label decisions that agree"):
        assert f"\n{line}" in out
    assert "100.00%" in out

    model = ArtGraphViTForImageClassification.from_pretrained(folder).eval()
    assert_same(path, model, side=24)
    image_processor = AutoImageProcessor.from_pretrained(folder)
    for name, picture in shown.items():
        command = [sys.executable, ROOT / "examples" / "predict_onnx.py", path]
        done = subprocess.run([*command, tmp_path / "pictures" / name], capture_output=True, text=True, check=True)
        output = model(**image_processor(picture, return_tensors="pt"))
        (labels,) = model.predict_labels(output.logits)
        assert set(labels["tags"]) == {"Tree", "female-portraits", "sky"}
        lines = dict(line.split(":") for line in done.stdout.splitlines())
        assert list(lines) == ["artist", "genre", "tags"]
        for task in model.config.tasks:
            logits = output.logits[task.name][0]
            scores = logits.sigmoid() if task.is_multi_label else logits.softmax(-1)
            printed = [entry.strip().rsplit(" ", 1) for entry in lines[task.name].split(",") if entry.strip()]
            assert [label for label, _ in printed] == labels[task.name]
            for label, score in printed:
                expected = scores[task.labels.index(label)].item()
                assert float(score) == pytest.approx(expected, abs=0.004), name  # a composite rounds


def test_the_example_is_short_and_needs_little():
    text = (ROOT / "examples" / "predict_onnx.py").read_text(encoding="utf-8").split('"""')[2]
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) <= 20
    imported = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
    assert imported == {"json", "sys", "numpy", "onnxruntime", "PIL"}


def test_what_the_script_refuses(build_model, tmp_path):
    folder = tmp_path / "model"
    build_model().save_pretrained(folder)
    processor().save_pretrained(folder)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    out = tmp_path / "model.onnx"
    for arguments, message in (
        ((folder, tmp_path / "model.pt"), "give a name that ends in .onnx, in a folder that exists"),
        ((folder, tmp_path / "none" / "model.onnx"), "in a folder that exists"),
        ((tmp_path / "nothing", out), "There is no folder"),
        ((folder, out, "--pictures", pictures), "holds no picture"),
    ):
        with pytest.raises(UserError, match=message):
            run_script("export_onnx.py", *arguments)
    (pictures / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.jpg.*take it out of the folder"):
        run_script("export_onnx.py", folder, out, "--pictures", pictures)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be loaded"):
        run_script("export_onnx.py", folder, out)
    assert not out.exists()


@pytest.mark.parametrize("name", ["embedding", "pixel_values"])
def test_a_task_with_a_name_that_the_file_needs_is_refused(name, build_model, tmp_path):
    model = build_model(tasks=[Task(name, SINGLE_LABEL, ("a", "b"))])
    with pytest.raises(UserError, match=f"A task cannot be called '{name}'"):
        export_onnx(model, processor(), tmp_path / "model.onnx")


def test_what_stands_in_the_way_of_an_export_is_named(build_model, tmp_path, monkeypatch):
    model = build_model()
    with pytest.raises(UserError, match="The model cannot be exported to ONNX"):
        export_onnx(model, processor(24), tmp_path / "model.onnx")  # it takes pictures of 16 x 16
    with monkeypatch.context() as patch:
        patch.setattr(onnx_export.tempfile, "mkdtemp", Mock(side_effect=PermissionError(13, "Permission denied")))
        with pytest.raises(UserError, match=r"model\.onnx cannot be written .*Permission denied"):
            export_onnx(model, processor(), tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"needs more packages \(.*onnxscript.*\): pip install 'artgraph_vit\[onnx\]'"):
        export_onnx(model, processor(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
