"""LRF-SSA and LRF-Dyn: printed equations by loops, dense forms, and every reading of them."""

from typing import Any

import pytest
import torch

from saccade.analysis.record import record
from saccade.attention import Site, create_attention
from saccade.attention.lrf_dyn import LRFDyn
from saccade.attention.lrf_ssa import LRFSSA, LocalMix
from saccade.attention.ssa import SSA
from saccade.models import create_model
from saccade.nn import Decay, Dendrites, LocalField
from saccade.nn.local import taps
from saccade.ops import reference_only
from saccade.ops.lrf import spectral_radius
from tests.awake import LEAST, MOST, awake, firing_rates, spikes, untaught

SITE = Site(dim=12, heads=3, T=2, grid=(4, 7))
MAPS = (SITE.T, 2, SITE.dim, *SITE.grid)
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("lrf_ssa", {}),
    ("lrf_ssa", {"reading": "eq14", "dilations": [1]}),
    ("lrf_ssa", {"preset": "counts"}),
    ("lrf_ssa", {"preset": "counts", "shared_heads": True, "reading": "eq14"}),
    ("lrf_ssa", {"causal_tokens": True}),
    ("lrf_ssa", {"causal_tokens": True, "dilations": []}),
    ("lrf_dyn", {}),
    ("lrf_dyn", {"form": "eq12"}),
    ("lrf_dyn", {"preset": "counts", "compartments": 3, "shared_heads": True}),
    ("lrf_dyn", {"form": "eq12", "dilations": ()}),
]


def make(name: str, site: Site = SITE, **options: Any) -> Any:
    torch.manual_seed(0)
    built = create_attention(
        name, dim=site.dim, heads=site.heads, T=site.T, grid=site.grid, **options
    )
    return awake(built).double().eval()


def toeplitz(field: LocalField, c: int, grid: tuple[int, int]) -> torch.Tensor:
    """The N x N matrix of a channel's kernels, entry by entry."""
    H, W = grid
    R = torch.zeros(H * W, H * W).double()
    for d, conv in field.kernels.items():
        for i in range(3):
            for j in range(3):
                for y in range(H):
                    for x in range(W):
                        ny, nx = y + (i - 1) * int(d), x + (j - 1) * int(d)
                        if 0 <= ny < H and 0 <= nx < W:
                            R[y * W + x, ny * W + nx] += conv.weight[c % field.width, 0, i, j]
    return R.detach()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("reading", ["eq8", "eq14"])
