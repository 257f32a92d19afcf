"""Norms of linear layers from K x K numbers, so that currents are read once each way.

Of M = T*B*H*W rows x of K integers, x^T x / M and the mean of x make the covariance S, exactly: its
sums are whole numbers. A layer y = x W^T then has the mean W m and the variances diag(W S W^T),
without a pass over y. Backward, the gradient g behind the norm is found and written once, and

    d W = a (g - mean g)^T x + b M W S        a: the norm's factor
    d x = g (a W) + x (W^T b W) + constant    b: -a / var times the mean of g (y - mean y)

stand in for the pass that would correct g by y and by both means: b comes from g^T x W^T. Two
products of K x K x M are more; they pay where outputs are at least twice as many as inputs.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from saccade.kernels import gram as kernels
from saccade.ops._packed import bits_of, remember
from saccade.ops._triton import (
    cache_size,
    channels_last,
    first,
    last,
    launch,
    multiprocessors,
    power_of_two,
    tiles,
)
from saccade.ops._triton import refuses as no_kernel
from saccade.ops.conv.packed import unpacked
from saccade.ops.lif.constants import constants
from saccade.ops.linear_lif.layers import Layer, apart
from saccade.ops.norm_lif.passes import TALL, back_sums, fire_steps, no_neuron

OUTPUTS = 2
"""For each input, at least: two products of K x K x M stand against passes over N x M currents."""
ROWS = 8
"""For each input, at least: products of K x K x N stand against those of N x M."""
WIDER = 8
"""Columns behind a matrix [N K]: the first of them is a vector that takes part in its products."""
BLOCK = 128
"""Side of the blocks of x^T x."""
SHARES = 32
"""Of the rows, at most: a kernel adds up what each leaves, unrolled."""
PRECISION = "tf32x3"
"""Of products of float32: three of its own kind make it as exact as float32 is."""


def refuses(x: Tensor, steps: int, *layers: Any) -> str | None:
    """Norms that measure what this process has, all steps of the input, float32 or bfloat16."""
    if torch.compiler.is_compiling():
        return "torch.compile sees the plain products"
    if (why := no_kernel(x, steps, (torch.float32, torch.bfloat16))) is not None:
        return why
    if _dtype(x) == torch.float16:
        return "the range of float16 is too small for its gradients"
    each, K = apart(layers), x.shape[2]
    if len(x) < steps:
        return "a picture that is shown at every step is read once anyway"
    if any(n.weight.shape[2:] != (1, 1) for n in each):
        return "a kernel of several taps is no linear map"
    if not all(n.norm.training and n.norm.join is None for n in each):
        return "the statistics are not those of this process's batch"
    if K % 8:
        return f"8 does not divide its {K} inputs"
    whys = (no_neuron(n.decay, n.gain, n.fire, len(n.weight)) for n in each)
    return next((why for why in whys if why is not None), None)


def slower(x: Tensor, steps: int, *layers: Any) -> str | None:
    """Too few outputs or rows, or currents that the cache holds: passes over them are cheap."""
    if _dtype(x) == torch.float32:
        return "products of float32 take longer than passes over its currents"
    K, N = x.shape[2], sum(len(n.weight) for n in apart(layers))
    rows = x.numel() // K
    if N < OUTPUTS * K or rows < ROWS * K:
        return f"{N} outputs of {rows} rows are too few for products of {K} x {K}"
    kept = rows * N * _dtype(x).itemsize
    if kept <= cache_size(x.device):
        return f"the cache holds its {kept >> 20} MiB of currents"
    return None


def _dtype(x: Tensor) -> torch.dtype:
    """Of products of x."""
    cast = torch.is_autocast_enabled(x.device.type)
    return torch.get_autocast_dtype(x.device.type) if cast else x.dtype


def linear_lif(x: Tensor, steps: int, *layers: Any) -> tuple[Tensor, ...]:
    """See the reference."""
    bits, dtype, each = bits_of(x) if torch.is_grad_enabled() else None, _dtype(x), apart(layers)
    learned: list[Tensor | None] = []
    for n in each:
        learned += [n.weight, n.norm.weight, n.norm.bias, n.norm.offset]
    keeps = torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in learned)
    outs: tuple[Tensor, ...] = _Linear.apply(x.to(dtype), bits, keeps, each, *learned)  # type: ignore[no-untyped-call]
    spikes, kept = outs[: len(each)], outs[len(each) :]
    if keeps:
        for s, b in zip(spikes, kept, strict=True):
            remember(s, b)
    return spikes


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bits: Tensor | None, keeps: bool, each: list[Layer], *learned: Any
    ) -> tuple[Tensor, ...]:
        flat, weight = _rows(x), _stacked(learned[::4]).to(x.dtype)
        T, B, H, W, _ = last(x).shape
        y = first((flat @ weight.T).view(T, B, H, W, -1))
        mean, cov = _moments(flat)
        spread, N = _spread(weight, cov), len(weight)
        coefs: list[Tensor] = []
        spikes: list[Tensor] = []
        kept: list[Tensor] = []
        for n, own in zip(each, _places(each), strict=True):
            coefs.append(_measured(weight[own], spread[own], mean, n, len(flat)))
            s = first(torch.empty(T, B, H, W, len(n.weight), dtype=x.dtype, device=x.device))
            size = (T, B, H, W, len(n.weight) // 8) if keeps else (0,)
            b = torch.empty(size, dtype=torch.uint8, device=x.device)
            neuron = constants(n.decay, n.gain, n.fire)  # type: ignore[arg-type]  # see refuses
            how = n.fire.rest, T, neuron
            fire_steps(y[:, :, own], coefs[-1], s, b, *how, keeps=keeps, row=N)
            spikes, kept = [*spikes, s], [*kept, b]
        ctx.save_for_backward(x if bits is None else bits, weight, y, mean, spread, *coefs)
        ctx.packed, ctx.each, ctx.dtype = bits is not None, each, learned[0].dtype
        ctx.set_materialize_grads(False)  # bits have none
        return *spikes, *kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, y, mean, spread, *coefs = ctx.saved_tensors
        x = first(unpacked(x, weight.dtype)) if ctx.packed else x
        flat, each, places = _rows(x), ctx.each, _places(ctx.each)
        g = torch.empty_like(last(y))
        partial = [
            _behind(y[:, :, own], coef, grad, first(g)[:, :, own], n, len(weight))
            for n, own, coef, grad in zip(each, places, coefs, grads[: len(each)], strict=True)
        ]
        g = g.flatten(0, 3)
        product = _exact_product(g.T, flat)
        grad_w = torch.empty_like(weight, dtype=ctx.dtype)
        passed, turned = torch.empty_like(weight), weight.new_empty(len(weight), len(mean) + WIDER)
        learned: list[Tensor | None] = []
        for n, own, coef, p in zip(each, places, coefs, partial, strict=True):
            known = weight[own], spread[own], mean, coef, product[own], p
            sums = _turn(*known, grad_w[own], passed[own], turned[own], len(flat), n.gain)
            of_offset = None if n.norm.offset is None else sums[3]
            learned += [grad_w[own, :, None, None], sums[2], sums[0], of_offset]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = first(_grad_x(g, flat, weight, passed, turned).view(last(x).shape))
        return grad_x, None, None, None, *learned


def _rows(x: Tensor) -> Tensor:
    """[T B C H W] as [M C]."""
    return last(channels_last(x)).flatten(0, 3)


def _stacked(weights: Sequence[Tensor]) -> Tensor:
    """[D C 1 1] of each layer as one [N C]."""
    flat = [w[:, :, 0, 0] for w in weights]
    return torch.cat(flat) if len(flat) > 1 else flat[0].contiguous()


def _places(each: Sequence[Layer]) -> list[slice]:
    """Where the channels of each layer are among those of all."""
    return [slice(*ends) for ends in pairwise(accumulate((len(n.weight) for n in each), initial=0))]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [K] of rows and covariance [parts, K, K], whose sum it is."""
    (M, K), side = x.shape, tiles(x.shape[1], BLOCK)
    blocks = side * (side + 1) // 2
    P = max(1, min(2 * multiprocessors(x.device) // blocks, SHARES, tiles(M, BLOCK)))
    products = torch.empty(P, blocks, BLOCK, BLOCK, device=x.device)
    sums, mean = torch.empty(P, K, device=x.device), torch.empty(K, device=x.device)
    BM, warps, parts = (64, 4, 3) if x.dtype == torch.bfloat16 else (32, 8, 1)
    cov = torch.empty(parts, K, K, dtype=x.dtype, device=x.device)
    shape = {"K": K, "SIDE": side, "BK": BLOCK}
    launch(
        kernels.gram, (blocks, P), x, products, sums, M, BM=BM, PRECISION=PRECISION,
        num_warps=warps, num_stages=3, **shape,
    )  # fmt: skip
    launch(
        kernels.covariance, (blocks, BLOCK // 16), products, sums, mean, cov, M, P=P, PARTS=parts,
        BR=16, **shape,
    )  # fmt: skip
    return mean, cov


def _spread(weight: Tensor, cov: Tensor) -> Tensor:
    """W S [N K]."""
    (N, K), out = weight.shape, torch.empty(weight.shape, device=weight.device)
    launch(
        kernels.spread, (tiles(N, 64), tiles(K, 64)), weight, cov, out, N, K=K, PARTS=len(cov),
        BN=64, BK=64, PRECISION=PRECISION,
    )  # fmt: skip
    return out


def _row_tile(K: int) -> dict[str, int]:
    """Whole rows of K numbers, few a program."""
    width = power_of_two(K)
    return {"K": K, "BK": width, "BC": max(1, min(16, 2048 // width))}


def _measured(weight: Tensor, spread: Tensor, mean: Tensor, n: Layer, M: int) -> Tensor:
    """Coefficients [4, D]: mean, 1/sd, and the norm as a y + b; moves the running statistics."""
    (D, K), norm = weight.shape, n.norm
    coef, tile = torch.empty(4, D, device=weight.device), _row_tile(K)
    launch(
        kernels.measure, (tiles(D, tile["BC"]),), weight, spread, mean, norm.weight, norm.bias,
        norm.offset, norm.running_mean, norm.running_var, coef, M / max(1, M - 1), norm.momentum,
        norm.eps, OFFSET=norm.offset is not None, C=D, **tile,
    )  # fmt: skip
    return coef


def _behind(
    y: Tensor, coef: Tensor, grad: Tensor | None, out: Tensor, n: Layer, row: int
) -> Tensor:
    """The gradient behind the norm of one layer to `out`; its partial sums [P, 2, D]."""
    if grad is None:  # nobody used its spikes
        out.zero_()
        return torch.zeros(1, 2, len(n.weight), device=y.device)
    neuron = constants(n.decay, n.gain, n.fire)  # type: ignore[arg-type]  # see refuses
    how = neuron | {"DETACH": n.fire.detach_reset, "KIND": n.fire.surrogate}
    return back_sums(y, coef, channels_last(grad), out, len(y), n.fire.rest, how, row=row)


def _turn(
    weight: Tensor, spread: Tensor, mean: Tensor, coef: Tensor, product: Tensor, partial: Tensor,
    grad: Tensor, passed: Tensor, turned: Tensor, M: int, gain: Any,
) -> Tensor:  # fmt: skip
    """See `kernels.turn`; the sums [4, D]."""
    D, K = weight.shape
    sums, tile = torch.empty(4, D, device=weight.device), _row_tile(K)
    launch(
        kernels.turn, (tiles(D, tile["BC"]),), weight, spread, mean, coef, product, partial, sums,
        grad, passed, turned, len(partial), M, gain, C=D, WIDE=turned.shape[1], BP=TALL[0], **tile,
    )  # fmt: skip
    return sums


def _exact_product(a: Tensor, b: Tensor) -> Tensor:
    """a b in float32."""
    if a.device.type == "cuda" and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _grad_x(g: Tensor, x: Tensor, weight: Tensor, passed: Tensor, turned: Tensor) -> Tensor:
    """Gradient of rows: g passed + x W^T turned + a row."""
    K = weight.shape[1]
    both = turned.T @ weight  # W^T `turned` is symmetric
    grad = torch.addmm(both[K], x, both[:K])
    return grad.addmm_(g, passed)
