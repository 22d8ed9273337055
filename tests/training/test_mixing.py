"""Training on augmented and mixed pictures: the two-term loss, and the same run however it is divided and resumed."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import TrainerCallback

from artgraph_vit.data import ArtGraphCollator, PictureTransform
from artgraph_vit.data.augmentation import Augmentation
from artgraph_vit.data.mixing import Mix
from artgraph_vit.errors import UserError
from artgraph_vit.training import features
from artgraph_vit.training.arguments import ArtGraphTrainingArguments

from .exact import UnevenArtworks
from .processes import final_weights, run_tiny
from .test_finite import Spoilt
from .tiny import (
    EVAL_ROWS,
    TASKS,
    TRAIN_ROWS,
    RandomArtworks,
    StopAt,
    Stopped,
    artworks,
    image_processor,
    tiny_trainer,
)

WEIGHTS = {"artist": [0.25, 5.0, 1.0], "genre": [0.75, 1.5]}
BOTH = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}


class Recorder(TrainerCallback):
    """What the model was given and told, the gradients of each step, and the backbone's rows."""

    def __init__(self) -> None:
        self.inputs: list[dict] = []
        self.gradients: list[dict] = []

    def watch(self, trainer) -> None:
        trainer.add_callback(self)
        trainer.model.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, module, args, kwargs):
        if module.training:
            self.inputs.append(kwargs)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


class Rounded:
    """Draws shares of which float32, in which denominators are summed up, makes no rounding errors."""

    def __init__(self, mixing):
        self.mixing = mixing

    def draw(self, *args):
        mix = self.mixing.draw(*args)
        return mix if mix.box else dataclasses.replace(mix, share=round(mix.share * 256) / 256)


def double_trainer(folder, rows, weights: bool = True, **options):
    """One epoch of steps in float64, without dropout, all of the model learning."""
    defaults = {"num_train_epochs": 1, "frozen_epochs": 0, "max_grad_norm": 0.0, "head_dropout": 0.0}
    quiet = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "logging_steps": 1}
    options = {**defaults, **quiet, "logging_strategy": "steps", **options}
    trainer = tiny_trainer(folder, datasets=(rows, RandomArtworks(4, seed=2)), **options)
    trainer.model.double()
    if trainer._mixing is not None:
        trainer._mixing = Rounded(trainer._mixing)
    if weights:
        trainer.model.set_class_weights({name: torch.tensor(values) for name, values in WEIGHTS.items()})
    recorder = Recorder()
    recorder.watch(trainer)
    return trainer, recorder


def double_artworks(rows: int, known: bool = False) -> UnevenArtworks:
    artworks = UnevenArtworks(rows, seed=1)
    for index, row in enumerate(artworks.rows):
        if known:
            row["artist"] = index % 3
            row["tags"] = [t for t in range(3) if (index >> t) & 1] or [0]
    return artworks


def gradients_of(loss: torch.Tensor, model) -> dict:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys()
    squares = sum(((actual[name] - expected[name]) ** 2).sum() for name in expected)
    assert math.sqrt(squares / sum((tensor**2).sum() for tensor in expected.values())) < 1e-12


def joined(losses: list[torch.Tensor], log_variances: torch.Tensor) -> torch.Tensor:
    sigma = torch.exp(log_variances / 2)
    return sum(loss / (s**2 + 1e-8) + torch.log(s + 1e-8) for loss, s in zip(losses, sigma, strict=True))


# ---- the loss, from outside ----


