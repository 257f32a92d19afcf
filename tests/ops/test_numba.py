"""CPU kernels equal their references, values and gradients; the same bits on any number of threads.

Currents on a grid of 1/64 make exact ties with the threshold, so spikes must be equal bit by bit.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.attention.ssa import fire_mix
from saccade.ops import SURROGATE, Fire, Norm, conv, lif, norm_lif
from saccade.ops import _numba as host

pytest.importorskip("numba", reason="Numba is not installed: there are no CPU kernels")
BF16 = torch.bfloat16
FIRES = [
    Fire(),
    Fire(v_reset=None, detach_reset=False),
    Fire(v_reset=-0.25, strict=True, surrogate="atan", detach_reset=False),
    Fire(v_reset=-0.25, v_rest=0.125, surrogate="triangle"),
]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def currents(*shape: int, scale: float = 100) -> Tensor:
    """Random [T B C H W], channels last in memory, on a grid of 1/64 that bfloat16 holds too."""
    T, B, C, H, W = shape
    x = torch.randn(T, B, H, W, C).mul(scale).add(32).round().clamp(-255, 255) / 64
    return x.permute(0, 1, 4, 2, 3)


def gradients(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    weights = torch.randn(out.shape).to(BF16)
    return torch.autograd.grad((out * weights.to(out.dtype)).float().sum(), inputs)


def agree(got: tuple[Tensor, ...], want: tuple[Tensor, ...], tolerance: float = 2e-5) -> None:
    for g, w in zip(got, want, strict=True):
        assert float((g - w).abs().max()) <= tolerance * float(w.abs().max().clamp(min=1e-3))


def run(scan, y: Tensor, fire: Fire, T: int, pools: bool, training: bool, offset: bool):
    """Spikes, running statistics, gradients; the last is that of the offset, if there is one."""
    C = y.shape[2]
    torch.manual_seed(2)
    learned = [torch.rand(C) + 0.7, torch.randn(C) * 0.3 + 0.5, torch.randn(C)][: 2 + offset]
    mean, var = torch.randn(C) / 10 + 1, torch.rand(C) + 3
    inputs = [a.detach().clone().requires_grad_() for a in (y, *learned)]
    norm = Norm(
        weight=inputs[1],
        bias=inputs[2],
        offset=inputs[3] if offset else None,
        running_mean=mean,
        running_var=var,
        training=training,
    )
    s = scan(inputs[0], norm, 0.5, 0.5, fire, T, pools)
    return s, mean, var, *gradients(s, inputs)


def compare(got, want, training: bool, offset: bool, tolerance: float = 2e-5) -> None:
    assert torch.equal(got[0].float(), want[0])
    if training and offset:  # the reference's is rounding noise
        assert not got[-1].any()
        got, want = got[:-1], want[:-1]
    agree(got[1:], want[1:], tolerance)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(*(st.integers(1, n) for n in (9, 3, 70, 7, 7))),
    once=st.booleans(),
    pools=st.booleans(),
    training=st.booleans(),
    offset=st.booleans(),
    fire=st.sampled_from(FIRES),
)
def test_norm_lif(sizes, once, pools, training, offset, fire):
    torch.manual_seed(0)
    T, B, C, H, W = sizes
    y = currents(1 if once else T, B, C, H, W)
    # of few samples, batch norm leaves nothing of a gradient but rounding
    training = training and B * H * W * len(y) >= 12
    case = fire, T, pools, training, offset
    got = run(norm_lif.variants["numba"][0], y, *case)
    compare(got, run(norm_lif.reference, y, *case), training, offset, 2e-4)


@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("T", [1, 4])
def test_norm_lif_in_bfloat16_keeps_its_membranes_in_float32(pools: bool, training: bool, T: int):
    torch.manual_seed(0)
    y, case = currents(T, 2, 24, 6, 5), (FIRES[1], T, pools, training, True)
    got = run(norm_lif.variants["numba"][0], y.to(BF16), *case)
    want = run(norm_lif.reference, y, *case)
    assert 0.02 < got[0].float().mean() < 0.98
    assert got[0].dtype == got[3].dtype == BF16
    compare((*got[:3], got[3].float(), *got[4:]), want, training, True, 2e-2)


@pytest.mark.parametrize("fire", FIRES, ids=str)
@pytest.mark.parametrize("at_rest", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_lif(fire: Fire, at_rest: bool, dtype: torch.dtype):
    torch.manual_seed(0)
    x = currents(5, 2, 3, 5, 4)
    v0 = None if at_rest else torch.rand(x.shape[1:]).mul(64).round().div(64)
    outs = []
    for scan, kind in ((lif.variants["numba"][0], dtype), (lif.reference, torch.float32)):
        inputs = [a.to(kind).requires_grad_() for a in (x, v0) if a is not None]
        s, v = scan(inputs[0], None if at_rest else inputs[1], 0.5, 0.5, fire)
        outs.append((s.float(), v, *(g.float() for g in gradients(s + v, inputs))))
    assert 0.02 < outs[0][0].mean() < 0.98
    assert torch.equal(outs[0][0], outs[1][0])
    assert torch.equal(outs[0][1], outs[1][1])
    agree(outs[0][2:], outs[1][2:], 2e-5 if dtype == torch.float32 else 2e-2)


def test_lif_in_bfloat16_goes_on_from_a_float32_membrane():
    torch.manual_seed(0)
    x = (torch.randn(50, 1, 4096) + 0.3).to(BF16)
    whole, _ = lif(x, None, 0.5, 0.5, Fire())
    v, steps = None, []
    for x_t in x:
        s, v = lif(x_t[None], v, 0.5, 0.5, Fire())
        steps.append(s)
    assert 0.02 < whole.float().mean() < 0.98
    assert torch.equal(torch.cat(steps), whole)


def test_lif_detaches_its_membrane():
    torch.manual_seed(0)
    x, fire = currents(5, 2, 3, 5, 4).requires_grad_(), Fire(v_reset=-0.25, detach_membrane=True)
    got, want = (f(x, None, 0.5, 0.5, fire)[0] for f in (lif.variants["numba"][0], lif.reference))
    agree(gradients(got, [x]), gradients(want, [x]))


def test_lif_takes_currents_with_gaps_and_gives_no_gradient_where_none_came():
    x = currents(3, 2, 4, 5, 6)[..., ::2].requires_grad_()
    s, v = lif.variants["numba"][0](x, None, 0.5, 0.5, Fire())
    want, v_want = lif.reference(x, None, 0.5, 0.5, Fire())
    assert torch.equal(s, want)
    agree(torch.autograd.grad(v.sum(), x), torch.autograd.grad(v_want.sum(), x))


@pytest.mark.parametrize("surrogate", SURROGATE.list())
def test_every_surrogate_has_a_kernel(surrogate: str):
    x = torch.linspace(-40, 40, 999).reshape(1, 999).requires_grad_()
    fire = Fire(surrogate=surrogate)
    got, want = (f(x, None, 0.5, 1.0, fire)[0] for f in (lif.variants["numba"][0], lif.reference))
    agree(gradients(got, [x]), gradients(want, [x]))


@pytest.mark.parametrize("pools", [False, True])
def test_any_number_of_threads_gives_the_same_bits(pools: bool, two_threads: None):
    torch.manual_seed(0)
    y, case = currents(3, 5, 24, 9, 8), (Fire(), 3, pools, True, False)
    two = run(norm_lif.variants["numba"][0], y, *case)
    torch.set_num_threads(1)
    one = run(norm_lif.variants["numba"][0], y, *case)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def attend(scan, spikes: list[Tensor], heads: int, fire: Fire) -> tuple[Tensor, ...]:
    """Spikes, and the gradients of q, k and v."""
    inputs = [x.detach().requires_grad_() for x in spikes]
    s = scan(*inputs, heads, 0.125, 0.5, 0.5, fire)
    return s, *gradients(s, inputs)


def spikes_of(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k and v [T B C H W], channels last in memory."""
    T, B, C, H, W = shape
    return [(torch.rand(T, B, H, W, C) < 0.3).to(dtype).permute(0, 1, 4, 2, 3) for _ in range(3)]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.tuples(*(st.integers(1, n) for n in (5, 3, 3, 3, 5, 5))),
    fire=st.sampled_from(FIRES),
    dtype=st.sampled_from([torch.float32, BF16]),
)
def test_ssa(sizes, fire, dtype):
    torch.manual_seed(0)
    T, B, heads, halves, H, W = sizes
    spikes = spikes_of(T, B, heads * halves * host.LANES // 2, H, W, dtype=dtype)
    args = *spikes, heads, 0.125, 0.5, 0.5, fire
    assert fire_mix.choose(*args) == "numba"
    got = attend(fire_mix.variants["numba"][0], spikes, heads, fire)
    want = attend(fire_mix.reference, [x.float() for x in spikes], heads, fire)
    assert got[0].dtype == dtype
    assert torch.equal(got[0].float(), want[0])
    assert all(g.permute(0, 1, 3, 4, 2).is_contiguous() for g in got)
    agree(tuple(g.float() for g in got[1:]), want[1:], 2e-5 if dtype == torch.float32 else 1e-2)


def test_ssa_takes_integers_and_is_not_silent():
    torch.manual_seed(0)
    both = spikes_of(4, 2, 64, 5, 7), spikes_of(4, 2, 64, 5, 7)
    spikes = [x + y for x, y in zip(*both, strict=True)]
    got = attend(fire_mix.variants["numba"][0], spikes, 2, Fire(v_threshold=8.0))
    want = attend(fire_mix.reference, spikes, 2, Fire(v_threshold=8.0))
    assert 0.02 < got[0].mean() < 0.98
    assert torch.equal(got[0], want[0])
    agree(got[1:], want[1:])


def test_ssa_of_eight_bits():
    torch.manual_seed(0)
    spikes = spikes_of(4, 2, 64, 5, 7, dtype=torch.int8)
    args = *spikes, 2, 0.125, 0.5, 0.5, Fire(v_threshold=3.0)
    assert fire_mix.choose(*args) == "numba"
    got, want = fire_mix(*args), fire_mix.reference(*args)
    assert got.dtype == torch.int8
    assert 0.02 < got.float().mean() < 0.98
    assert torch.equal(got, want)


def test_ssa_gives_the_same_bits_on_any_number_of_threads(two_threads: None):
    torch.manual_seed(0)
    spikes = spikes_of(4, 5, 64, 3, 3)
    two = attend(fire_mix.variants["numba"][0], spikes, 4, Fire())
    torch.set_num_threads(1)
    one = attend(fire_mix.variants["numba"][0], spikes, 4, Fire())
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_ssa_says_why_it_refuses():
    refuses = fire_mix.variants["numba"][1]
    rest = 0.125, 0.5, 0.5, Fire()
    spikes = spikes_of(2, 1, 32, 3, 4)
    assert refuses(*spikes, 2, *rest) is None
    assert refuses(*spikes, 4, *rest) == "heads of 8 channels, not a multiple of 16"
    turned = spikes[0].contiguous(), *spikes[1:]
    assert refuses(*turned, 2, *rest) == "the spikes are not channels-last in memory"
    assert refuses(*(x.double() for x in spikes), 2, *rest) == "float64 is left to torch"
    assert "learned" in refuses(*spikes, 2, 0.125, torch.tensor(0.5), 0.5, Fire())


def test_vectors_round_to_bfloat16_as_torch_does():
    from numba import njit

    from saccade.kernels.cpu_ssa import narrow

    bits = torch.randint(-(2**31), 2**31 - 1, (1000,), dtype=torch.int64).to(torch.int32)
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 1 + 2**-8, 1 + 3 * 2**-8])
    x = torch.cat([special, bits.view(torch.float32), torch.full((7,), float("nan"))])
    out = torch.full((len(x) + 5,), 3.0).to(BF16)
    njit(lambda x, out: narrow(x, out, 0))(x.numpy(), host.array(out))
    want = x.to(BF16)
    assert torch.equal(out[: len(x)].isnan(), want.isnan())
    assert torch.equal(out[: len(x)].nan_to_num(7), want.nan_to_num(7))
    assert bool((out[len(x) :] == 3).all())  # a part of a vector leaves what lies behind it


