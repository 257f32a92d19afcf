"""Eight-bit layers on a CPU equal their references bit by bit, whatever is silent in them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.ops import Fire, affine_lif, project_lif

pytest.importorskip("numba", reason="Numba is not installed: there are no CPU kernels")
FIRES = [Fire(), Fire(v_reset=None, strict=True), Fire(v_reset=-0.25, v_rest=0.125)]
numba, refuses = project_lif.variants["numba"]


def layer(N: int, K: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of which some are -128, and an affine map without rounding."""
    weight = torch.randint(-128, 128, (N, side, side, K), dtype=torch.int8).permute(0, 3, 1, 2)
    scale = 2.0**-10 * (1 + torch.arange(N) % 2)
    return weight, scale, torch.randn(N).mul(8).round() / 8 + 0.5


def inputs(*shape: int, rate: float, most: int = 1) -> Tensor:
    """Integers [T B K H W] up to `most`, channels last, of which a share of `rate` is not 0."""
    T, B, K, H, W = shape
    heard = torch.rand(T, B, H, W, K) < rate
    x = heard * torch.randint(1, most + 1, heard.shape)
    return x.to(torch.int8).permute(0, 1, 4, 2, 3)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(*(st.integers(1, n) for n in (5, 3, 70, 20, 7))),
    N=st.integers(1, 200),
    side=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2),
    rate=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    most=st.integers(1, 4),
    pools=st.booleans(),
    fire=st.sampled_from(FIRES),
)
def test_project_lif(sizes, N, side, stride, rate, most, pools, fire):
    torch.manual_seed(0)
    args = inputs(*sizes, rate=rate, most=most), *layer(N, sizes[2], side)
    args = *args, 0.5, 0.5, fire, stride, pools
    assert refuses(*args) is None
    got = numba(*args)
    assert got.dtype == torch.int8
    assert torch.equal(got, project_lif.reference(*args))


def membranes(B: int, C: int, H: int, W: int) -> Tensor:
    """Where a sequence may go on: [B C H W] in eighths, channels last."""
    return torch.randn(B, H, W, C).mul(8).round().div(8).permute(0, 3, 1, 2)


