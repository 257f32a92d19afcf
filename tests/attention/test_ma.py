"""MA-SNN's gates against their printed equations, by loops, and against arithmetic by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from saccade.attention import Site, create_attention, install, ma
from saccade.nn import LIF, MALIF, make_neuron
from tests.awake import LEAST, MOST, awake

SITE: dict[str, Any] = {"dim": 6, "heads": 1, "T": 4, "grid": (5, 3)}
NAMES = ("ta", "ca", "sa", "tca", "tsa", "csa", "tcsa")


def current(T: int = 4) -> Tensor:
    g = torch.Generator().manual_seed(3)
    return torch.randn(T, 2, 6, 5, 3, generator=g).double() * 1.5 + 0.5


def make(name: str, **options: Any) -> ma.MultiDimensionalGate:
    torch.manual_seed(0)
    gate = create_attention(name, **SITE, **{"ratio_t": 2, "ratio_c": 3} | options)
    return awake(gate).double()


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def mlp(down: Tensor, up: Tensor, mean: list[float], peak: list[float]) -> list[float]:
    """W1 relu(W0 mean) + W1 relu(W0 max), then sigma, one number at a time."""
    out = [0.0] * len(up)
    for stats in (mean, peak):
        hidden = [max(0.0, sum(w * s for w, s in zip(row, stats, strict=True))) for row in down]
        for i, row in enumerate(up):
            out[i] += sum(w * h for w, h in zip(row, hidden, strict=True))
    return [sigma(float(o)) for o in out]


def by_loops(gate: ma.MultiDimensionalGate, x: Tensor) -> Tensor:
    """Eq. MA-1 to MA-3 for one sample [T C H W], in the order T, C, S."""
    x = x.clone()
    T, C, H, W = x.shape
    per_step = gate.stats == "per_step"
    if "T" in gate.parts:
        m = gate.t.mlp
        stats = [[x[t].mean().item() for t in range(T)], [x[t].max().item() for t in range(T)]]
        g = mlp(m.down.weight, m.up.weight, *stats)
        x = torch.stack([x[t] * g[t] for t in range(T)])
    groups = [[t] for t in range(T)] if per_step else [list(range(T))]
    if "C" in gate.parts:
        m = gate.c.mlp
        for group in groups:
            mean = [x[group, c].mean().item() for c in range(C)]
            peak = [x[group, c].max().item() for c in range(C)]
            g = mlp(m.down.weight, m.up.weight, mean, peak)
            for c in range(C):
                x[group, c] *= g[c]
    if "S" in gate.parts:
        kernel, r = gate.s.conv.weight[0], gate.s.conv.kernel_size[0] // 2
        for group in groups:
            mean, peak = x[group].mean((0, 1)), x[group].amax((0, 1))
            g = torch.zeros(H, W, dtype=x.dtype)
            for i in range(H):
                for j in range(W):
                    for a in range(-r, r + 1):
                        for b in range(-r, r + 1):
                            if 0 <= i + a < H and 0 <= j + b < W:
                                g[i, j] += kernel[0, r + a, r + b] * mean[i + a, j + b]
                                g[i, j] += kernel[1, r + a, r + b] * peak[i + a, j + b]
            x[group] = x[group] * g.sigmoid()
    return x.relu() if gate.post_relu else x


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"stats": "per_step"}, {"kernel": 5, "post_relu": False}])
@pytest.mark.parametrize("name", NAMES)
def test_is_the_printed_equation(name: str, options: dict[str, Any]):
    gate, x = make(name, **options), current()
    want = torch.stack([by_loops(gate, x[:, b]) for b in range(2)], 1)
    torch.testing.assert_close(gate(x), want, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_equation_14_step_by_step():
    # X' = g_t X; V = H + X'; U = g_s(g_c V); S = 1[U >= th]; H = Vreset S + beta U (1 - S)
    gate = make("tcsa", preset="paper", kernel=3)
    x, beta, threshold, v_reset = current(), 0.6, 0.3, 0.1
    neuron = MALIF(decay=beta, reset="paper", v_threshold=threshold, v_reset=v_reset)
    got = neuron(gate(x), gate=gate.at_membrane())
    assert LEAST < got.mean() < MOST
    gated = gate.t(x) * x
    h, want = torch.zeros_like(x[0]), []
    for t in range(4):
        v = h + gated[t]
        v = gate.c(v[None])[0] * v
        u = gate.s(v[None])[0] * v
        s = (u >= threshold).double()
        h = v_reset * s + beta * u * (1 - s)
        want.append(s)
    assert torch.equal(got, torch.stack(want))


def test_presets_are_two_models():
    code, paper = make("tcsa"), make("tcsa", preset="paper", ratio_c=None)
    assert (code.stats, code.location, code.post_relu) == ("per_sample", "current", True)
    assert code.s.conv.kernel_size == (3, 3)
    assert code.at_membrane() is None
    assert (paper.stats, paper.location, paper.post_relu) == ("per_step", "membrane", False)
    assert paper.s.conv.kernel_size == (7, 7)
    assert paper.at_membrane() is not None
    wide = create_attention("tcsa", dim=64, heads=1, T=20, preset="paper")
    assert wide.c.mlp.down.weight.shape == (64 // 16, 64)
    assert create_attention("tcsa", dim=64, heads=1, T=20).c.mlp.down.weight.shape == (8, 64)


def test_an_option_wins_over_the_preset():
    gate = make("csa", preset="paper", location="current", kernel=3)
    assert gate.at_membrane() is None
    assert not torch.equal(gate(current()), current())


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_where_no_neuron_follows_the_papers_gates_act_on_each_steps_current(name: str):
    torch.manual_seed(0)
    site = Site(**SITE, feeds_neuron=False)
    options = {"ratio_t": 2, "ratio_c": 3, "kernel": 3}
    gate = awake(install(site, {"name": name, "preset": "paper", **options})).double()
    assert isinstance(gate, ma.MultiDimensionalGate)
    assert gate.at_membrane() is None
    assert (gate.stats, gate.post_relu) == ("per_step", False)
    want = torch.stack([by_loops(gate, current()[:, b]) for b in range(2)], 1)
    torch.testing.assert_close(gate(current()), want, rtol=1e-12, atol=1e-12)


def test_a_membrane_is_refused_where_no_neuron_follows():
    site = Site(**SITE, feeds_neuron=False)
    with pytest.raises(ValueError, match=r"expected 'current', as in the paper.*Eq\. 15 and 16"):
        install(site, {"name": "csa", "stats": "per_step", "location": "membrane"})


def test_time_stays_at_the_current_in_both_presets():
    gate, x = make("tcsa", preset="paper"), current()
    torch.testing.assert_close(gate(x), gate.t(x) * x)
    assert make("ta", preset="paper").at_membrane() is None


@pytest.mark.parametrize(
    ("name", "options", "causal"),
    [
        ("ca", {}, False),  # one statistic for the whole sample sees the future
        ("ca", {"stats": "per_step"}, True),
        ("csa", {"preset": "paper"}, True),
        ("tcsa", {"preset": "paper"}, False),
    ],
)
def test_causal_is_what_the_options_make_it(name: str, options: dict[str, Any], causal: bool):
    gate, x = make(name, **options), current()
    neuron = make_neuron("ma_lif")
    later = torch.cat([x[:-1], -3 * x[-1:]])
    a, b = (neuron(gate(y), gate=gate.at_membrane()) for y in (x, later))
    assert gate.causal is causal
    assert torch.equal(a[:-1], b[:-1]) or not causal


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", ["official_code", "paper"])
def test_every_parameter_learns_through_the_neuron(name: str, preset: str):
    gate, x = make(name, preset=preset), current().requires_grad_()
    neuron = make_neuron({"name": "ma_lif", "alpha": 0.25})
    spikes = neuron(gate(x), gate=gate.at_membrane())
    assert LEAST < spikes.mean() < MOST
    (spikes * torch.arange(spikes.numel()).reshape(spikes.shape)).sum().backward()
    assert [n for n, p in gate.named_parameters() if not p.grad.any()] == []
    assert x.grad.any()


def test_a_zero_gate_halves_the_current():
    # all weights 0: sigma(0) = 1/2 for each of the three
    gate = make("tcsa", post_relu=False)
    for p in gate.parameters():
        p.data.zero_()
    assert torch.equal(gate(current()), current() / 8)


def test_time_gate_by_hand():
    # T=2, hidden 1, W0 = [1 1], W1 = [1 0]^T. Step 0 is all 1 and step 1 all 2:
    # avg = max = (1, 2), hidden 3, twice: g = (sigma(6), sigma(0))
    gate = create_attention("ta", dim=3, heads=1, T=2, grid=(2, 2), ratio_t=2)
    gate.t.mlp.down.weight.data = torch.tensor([[1.0, 1.0]])
    gate.t.mlp.up.weight.data = torch.tensor([[1.0], [0.0]])
    x = torch.ones(2, 1, 3, 2, 2) * torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1, 1)
    y = gate(x)
    assert y[0].unique().item() == pytest.approx(sigma(6))
    assert y[1].unique().item() == pytest.approx(1.0)


def test_counts_by_hand():
    # TA: T=4, hidden 2: 2 vectors x 16 weights, and 4*6*15 products
    assert make("ta").adds() == 2 * 16 + 360
    # CA: C=6, hidden 2, once a sample, or once a step
    assert make("ca").adds() == 2 * 24 + 360
    assert make("ca", stats="per_step").adds() == 4 * 2 * 24 + 360
    # SA: 2 maps, 3x3, 15 places
    assert make("sa").adds() == 18 * 15 + 360


def test_winner_take_all_keeps_the_largest():
    gate = make("ca", keep_c=0.5, post_relu=False)
    x = current()
    kept = (gate(x) != 0).all(0).all(-1).all(-1)
    g = gate.c(x)[0, ..., 0, 0]
    assert kept.sum(1).tolist() == [3, 3]
    assert [set(k.nonzero().flatten().tolist()) for k in kept] == [
        set(row.topk(3).indices.tolist()) for row in g
    ]


def test_equal_maxima_give_their_gradient_to_the_first():
    x = torch.tensor([[1.0, 3.0, 3.0]]).requires_grad_()
    ma.pooled(x, (1,))[1].sum().backward()
    assert x.grad.tolist() == [[0.0, 1.0, 0.0]]


def test_default_ratios_shrink_with_the_axis_they_divide():
    assert create_attention("tca", dim=4, heads=1, T=2).t.mlp.down.weight.shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ta", {"ratio_t": 5}, "ratio_t=5 for T=4, expected 1 to 4.*nearest is 4"),
        ("ca", {"ratio_c": 7}, "ratio_c=7 for C=6"),
        ("ca", {"ratio_c": 0}, "nearest is 1"),
        ("sa", {"kernel": 4}, "got kernel=4, expected an odd number; the nearest is 5"),
        ("sa", {"kernel": 0}, "got kernel=0, expected an odd number; the nearest is 1"),
        ("sa", {"stats": ""}, "got stats=''"),
        ("sa", {"preset": "papper"}, "got preset='papper'; did you mean 'paper'"),
        ("sa", {"stats": "per_stap"}, "got stats='per_stap'; did you mean 'per_step'"),
        ("sa", {"location": "membran"}, "did you mean 'membrane'"),
        ("sa", {"location": "membrane"}, "expected 'per_step'"),
        ("ta", {"keep_t": 0.0}, "got keep_t=0.0"),
        ("sj_twa", {"reduction": 5}, "reduction=5 for T=4"),
        ("sj_mda", {"reduction_c": 9}, "reduction_c=9 for C=6"),
        ("ta_snn", {"ratio_t": 16}, "ratio_t=16 for T=4"),
    ],
)
def test_bad_options_name_the_valid_choice(name: str, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        create_attention(name, **SITE, **options)


@pytest.mark.parametrize("name", ["ta", "tcsa", "ta_snn", "sj_twa", "sj_mda"])
def test_another_number_of_steps_is_refused(name: str):
    with pytest.raises(ValueError, match="got 3 time steps, expected 4"):
        create_attention(name, **SITE).double()(current(T=3))


def test_other_steps_are_taken_where_no_parameter_depends_on_them():
    assert make("csa")(current(T=7)).shape == (7, 2, 6, 5, 3)


def test_a_gate_can_sit_in_any_neuron():
    x, halve = current(), lambda u: u / 2
    # halving the charged membrane of a LIF without decay is doubling its threshold, for one step
    assert torch.equal(LIF()(x[:1], gate=halve), LIF(v_threshold=2.0)(x[:1]))


@pytest.mark.parametrize("name", ["ca", "sa", "csa", "tcsa"])
def test_a_membrane_is_wider_than_the_weights_of_its_gate(name: str):
    gate, x = make(name, preset="paper").bfloat16(), current().bfloat16()
    spikes, v = MALIF()(x, gate=gate.at_membrane(), with_membrane=True)
    assert (spikes.dtype, v.dtype) == (torch.bfloat16, torch.float32)
    assert LEAST < spikes.float().mean() < MOST
    same = MALIF()(x.float(), gate=gate.float().at_membrane())
    assert (spikes.float() != same).float().mean() < 0.02  # gates are rounded


def test_sites_of_vectors_take_what_needs_no_grid():
    site = Site(dim=6, heads=1, T=4, grid=(1, 1))
    assert isinstance(ma.TCSA.for_vectors(site, ratio_t=2, ratio_c=99), ma.TA)
    assert ma.CSA.for_vectors(site) is None
