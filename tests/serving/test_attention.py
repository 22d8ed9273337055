"""The attention map: gradients against finite differences, a case by hand, a model whose reason is known, geometry."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoImageProcessor,
    BeitConfig,
    ConvNextConfig,
    Data2VecVisionConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    PvtConfig,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
)
from transformers.models.vit import modeling_vit

from artgraph_vit import ArtGraphViTConfig, ArtGraphViTForImageClassification, Task
from artgraph_vit.model.tasks import SINGLE_LABEL
from artgraph_vit.serving.attention import attention_gradients, attention_map, overlay, relevance_rollout, seen_box
from tests.conftest import TINY


@pytest.fixture
def eager(build_model):
    """`eager(**config_options)`: a tiny model that gives attentions."""

    def build(**options) -> ArtGraphViTForImageClassification:
        model = build_model(**options)
        model.set_attn_implementation("eager")
        return model

    return build


def picture(size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_rollout_by_hand():
    """R - 1 = C1 + C2 + C2·C1, C2 being the mean of two heads."""
    attentions = [torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.0, 0.0, 1.0]]]), torch.ones(2, 3, 3)]
    gradients = [torch.tensor([[[1.0, -2.0, 4.0], [0.0, 0.5, 1.0], [3.0, 3.0, -1.0]]]), -torch.ones(2, 3, 3)]
    gradients[1][0, 0, 1], gradients[1][1, 2, 2] = 2, 1
    first = torch.tensor([[0.5, 0.0, 0.8], [0.0, 0.4, 0.1], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(relevance_rollout(attentions[:1], gradients[:1]), first)
    both = torch.tensor([[0.5, 1.4, 0.9], [0.0, 0.4, 0.1], [0.0, 0.0, 0.5]])
    torch.testing.assert_close(relevance_rollout(attentions, gradients), both)


@pytest.mark.parametrize(
    ("config", "pooling", "prefix"),
    [
        (ViTConfig, "cls", 1),
        (ViTConfig, "mean", 1),
        (DeiTConfig, "cls", 2),
        (BeitConfig, "cls", 1),
        (Dinov2Config, "cls", 1),
        (Dinov2WithRegistersConfig, "cls", 5),
        (SiglipVisionConfig, "mean", 0),
    ],
)
def test_the_map_is_the_row_that_the_heads_see_without_other_tokens(eager, tiny, config, pooling, prefix):
    model = eager(backbone_config=config(**tiny), pooling=pooling)
    pixel_values = picture()
    attentions, gradients = attention_gradients(model, pixel_values, "artist", "bea")
    assert {attention.shape for attention in attentions} == {(2, 4 + prefix, 4 + prefix)}
    torch.testing.assert_close(attentions[0].sum(-1), torch.ones(2, 4 + prefix))
    rollout = relevance_rollout(attentions, gradients)
    row = {"cls": rollout[0], "mean": rollout[prefix:].mean(0)}[pooling][prefix:].view(2, 2)
    heat = attention_map(model, pixel_values, "artist", "bea")
    torch.testing.assert_close(heat, row / row.max())
    assert heat.dtype == torch.float32
    assert heat.min() >= 0
    assert heat.max() == 1


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls_mean"])
def test_with_one_layer_each_attention_counts_by_its_measured_effect_on_the_logit(eager, tiny, monkeypatch, pooling):
    model = eager(backbone_config=ViTConfig(**{**tiny, "num_hidden_layers": 1}), pooling=pooling).double()
    pixel_values = picture().double()
    heat = attention_map(model, pixel_values, "artist", "ada").flatten()
    plain, change = modeling_vit.eager_attention_forward, {}

    def changed(module, query, key, value, *args, **kwargs):
        _, attention = plain(module, query, key, value, *args, **kwargs)  # (1, heads, tokens, tokens)
        attention = attention.clone()
        attention[0, change["head"], change["to"], change["from"]] *= change["times"]
        return (attention @ value).transpose(1, 2).contiguous(), attention

    monkeypatch.setattr(modeling_vit, "eager_attention_forward", changed)
    effects = torch.zeros(2, 5, 4)  # heads, tokens, patches
    for head, to, patch in np.ndindex(*effects.shape):
        logits = []
        for times in (1.001, 0.999):
            change.update(head=head, to=to, times=times, **{"from": patch + 1})
            with torch.no_grad():
                logits.append(model(pixel_values=pixel_values).logits["artist"][0, 0].item())
        effects[head, to, patch] = (logits[0] - logits[1]) / 0.002
    expected = effects.clamp(min=0).sum((0, 1))
    torch.testing.assert_close(heat, expected / expected.max(), atol=1e-3, rtol=1e-3)


def test_the_map_has_the_shape_of_the_picture(eager, tiny):
    model = eager(backbone_config=ViTConfig(**{**tiny, "image_size": (16, 32)}))
    assert attention_map(model, torch.randn(1, 3, 16, 32), "artist", "ada").shape == (2, 4)
    larger = eager(pooling="cls_mean", image_size=24)
    assert attention_map(larger, picture(24), "artist", "ada").shape == (3, 3)


def test_each_label_has_its_own_map(eager):
    model = eager()
    maps = [attention_map(model, picture(), "tags", label) for label in ("Tree", "boat", "sea", "sky")]
    for number, one in enumerate(maps):
        assert all((one - other).abs().max() > 0.01 for other in maps[:number])


def test_nothing_that_speaks_for_a_label_is_an_empty_map(eager):
    model = eager()
    with torch.no_grad():
        model.heads["genre"].weight[1] = 0  # no picture moves this logit
    assert attention_map(model, picture(), "genre", "portrait").eq(0).all()


def test_the_model_stays_as_it_was(eager):
    model = eager()
    with torch.no_grad():  # as a server may have it
        attention_map(model, picture(), "artist", "ada")
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert torch.is_grad_enabled()
    assert model(pixel_values=picture()).attentions is None


# ---- a model whose reason is known ----


def squares(number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise of 32x32 pixels, in half of it a bright square of a patch; whether there is one, and on which patch."""
    random = torch.Generator().manual_seed(seed)
    pixel_values = 0.3 * torch.randn(number, 3, 32, 32, generator=random)
    place = torch.randint(0, 16, (number,), generator=random)
    is_there = torch.arange(number) % 2 == 0
    for row in torch.nonzero(is_there)[:, 0].tolist():
        top, left = divmod(place[row].item(), 4)
        pixel_values[row, :, 8 * top : 8 * top + 8, 8 * left : 8 * left + 8] += 1.5
    return pixel_values, is_there.long(), place