@pytest.mark.parametrize("shared", [False, True])
def test_the_mix_is_the_printed_equation_by_loops(causal: bool, reading: str, shared: bool):
    field = LocalField(12, (1, 3), heads=3, shared_heads=shared).double()
    mixing = LocalMix(field, heads=3, scale=0.25, reading=reading, causal_tokens=causal)
    q, k, v = (spikes(*MAPS, seed=s) for s in (1, 2, 3))
    expected = torch.zeros_like(v)
    for c in range(12):
        own = slice(c // 4 * 4, c // 4 * 4 + 4)  # channels of the head
        scores = torch.einsum("tbcn,tbcm->tbnm", q[:, :, own].flatten(3), k[:, :, own].flatten(3))
        scores = scores.tril() if causal else scores
        R = toeplitz(field, c, SITE.grid)
        values = v[:, :, c].flatten(2).unsqueeze(-1)
        local = 0.25 * R if reading == "eq14" else R
        expected[:, :, c] = ((0.25 * scores + local) @ values).reshape(v[:, :, c].shape)
    torch.testing.assert_close(mixing(q, k, v), expected, rtol=1e-12, atol=1e-12)


def test_one_reading_is_the_other_with_rescaled_kernels():
    field = LocalField(12, (3, 5)).double()
    q, k, v = (spikes(*MAPS, seed=s) for s in (1, 2, 3))
    eq14 = LocalMix(field, heads=3, scale=0.125, reading="eq14")(q, k, v)
    for kernel in field.kernels.values():
        kernel.weight.data *= 0.125
    torch.testing.assert_close(LocalMix(field, heads=3, scale=0.125)(q, k, v), eq14)


def test_the_neighbours_of_a_lone_spike_hear_it():
    # one value in the corner of a 1 x 4 grid; the kernel row 2 3 5 with dilation 3: the corner
    # hears itself by the centre (3), the other end hears it by its left entry (2)
    field = LocalField(1, (3,))
    field.kernels["3"].weight.data = torch.tensor([[0.0, 0, 0], [2, 3, 5], [0, 0, 0]])[None, None]
    v = torch.tensor([1.0, 0, 0, 0]).reshape(1, 1, 1, 1, 4)
    assert field(v).flatten().tolist() == [3.0, 0.0, 0.0, 2.0]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_the_matrix_of_a_field_is_the_mean_over_a_heads_channels(norm: bool, shared: bool):
    field = awake(LocalField(12, (1, 2), heads=3, shared_heads=shared, norm=norm)).double()
    R = torch.stack([toeplitz(field, c, (3, 4)) for c in range(12)])
    if norm:
        gain = field.norm.weight / (field.norm.running_var + field.norm.eps).sqrt()
        R = R * gain.reshape(-1, 1, 1)
    expected = R.reshape(3, 4, 12, 12).mean(1)
    torch.testing.assert_close(field.matrix((3, 4), 3), expected)


def test_scores_are_products_and_neighbours():
    lrf, x = make("lrf_ssa", reading="eq14"), spikes(*MAPS)
    q, k = lrf.q(x), lrf.k(x)
    expected = (q[1, 0, :4, 1, 2] * k[1, 0, :4, 0, 1]).sum()  # head 0, token 9 to token 1
    local = torch.stack([toeplitz(lrf.mixing.local, c, SITE.grid) for c in range(4)]).mean(0)
    torch.testing.assert_close(lrf.scores(x)[1, 0, 0, 9, 1], (expected + local[9, 1]) * 0.125)
    causal = make("lrf_ssa", causal_tokens=True, dilations=()).scores(x)
    assert torch.equal(causal, causal.tril())


def test_without_kernels_it_is_ssa():
    x, lrf = spikes(*MAPS), make("lrf_ssa", dilations=())
    ssa = SSA(SITE).double().eval()
    ssa.load_state_dict(lrf.state_dict())
    assert torch.equal(lrf(x), ssa(x))
    assert (lrf.adds(), lrf.state()) == (ssa.adds(), ssa.state())


def test_tim_goes_before_it():
    tim, x = make("tim", inner={"name": "lrf_ssa", "preset": "counts"}), spikes(*MAPS)
    lrf = tim.inner
    q, k, v = lrf.q(x), lrf.k(x), lrf.v(x)
    asked = lrf.mixing.query(q.reshape(2, 2, 3, 4, 28).mT).mT.reshape(q.shape)
    plain = LocalMix(lrf.mixing.local, heads=3, scale=0.125)
    assert torch.equal(lrf.mixing(q, k, v), plain(asked, k, v))
    assert not torch.equal(asked, q)
    assert tim.state() == lrf.state()


def test_causal_tokens_do_not_hear_what_comes_later():
    lrf = make("lrf_ssa", causal_tokens=True, dilations=())
    x = spikes(*MAPS)
    later = x.clone()
    later[..., -1, :] = 1 - later[..., -1, :]
    assert torch.equal(lrf(later)[..., :-1, :], lrf(x)[..., :-1, :])
    assert not torch.equal(lrf(later), lrf(x))


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_every_option_is_awake_learns_and_agrees_with_the_reference(name: str, options: dict):
    attention, x = make(name, **options), spikes(*MAPS)
    rates = firing_rates(attention, lambda: attention(x))
    assert all(LEAST < r < MOST for r in rates.values()), rates
    with reference_only():
        slow = attention(x)
    with torch.no_grad():
        scanned = attention(x)
    assert torch.equal(attention(x), slow)
    assert torch.equal(scanned, slow)
    attention.train()(x).square().sum().backward()
    assert untaught(attention) == []


@pytest.mark.parametrize("grid", [(1, 1), (1, 9), (2, 3), (14, 14), (5, 2)])
@pytest.mark.parametrize("name", ["lrf_ssa", "lrf_dyn"])
def test_any_grid(name: str, grid: tuple[int, int]):
    site = Site(dim=8, heads=2, T=2, grid=grid)
    for preset in ("text", "counts"):
        attention = make(name, site, preset=preset)
        assert all(0 < d < max(grid) for d in attention.dilations)
        assert attention(spikes(2, 1, 8, *grid)).shape == (2, 1, 8, *grid)
        assert f"dilations={attention.dilations}" in repr(attention)


@pytest.mark.parametrize(
    ("preset", "grid", "dilations"),
    [
        ("text", (14, 14), (3, 5)),
        ("counts", (14, 14), (1, 3, 5)),
        ("text", (4, 5), (3, 4)),
        ("text", (2, 3), (2,)),
        ("counts", (2, 3), (1, 2)),
        ("counts", (1, 1), ()),
    ],
)
def test_a_preset_is_lowered_to_the_grid(preset: str, grid: tuple, dilations: tuple):
    assert LRFSSA(Site(dim=4, heads=1, grid=grid), preset=preset).dilations == dilations


def numbers(name: str, **options: Any) -> int:
    attention = create_attention(name, dim=16, heads=4, grid=(14, 14), **options)
    return sum(p.numel() for p in attention.mixing.parameters())


def test_presets_have_the_published_numbers_a_value_channel():
    assert numbers("lrf_ssa", preset="counts") == 16 * 29  # 3 kernels of 9, and batch norm's 2
    assert numbers("lrf_ssa") == 16 * 18
    assert numbers("lrf_ssa", norm=True) == 16 * 20
    assert numbers("lrf_ssa", shared_heads=True) == 16 * 18 // 4
    assert numbers("lrf_dyn", form="eq12", preset="counts") == 16 * (29 + 2)
    chain = 8 + 2 * 7 + 8  # tau, couplings, Gamma
    assert numbers("lrf_dyn", preset="counts") == 16 * (29 + 8) + chain


def test_what_one_token_leaves_to_the_next():
    site = Site(dim=512, heads=8, grid=(14, 14))
    assert SSA(site).state() == LRFSSA(site).state() == 8 * 64 * 64
    assert LRFDyn(site).state() == 8 * 512
    assert LRFDyn(site, form="eq12").state() == 512


@pytest.mark.parametrize("compartments", [1, 2, 8])
def test_dendrites_forget(compartments: int):
    for seed in range(5):
        torch.manual_seed(seed)
        A, _, _ = Dendrites(4, compartments=compartments).system()
        assert spectral_radius(A) < 1


@pytest.mark.parametrize("membrane", [Decay(6), Dendrites(6)], ids=["eq12", "dendritic"])
def test_scan_and_fft_agree_to_1e_9_on_any_grid(membrane: torch.nn.Module):
    membrane, tok = membrane.double(), spikes(2, 1, 6, 9, 13)
    parallel = membrane(tok)
    with torch.no_grad():
        scanned = membrane(tok)
    assert (parallel - scanned).abs().max() < 1e-9


def test_autocast_does_not_reach_the_membrane():
    membrane, tok = Dendrites(6), spikes(2, 1, 6, 9, 13).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = membrane(tok)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, membrane(tok.float()).bfloat16())


