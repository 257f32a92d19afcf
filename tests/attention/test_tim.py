"""What is special to TIM: its recurrence, its presets, and that it wraps an attention."""

import pytest
import torch

from saccade.attention import Site, create_attention, install
from saccade.attention.tim import TemporalInteraction
from saccade.nn import LIF
from tests.awake import spikes


def interaction(tokens: int, **options: float) -> TemporalInteraction:
    torch.manual_seed(0)
    module = TemporalInteraction(
        tokens, neuron_in=LIF(v_threshold=0.3), neuron_out=LIF(v_threshold=0.5), **options
    )
    module.conv.bias.data.uniform_(0.3, 0.9)
    return module.double()


@pytest.mark.parametrize(("N", "d"), [(6, 4), (4, 6)])
def test_the_recurrence_is_the_printed_equation(N: int, d: int):
    module, q = interaction(N, alpha=0.6), spikes(5, 2, 3, N, d)
    got = module(q)
    weight, bias = module.conv.weight, module.conv.bias
    expected, v_in, v_out = [q[0]], torch.zeros_like(q[0]), torch.zeros_like(q[0])
    for t in range(1, 5):
        f = torch.zeros_like(q[0])
        for n in range(N):  # out token n hears every token m, along the features
            for j in range(d):
                f[..., n, j] = bias[n] + sum(
                    weight[n, m, k] * expected[-1][..., m, j + k - 2]
                    for m in range(N)
                    for k in range(5)
                    if 0 <= j + k - 2 < d
                )
        h = v_in + (f - v_in) / 2
        s_in = (h >= 0.3).double()
        v_in = h * (1 - s_in)
        h = v_out + (0.6 * s_in + 0.4 * q[t] - v_out) / 2
        s = (h >= 0.5).double()
        v_out = h * (1 - s)
        expected.append(s)
    expected = torch.stack(expected)
    assert 0.02 < expected[1:].mean() < 0.98
    assert torch.equal(got, expected)


def test_a_sequence_goes_on_in_another_call():
    module, q = interaction(6), spikes(6, 2, 3, 6, 4)
    whole, _ = module.scan(q)
    first, state = module.scan(q[:2])
    second, _ = module.scan(q[2:], state)
    assert torch.equal(torch.cat([first, second]), whole)


def test_as_released_it_is_silent_from_the_second_step_on():
    # the sum is at most 1, so the membrane (v + u) / 2 stays below 1: 1 - 2**-t after t steps
    module = TemporalInteraction(4, neuron_in=LIF(), neuron_out=LIF())
    out = module(torch.ones(12, 1, 2, 4, 5))
    assert out[0].all()
    assert not out[1:].any()


def test_presets_set_the_three_thresholds():
    site = {"dim": 8, "heads": 2, "grid": (2, 2)}
    for preset, expected in (("intended", (0.3, 0.5, 0.5)), ("as_released", (1.0, 1.0, 1.0))):
        inner = create_attention("tim", preset=preset, **site).inner
        neurons = (inner.query.neuron_in, inner.query.neuron_out, inner.fire)
        assert tuple(n.fire.v_threshold for n in neurons) == expected


def test_without_the_past_it_is_its_inner_attention():
    torch.manual_seed(0)
    tim = create_attention("tim", dim=16, heads=4, grid=(2, 3), inner={"name": "ssa", "scale": 1.0})
    x = spikes(1, 2, 16, 2, 3).float()  # the first step passes as it is
    assert torch.equal(tim.eval()(x), tim.inner(x))
    assert tim.inner.scale == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "got alpha=1.5, expected 0 to 1; the nearest is 1"),
        ({"kernel": 4}, "got kernel=4.*nearest is 5"),
        ({"preset": "as_relased"}, "did you mean 'as_released'"),
        ({"inner": "sssa"}, "did you mean 'ssa'"),
    ],
)
def test_bad_options_name_the_valid_choice(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        create_attention("tim", dim=16, heads=4, grid=(2, 3), **options)


def test_another_grid_is_refused():
    tim = create_attention("tim", dim=16, heads=4, grid=(2, 3))
    with pytest.raises(ValueError, match="got 4 tokens, expected 6"):
        tim(torch.zeros(2, 1, 16, 2, 2))


def test_counts_the_convolution_from_the_second_step_on():
    site = Site(dim=16, heads=4, T=3, grid=(2, 3))
    ssa = create_attention("ssa", dim=16, heads=4, T=3, grid=(2, 3)).adds()
    tim = create_attention("tim", dim=16, heads=4, T=3, grid=(2, 3)).adds()
    assert tim - ssa == 2 * (6 * 6 * 5) * site.dim  # steps x tokens x tokens x kernel x channels


@pytest.mark.parametrize("inner", ["sasa", "lrf_dyn", "tim", "csa"])
def test_what_takes_no_query_is_refused_by_name(inner: str):
    with pytest.raises(ValueError, match=f"got inner='{inner}', expected .* lrf_ssa, ssa"):
        install(Site(dim=16, heads=2, T=2, grid=(2, 2)), {"name": "tim", "inner": inner})
