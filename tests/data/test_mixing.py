"""Mixup: what is drawn, and what becomes of the pixels; of the labels, see tests/model/test_losses.py."""

import math

import numpy as np
import pytest
import torch

from artgraph_vit.data.augmentation import draw_mix


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_beta_distributed(alpha):
    shares = torch.tensor([draw_mix(6, alpha, 1, number).share for number in range(4000)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 4 * math.sqrt(variance / 4000)
    assert shares.var().item() == pytest.approx(variance, rel=0.1)


def test_pixels_are_added_up_of_two_and_one_row_stays_as_it_is():
    pixels = torch.rand(5, 3, 4, 4, dtype=torch.float64)
    mix = draw_mix(5, 1.0, 3, 0)
    mixed = mix.pixels(pixels).numpy()
    assert sorted(mix.partners.tolist()) == [0, 1, 2, 3, 4]
    for row, partner in enumerate(mix.partners.tolist()):
        expected = mix.share * pixels[row].numpy() + (1 - mix.share) * pixels[partner].numpy()
        np.testing.assert_allclose(mixed[row], expected, atol=1e-15)
    torch.testing.assert_close(draw_mix(1, 1.0, 6, 2).pixels(pixels[:1]), pixels[:1])


def test_a_draw_depends_on_seed_and_place_alone():
    np.random.seed(0)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, again = draw_mix(6, 0.8, 5, 7, 0, 1), draw_mix(6, 0.8, 5, 7, 0, 1)
    assert first.share == again.share
    assert torch.equal(first.partners, again.partners)
    places = [(5, 7, 0, 1), (5, 8, 0, 1), (5, 7, 1, 1), (5, 7, 0, 0), (6, 7, 0, 1)]
    assert len({draw_mix(6, 0.8, *place).share for place in places}) == 5
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.random() == np.random.RandomState(0).random()