@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("N", "side"), [(200, 3), (20, 1), (128, 5)])
def test_project_lif_goes_on_from_membranes(N: int, side: int, stride: int, pools: bool):
    torch.manual_seed(0)
    T, B, K, H, W = 4, 2, 48, 7, 20
    x, known = inputs(T, B, K, H, W, rate=0.2), layer(N, K, side)
    rest = *known, 0.5, 0.5, FIRES[2], stride, pools
    start = membranes(B, N, -(-H // stride), -(-W // stride))
    v = start.clone()
    got = numba(x, *rest, v)
    assert not torch.equal(v, start)
    for other in (project_lif.variants["composed"][0], project_lif.reference):
        w = start.clone()
        assert torch.equal(other(x, *rest, w), got)
        assert torch.equal(w, v)
    again = start.clone()
    parts = [numba(part, *rest, again) for part in (x[:1], x[1:])]
    assert torch.equal(torch.cat(parts), got)
    assert torch.equal(again, v)


def test_membranes_that_lie_otherwise_in_memory_are_refused():
    x, known = inputs(2, 1, 16, 3, 3, rate=0.5), layer(16, 16, 1)
    rest, v = (0.5, 0.5, Fire(), 1, False), membranes(1, 16, 3, 3)
    assert refuses(x, *known, *rest, v) is None
    assert "channels-last" in (refuses(x, *known, *rest, v.contiguous()) or "")
    assert "float32" in (refuses(x, *known, *rest, v.double()) or "")


def test_the_layers_that_are_compared_fire():
    torch.manual_seed(0)
    args = inputs(4, 2, 48, 8, 8, rate=0.2), *layer(40, 48, 3), 0.5, 0.5, Fire(), 1, False
    assert 0.02 < numba(*args).float().mean() < 0.98


@pytest.mark.parametrize("most", [1, 9])
def test_sums_of_more_rows_than_sixteen_bits_hold(most: int):
    x = torch.full((1, 1, 600, 3, 3), most, dtype=torch.int8)
    weight = torch.full((64, 600, 3, 3), -128, dtype=torch.int8)
    weight[:32] = 127
    # the pixel in the middle adds up 9 x 600 of them
    scale, total = torch.full((64,), 2.0**-20), 127 * most * 5400
    shift = 1 - total * scale
    for off, fires in ((0.0, True), (2.0**-20, False)):
        got = numba(x, weight, scale, shift - off, 0.0, 1.0, Fire(), 1, False)
        assert bool(got[0, 0, :32, 1, 1].all()) is fires
        assert not got[0, 0, 32:].any()


def test_threads_give_the_same_bits_and_weights_that_change_are_seen():
    torch.manual_seed(0)
    x, (weight, *known) = inputs(4, 3, 64, 9, 9, rate=0.2), layer(160, 64, 3)
    before, outs = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            outs.append(numba(x, weight, *known, 0.5, 0.5, Fire(), 1, False))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*outs)
    weight.neg_()
    got = numba(x, weight, *known, 0.5, 0.5, Fire(), 1, False)
    assert torch.equal(got, project_lif.reference(x, weight, *known, 0.5, 0.5, Fire(), 1, False))
    assert not torch.equal(got, outs[0])


def test_refusals_say_why():
    x, known = inputs(2, 1, 16, 3, 3, rate=0.5), layer(16, 16, 1)
    rest = 0.5, 0.5, Fire(), 1, False
    assert refuses(x, *known, *rest) is None
    assert "reach down to -1" in (refuses(-x, *known, *rest) or "")
    assert "not int8" in (refuses(x.float(), *known, *rest) or "")
    assert "even, 2" in (refuses(x, *layer(16, 16, 2), *rest) or "")
    assert "no inputs" in (refuses(x[:, :0], *known, *rest) or "")
    wide = torch.full((1, 1, 4608, 1, 1), 127, dtype=torch.int8)
    assert "24 bits" in (refuses(wide, *layer(1, 4608, 1), *rest) or "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize("steps", [(3, 3), (1, 5)], ids=["frames", "picture"])
def test_affine_lif(dtype: torch.dtype, pools: bool, steps: tuple[int, int]):
    torch.manual_seed(0)
    t, T = steps
    y = torch.randn(t, 2, 5, 6, 24).mul(64).round().div(64).permute(0, 1, 4, 2, 3)
    scale, shift = (torch.randn(24).mul(8).round() / 8 + 1 for _ in range(2))
    args = y, scale, shift, 0.5, 0.5, FIRES[0], T, pools, dtype
    got, want = (f(*args) for f in (affine_lif.variants["numba"][0], affine_lif.reference))
    assert got.dtype == want.dtype == dtype
    assert 0.02 < want.float().mean() < 0.98
    assert torch.equal(got, want)


@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_affine_lif_goes_on_from_membranes(pools: bool, dtype: torch.dtype):
    torch.manual_seed(0)
    y = torch.randn(4, 2, 5, 6, 24).mul(8).round().div(8).to(dtype).permute(0, 1, 4, 2, 3)
    scale, shift = (torch.randn(24).mul(8).round() / 8 + 1 for _ in range(2))
    start = membranes(2, 24, 5, 6)
    ends, outs = [], []
    for f in (
        affine_lif.variants["numba"][0], affine_lif.variants["composed"][0], affine_lif.reference
    ):  # fmt: skip
        v = start.clone()
        outs.append(f(y, scale, shift, 0.5, 0.5, FIRES[2], 4, pools, dtype, v))
        ends.append(v)
    assert 0.02 < outs[-1].float().mean() < 0.98
    for out, end in zip(outs, ends, strict=True):
        assert torch.equal(out, outs[-1])
        assert torch.equal(end, ends[-1])
    assert not torch.equal(ends[-1], start)
