"""MA-SNN's neurons against arithmetic done by hand."""

import pytest
import torch

from saccade.nn import IF, MALIF, MemUpdate, make_neuron


def test_a_spike_leaves_the_decayed_threshold():
    # decay .5, threshold 1, current .875: u = .875; .4375 + .875 = 1.3125 fires and leaves 1;
    # .5 + .875 = 1.375 fires again: a reset to 0 would have been silent here
    neuron = MALIF(decay=0.5, v_threshold=1.0)
    assert neuron(torch.full((3, 1), 0.875)).flatten().tolist() == [0.0, 1.0, 1.0]


def test_the_papers_reset_is_to_v_reset():
    # .875; 1.3125 fires; 0 + .875 is silent
    neuron = MALIF(decay=0.5, v_threshold=1.0, reset="paper")
    assert neuron(torch.full((3, 1), 0.875)).flatten().tolist() == [0.0, 1.0, 0.0]


def test_the_papers_v_reset_does_not_decay():
    # .75 + .25 = 1 fires at t=1 from u0 = .75 -> .375 + .75 = 1.125; then H = .25: 1.0 fires
    neuron = MALIF(decay=0.5, v_threshold=1.0, reset="paper", v_reset=0.25)
    assert neuron(torch.full((3, 1), 0.75)).flatten().tolist() == [0.0, 1.0, 1.0]


def test_the_drift_meets_every_step_but_the_first():
    # decay 1, drift .25, no current: 0, .25, .5, .75, 1 fires
    neuron = MALIF(decay=1.0, drift=0.25, v_threshold=1.0)
    assert neuron(torch.zeros(5, 1)).flatten().tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]
    _, v = neuron.scan(torch.zeros(2, 1))
    assert neuron.scan(torch.zeros(3, 1), v)[0].flatten().tolist() == [0.0, 0.0, 1.0]


def test_membranes_come_out_above_zero_or_above_the_threshold():
    # u = -1; -.5 + 1 = .5; .25 + 1 = 1.25 (fires)
    x = torch.tensor([-1.0, 1.0, 1.0])[:, None]
    membrane = MALIF(decay=0.5, v_threshold=1.0, output="membrane")
    assert membrane(x).flatten().tolist() == [0.0, 0.5, 1.25]
    excess = MALIF(decay=0.5, v_threshold=1.0, output="excess")
    assert excess(x).flatten().tolist() == [0.0, 0.0, 0.25]


def test_mem_update_is_silent_at_the_threshold():
    # decay .25, threshold .5: .5 is silent; .125 + .5 = .625 fires; 0 + .5 is silent
    x = torch.full((3, 1), 0.5)
    assert MemUpdate()(x).flatten().tolist() == [0.0, 1.0, 0.0]
    assert MemUpdate(strict=False)(x).flatten().tolist() == [1.0, 1.0, 1.0]


def test_the_gradient_flows_through_the_reset_unless_detached():
    # u0 = .35 fires: dv0/du0 = (.3 - .35) 2 = -.1; u1 = .09 + .1 = .19 does not: dv1/du1 =
    # 1 + (.3 - .19) 2 = 1.22; between them the decay .3
    def slope(neuron: torch.nn.Module) -> float:
        x = torch.tensor([[0.35], [0.1]], dtype=torch.float64).requires_grad_()
        neuron.scan(x)[1].sum().backward()
        return float(x.grad[0])

    assert slope(MALIF()) == pytest.approx(-0.1 * 0.3 * 1.22)
    assert slope(MALIF(detach_reset=True)) == 0.0


def test_a_gate_acts_between_charge_and_fire():
    # IF, current 1, threshold 1, membrane halved each step: .5, .75, .875
    spikes, v = IF().scan(torch.ones(3, 1), gate=lambda u: u / 2)
    assert spikes.flatten().tolist() == [0.0, 0.0, 0.0]
    assert v.item() == 0.875


@pytest.mark.parametrize("part", ["lif", "plif", "ma_lif", "mem_update"])
def test_a_gate_that_does_nothing_changes_nothing(part: str):
    neuron = make_neuron(part).double()
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(2)).double() * 2
    for with_gate, without in zip(neuron.scan(x, gate=lambda u: u), neuron.scan(x), strict=True):
        torch.testing.assert_close(with_gate, without, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"name": "ma_lif", "decay": -0.1}, "got decay=-0.1, .*nearest is 0"),
        ({"name": "mem_update", "decay": 1.1}, "got decay=1.1, .*nearest is 1"),
        ({"name": "ma_lif", "reset": "soft"}, "got reset='soft'"),
        ({"name": "ma_lif", "output": "spikes"}, "did you mean 'spike'"),
        ({"name": "ma_lif", "reset": "paper", "v_reset": 0.1, "decay": 0.0}, "v_reset=0.1"),
        ({"name": "ma_lif", "v_reset": 0.1, "decay": 0.0}, "expected reset='paper'"),
        ({"name": "ma_lif", "v_threshold": 0.0}, "v_rest=0.0: a neuron at rest would fire"),
    ],
)
def test_bad_options_name_the_valid_choice(part: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make_neuron(part)