@pytest.mark.parametrize("alphas", [{"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0}])
def test_where_all_is_known_it_is_the_loss_of_soft_targets(tmp_path, alphas):
    """Without class weights and masks: PyTorch's cross-entropy on the average of the two labels, step by step."""
    trainer, recorder = double_trainer(
        tmp_path, double_artworks(32, known=True), weights=False, learning_rate=0.0, **alphas
    )
    trainer.train()
    model = trainer.model.eval()
    assert len(recorder.inputs) == len(recorder.gradients) == 2
    for step, given in enumerate(recorder.inputs):
        logits = model(given["pixel_values"]).logits
        share = given["share"][:, None].double()
        losses = []
        for task in TASKS:
            both = [given[labels][task.name] for labels in ("labels", "second_labels")]
            if not task.is_multi_label:
                both = [F.one_hot(labels, task.num_labels) for labels in both]
            soft = share * both[0] + (1 - share) * both[1]
            one = F.binary_cross_entropy_with_logits if task.is_multi_label else F.cross_entropy
            losses.append(one(logits[task.name], soft))
        expected = gradients_of(joined(losses, model.log_variances), model)
        assert_same_gradients(recorder.gradients[step], expected)
        logs = trainer.state.log_history[step]
        for task, loss in zip(TASKS, losses, strict=True):
            assert logs[f"{task.name}_loss"] == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("reduction", ["known_rows", "all_rows"])
@pytest.mark.parametrize("alphas", [{"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0}])
def test_each_label_keeps_its_mask_and_its_class_weight(tmp_path, alphas, reduction):
    """Entry by entry, over two micro-batches of a step."""
    rows = double_artworks(32)
    trainer, recorder = double_trainer(
        tmp_path, rows, learning_rate=0.0, per_device_train_batch_size=16, gradient_accumulation_steps=2, **alphas
    )
    trainer.config.multilabel_reduction = reduction
    trainer.train()
    model = trainer.model.eval()
    sums = {task.name: [torch.zeros((), dtype=torch.float64), 0.0] for task in TASKS}
    for given in recorder.inputs:
        logits = model(given["pixel_values"]).logits
        for row, share in enumerate(given["share"].tolist()):
            for labels, part in ((given["labels"], share), (given["second_labels"], 1 - share)):
                for name, weights in WEIGHTS.items():
                    label = int(labels[name][row])
                    if label >= 0:
                        p = torch.softmax(logits[name][row], -1)[label]
                        sums[name][0] = sums[name][0] - part * weights[label] * torch.log(p)
                        sums[name][1] += part * weights[label]
                known = labels["tags"][row, 0] >= 0
                sums["tags"][1] += part if known or reduction == "all_rows" else 0.0
                for tag in range(3 if known else 0):
                    p = torch.sigmoid(logits["tags"][row, tag])
                    p = p if labels["tags"][row, tag] == 1 else 1 - p
                    sums["tags"][0] = sums["tags"][0] - part * torch.log(p) / 3
    losses = [numerator / denominator for numerator, denominator in sums.values()]
    expected = gradients_of(joined(losses, model.log_variances), model)
    (actual,) = recorder.gradients
    assert_same_gradients(actual, expected)
    for name, loss in zip(sums, losses, strict=True):
        assert trainer.state.log_history[0][f"{name}_loss"] == pytest.approx(loss.item(), rel=1e-12)


def test_pixels_and_labels_are_those_of_the_same_two_pictures(tmp_path):
    rows = double_artworks(32)
    originals = ArtGraphCollator(TASKS)(rows.rows)
    trainer, recorder = double_trainer(tmp_path, rows, mixup_alpha=0.8)
    trainer.train()
    rows_seen = set()
    for given in recorder.inputs:
        for row, share in enumerate(given["share"].tolist()):
            mixed = given["pixel_values"][row]
            distances = torch.stack(
                [
                    ((share * one + (1 - share) * originals["pixel_values"] - mixed) ** 2).sum((1, 2, 3))
                    for one in originals["pixel_values"]
                ]
            )
            first, second = divmod(int(distances.argmin()), 32)
            assert distances[first, second] < 1e-8
            rows_seen.add(first)
            for name, labels in originals["labels"].items():
                assert torch.equal(given["labels"][name][row], labels[first])
                assert torch.equal(given["second_labels"][name][row], labels[second])
    assert rows_seen == set(range(32))


class InHalves:
    """Mixes each half of a batch of 16 within itself, as two batches of 8 would be, with a share that is exact."""

    def __init__(self, box=None):
        self.box = box

    def draw(self, shape, *place):
        return Mix(torch.cat([torch.arange(7, -1, -1) + start for start in range(0, shape[0], 8)]), 0.375, self.box)


@pytest.mark.parametrize("box", [None, (0, 20, 0, 32)], ids=["mixup", "cutmix"])
def test_the_gradient_of_a_step_does_not_depend_on_its_division(tmp_path, box):
    gradients = []
    for batch in (16, 8):
        rows = double_artworks(16)
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 16 // batch}
        trainer, recorder = double_trainer(tmp_path, rows, mixup_alpha=1.0, **options)
        trainer._get_train_sampler = lambda _=None, rows=rows: torch.utils.data.SequentialSampler(rows)
        trainer._mixing = InHalves(box)
        trainer.train()
        (gradient,) = recorder.gradients
        gradients.append(gradient)
    assert_same_gradients(gradients[1], gradients[0])


# ---- runs ----


def augmented(folder, rows: int = TRAIN_ROWS, seed: int = 1):
    """The rows of `artworks`, cropped and mirrored at random."""
    transform = PictureTransform(image_processor(), augmentation=Augmentation(0.4, horizontal_flip=True, seed=3))
    return artworks(folder, rows, seed).with_transform(transform)


def picture_trainer(folder, pictures, callbacks=(), **options):
    datasets = (augmented(pictures), artworks(pictures, EVAL_ROWS, 2))
    defaults = {"feature_cache_dir": str(folder / "features"), "num_train_epochs": 4, "frozen_epochs": 2}
    torch.manual_seed(11)
    trainer = tiny_trainer(folder / "run", callbacks=callbacks, datasets=datasets, **{**defaults, **options})
    torch.manual_seed(12)
    return trainer


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, pictures) -> dict:
    folder = tmp_path_factory.mktemp("uninterrupted")
    trainer = picture_trainer(folder, pictures, load_best_model_at_end=False, **BOTH)
    trainer.train()
    return trainer.model.state_dict()


@pytest.mark.parametrize(("stop", "workers"), [(3, 0), (7, 2), (11, 2), (14, 0)])
def test_a_run_stopped_within_an_epoch_resumes_to_the_same_bits(tmp_path, pictures, uninterrupted, stop, workers):
    """In phase heads and in phase full, with workers that the uninterrupted run did not have."""
    options = {**BOTH, "save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": False}
    with pytest.raises(Stopped):
        picture_trainer(tmp_path, pictures, [StopAt(stop)], **options).train()
    resumed = picture_trainer(tmp_path, pictures, dataloader_num_workers=workers, **options)
    resumed.train(resume_from_checkpoint="last")
    assert resumed.state.global_step == 16
    for name, tensor in resumed.model.state_dict().items():
        assert torch.isfinite(tensor).all()
        assert torch.equal(tensor, uninterrupted[name])


def test_workers_see_the_same_steps(tmp_path, pictures, uninterrupted):
    options = {**BOTH, "load_best_model_at_end": False}
    trainer = picture_trainer(tmp_path, pictures, dataloader_num_workers=2, **options)
    trainer.train()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, uninterrupted[name])


def test_a_run_goes_on_with_the_same_mixing_only(tmp_path):
    options = {"num_train_epochs": 2, "frozen_epochs": 0}
    tiny_trainer(tmp_path, **options, mixup_alpha=0.8).train()
    with pytest.raises(UserError, match=r"mixup_alpha=0\.8, and this run has mixup_alpha=0\.0"):
        tiny_trainer(tmp_path, **options).train(resume_from_checkpoint="last")


class SeenPictures:
    """The pixels that go through a backbone, epoch by epoch; what is evaluated apart."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.trained: dict[int, list] = {}
        self.others = 0
        trainer.model.backbone.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module, args, kwargs):
        if self.trainer.model.training:
            self.trained.setdefault(int(self.trainer.state.epoch or 0), []).extend(kwargs["pixel_values"])
        else:
            self.others += len(kwargs["pixel_values"])


@pytest.mark.parametrize("options", [{}, {"mixup_alpha": 0.8}])
def test_the_frozen_phase_sees_other_pictures_in_each_epoch(tmp_path, pictures, options, monkeypatch):
    told = []
    monkeypatch.setattr(features.logger, "info", told.append)
    trainer = picture_trainer(tmp_path, pictures, num_train_epochs=3, frozen_epochs=3, **options)
    seen = SeenPictures(trainer)
    trainer.train()
    assert [len(pixels) for pixels in seen.trained.values()] == [TRAIN_ROWS] * 3
    assert len({pixels.numpy().tobytes() for epoch in seen.trained.values() for pixels in epoch}) == 3 * TRAIN_ROWS
    assert seen.others == EVAL_ROWS  # once for their features
    assert len(told) == 1
    assert "phase heads takes them" in told[0]


def test_the_frozen_phase_of_mixed_pictures_takes_no_features_either(tmp_path, pictures):
    trainer = picture_trainer(tmp_path, pictures, num_train_epochs=2, cutmix_alpha=1.0)
    trainer.train_dataset = artworks(pictures, TRAIN_ROWS, 1)
    seen = SeenPictures(trainer)
    trainer.train()
    assert [len(pixels) for pixels in seen.trained.values()] == [TRAIN_ROWS] * 2
    assert seen.others == EVAL_ROWS


def test_an_evaluation_is_not_mixed(tmp_path):
    plain = tiny_trainer(tmp_path).evaluate()
    mixed = tiny_trainer(tmp_path, **BOTH).evaluate()
    assert {name: value for name, value in mixed.items() if not name.endswith(("time", "second"))} == {
        name: value for name, value in plain.items() if not name.endswith(("time", "second"))
    }


def test_two_processes_mix_and_take_a_step_in_which_one_has_no_row(tmp_path):
    """50 rows in steps of 16: of the last two process 1 has none, and its labels of padding count for nothing."""
    options = ("per_device_train_batch_size=8", "mixup_alpha=0.8", "cutmix_alpha=1.0", "num_train_epochs=2")
    run_tiny(tmp_path, *options, "frozen_epochs=1", processes=2)
    one, two = (final_weights(tmp_path, process) for process in (0, 1))
    assert all(torch.equal(two[name], tensor) and torch.isfinite(tensor).all() for name, tensor in one.items())


def test_batches_of_one_row_train(tmp_path):
    rows = double_artworks(5)
    trainer, recorder = double_trainer(tmp_path, rows, per_device_train_batch_size=1, learning_rate=0.0, **BOTH)
    trainer.train()
    plain, expected = double_trainer(tmp_path, rows, per_device_train_batch_size=1, learning_rate=0.0)
    plain.train()
    for actual, gradient in zip(recorder.gradients, expected.gradients, strict=True):
        assert_same_gradients(actual, gradient)


def test_a_loss_that_is_not_finite_names_both_pictures(tmp_path):
    trainer = tiny_trainer(tmp_path, mixup_alpha=0.8)
    trainer.train_dataset = Spoilt(50, seed=1, spoilt=17)
    with pytest.raises(UserError) as stopped:
        trainer.train()
    message = str(stopped.value)
    assert "'artwork-17.jpg mixed with artwork-" in message
    assert message.count("artwork-17.jpg") == 2  # in its own row, and where it is the partner
    assert message.count(" mixed with ") == 2


@pytest.mark.parametrize("alpha", [-0.1, math.inf, math.nan])
@pytest.mark.parametrize("name", ["mixup_alpha", "cutmix_alpha"])
def test_a_wrong_alpha_is_an_error(name, alpha):
    with pytest.raises(ValueError, match=f"{name}=.*: use a number of at least 0"):
        ArtGraphTrainingArguments(use_cpu=True, **{name: alpha})
