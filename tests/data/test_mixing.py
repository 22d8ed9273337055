"""Mixup and cutmix: what is drawn, and what becomes of pixels and labels."""

import math

import numpy as np
import pytest
import torch

from artgraph_vit.data.mixing import Mix, Mixing, targets_of


def draws(mixing: Mixing, count: int, shape=(6, 3, 24, 40)) -> list[Mix]:
    return [mixing.draw(shape, number) for number in range(count)]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_shares_of_mixup_are_beta_distributed(alpha):
    shares = torch.tensor([mix.share for mix in draws(Mixing(alpha, 0, seed=1), 4000)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 4 * math.sqrt(variance / 4000)
    assert shares.var().item() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_the_share_of_cutmix_is_that_of_the_pixels_kept(alpha):
    """Row i has only pixels of the value i, so those of its partner can be counted."""
    pixels = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 24, 40)
    shares, middles = [], []
    for mix in draws(Mixing(0, alpha, seed=2), 300):
        mixed = mix.pixels(pixels)
        for row, partner in enumerate(mix.partners.tolist()):
            own = (mixed[row] == row).sum().item() / mixed[row].numel()
            assert own + (mixed[row] == partner).sum().item() / mixed[row].numel() == 1 + (row == partner) * own
            assert own == (1.0 if row == partner else pytest.approx(mix.share, abs=1e-12))
        top, bottom, left, right = mix.box
        assert 0 <= top <= bottom <= 24
        assert 0 <= left <= right <= 40
        shares.append(mix.share)
        middles.append((left + right) / 2)
    assert min(shares) < 0.2
    assert max(shares) > 0.95
    assert abs(sum(middles) / len(middles) - 20) < 2.5


def test_a_cutmix_box_that_is_not_clipped_has_the_proportions_of_the_picture():
    """Where the middle lies right, the box has the picture's own proportions: Yun's r_w = W sqrt(1-λ)."""
    inside = [
        mix
        for mix in draws(Mixing(0, 1.0, seed=2), 300, shape=(2, 3, 240, 400))
        if mix.box[0] > 0 and mix.box[1] < 240 and mix.box[2] > 0 and mix.box[3] < 400
    ]
    assert len(inside) > 30
    for mix in inside:
        top, bottom, left, right = mix.box
        assert (right - left) / 400 == pytest.approx((bottom - top) / 240, abs=1 / 240)


def test_mixup_adds_up_the_pixels_of_two():
    pixels = torch.rand(5, 3, 4, 4, dtype=torch.float64)
    mix = Mixing(1.0, 0, seed=3).draw(tuple(pixels.shape), 0)
    mixed = mix.pixels(pixels)
    assert sorted(mix.partners.tolist()) == [0, 1, 2, 3, 4]
    for row in range(5):
        for y in range(4):
            expected = mix.share * pixels[row, :, y] + (1 - mix.share) * pixels[int(mix.partners[row]), :, y]
            torch.testing.assert_close(mixed[row, :, y], expected, atol=1e-15, rtol=0)


def test_each_way_is_taken_for_half_of_the_batches():
    cuts = sum(mix.box is not None for mix in draws(Mixing(0.8, 1.0, seed=4), 1000))
    assert abs(cuts - 500) < 4 * math.sqrt(250)


def test_a_draw_depends_on_seed_and_place_alone():
    np.random.seed(0)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    mixing = Mixing(0.8, 0, seed=5)
    assert mixing.draw((6, 3, 8, 8), 7, 0, 1).share == Mixing(0.8, 0, seed=5).draw((6, 3, 8, 8), 7, 0, 1).share
    places = [(7, 0, 1), (8, 0, 1), (7, 1, 1), (7, 0, 0)]
    shares = {mixing.draw((6, 3, 8, 8), *place).share for place in places}
    shares.add(Mixing(0.8, 0, seed=6).draw((6, 3, 8, 8), 7, 0, 1).share)
    assert len(shares) == 5
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.random() == np.random.RandomState(0).random()


def test_labels_of_both_pictures_go_with_a_row():
    mix = Mix(torch.tensor([2, 0, 1]), 0.75)
    labels = {"genre": torch.tensor([1, -100, 0]), "tags": torch.tensor([[1.0, 0], [-100, -100], [0, 1]])}
    targets = targets_of({"labels": labels, "mix": mix})
    assert targets["labels"] is labels
    assert targets["second_labels"]["genre"].tolist() == [0, 1, -100]
    assert targets["second_labels"]["tags"].tolist() == [[0, 1], [1, 0], [-100, -100]]
    assert targets["share"].tolist() == [0.75] * 3
    assert targets_of({"labels": labels}) == {"labels": labels}
    assert mix.names(["a.jpg", "b.jpg", "c.jpg"]) == [
        "a.jpg mixed with c.jpg",
        "b.jpg mixed with a.jpg",
        "c.jpg mixed with b.jpg",
    ]


@pytest.mark.parametrize("alphas", [(1.0, 0), (0, 1.0)])
def test_a_batch_of_one_row_is_mixed_with_itself(alphas):
    pixels = torch.rand(1, 3, 8, 8)
    for mix in draws(Mixing(*alphas, seed=6), 20, shape=(1, 3, 8, 8)):
        torch.testing.assert_close(mix.pixels(pixels), pixels)
