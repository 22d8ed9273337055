"""Stochastic depth: as asked for in the backbone's config, and in training alone; test_resume.py resumes it."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, Dinov2Config, SwinConfig, ViTConfig, ViTImageProcessor

from artgraph_vit import ArtGraphViTForImageClassification
from artgraph_vit.errors import UserError
from artgraph_vit.training.arguments import ModelArguments
from artgraph_vit.training.build import build_model, load_image_processor

from .processes import assert_close
from .tiny import TASKS

VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
ROWS = Dataset.from_dict({"artist": [0, 1, 2], "genre": [0, 1, 1], "tags": [[0], [1], [2]]})


BACKBONES = {
    "dinov2": Dinov2Config(**VIT),
    "swin": SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=2, drop_path_rate=0.0
    ),
    "vit": ViTConfig(**VIT, intermediate_size=32),
}


@pytest.fixture
def backbone(request, tmp_path):
    """A folder with a tiny backbone."""
    AutoModel.from_config(BACKBONES[request.param]).save_pretrained(tmp_path / "backbone")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def differs(model: ArtGraphViTForImageClassification) -> bool:
    """Whether the same pictures give other vectors when they are looked at again, of 10 times."""
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first = model(pixels).pooled
    return any(not torch.equal(model(pixels).pooled, first) for _ in range(10))


@pytest.mark.parametrize("from_scratch", [False, True])
@pytest.mark.parametrize("backbone", ["dinov2", "swin"], indirect=True)
def test_layers_are_dropped_in_training_alone_and_not_while_frozen(backbone, tmp_path, from_scratch):
    arguments = ModelArguments(backbone=str(backbone), drop_path_rate=0.5, head_dropout=0.0, from_scratch=from_scratch)
    load_image_processor(arguments)
    model = build_model(arguments, TASKS, ROWS)
    assert differs(model.train())
    assert not differs(model.eval())
    model.freeze_backbone()
    assert not differs(model.train())
    model.unfreeze_backbone()
    assert differs(model)

    without = build_model(ModelArguments(backbone=str(backbone), head_dropout=0.0), TASKS, ROWS)
    assert not differs(without.train())
    model.save_pretrained(tmp_path)
    loaded = ArtGraphViTForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.backbone_config.drop_path_rate == 0.5
    assert not differs(loaded.eval())
    assert differs(loaded.train())
    assert_close(dict(loaded.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("backbone", ["vit"], indirect=True)
def test_a_backbone_without_it_is_refused_before_the_data_is_read(backbone):
    arguments = ModelArguments(backbone=str(backbone), drop_path_rate=0.1)
    message = r"drop_path_rate: the backbone 'vit' has no such option; leave it out, or choose another backbone"
    with pytest.raises(UserError, match=message):
        load_image_processor(arguments)
    with pytest.raises(ValueError, match=message):
        ArtGraphViTForImageClassification.from_backbone(backbone, TASKS, backbone_options={"drop_path_rate": 0.1})