def test_eq12_is_one_membrane_a_channel():
    membrane = Decay(1)
    membrane.A.data, membrane.Gamma.data = torch.tensor([0.5]), torch.tensor([2.0])
    tok = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 1, 1, 2, 2)  # raster: 1 0 0 1
    with torch.no_grad():
        assert membrane(tok).flatten().tolist() == [2.0, 1.0, 0.5, 2.25]


def test_additions_of_the_kernels_are_those_of_a_run_in_which_all_fires():
    assert taps((1,), (2, 2)) == 16  # each of 4 tokens hears all 4
    lrf = create_attention("lrf_ssa", dim=4, heads=2, T=1, grid=(2, 3), dilations=(1, 2))
    ones = torch.ones(1, 1, 4, 2, 3)
    with record(lrf.mixing) as seen:
        lrf.mixing(ones, ones, ones)
    counted = sum(row["sops"] for row in seen.table() if row["kind"] == "conv")
    assert counted == 4 * taps(lrf.dilations, (2, 3))
    without = create_attention("lrf_ssa", dim=4, heads=2, T=1, grid=(2, 3), dilations=())
    assert lrf.adds() == without.adds() + counted


def test_tokens_charge_membranes_and_kernels_on_membranes_multiply():
    dyn = create_attention("lrf_dyn", dim=4, heads=2, T=1, grid=(2, 3), dilations=(2,))
    with record(dyn.mixing) as seen:
        dyn.mixing(torch.ones(1, 1, 4, 2, 3))
    charged, met = seen.table()
    assert (charged["sops"], charged["macs"]) == (6 * 4 * 8, 0)  # each token its 8 compartments
    assert (met["sops"], met["macs"]) == (0, 9 * 4 * 6)
    assert dyn.adds() == charged["sops"] + 4 * taps(dyn.dilations, (2, 3))


@pytest.mark.parametrize("name", ["lrf_ssa", "lrf_dyn"])
def test_fits_spikformer_at_another_size(name: str):
    model = create_model(
        "spikformer", dim=16, depth=1, heads=2, image_size=(24, 56), attention=name
    )
    assert model.stem.grid == (6, 14)
    assert model(torch.rand(1, 3, 24, 56)).shape[0] == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lrf_ssa", {"dilations": [1, 7]}, "got dilation 7, expected .* 1 to 6 .*nearest is 6"),
        ("lrf_ssa", {"dilations": [0]}, "got dilation 0.*nearest is 1"),
        ("lrf_ssa", {"dilations": [2.5]}, "got dilation 2.5.*nearest is 2"),
        ("lrf_dyn", {"dilations": [3, 3]}, r"got dilations=\[3, 3\].*nearest is \[3\]"),
        ("lrf_ssa", {"reading": "eq9"}, "got reading='eq9'; did you mean 'eq8'"),
        ("lrf_ssa", {"preset": "txt"}, "did you mean 'text'"),
        ("lrf_ssa", {"scale": 0.0}, "got scale=0.0"),
        ("lrf_dyn", {"form": "eq13"}, "did you mean 'eq12'"),
        ("lrf_dyn", {"compartments": 0}, "got compartments=0"),
    ],
)
def test_bad_options_name_the_valid_choice(name: str, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        create_attention(name, dim=12, heads=3, grid=(4, 7), **options)


def test_one_token_has_no_neighbour():
    with pytest.raises(ValueError, match="none fits"):
        create_attention("lrf_ssa", dim=4, heads=1, grid=(1, 1), dilations=[1])


def test_the_step_between_tokens_is_above_0():
    with pytest.raises(ValueError, match="got delta=0"):
        Dendrites(4, delta=0)
