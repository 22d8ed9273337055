"""Phase `heads` on features computed once: one pass of the backbone, and the same heads as without."""

import gc
import multiprocessing
import os

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainerCallback

from artgraph_vit.data import PictureTransform
from artgraph_vit.data.augmentation import Augmentation
from artgraph_vit.errors import UserError
from artgraph_vit.training import features
from artgraph_vit.training.trainer import ArtGraphTrainer

from .processes import assert_close, final_weights, run_tiny
from .tiny import EVAL_ROWS, artworks, end_workers, image_processor, tiny_trainer
from .tiny import TRAIN_ROWS as ROWS


class BackboneRows:
    """Counts the rows that go through a model's backbone."""

    def __init__(self, model):
        self.rows = 0
        model.backbone.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        self.rows += len(kwargs["pixel_values"])


def build(folder, pictures, cache: bool = True, seed: int = 0, **options) -> tuple[ArtGraphTrainer, BackboneRows]:
    defaults = {
        "num_train_epochs": 3,
        "frozen_epochs": 3,
        "cache_frozen_features": cache,
        "feature_cache_dir": str(folder / "features"),
        "load_best_model_at_end": False,
        "save_strategy": "no",
    }
    datasets = (artworks(pictures, ROWS, seed=1), artworks(pictures, EVAL_ROWS, seed=2))
    trainer = tiny_trainer(folder / "run", seed, head_dropout=0.3, datasets=datasets, **(defaults | options))
    return trainer, BackboneRows(trainer.model)


ONE_EPOCH = {"num_train_epochs": 1, "frozen_epochs": 1}


def heads(trainer) -> dict:
    return {name: p.detach() for name, p in trainer.model.named_parameters() if not name.startswith("backbone")}


def test_the_heads_are_those_of_training_on_pictures(tmp_path):
    """Dropout included: what is drawn at random is the same with and without the features."""
    plain, plain_rows = build(tmp_path / "plain", tmp_path / "pictures", cache=False)
    plain.train()
    cached, cached_rows = build(tmp_path / "cached", tmp_path / "pictures")
    before = {name: p.detach().clone() for name, p in cached.model.backbone.named_parameters()}
    cached.train()
    assert plain_rows.rows == 3 * (ROWS + EVAL_ROWS)
    assert cached_rows.rows == ROWS + EVAL_ROWS
    for name, tensor in heads(plain).items():
        torch.testing.assert_close(heads(cached)[name], tensor, atol=1e-5, rtol=0)
    assert all(torch.equal(p, before[name]) for name, p in cached.model.backbone.named_parameters())
    for one, other in zip(plain.state.log_history, cached.state.log_history, strict=True):
        for name in set(one) & {"loss", "artist_loss", "eval_loss", "eval_avg_macro_f1"}:
            assert other[name] == pytest.approx(one[name], rel=1e-4)


def test_a_later_run_finds_them_and_any_change_makes_new_ones(tmp_path):
    def rows_of_another(**change) -> int:
        trainer, counted = build(tmp_path, tmp_path / "pictures", **ONE_EPOCH, **change)
        trainer.train()
        return counted.rows

    assert rows_of_another() == ROWS + EVAL_ROWS
    assert rows_of_another() == 0
    assert len(list((tmp_path / "features").iterdir())) == 2  # and nothing half-made
    for size in (0, 3000):  # a file that was cut off
        largest = max((tmp_path / "features").iterdir(), key=lambda path: path.stat().st_size)
        os.truncate(largest, size)
        assert rows_of_another() == ROWS
        assert np.load(largest).shape == (ROWS, 32)
    assert rows_of_another(seed=5) == ROWS + EVAL_ROWS  # other weights
    assert rows_of_another(bf16=True) == ROWS + EVAL_ROWS
    picture = tmp_path / "pictures" / "1-3.png"
    Image.new("RGB", (40, 40), "red").save(picture)
    assert rows_of_another() == ROWS
    os.utime(tmp_path / "pictures" / "2-3.png", (1, 1))
    assert rows_of_another() == EVAL_ROWS


