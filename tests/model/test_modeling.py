"""The model: what it refuses and returns, its backbones, its checkpoints, freezing and dropout.

All models are tiny, random and made here; "pretrained" backbones are saved to a temporary folder first.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Aimv2VisionConfig,
    AutoModel,
    BeitConfig,
    CLIPConfig,
    CLIPVisionConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    SiglipConfig,
    SiglipVisionConfig,
    ViTConfig,
    ViTModel,
)

from artgraph_vit import ArtGraphViTForImageClassification, Task
from artgraph_vit.model.tasks import MULTI_LABEL, SINGLE_LABEL

# Model: what it refuses and what it returns


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], r"The config has no task: pass tasks=\[Task"),
        ([Task("genre", SINGLE_LABEL, ("portrait",))], r"Task 'genre' has 1 label\(s\), so there is nothing to tell"),
        ([Task("tags", MULTI_LABEL)], r"Task 'tags' has 0 label\(s\)"),
    ],
)
def test_a_model_needs_tasks_with_labels(build_model, tasks, message):
    with pytest.raises(ValueError, match=message):
        build_model(tasks=tasks)


@pytest.mark.parametrize("missing", [["tags"], ["artist", "genre", "tags"]])
def test_labels_must_name_exactly_the_tasks(build_model, make_batch, missing):
    batch = make_batch()
    for name in missing:
        del batch["labels"][name]
    with pytest.raises(ValueError, match="labels must name exactly the tasks artist, genre, tags; got"):
        build_model()(**batch)


def test_the_output_has_the_shapes_of_the_config(build_model, make_batch):
    batch = make_batch(rows=6)
    model = build_model()
    output = model(**batch, output_hidden_states=True)
    assert {name: logits.shape for name, logits in output.logits.items()} == {
        "artist": (6, 4),
        "genre": (6, 3),
        "tags": (6, 5),
    }
    assert output.pooled.shape == (6, 16)
    assert len(output.hidden_states) == 3
    assert list(output.task_losses) == ["artist", "genre", "tags"]
    without_labels = model(batch["pixel_values"])
    assert without_labels.loss is None
    assert without_labels.task_losses is None
    assert without_labels.hidden_states is None
    assert model(**batch, return_dict=False)[0] == output.loss
    assert len(build_model(output_hidden_states=True)(batch["pixel_values"]).hidden_states) == 3
    assert isinstance(build_model(return_dict=False)(batch["pixel_values"]), tuple)


def test_predicted_names_are_the_best_and_those_above_their_threshold(build_model):
    model = build_model(thresholds={"tags": [0.5, 0.5, 0.9, 0.5, 0.1]})
    logits = {
        "artist": torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 0.0, 0.0, 0.0]]),
        "genre": torch.tensor([[-3.0, -2.0, -1.0], [0.0, 1.0, 0.0]]),
        "tags": torch.tensor([[0.1, 2.0, 2.0, -1.0, -2.0], [-9.0, -9.0, -9.0, -9.0, -9.0]]),  # p of -2 is .12
    }
    assert model.predict_labels(logits) == [
        {"artist": ["bea"], "genre": ["still life"], "tags": ["boat", "Tree", "sky"]},
        {"artist": ["ada"], "genre": ["portrait"], "tags": []},
    ]


# Model: backbones


def save_backbone(config, folder: Path) -> torch.nn.Module:
    torch.manual_seed(11)
    backbone = AutoModel.from_config(config).eval()
    backbone.save_pretrained(folder)
    return backbone


@pytest.mark.parametrize(
    ("config_class", "pooling"),
    [(ViTConfig, "cls"), (Dinov2Config, "cls"), (SiglipVisionConfig, "pooler"), (Aimv2VisionConfig, "pooler")],
)
def test_heads_on_a_backbone_keep_its_weights_and_read_the_right_vector(tmp_path, tasks, tiny, config_class, pooling):
    backbone = save_backbone(config_class(**tiny), tmp_path)
    model = ArtGraphViTForImageClassification.from_backbone(tmp_path, tasks).eval()
    assert model.config.pooling == pooling

    expected, loaded = backbone.state_dict(), model.backbone.state_dict()
    unused = {name for name in expected if name.startswith("pooler.") or name.endswith("mask_token")}
    assert set(expected) - set(loaded) <= unused
    assert not set(loaded) - set(expected)
    assert all(torch.equal(loaded[name], expected[name]) for name in loaded)

    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        features = backbone(pixels)
        output = model(pixels)
    vector = features.pooler_output if pooling == "pooler" else features.last_hidden_state[:, 0]
    torch.testing.assert_close(output.pooled, vector)
    head = model.heads["genre"]
    torch.testing.assert_close(output.logits["genre"], vector @ head.weight.T + head.bias)


REGISTERS = {"num_register_tokens": 3}


@pytest.mark.parametrize(
    ("config_class", "options", "others"),
    [
        (ViTConfig, {}, 1),
        (DeiTConfig, {}, 2),  # CLS and distillation
        (BeitConfig, {}, 1),
        (Dinov2Config, {}, 1),
        (Dinov2WithRegistersConfig, REGISTERS, 4),
        (DINOv3ViTConfig, REGISTERS, 4),
        (CLIPVisionConfig, {}, 1),
        (SiglipVisionConfig, {}, 0),
    ],
)
def test_mean_pooling_is_the_mean_of_the_patches_alone(tmp_path, tasks, tiny, config_class, options, others):
    backbone = save_backbone(config_class(**tiny, **options), tmp_path)
    model = ArtGraphViTForImageClassification.from_backbone(tmp_path, tasks, pooling="mean").eval()
    pixels = torch.randn(2, 3, 16, 16)  # 2x2 patches
    tokens = backbone(pixels).last_hidden_state
    assert tokens.shape[1] == 4 + others
    torch.testing.assert_close(model(pixels).pooled, tokens[:, -4:].mean(1))
    if not others:
        with pytest.raises(ValueError, match="pooling='cls_mean': this backbone has no CLS token; use 'mean'"):
            ArtGraphViTForImageClassification.from_backbone(tmp_path, tasks, pooling="cls_mean")
        return
    both = ArtGraphViTForImageClassification.from_backbone(tmp_path, tasks, pooling="cls_mean").eval()
    torch.testing.assert_close(both(pixels).pooled, torch.cat([tokens[:, 0], tokens[:, -4:].mean(1)], -1))
    assert (both.config.hidden_size, both.heads["artist"].in_features) == (2 * tiny["hidden_size"],) * 2
    both.save_pretrained(tmp_path / "both")
    again = ArtGraphViTForImageClassification.from_pretrained(tmp_path / "both").eval()
    assert torch.equal(again(pixels).pooled, both(pixels).pooled)


@pytest.mark.parametrize("config_class", [CLIPConfig, SiglipConfig])
def test_of_an_image_text_model_the_vision_tower_is_taken(tmp_path, tasks, tiny, config_class):
    text = {**tiny, "vocab_size": 32, "max_position_embeddings": 8}
    del text["image_size"], text["patch_size"]
    towers = save_backbone(config_class(text_config=text, vision_config=tiny), tmp_path)
    model = ArtGraphViTForImageClassification.from_backbone(tmp_path, tasks).eval()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        features = towers.vision_model(pixels)
        pooled = model(pixels).pooled
    torch.testing.assert_close(pooled, features.pooler_output)  # CLIP's is the normalised CLS token
    assert not [name for name, _ in model.named_parameters() if "text" in name]


def test_a_checkpoint_with_the_old_names_of_vit_loads_exactly(tmp_path, tasks, tiny):
    torch.manual_seed(3)
    backbone = ViTModel(ViTConfig(**tiny))
    backbone.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert "encoder.layer.0.attention.attention.query.weight" in saved  # or the test would say nothing
    model = ArtGraphViTForImageClassification.from_backbone(tmp_path, tasks)
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        expected = backbone.eval()(pixels).last_hidden_state[:, 0]
        assert torch.equal(model.eval()(pixels).pooled, expected)


def test_from_scratch_takes_the_shape_of_a_backbone_but_not_its_weights(tmp_path, tasks, tiny):
    backbone = save_backbone(ViTConfig(**tiny), tmp_path)
    model = ArtGraphViTForImageClassification.from_backbone(tmp_path, tasks, from_scratch=True)
    name, weight = next((n, w) for n, w in model.backbone.named_parameters() if n.endswith("projection.weight"))
    assert weight.shape == backbone.state_dict()[name].shape
    assert not torch.equal(weight, backbone.state_dict()[name])


def test_a_backbone_that_lacks_a_tensor_is_refused(tmp_path, tasks, tiny):
    save_backbone(ViTConfig(**tiny), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["layernorm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 tensor\(s\): layernorm.weight"):
        ArtGraphViTForImageClassification.from_backbone(tmp_path, tasks)


# Model: its own checkpoints


@pytest.fixture
def trained_model(build_model):
    """A model none of whose tensors has its initial value."""
    model = build_model(seed=5)
    with torch.no_grad():
        model.log_variances.copy_(torch.tensor([0.1234567, -1.7654321, 2.7182818]))
        model.set_class_weights({"artist": torch.tensor([0.1111111, 1.2345678, 3.3333333, 7.7777777])})
    return model


def edit_checkpoint(folder: Path, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}, {"save_original_format": True}])
def test_every_tensor_survives_saving_and_loading(trained_model, tmp_path, options):
    trained_model.save_pretrained(tmp_path, **options)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == ("max_shard_size" in options)
    torch.manual_seed(99)
    loaded = ArtGraphViTForImageClassification.from_pretrained(tmp_path)
    expected = trained_model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert not loaded.training
    if not options:  # under the names they have in memory, which Trainer expects of a checkpoint
        assert load_file(tmp_path / "model.safetensors").keys() == expected.keys()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: tensors.pop("heads.genre.bias"), r"lacks 1 tensor\(s\): heads\.genre\.bias"),
        (lambda tensors: tensors.pop("log_variances"), r"lacks 1 tensor\(s\): log_variances"),
        (lambda tensors: tensors.pop("heads.artist.class_weights"), "lacks .*heads.artist.class_weights"),
        (lambda tensors: tensors.update(stray=torch.zeros(1)), "has no place for, .*stray"),
        (lambda tensors: tensors.update({"log_variances": torch.zeros(4)}), "another shape .*log_variances"),
    ],
    ids=["head", "log variances", "class weights", "unexpected", "shape"],
)
def test_a_damaged_checkpoint_is_refused_by_the_name_of_its_tensor(trained_model, tmp_path, edit, message):
    trained_model.save_pretrained(tmp_path)
    edit_checkpoint(tmp_path, edit)
    with pytest.raises(ValueError, match=message):
        ArtGraphViTForImageClassification.from_pretrained(tmp_path)


def test_other_shapes_are_accepted_on_request_and_the_loading_info_is_returned(trained_model, tmp_path):
    trained_model.save_pretrained(tmp_path)
    edit_checkpoint(tmp_path, lambda tensors: tensors.update({"heads.genre.bias": torch.ones(7)}))
    model, loading_info = ArtGraphViTForImageClassification.from_pretrained(
        tmp_path, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert [name for name, *_ in loading_info["mismatched_keys"]] == ["heads.genre.bias"]
    assert model.heads["genre"].bias.tolist() == [0, 0, 0]  # as a fresh head's
    assert torch.equal(model.heads["genre"].weight, trained_model.heads["genre"].weight)
    assert torch.equal(model.log_variances, trained_model.log_variances)
    assert torch.equal(model.heads["artist"].class_weights, trained_model.heads["artist"].class_weights)
    edit_checkpoint(tmp_path, lambda tensors: tensors.pop("heads.genre.bias"))
    with pytest.raises(ValueError, match=r"heads\.genre\.bias"):  # and nothing else is accepted
        ArtGraphViTForImageClassification.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


def test_in_bfloat16_log_variances_and_class_weights_stay_float32(trained_model, tmp_path, make_batch):
    trained_model.save_pretrained(tmp_path)
    model = ArtGraphViTForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    kept = {name for name, tensor in model.state_dict().items() if tensor.dtype == torch.float32}
    assert kept == {"log_variances", "heads.artist.class_weights", "heads.genre.class_weights"}
    assert torch.equal(model.log_variances, trained_model.log_variances)
    assert torch.equal(model.heads["artist"].class_weights, trained_model.heads["artist"].class_weights)
    batch = make_batch()
    output = model(batch["pixel_values"].bfloat16(), batch["labels"])
    assert output.logits["genre"].dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(trained_model(**batch).loss.item(), rel=0.05)
    model.save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    again = ArtGraphViTForImageClassification.from_pretrained(tmp_path / "half")  # as it was saved
    assert {n: t.dtype for n, t in again.state_dict().items()} == {n: t.dtype for n, t in model.state_dict().items()}
    assert ArtGraphViTForImageClassification.from_pretrained(tmp_path).dtype == torch.float32


# Model: freezing and dropout


def test_a_frozen_backbone_stays_in_eval_mode_and_unfrozen_it_learns_again(build_model, make_batch, tiny):
    config = ViTConfig(**tiny, hidden_dropout_prob=0.5)
    model = build_model(backbone_config=config, head_dropout=0.0)
    model.freeze_backbone()
    model.train()
    assert not any(module.training for module in model.backbone.modules())
    assert model.dropout.training
    output = model(**make_batch(rows=12))
    assert not output.pooled.requires_grad
    assert torch.equal(output.pooled, model(**make_batch(rows=12)).pooled)  # no dropout inside the backbone
    output.loss.backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.requires_grad for p in model.parameters())  # or wrapping it for several processes would be anew
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1).step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    heads = {f"heads.{task}.{part}" for task in ("artist", "genre", "tags") for part in ("weight", "bias")}
    assert moved == heads | {"log_variances"}
    model.unfreeze_backbone()
    assert all(module.training for module in model.backbone.modules())
    model(**make_batch()).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_dropout_stands_before_the_heads_with_one_mask_and_in_training_only(build_model):
    labels = ("a", "b")
    model = build_model(head_dropout=0.5, tasks=[Task(name, SINGLE_LABEL, labels) for name in ("genre", "other")])
    model.heads["other"].load_state_dict(model.heads["genre"].state_dict())
    pixels = torch.randn(4, 3, 16, 16)
    model.train()
    first, second = model(pixels), model(pixels)
    assert torch.equal(first.pooled, second.pooled)
    assert not torch.equal(first.logits["genre"], second.logits["genre"])
    assert torch.equal(first.logits["genre"], first.logits["other"])
    model.eval()
    output = model(pixels)
    assert torch.equal(output.pooled, first.pooled)
    assert torch.equal(output.logits["genre"], model.heads["genre"](output.pooled))


def test_bytes_are_refused_by_a_sentence(build_model, make_batch):
    with pytest.raises(ValueError, match="pixel_values are bytes: make floats of them"):
        build_model()(pixel_values=make_batch()["pixel_values"].to(torch.uint8))