@pytest.mark.parametrize("pooling", ["cls", "mean", pytest.param("cls_mean", marks=pytest.mark.slow)])
def test_the_map_of_a_model_that_finds_squares_peaks_on_the_square(tiny, pooling):
    torch.manual_seed(0)
    config = ViTConfig(**{**tiny, "image_size": 32})
    tasks = [Task("square", SINGLE_LABEL, ("absent", "there"))]
    model = ArtGraphViTForImageClassification(ArtGraphViTConfig(backbone_config=config, tasks=tasks, pooling=pooling))
    model.set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(250):
        pixel_values, is_there, _ = squares(32, seed=step)
        loss = nn.functional.cross_entropy(model(pixel_values=pixel_values).logits["square"], is_there)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.eval()
    pixel_values, is_there, place = squares(80, seed=10_000)
    with torch.no_grad():
        right = model(pixel_values=pixel_values).logits["square"].argmax(-1) == is_there
    assert right.float().mean() > 0.95
    hits = [
        attention_map(model, pixel_values[row : row + 1], "square", "there").argmax().item() == place[row].item()
        for row in torch.nonzero(is_there.bool() & right)[:, 0].tolist()
    ]
    assert sum(hits) >= 0.9 * len(hits) > 30


# ---- what is refused ----


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        (SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4), "mean"),
        (ConvNextConfig(hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1]), "pooler"),
        (PvtConfig(image_size=32), "mean"),
        (Data2VecVisionConfig(**{**TINY, "image_size": 32}), "cls"),  # chooses its attention when it is built
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_backbone_without_such_attentions_is_refused(eager, config, pooling):
    model = eager(backbone_config=config, pooling=pooling)
    with pytest.raises(ValueError, match="gives no attentions"):
        attention_map(model, picture(32), "artist", "ada")


def test_the_faster_attention_is_no_silent_substitute(build_model, tmp_path):
    model = build_model()
    assert model.backbone.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="attention is 'sdpa', which gives no attentions"):
        attention_map(model, picture(), "artist", "ada")
    model.save_pretrained(tmp_path)
    loaded = ArtGraphViTForImageClassification.from_pretrained(tmp_path, attn_implementation="eager")
    assert attention_map(loaded, picture(), "artist", "ada").max() == 1


