"""Runs over the registry: a new mechanism is tested here without a line being added."""

from dataclasses import replace

import pytest
import torch

from saccade.attention import ATTENTION, Site, SpikingAttention, create_attention, install
from saccade.nn import make_neuron
from saccade.ops import reference_only
from tests.awake import LEAST, MOST, awake, firing_rates, spikes, untaught

SITE = Site(dim=16, heads=4, T=3, grid=(4, 5))  # no two axes alike
GATES = [name for name in ATTENTION if ATTENTION[name].kind == "gate"]
pytestmark = pytest.mark.parametrize("name", ATTENTION.list())


def make(name: str) -> tuple[SpikingAttention, torch.Tensor]:
    """An awake mechanism and its input: spikes for a mixer, a current for a gate.

    In float64, so that rounding flips no threshold.
    """
    torch.manual_seed(0)
    x = spikes(SITE.T, 2, SITE.dim, *SITE.grid)
    if name in GATES:
        x = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double() * 1.5 + 0.5
    built = create_attention(name, dim=SITE.dim, heads=SITE.heads, T=SITE.T, grid=SITE.grid)
    return awake(built).double().eval(), x


def test_no_neuron_is_silent_or_saturated(name: str):  # else the tests below prove little
    attention, x = make(name)
    if name in GATES:  # it has none of its own: the neuron that it feeds
        fed = torch.nn.ModuleDict({"gate": attention, "neuron": make_neuron("ma_lif")})
        rates = firing_rates(fed, lambda: fed["neuron"](attention(x), gate=attention.at_membrane()))
    else:
        rates = firing_rates(attention, lambda: attention(x))
    assert rates
    assert all(LEAST < r < MOST for r in rates.values()), rates


def test_keeps_shape_and_dtype(name: str):
    attention, x = make(name)
    y = attention(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


def test_carries_nothing_over_between_calls(name: str):
    attention, x = make(name)
    assert torch.equal(attention(x), attention(x))


def test_samples_do_not_mix_in_eval(name: str):
    attention, x = make(name)
    whole, alone = attention(x)[:, :1], attention(x[:, :1])
    if name in GATES:  # real numbers: a matrix product of other rows rounds in another order
        torch.testing.assert_close(whole, alone, rtol=1e-12, atol=1e-12)
    else:
        assert torch.equal(whole, alone)


def test_is_causal_unless_it_says_otherwise(name: str):
    attention, x = make(name)
    later = torch.cat([x[:-1], 1 - x[-1:]])
    unchanged = torch.equal(attention(later)[:-1], attention(x)[:-1])
    assert unchanged or not attention.causal


def test_hears_its_input(name: str):
    attention, x = make(name)
    assert not torch.equal(attention(x), attention(1 - x))


def test_every_parameter_learns(name: str):
    attention, x = make(name)
    x.requires_grad_()
    attention.train()(x).square().sum().backward()
    assert x.grad is not None
    assert untaught(attention) == []


def test_reference_paths_give_the_same(name: str):
    attention, x = make(name)
    fast = attention(x)
    with reference_only():
        assert torch.equal(attention(x), fast)


def test_saves_and_loads(name: str):
    attention, x = make(name)
    other = create_attention(name, dim=SITE.dim, heads=SITE.heads, T=SITE.T, grid=SITE.grid)
    other.double().eval().load_state_dict(attention.state_dict())
    assert torch.equal(other(x), attention(x))


def test_scores_fit_the_tokens(name: str):
    attention, x = make(name)
    scores = attention.scores(x)
    N = SITE.tokens
    assert scores is None or scores.shape == (SITE.T, 2, SITE.heads, N, N)


def test_counts_its_additions(name: str):
    attention, _ = make(name)
    assert attention.adds() > 0 or name == "none"
    assert attention.adds() >= 0


def test_asks_for_no_membrane_where_no_neuron_follows(name: str):
    attention = install(replace(SITE, feeds_neuron=False), name)
    assert attention.at_membrane() is None


def test_cites_its_paper_and_equations(name: str):
    cls = ATTENTION[name]
    assert cls.source.id.startswith(("arXiv:", "doi:"))
    assert cls.equations
    assert cls.source.bibtex().startswith("@article{")
    assert cls.golden in ("official", "independent reference", "reconstruction")
