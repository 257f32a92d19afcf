"""Neurons against arithmetic done by hand, and the contract that each of them keeps."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saccade.nn import IF, LIF, NEURON, PLIF, make_neuron
from saccade.ops import reference_only


def test_lif_charges_fires_and_resets():
    # tau 2, threshold 1, constant current 1.5: 0.75, 1.125 (fires, back to 0), 0.75
    spikes = LIF()(torch.full((3, 1), 1.5))
    assert spikes.flatten().tolist() == [0.0, 1.0, 0.0]


def test_lif_without_input_decay_adds_the_whole_current():
    # 0.75, 0.375 + 0.75 = 1.125 fires
    spikes = LIF(decay_input=False)(torch.full((3, 1), 0.75))
    assert spikes.flatten().tolist() == [0.0, 1.0, 0.0]


def test_soft_reset_keeps_what_is_above_the_threshold():
    # IF with current 0.75: 0.75, 1.5 -> 0.5, 1.25 -> 0.25, 1.0 -> 0 (a tie fires)
    spikes, v = IF(v_reset=None).scan(torch.full((4, 1), 0.75))
    assert spikes.flatten().tolist() == [0.0, 1.0, 1.0, 1.0]
    assert v.item() == 0.0


def test_hard_reset_to_another_value_is_also_the_start():
    # rest -1, tau 2, current 3: -1 + 4/2... h = -1 + (3 + 0)/2 = 0.5; 0.5 + (3 - 1.5)/2 = 1.25
    spikes, v = LIF(v_reset=-1.0).scan(torch.full((2, 1), 3.0))
    assert spikes.flatten().tolist() == [0.0, 1.0]
    assert v.item() == -1.0


@given(
    tau=st.sampled_from([1.0, 2.0, 3.0, 10.0]),
    decay_input=st.booleans(),
    v_reset=st.sampled_from([None, 0.0, -0.5]),
    current=st.lists(st.integers(-64, 128), min_size=1, max_size=8),
)
def test_lif_is_the_printed_equation(tau, decay_input, v_reset, current):
    x = torch.tensor(current, dtype=torch.float64) / 32
    rest = v = 0.0 if v_reset is None else v_reset
    expected = []
    for x_t in x.tolist():
        h = v + (x_t - (v - rest)) / tau if decay_input else v - (v - rest) / tau + x_t
        if abs(h - 1) < 1e-9:  # rounding decides; ties are tested on dyadic numbers
            return
        s = float(h >= 1)
        v = h - s if v_reset is None else h * (1 - s) + v_reset * s
        expected.append(s)
    got, last = LIF(tau=tau, decay_input=decay_input, v_reset=v_reset).scan(x[:, None])
    assert got.flatten().tolist() == expected
    assert last.item() == pytest.approx(v, abs=1e-12)


def test_plif_starts_as_the_lif_of_its_time_constant():
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).double() * 2
    plif = PLIF(init_tau=2.0).double()
    assert torch.equal(plif(x), LIF(tau=2.0)(x))
    assert plif.w.item() == pytest.approx(-math.log(2.0 - 1.0))


@pytest.mark.parametrize("name", NEURON.list())
def test_two_halves_make_the_whole(name: str):
    neuron = make_neuron(name).double()
    x = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(3)).double() * 2
    whole, v = neuron.scan(x)
    first, between = neuron.scan(x[:2])
    second, last = neuron.scan(x[2:], between)
    assert 0.02 < whole.mean() < 0.98
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(last, v)


@pytest.mark.parametrize("name", NEURON.list())
def test_carries_nothing_over_and_learns(name: str):
    neuron = make_neuron(name)
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(3)).mul(2).requires_grad_()
    assert torch.equal(neuron(x), neuron(x))
    neuron(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.any() for p in neuron.parameters())


@pytest.mark.parametrize("name", NEURON.list())
def test_the_fast_path_is_the_reference(name: str):
    neuron = make_neuron(name)
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(4)).mul(2)
    fast = neuron(x)
    with reference_only():
        assert torch.equal(neuron(x), fast)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"name": "lif", "tau": 0.5}, "got tau=0.5"),
        ({"name": "lif", "tau": math.nan}, "got tau=nan"),
        ({"name": "plif", "init_tau": 1.0}, "init_tau=1.0"),
        ({"name": "lif", "tua": 2.0}, "did you mean 'tau'"),
        ({"name": "lfi"}, "did you mean 'lif'"),
        ({"tau": 2.0}, "expected a name or a mapping"),
    ],
)
def test_bad_options_name_the_valid_choice(part: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make_neuron(part)