def test_the_exponential_of_a_surrogate_is_as_exact_as_float32():
    x = torch.linspace(1, 21, 99_999)[None].requires_grad_()
    fire = Fire(surrogate="sigmoid", alpha=1.0)
    s, _ = lif.variants["numba"][0](x, None, 0.0, 1.0, fire)
    (got,) = torch.autograd.grad(s.sum(), x)
    e = torch.exp(1 - x.detach().double())
    want = e / (1 + e).square()
    assert np.abs((got.double() / want - 1).numpy()).max() < 2e-6


def test_every_thread_takes_its_part_and_a_failure_on_one_is_raised(two_threads: None):
    from saccade.kernels.team import shared

    @shared
    def leaves_its_name(part, parts, names, fails):
        names[part] += 10 * parts + part
        if fails and part == parts - 1:
            raise MemoryError

    names = np.zeros(2, np.int64)
    host.run(leaves_its_name, names, False)
    assert names.tolist() == [20, 21]
    with pytest.raises(MemoryError, match="leaves_its_name"):
        host.run(leaves_its_name, names, True)
    assert names.tolist() == [40, 42]
    torch.set_num_threads(1)
    host.run(leaves_its_name, names, False)
    assert names.tolist() == [50, 42]


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_conv(kernel: int, stride: int):
    torch.manual_seed(0)
    x = (torch.rand(2, 2, 16, 6, 5) < 0.5).float().requires_grad_()
    weight = (torch.randn(8, 16, kernel, kernel).mul(16).round() / 64).requires_grad_()
    got, want = (f(x, weight, stride) for f in (conv.variants["onednn"][0], conv.reference))
    assert torch.equal(got, want)
    assert got.permute(0, 1, 3, 4, 2).is_contiguous()
    agree(gradients(got, [x, weight]), gradients(want, [x, weight]))


def test_refusals_say_why(monkeypatch: pytest.MonkeyPatch):
    y, *rest = norm_lif.example()
    refuses = norm_lif.variants["numba"][1]
    assert refuses(y, *rest) is None
    assert refuses(y.double(), *rest) == "float64 is left to torch"
    assert refuses(y.contiguous(), *rest) == "the currents are not channels-last in memory"
    assert "learned" in refuses(y, rest[0], torch.tensor(0.5), *rest[2:])
    assert refuses(y.to("meta"), *rest) == "the tensors are on meta, not cpu"
    monkeypatch.setattr(host, "AVAILABLE", False)
    assert refuses(y, *rest) == 'numba is not installed: pip install "saccade[cpu]"'


def test_numba_is_imported_by_the_first_call_only():
    code = (
        "import sys, saccade; saccade.create_model('spikformer'); assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
