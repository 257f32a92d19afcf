"""What is special to SSA; the contract every mechanism keeps is in test_contract.py."""

import pytest
import torch

from saccade.attention import Site
from saccade.attention.ssa import SSA, _mix_reference, fire_mix, mix
from saccade.ops import Fire
from tests.awake import spikes


def test_reference_is_the_printed_equation():
    q, k, v, scale = mix.example()
    expected = torch.zeros_like(q)
    for i in range(q.shape[-2]):
        for j in range(k.shape[-2]):  # token i hears token j as loudly as their spikes coincide
            coincidences = (q[..., i, :] * k[..., j, :]).sum(-1, keepdim=True)
            expected[..., i, :] += scale * coincidences * v[..., j, :]
    assert torch.equal(_mix_reference(q, k, v, scale), expected)


@pytest.mark.parametrize(("coincidences", "fires"), [(8, True), (7, False)])
def test_eight_coincidences_make_a_spike(coincidences: int, fires: bool):
    # 8/8 = 1 is a current that charges a resting membrane of tau 2 to the threshold 0.5
    ssa, k = SSA(Site(dim=8, heads=1)), torch.ones(1, 1, 1, 1, 8)
    q = (torch.arange(8) < coincidences).float().expand_as(k)
    assert bool(ssa.fire(mix(q, k, k, ssa.scale)).all()) is fires


@pytest.mark.parametrize(("N", "d"), [(9, 5), (5, 9)])
def test_additions_are_counted_one_by_one(N: int, d: int):
    q, k, v = (spikes(1, 1, 1, N, d, seed=s) for s in (1, 2, 3))
    counted = 0
    if d < N:  # K^T V first: one addition for each pair of spikes of one token
        inner = [
            [sum(k[0, 0, 0, n, i] * v[0, 0, 0, n, j] for n in range(N)) for j in range(d)]
            for i in range(d)
        ]
        counted += sum(map(sum, inner))
        counted += sum(
            q[0, 0, 0, n, i] * inner[i][j] for n in range(N) for i in range(d) for j in range(d)
        )
    else:  # Q K^T first
        inner = [
            [sum(q[0, 0, 0, n, i] * k[0, 0, 0, m, i] for i in range(d)) for m in range(N)]
            for n in range(N)
        ]
        counted += sum(map(sum, inner))
        counted += sum(
            inner[n][m] * v[0, 0, 0, m, j] for n in range(N) for m in range(N) for j in range(d)
        )
    args = (q, k, v, 0.125)
    assert mix.additions(args, mix(*args)) == counted


def test_both_orders_are_bit_equal_in_every_dtype_within_its_integers():
    for dtype, N in ((torch.float32, 196), (torch.bfloat16, 64), (torch.float16, 64)):
        q, k, v = (spikes(2, 1, 2, N, 16, seed=s).to(dtype) for s in (1, 2, 3))
        fast = mix.variants["reassociated"][0](q, k, v, 0.125)
        assert torch.equal(fast, mix.reference(q, k, v, 0.125))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("T", [4, 26])
def test_spikes_are_those_of_float64_in_every_dtype(dtype: torch.dtype, T: int):
    # counts up to 14 x 14 x 16, which types of 16 bits round; 26 steps, which float32 rounds
    q, k, v = (spikes(T, 1, 16, 14, 14, seed=s) for s in (1, 2, 3))
    args = 1, 0.125, 0.5, 0.5, Fire(v_threshold=30.0)
    want = fire_mix.reference(*(x.double() for x in (q, k, v)), *args)
    assert 0.02 < want.mean() < 0.98
    given = tuple(x.to(dtype) for x in (q, k, v))
    with torch.autocast("cpu", torch.bfloat16):
        got = fire_mix(*given, *args)
    assert got.dtype == dtype
    assert torch.equal(got.double(), want)


def test_a_watched_attention_counts_as_one_that_is_not_in_sixteen_bits():
    ssa = SSA(Site(dim=32, heads=1, T=2, grid=(14, 14)), scale=0.0625).eval()
    for projection in (ssa.q, ssa.k, ssa.v):
        torch.nn.init.constant_(projection.norm.bias, 1.2)
    x = spikes(2, 1, 32, 14, 14).float()
    heard = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = ssa(x)
        ssa.fire.register_forward_hook(lambda module, args, out: heard.append(args[0]))
        got = ssa(x)
    assert (heard[0] / 0.0625).max() > 256  # counts that bfloat16 has not
    assert torch.equal(heard[0], (heard[0] / 0.0625).round() * 0.0625)
    assert torch.equal(got, want)


def test_scores_are_the_first_product():
    ssa = SSA(Site(dim=8, heads=2, T=2, grid=(2, 3))).eval()
    x = spikes(2, 1, 8, 2, 3).float()
    q, k = ssa.q(x), ssa.k(x)
    expected = (q[1, 0, :4, 1, 2] * k[1, 0, :4, 0, 1]).sum() * 0.125  # head 0, token 5 to token 1
    assert ssa.scores(x)[1, 0, 0, 5, 1] == expected


def test_bias_of_the_projections_is_an_option():
    site = Site(dim=8, heads=2)
    assert SSA(site).q.conv.bias is None
    assert SSA(site, qkv_bias=True).q.conv.bias is not None
    assert SSA(site).out.conv.bias is not None
