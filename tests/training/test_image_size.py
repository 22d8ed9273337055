"""Another image size than the backbone's: as transformers interpolates, in training, on disk and in the pipeline."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    Dinov2Config,
    Dinov2Model,
    LevitConfig,
    LevitModel,
    SiglipImageProcessor,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    pipeline,
)

from artgraph_vit import ArtGraphViTForImageClassification
from artgraph_vit.data import PixelNormalizer
from artgraph_vit.errors import UserError
from artgraph_vit.loading import load_model
from artgraph_vit.training.arguments import ModelArguments
from artgraph_vit.training.build import build_model, load_image_processor, with_image_size

from .processes import assert_close
from .tiny import EVAL_ROWS, TASKS, TRAIN_ROWS, artworks, tiny_trainer

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def saved(folder, model, processor=None) -> str:
    model.save_pretrained(folder)
    (processor or ViTImageProcessor(size={"height": 32, "width": 32})).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def vit(tmp_path) -> str:
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**SIZES, intermediate_size=64), add_pooling_layer=False)
    torch.nn.init.normal_(model.embeddings.position_embeddings)  # far from 0, so that interpolating wrongly shows
    return saved(tmp_path / "vit", model)


def build(backbone: str, pictures, **options) -> ArtGraphViTForImageClassification:
    return build_model(ModelArguments(backbone=backbone, **options), TASKS, artworks(pictures, TRAIN_ROWS, 1))


def test_position_embeddings_are_interpolated_as_transformers_does_it(vit, pictures):
    model = build(vit, pictures, image_size=48).eval()
    pixels = torch.randn(2, 3, 48, 48)
    reference = ViTModel.from_pretrained(vit, add_pooling_layer=False).eval()
    with torch.no_grad():
        expected = reference(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        torch.testing.assert_close(model(pixels).pooled, expected, atol=0, rtol=0)
        with pytest.raises(ValueError, match="48x48"):
            model(torch.randn(2, 3, 32, 32))


def test_a_model_of_another_size_trains_and_is_the_same_from_disk_and_in_the_pipeline(tmp_path, vit, pictures):
    options = ModelArguments(backbone=vit, image_size=48)
    processor = load_image_processor(options)
    assert dict(processor.size)["height"] == 48
    model = build_model(options, TASKS, artworks(pictures, TRAIN_ROWS, 1))
    datasets = (artworks(pictures, TRAIN_ROWS, 1, size=48), artworks(pictures, EVAL_ROWS, 2, size=48))
    epochs = {"num_train_epochs": 2, "frozen_epochs": 1, "feature_cache_dir": str(tmp_path / "features")}
    trainer = tiny_trainer(tmp_path / "run", datasets=datasets, model=model, **epochs)
    trainer.processing_class = processor  # which is saved
    trainer.train()
    assert trainer.evaluate()["eval_genre_known_rows"] == EVAL_ROWS
    trainer.save_model()

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 48, 48)
    with torch.no_grad():
        expected = model.eval()(pixels).logits
        loaded, loaded_processor = load_model(trainer.args.output_dir)
        assert loaded.config.image_size == 48
        assert dict(loaded_processor.size) == dict(processor.size)
        logits = loaded.eval()(loaded_processor(picture, return_tensors="pt")["pixel_values"]).logits
    assert_close(logits, expected)
    answer = pipeline("artwork-classification", model=trainer.args.output_dir)(picture)
    best = TASKS[1].labels[int(expected["genre"].argmax())]
    assert answer["genre"][0]["label"] == best
    assert answer["genre"][0]["score"] == pytest.approx(expected["genre"].softmax(-1).max().item(), rel=1e-5)


def test_a_backbone_that_interpolates_by_itself_takes_another_size(tmp_path, pictures):
    torch.manual_seed(0)
    backbone = Dinov2Model(Dinov2Config(**SIZES))
    torch.nn.init.normal_(backbone.embeddings.position_embeddings)
    crops = BitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    folder = saved(tmp_path / "dinov2", backbone, crops)
    processor = load_image_processor(ModelArguments(backbone=folder, image_size=56))
    model = build(folder, pictures, image_size=56).eval()
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 56, 56)
    with torch.no_grad():
        expected = backbone.eval()(pixels).last_hidden_state
        assert expected.shape == (1, 1 + 7 * 7, 32)
        assert torch.equal(model(pixels).pooled, expected[:, 0])


@pytest.mark.parametrize(
    ("processor", "resized_to"),
    [
        (ViTImageProcessor(), {"height": 336, "width": 336}),
        (ViTImageProcessor(size={"height": 96, "width": 64}), {"height": 336, "width": 336}),
        (SiglipImageProcessor(), {"height": 336, "width": 336}),
        (CLIPImageProcessor(), {"shortest_edge": 336}),
        (BitImageProcessor(size={"shortest_edge": 256}), {"shortest_edge": 384}),  # 256 to 224 is 384 to 336
        (DeiTImageProcessor(), {"height": 384, "width": 384}),
        (ConvNextImageProcessor(size={"shortest_edge": 224}), {"shortest_edge": 336}),
    ],
)
def test_an_image_processor_makes_pictures_of_the_size(processor, resized_to):
    before = processor.to_dict()
    changed = with_image_size(processor, 336)
    assert {name: side for name, side in dict(changed.size).items() if side} == resized_to
    picture = Image.new("RGB", (500, 400), "teal")
    assert changed(picture, return_tensors="pt")["pixel_values"].shape == (1, 3, 336, 336)
    assert processor.to_dict() == before
    normalize = [PixelNormalizer(one).settings() for one in (processor, changed)]
    assert normalize[0] == normalize[1]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (50, "image_size=50 is no multiple of the backbone's patches of 8: use 48 or 56"),
        (5, "image_size=5 is no multiple of the backbone's patches of 8: use 8"),
        (0, "image_size=0: use a whole number of pixels"),
    ],
)
def test_a_size_that_cannot_be_is_one_sentence(vit, size, message):
    with pytest.raises(UserError, match=message):
        load_image_processor(ModelArguments(backbone=vit, image_size=size))


def test_a_processor_that_makes_no_such_pictures_is_refused():
    keeps_ratio = BitImageProcessor(size={"shortest_edge": 64}, do_center_crop=False)
    with pytest.raises(UserError, match=r"BitImageProcessor.* does not make pictures of image_size=32"):
        with_image_size(keeps_ratio, 32)


def test_a_backbone_of_one_size_only_is_named(tmp_path, pictures):
    config = LevitConfig(
        image_size=64, hidden_sizes=[16, 16, 16], num_attention_heads=[1, 1, 1], depths=[1, 1, 1], key_dim=[8, 8, 8]
    )
    folder = saved(tmp_path / "levit", LevitModel(config))
    build(folder, pictures, pooling="pooler")
    with pytest.raises(UserError, match=r"levit' takes no pictures of image_size=96 \(.*\): leave it out"):
        build(folder, pictures, pooling="pooler", image_size=96)