def test_phase_full_and_other_datasets_take_pictures(tmp_path):
    trainer, counted = build(tmp_path, tmp_path / "pictures", frozen_epochs=2)
    trainer.train()
    assert counted.rows == 2 * (ROWS + EVAL_ROWS)  # once for the features, once in epoch 3
    other = artworks(tmp_path / "pictures", 9, seed=3)
    counted.rows = 0
    assert trainer.evaluate(other)["eval_genre_known_rows"] == 9
    assert counted.rows == 9
    trainer.args.output_dir, trainer.train_dataset = str(tmp_path / "again"), other
    counted.rows = 0
    trainer.train()
    assert counted.rows == 2 * (9 + EVAL_ROWS)  # features of its own, as the backbone has learned


@pytest.mark.slow
def test_two_processes_compute_their_shares(tmp_path):
    options = ("head_dropout=0.0", "load_best_model_at_end=false", f'feature_cache_dir="{tmp_path / "features"}"')
    for processes, batch in ((1, 16), (2, 8)):
        folder = tmp_path / f"on-{processes}"
        pictures = ("--pictures", tmp_path / "pictures")
        run_tiny(folder, *pictures, *options, f"per_device_train_batch_size={batch}", processes=processes)
        assert (folder / f"world-size-{processes}").exists()
    assert_close(final_weights(tmp_path / "on-2"), final_weights(tmp_path / "on-1"), 1e-4)
    files = [np.load(path) for path in sorted((tmp_path / "features").iterdir())]
    assert sorted(file.shape[0] for file in files) == [EVAL_ROWS, ROWS]


@pytest.mark.parametrize("alpha", [0.0, 0.8])
def test_train_pictures_that_change_are_taken_in_each_epoch(tmp_path, pictures, alpha, monkeypatch):
    """Augmented pictures, and without augmentation those that are mixed."""
    told, trained = [], []
    monkeypatch.setattr(features.logger, "info_once", told.append)
    trainer, counted = build(tmp_path, pictures, mixup_alpha=alpha)
    if not alpha:
        crops = PictureTransform(image_processor(), augmentation=Augmentation(0.4, horizontal_flip=True, seed=3))
        trainer.train_dataset = trainer.train_dataset.with_transform(crops)

    def keep(module, args, kwargs):
        if trainer.model.training:
            trained.extend(pixels.numpy().tobytes() for pixels in kwargs["pixel_values"])

    trainer.model.backbone.register_forward_pre_hook(keep, with_kwargs=True)
    trainer.train()
    assert len(trained) == 3 * ROWS
    assert alpha or len(set(trained)) == 3 * ROWS
    assert counted.rows == 3 * ROWS + EVAL_ROWS  # once for the features of what is evaluated
    assert "phase heads takes them" in told[0]


def test_no_room_for_the_features_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    trainer, _ = build(tmp_path, tmp_path / "pictures", feature_cache_dir=str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be kept in .*: free some space, choose another --feature_cache_dir"):
        trainer.train()


def test_a_pass_that_breaks_off_leaves_nothing_behind(tmp_path):
    trainer, _ = build(tmp_path, tmp_path / "pictures")
    (tmp_path / "pictures" / "1-40.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1-40\.png"):
        trainer.train()
    assert list((tmp_path / "features").iterdir()) == []


@pytest.mark.slow
def test_no_workers_are_left_behind(tmp_path):
    trainer, _ = build(tmp_path, tmp_path / "pictures", dataloader_num_workers=1, dataloader_persistent_workers=True)
    children = []

    class Count(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            gc.collect()
            children.append(len(multiprocessing.active_children()))

    trainer.add_callback(Count())
    trainer.train()
    assert len(children) == 3
    assert children[-1] == children[1]
    end_workers(trainer)
