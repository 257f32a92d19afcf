"""Kernels equal their references, values and gradients, through Triton's interpreter.

Currents on a grid of 1/64 make exact ties with the threshold, so spikes must be equal bit by bit.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saccade.attention.ssa import fire_mix
from saccade.ops import (
    SURROGATE,
    Fire,
    Norm,
    affine_lif,
    conv,
    convs,
    lif,
    norm_lif,
    project_lif,
    sense_lif,
)
from saccade.ops._op import Fn, Op
from saccade.ops._packed import bits_of, remember
from saccade.ops.lif.exact import MANTISSA, bits_needed

pytest.importorskip("triton", reason="Triton is not installed: there are no kernels")
from saccade.ops.conv.packed import unpacked
from saccade.ops.ssa import refuses as ssa_refuses

FIRES = [
    Fire(v_reset=reset, detach_reset=detach, strict=strict, surrogate=surrogate)
    for reset, detach, strict, surrogate in [
        (0.0, True, False, "sigmoid"),
        (0.0, False, True, "atan"),
        (None, False, False, "triangle"),
        (-0.25, True, False, "rectangle"),
        (-0.25, False, False, "fast_sigmoid"),
    ]
]


def channels_last(*shape: int, scale: float = 160) -> Tensor:
    """Random currents [T B C H W] on a grid of 1/64."""
    T, B, C, H, W = shape
    x = torch.randn(T, B, H, W, C).mul(scale).add(32).round() / 64
    return x.permute(0, 1, 4, 2, 3)


def gradients(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return torch.autograd.grad((out * torch.randn(out.shape)).sum(), inputs)


def agree(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for g, w in zip(got, want, strict=True):
        assert float((g - w).abs().max()) <= 2e-5 * float(w.abs().max().clamp(min=1e-3))


@pytest.mark.parametrize("fire", FIRES, ids=str)
@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("at_rest", [True, False])
def test_lif(fire: Fire, T: int, at_rest: bool):
    torch.manual_seed(0)
    x = channels_last(T, 2, 3, 5, 4).requires_grad_()
    v0 = None if at_rest else torch.rand(x.shape[1:]).mul(64).round().div(64).requires_grad_()
    inputs, outs = [x] if v0 is None else [x, v0], []
    for scan in (lif.variants["triton"][0], lif.reference):
        s, v = scan(x, v0, 0.5, 0.5, fire)
        outs.append((s, v, *gradients(s + v, inputs)))
    assert 0.02 < outs[0][0].mean() < 0.98
    assert torch.equal(outs[0][0], outs[1][0])
    assert torch.equal(outs[0][1], outs[1][1])
    agree(outs[0][2:], outs[1][2:])


@pytest.mark.parametrize("surrogate", SURROGATE.list())
def test_every_surrogate_has_a_kernel(surrogate: str):
    x = torch.linspace(-2, 4, 48).reshape(1, 48).requires_grad_()
    fire = Fire(surrogate=surrogate)
    got, want = (f(x, None, 0.5, 1.0, fire)[0] for f in (lif.variants["triton"][0], lif.reference))
    agree(gradients(got, [x]), gradients(want, [x]))


@pytest.mark.parametrize("steps", [(3, 3), (1, 3), (1, 1)], ids=["frames", "picture", "one step"])
@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("size", "fire"),
    [((16, 5, 6), FIRES[0]), ((24, 4, 4), FIRES[2]), ((96, 3, 3), FIRES[0])],
    ids=["16 hard", "24 soft", "96 hard"],
)
def test_norm_lif(steps, pools: bool, training: bool, size, fire: Fire):
    torch.manual_seed(0)
    (t, T), C = steps, size[0]
    y = channels_last(t, 2, *size, scale=100)
    learned = [torch.rand(C) + 0.7, torch.randn(C) * 0.3 + 0.5, torch.randn(C)]
    running = torch.randn(C) / 10 + 1, torch.rand(C) + 3
    outs = []
    for scan in (
        norm_lif.variants["triton"][0],
        norm_lif.variants["composed"][0],
        norm_lif.reference,
    ):
        inputs = [a.detach().requires_grad_() for a in (y, *learned)]
        mean, var = (r.clone() for r in running)
        norm = Norm(
            weight=inputs[1],
            bias=inputs[2],
            offset=inputs[3],
            running_mean=mean,
            running_var=var,
            training=training,
        )
        s = scan(inputs[0], norm, 0.5, 0.5, fire, T, pools)
        outs.append((s, mean, var, *gradients(s, inputs)))
    assert 0.02 < outs[0][0].mean() < 0.98
    for got in outs[:2]:
        assert torch.equal(got[0], outs[2][0])
        agree(got[1:-1], outs[2][1:-1])
        if training:  # the reference's is rounding noise
            assert not got[-1].any()
            assert outs[2][-1].abs().max() < 1e-4
        else:
            agree(got[-1:], outs[2][-1:])


@pytest.mark.parametrize("steps", [(6, 6), (1, 9), (9, 9)], ids=str)
def test_norm_lif_goes_back_through_the_pool_of_many_steps(steps: tuple[int, int]):
    test_norm_lif(steps, True, True, (16, 3, 4), FIRES[2])


@pytest.mark.parametrize(
    ("C", "heads", "grid"), [(16, 2, (3, 3)), (48, 2, (5, 15)), (64, 1, (8, 9))]
)
@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's; the slope is then 0
def test_ssa(C: int, heads: int, grid: tuple[int, int], T: int, packed: bool):
    torch.manual_seed(0)
    qkv = [
        (torch.rand(T, 2, *grid, C) < 0.5).float().permute(0, 1, 4, 2, 3).requires_grad_()
        for _ in "qkv"
    ]
    if packed:
        for x in qkv:
            remember(x, pack(x.detach()))
    fire = Fire(v_threshold=grid[0] * grid[1] * C / heads / 36, detach_reset=not packed)
    outs = []
    for scan in (fire_mix.variants["triton"][0], fire_mix.reference):
        s = scan(*qkv, heads, 0.5, 0.5, 0.5, fire)
        outs.append((s, *gradients(s, qkv)))
    assert 0.02 < outs[0][0].mean() < 0.98
    assert torch.equal(outs[0][0], outs[1][0])
    assert bits_of(outs[0][0]) is not None
    assert torch.equal(bits_of(outs[0][0]), pack(outs[0][0].detach()))
    agree(outs[0][1:], outs[1][1:])


def test_ssa_counts_beyond_the_integers_of_float16():
    torch.manual_seed(0)
    q, k, v = ((torch.rand(1, 1, 50, 50, 16) < 0.95).float().permute(0, 1, 4, 2, 3) for _ in "qkv")
    args = q, k, v, 1, 1.0, 0.5, 1.0, Fire(v_threshold=33500.0)
    got = fire_mix.variants["triton"][0](*args)
    assert 0.02 < got.mean() < 0.98
    assert torch.equal(got, fire_mix.reference(*(a.double() for a in args[:3]), *args[3:]).float())


def pack(spikes: Tensor) -> Tensor:
    x = spikes.permute(0, 1, 3, 4, 2).to(torch.uint8)
    return (x.unflatten(-1, (-1, 8)) << torch.arange(8, dtype=torch.uint8)).sum(-1).to(torch.uint8)


def test_bits_come_back():
    spikes = (torch.rand(2, 3, 4, 5, 16) < 0.5).float()
    assert torch.equal(unpacked(pack(spikes.permute(0, 1, 4, 2, 3)), torch.float32), spikes)


def test_only_the_very_tensor_that_fired_has_bits():
    s = torch.ones(1, 1, 8, 1, 1)
    remember(s, pack(s))
    assert bits_of(s) is not None
    assert bits_of(s + 0) is None
    assert bits_of(s[:1]) is None
    s.mul_(0)
    assert bits_of(s) is None


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("packed", [True, False])
def test_conv(kernel: int, stride: int, packed: bool):
    torch.manual_seed(0)
    x = (torch.rand(2, 2, 6, 5, 16) < 0.5).float().permute(0, 1, 4, 2, 3).requires_grad_()
    if packed:
        remember(x, pack(x.detach()))
    weight = (torch.randn(8, 16, kernel, kernel).mul(16).round() / 64).requires_grad_()
    got, want = (f(x, weight, stride) for f in (conv.variants["packed"][0], conv.reference))
    assert torch.equal(got, want)
    agree(gradients(got, [x, weight]), gradients(want, [x, weight]))


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 2)])
@pytest.mark.parametrize("used", [(0, 1, 2), (1,)], ids=["all", "one"])
def test_convs_of_one_input(kernel: int, stride: int, used: tuple[int, ...]):
    torch.manual_seed(0)
    x = (torch.rand(2, 2, 6, 5, 16) < 0.5).float().permute(0, 1, 4, 2, 3).requires_grad_()
    shapes = ((n, 16, kernel, kernel) for n in (8, 24, 8))
    weights = [(torch.randn(shape).mul(16).round() / 64).requires_grad_() for shape in shapes]
    outs = []
    for f in (convs.variants["packed"][0], convs.variants["composed"][0], convs.reference):
        ys = f(x, stride, *weights)
        loss = sum((ys[n].square() * (n + 1)).sum() for n in used)
        outs.append((ys, torch.autograd.grad(loss, [x, *(weights[n] for n in used)])))
    for ys, grads in outs[:2]:
        assert all(torch.equal(a, b) for a, b in zip(ys, outs[2][0], strict=True))
        agree(grads, outs[2][1])


@pytest.mark.parametrize("steps", [(3, 3), (1, 3)], ids=["frames", "picture"])
def test_norm_lif_adds_its_spikes_to_a_stream(steps: tuple[int, int]):
    torch.manual_seed(0)
    t, T = steps
    y, stream = channels_last(t, 2, 24, 4, 5, scale=100), channels_last(T, 2, 24, 4, 5).round()
    outs = []
    for scan in (norm_lif.variants["triton"][0], norm_lif.reference):
        given = [y, torch.ones(24), torch.ones(24) / 2, stream]
        inputs = [a.detach().clone().requires_grad_() for a in given]
        known = {"running_mean": torch.zeros(24), "running_var": torch.ones(24)}
        norm = Norm(weight=inputs[1], bias=inputs[2], training=True, **known)
        summed = scan(inputs[0], norm, 0.5, 0.5, FIRES[0], T, False, inputs[3])
        outs.append((summed, *gradients(summed, inputs)))
    assert 0.02 < (outs[1][0] - stream).mean() < 0.98
    assert torch.equal(outs[0][0], outs[1][0])
    assert bits_of(outs[0][0]) is None
    agree(outs[0][1:], outs[1][1:])


def test_a_norm_learns_behind_a_frozen_convolution():
    torch.manual_seed(0)
    y, grads = channels_last(3, 2, 24, 4, 5, scale=100), []
    for scan in (norm_lif.variants["triton"][0], norm_lif.reference):
        learned = [torch.ones(24).requires_grad_(), (torch.ones(24) / 2).requires_grad_()]
        known = {"running_mean": torch.zeros(24), "running_var": torch.ones(24)}
        norm = Norm(weight=learned[0], bias=learned[1], training=True, **known)
        grads.append(gradients(scan(y, norm, 0.5, 0.5, FIRES[0], 3, True), learned))
    agree(*grads)


def test_what_no_kernel_can_add_to_is_refused():
    refuses = norm_lif.variants["triton"][1]
    lies, otherwise = torch.zeros(2, 1, 2, 2, 8).permute(0, 1, 4, 2, 3), torch.zeros(2, 1, 8, 2, 2)
    norm = Norm(
        weight=torch.ones(8), bias=torch.ones(8), running_mean=torch.ones(8),
        running_var=torch.ones(8), training=True,
    )  # fmt: skip
    given = norm, 0.5, 0.5, Fire(), 2
    assert "pooled before" in refuses(lies, *given, True, lies)
    assert "torch.float64" in refuses(lies, *given, False, lies.double())
    assert "are added to [1, 1, 8, 2, 2]" in refuses(lies, *given, False, lies[:1])
    assert "is not channels-last" in refuses(lies, *given, False, otherwise)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float32])
def test_inference_adds_its_spikes_to_a_stream(dtype: torch.dtype):
    torch.manual_seed(0)
    y, stream = channels_last(3, 2, 48, 4, 5), torch.randint(0, 9, (3, 2, 4, 5, 48), dtype=dtype)
    x = torch.randint(0, 4, (3, 2, 4, 5, 16), dtype=torch.int8).permute(0, 1, 4, 2, 3)
    weight = torch.randint(-127, 128, (48, 1, 1, 16), dtype=torch.int8).permute(0, 3, 1, 2)
    shift, onto = torch.randn(48).mul(8).round() / 8, stream.permute(0, 1, 4, 2, 3)
    affine = y, torch.ones(48), shift, 0.5, 0.5, FIRES[0], 3, False, dtype
    project = x, weight, torch.full((48,), 2.0**-9), shift, 0.5, 0.5, FIRES[0], 1, False
    for op, args in [(affine_lif, affine)] + [(project_lif, project)] * (dtype == torch.int8):
        want = op.reference(*args, None, onto)
        assert want.dtype == dtype
        assert 0.02 < (want - onto).float().mean() < 0.98
        assert torch.equal(op.variants["triton"][0](*args, None, onto), want)
        assert torch.equal(op.variants["composed"][0](*args, None, onto), want)


@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize("steps", [(3, 3), (1, 10)], ids=["frames", "picture"])
def test_affine_lif(pools: bool, steps: tuple[int, int]):
    torch.manual_seed(0)
    t, T = steps
    y = channels_last(t, 2, 24, 5, 6)
    scale, shift = (torch.randn(24).mul(8).round() / 8 + 1 for _ in range(2))
    args = y, scale, shift, 0.5, 0.5, FIRES[0], T, pools, torch.int8
    got, want = (f(*args) for f in (affine_lif.variants["triton"][0], affine_lif.reference))
    assert got.dtype == want.dtype == torch.int8
    assert 0.02 < want.float().mean() < 0.98
    assert torch.equal(got, want)


@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize(
    ("K", "side", "stride"), [(48, 1, 1), (48, 3, 1), (16, 3, 2), (96, 3, 1), (16, 5, 1)]
)
@pytest.mark.parametrize("fire", [FIRES[0], FIRES[2]], ids=["hard", "soft"])
def test_project_lif(pools: bool, K: int, side: int, stride: int, fire: Fire):
    torch.manual_seed(0)
    x = torch.randint(0, 4, (3, 2, 4, 5, K), dtype=torch.int8).permute(0, 1, 4, 2, 3)
    weight = torch.randint(-127, 128, (48, side, side, K), dtype=torch.int8).permute(0, 3, 1, 2)
    scale = torch.full((48,), 2.0**-9) * (1 + torch.arange(48) % 2)
    args = x, weight, scale, torch.randn(48).mul(8).round() / 8, 0.5, 0.5, fire, stride, pools
    got, want = (f(*args) for f in (project_lif.variants["triton"][0], project_lif.reference))
    assert 0.02 < want.float().mean() < 0.98
    assert torch.equal(got, want)


def test_ssa_steps_aside_where_float32_is_not_exact():
    hard, soft = Fire(v_threshold=0.5), Fire(v_threshold=0.5, v_reset=None)
    # 196 tokens x 64 channels; behind the point three bits of the scale, one of gain and each step
    assert bits_needed(4, 196 * 64, 0.125, 0.5, 0.5, hard) == 14  # those of the count itself
    assert bits_needed(20, 196 * 64, 0.125, 0.5, 0.5, hard) == 4 + 19
    assert bits_needed(4, 196 * 64, 0.125, 0.5, 0.5, soft) == 7 + 12  # up to 784 x 4
    assert bits_needed(1, 2**24, 0.125, 0.5, 0.5, hard) == 25
    assert bits_needed(4, 100, 1 / 3, 0.5, 0.5, hard) == 7  # rounds anyway
    # 1/64 halved in the leak and in each later step; and a reset larger than the threshold
    assert bits_needed(20, 16, 0.125, 0.5, 0.5, Fire(v_rest=2.0**-6)) == 7 + 19 + 1
    assert bits_needed(20, 16, 0.125, 0.5, 0.5, Fire(v_reset=-4.0)) == 4 + 19 + 3
    q = torch.zeros(22, 1, 2, 2, 16).permute(0, 1, 4, 2, 3)
    assert "take 25 bits" in (ssa_refuses(q, q, q, 1, 0.125, 0.5, 0.5, hard) or "")


def test_ssa_is_exact_at_the_bound():
    torch.manual_seed(0)
    q, k, v = ((torch.rand(21, 1, 4, 4, 16) < 0.3).float().permute(0, 1, 4, 2, 3) for _ in "qkv")
    args = 1, 0.125, 0.5, 0.5, Fire(v_threshold=4.0)
    assert bits_needed(21, 16 * 16, *args[1:]) == MANTISSA + 3
    args = 1, 0.125, 0.5, 0.5, Fire(v_threshold=0.5)
    assert bits_needed(21, 16 * 16, *args[1:]) == MANTISSA
    got = fire_mix.variants["triton"][0](q, k, v, *args)
    want = fire_mix.reference(*(x.double() for x in (q, k, v)), *args)
    assert 0.02 < want.mean() < 0.98
    assert torch.equal(got.double(), want)


@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize("steps", [(3, 3), (1, 3)], ids=["frames", "picture"])
@pytest.mark.parametrize(("C", "N", "side", "stride"), [(3, 24, 3, 1), (2, 16, 5, 2)])
def test_sense_lif(pools: bool, steps: tuple[int, int], C: int, N: int, side: int, stride: int):
    torch.manual_seed(0)
    t, T = steps
    x = torch.randn(t, 2, C, 7, 6).mul(8).round() / 8
    weight = torch.randn(N, C, side, side).mul(8).round() / 32
    args = x, weight, torch.ones(N) / 2, 0.5, 0.5, FIRES[0], T, stride, pools
    got, want = (f(*args) for f in (sense_lif.variants["triton"][0], sense_lif.reference))
    assert got.dtype == torch.int8
    assert 0.02 < want.float().mean() < 0.98
    assert torch.equal(got, want)
    assert torch.equal(sense_lif.variants["composed"][0](*args), want)


FIRE = Fire(v_reset=-0.25, v_rest=-0.125)
LEAKS = pytest.mark.parametrize("leak", [(0.5, 0.5), (0.7, 0.3)], ids=["halves", "others"])
"""Multiply-adds are contracted where decay and gain are powers of two, and only there."""
Run = Callable[[Fn, Tensor, Tensor | None], Tensor]


def goes_on(op: Op, run: Run, x: Tensor, *shape: int) -> None:
    """Membranes [B C H W] go on as in the reference, in two calls as in one, or begin at rest."""
    fast = op.variants["triton"][0]
    B, C, H, W = shape
    start = torch.randn(B, H, W, C).mul(8).round().div(8).permute(0, 3, 1, 2)
    v, w, again = start.clone(), start.clone(), start.clone()
    got, want = run(fast, x, v), run(op.reference, x, w)
    assert 0.02 < want.float().mean() < 0.98
    assert torch.equal(got, want)
    assert torch.equal(v, w)
    assert torch.equal(got, torch.cat([run(fast, part, again) for part in (x[:1], x[1:])]))
    assert torch.equal(again, v)
    assert torch.equal(run(fast, x, None), run(op.reference, x, None))


@LEAKS
@pytest.mark.parametrize("pools", [False, True])
def test_membranes_go_on_in_affine_lif(pools: bool, leak: tuple[float, float]):
    torch.manual_seed(0)
    scale, shift = (torch.randn(24).mul(8).round() / 8 + 1 for _ in range(2))

    def run(f: Fn, y: Tensor, v: Tensor | None) -> Tensor:
        return f(y, scale, shift, *leak, FIRE, len(y), pools, torch.int8, v)

    goes_on(affine_lif, run, channels_last(3, 2, 24, 5, 6), 2, 24, 5, 6)


@LEAKS
@pytest.mark.parametrize("pools", [False, True])
def test_membranes_go_on_in_project_lif(pools: bool, leak: tuple[float, float]):
    torch.manual_seed(0)
    x = torch.randint(0, 4, (3, 2, 4, 5, 48), dtype=torch.int8).permute(0, 1, 4, 2, 3)
    weight = torch.randint(-127, 128, (32, 3, 3, 48), dtype=torch.int8).permute(0, 3, 1, 2)
    scale, shift = torch.full((32,), 2.0**-9), torch.randn(32).mul(8).round() / 8

    def run(f: Fn, x: Tensor, v: Tensor | None) -> Tensor:
        return f(x, weight, scale, shift, *leak, FIRE, 1, pools, v)

    goes_on(project_lif, run, x, 2, 32, 4, 5)


@LEAKS
@pytest.mark.parametrize("pools", [False, True])
def test_membranes_go_on_in_sense_lif(pools: bool, leak: tuple[float, float]):
    torch.manual_seed(0)
    weight = torch.randn(24, 3, 3, 3).mul(8).round() / 32

    def run(f: Fn, x: Tensor, v: Tensor | None) -> Tensor:
        return f(x, weight, torch.ones(24) / 2, *leak, FIRE, len(x), 1, pools, v)

    goes_on(sense_lif, run, torch.randn(3, 2, 3, 7, 6).mul(8).round() / 8, 2, 24, 7, 6)


def test_membranes_that_lie_otherwise_in_memory_are_refused():
    y, known = channels_last(2, 1, 24, 5, 6), (torch.ones(24), torch.ones(24))
    refuses, rest = affine_lif.variants["triton"][1], (0.5, 0.5, FIRE, 2, False, torch.int8)
    v = torch.zeros(1, 24, 5, 6)
    assert "channels-last" in (refuses(y, *known, *rest, v) or "")
    v = v.contiguous(memory_format=torch.channels_last)
    assert "float32" in (refuses(y, *known, *rest, v.double()) or "")
    assert refuses(y, *known, *rest, v) == refuses(y, *known, *rest)


@LEAKS
@pytest.mark.parametrize("pools", [False, True])
def test_norm_lif_with_a_rest_of_its_own(pools: bool, leak: tuple[float, float]):
    torch.manual_seed(0)
    y = channels_last(3, 2, 24, 5, 6).requires_grad_()
    outs = []
    for f in (norm_lif.variants["triton"][0], norm_lif.reference):
        norm = Norm(
            weight=torch.ones(24, requires_grad=True),
            bias=torch.full((24,), 0.5, requires_grad=True),
            running_mean=torch.zeros(24),
            running_var=torch.full((24,), 4.0 - 1e-5),
            training=False,
        )
        s = f(y, norm, *leak, FIRE, 3, pools)
        outs.append((s, gradients(s, [y, norm.weight, norm.bias])))
    (got, ours), (want, theirs) = outs
    assert 0.02 < want.mean() < 0.98
    assert torch.equal(got, want)
    agree(ours, theirs)
