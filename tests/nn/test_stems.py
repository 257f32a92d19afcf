"""Stems: the contract over the registry, and what is special to SPS."""

import pytest
import torch

from saccade.nn import SPS, STEM
from tests.awake import LEAST, MOST, awake, firing_rates

pytestmark = pytest.mark.parametrize("name", STEM.list())


def make(name: str):
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    stem = awake(STEM.build(name, 2, 16, image_size=(16, 32)), seed=5).double().eval()
    return stem, torch.randn(3, 2, *stem.frame, generator=g).double()


def test_no_neuron_is_silent_or_saturated(name: str):
    stem, x = make(name)
    rates = firing_rates(stem, lambda: stem(x))
    assert all(LEAST < r < MOST for r in rates.values()), rates


def test_makes_the_grid_that_it_announces(name: str):
    stem, x = make(name)
    assert stem(x).shape == (3, 2, 16, *stem.grid)


def test_samples_do_not_mix_and_nothing_is_carried_over(name: str):
    stem, x = make(name)
    assert torch.equal(stem(x)[:, :1], stem(x[:, :1]))


def test_tokens_are_whole_numbers(name: str):
    stem, x = make(name)
    y = stem(x)
    assert torch.equal(y, y.round())
    assert y.min() >= 0


def test_an_image_that_it_does_not_divide_names_the_nearest(name: str):
    with pytest.raises(ValueError, match=r"got image_size=\(17, 32\).*nearest is \(16, 32\)"):
        STEM.build(name, 2, 16, image_size=(17, 32))


def test_a_width_that_it_does_not_divide_names_the_nearest(name: str):
    with pytest.raises(ValueError, match=r"got dim=20.*nearest is 16"):
        STEM.build(name, 2, 20, image_size=(16, 32))


def test_sps_pools_after_the_stages_that_it_is_told(name: str):
    for pools, grid in {(False,) * 4: (16, 32), (True, False, True, False): (4, 8)}.items():
        assert SPS(1, 8, image_size=(16, 32), pools=pools).grid == grid
    with pytest.raises(ValueError, match="expected 4"):
        SPS(1, 8, image_size=(16, 32), pools=(True,))