def test_an_unknown_label_and_a_model_in_training_mode_are_refused(eager):
    model = eager()
    for task, label in (("century", "ada"), ("artist", "dora")):
        with pytest.raises(ValueError, match=f"no label '{label}' of a task '{task}'"):
            attention_map(model, picture(), task, label)
    with pytest.raises(ValueError, match=r"in training mode.*call model\.eval\(\) first"):
        attention_map(model.train(), picture(), "artist", "ada")


# ---- laid over the picture ----

PROCESSORS = {
    "squeezed": {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}},
    "squeezed and cropped": {
        "image_processor_type": "DeiTImageProcessor",
        "size": {"height": 80, "width": 80},
        "crop_size": {"height": 64, "width": 64},
    },
    "cropped": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 80},
        "crop_size": {"height": 64, "width": 64},
    },
    "with a rim": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 64, "width": 64},
    },
    "not resized": {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": False,
        "crop_size": {"height": 64, "width": 64},
    },
}


def load_processor(folder, **options):
    (folder / "preprocessor_config.json").write_text(json.dumps(options))
    return AutoImageProcessor.from_pretrained(folder)


@pytest.fixture(params=PROCESSORS)
def image_processor(request, tmp_path):
    return load_processor(tmp_path, do_normalize=False, do_rescale=False, **PROCESSORS[request.param])


@pytest.mark.parametrize("size", [(200, 120), (90, 131), (128, 128)])
def test_the_box_is_where_the_image_processor_looks(image_processor, size):
    """Each pixel of a picture holds its own place; what the model gets shows which part of it that is."""
    width, height = size
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    ramps = np.stack([across + 20, down + 20, np.full_like(down, 255)], -1).astype(np.uint8)
    shown = image_processor(Image.fromarray(ramps), return_tensors="np")["pixel_values"][0]  # (3, 64, 64)
    left, top, right, bottom = seen_box(size, image_processor)
    column, row = (np.arange(64) + 0.5) / 64, (np.arange(64) + 0.5) / 64
    is_inside = shown[2] > 254
    inner = (
        is_inside[1:-1, 1:-1] & is_inside[:-2, 1:-1] & is_inside[2:, 1:-1] & is_inside[1:-1, :-2] & is_inside[1:-1, 2:]
    )
    x = np.broadcast_to(left + column * (right - left), (64, 64))[1:-1, 1:-1]
    y = np.broadcast_to((top + row * (bottom - top))[:, None], (64, 64))[1:-1, 1:-1]
    assert inner.sum() > 500
    assert np.abs(shown[0, 1:-1, 1:-1] - 20 - (x - 0.5))[inner].max() < 2.5
    assert np.abs(shown[1, 1:-1, 1:-1] - 20 - (y - 0.5))[inner].max() < 2.5


@pytest.mark.parametrize("size", [(200, 120), (90, 131)])
def test_the_hottest_patch_lies_where_the_model_saw_it_and_the_rest_is_left_alone(image_processor, size):
    heat = torch.zeros(8, 8)
    heat[4, 3] = 1
    picture = Image.new("RGB", size, "white")
    laid = overlay(picture, heat, image_processor)
    assert laid.size == size
    changed = 255 * 3 - np.asarray(laid).astype(int).sum(-1)
    left, top, right, bottom = seen_box(size, image_processor)
    x, y = left + (right - left) * 3.5 / 8, top + (bottom - top) * 4.5 / 8
    weights = changed / changed.sum()
    assert (weights.sum(0) * np.arange(size[0])).sum() == pytest.approx(x, abs=3)
    assert (weights.sum(1) * np.arange(size[1])).sum() == pytest.approx(y, abs=3)
    outside = np.ones(changed.shape, bool)
    outside[max(0, int(top)) : int(bottom) + 1, max(0, int(left)) : int(right) + 1] = False
    assert not changed[outside].any()


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("ConvNextImageProcessor", {"shortest_edge": 64}),
        ("BitImageProcessor", {"shortest_edge": 64, "longest_edge": 90}),
    ],
)
def test_an_image_processor_of_another_kind_is_refused(tmp_path, kind, size):
    with pytest.raises(ValueError, match="It is not known how"):
        seen_box((20, 20), load_processor(tmp_path, image_processor_type=kind, size=size))
