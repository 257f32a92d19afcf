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

from saccade.ops._gram import dtype_of, measured, moments, spread_of, turn
from saccade.ops._packed import bits_of, remember
from saccade.ops._triton import cache_size, channels_last, first, last
from saccade.ops._triton import refuses as no_kernel
from saccade.ops.conv.packed import exact_product, unpacked
from saccade.ops.lif.constants import constants
from saccade.ops.linear_lif.layers import Layer, apart
from saccade.ops.norm_lif.passes import back_sums, fire_steps, no_neuron

OUTPUTS = 2
"""For each input, at least: two products of K x K x M stand against passes over N x M currents."""
ROWS = 8
"""For each input, at least: products of K x K x N stand against those of N x M."""
WIDER = 8
"""Columns behind a matrix [N K]: the first of them is a vector that takes part in its products."""


def refuses(x: Tensor, steps: int, *layers: Any) -> str | None:
    """Norms that measure what this process has, all steps of the input, float32 or bfloat16."""
    if torch.compiler.is_compiling():
        return "torch.compile sees the plain products"
    if (why := no_kernel(x, steps, (torch.float32, torch.bfloat16))) is not None:
        return why
    if dtype_of(x) == torch.float16:
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
    if dtype_of(x) == torch.float32:
        return "products of float32 take longer than passes over its currents"
    K, N = x.shape[2], sum(len(n.weight) for n in apart(layers))
    rows = x.numel() // K
    if N < OUTPUTS * K or rows < ROWS * K:
        return f"{N} outputs of {rows} rows are too few for products of {K} x {K}"
    kept = rows * N * dtype_of(x).itemsize
    if kept <= cache_size(x.device):
        return f"the cache holds its {kept >> 20} MiB of currents"
    return None


def learned_by(layers: Sequence[Any]) -> list[Tensor | None]:
    """What layers learn, four tensors each: a kernel, the norm's weight and bias, an offset."""
    learned: list[Tensor | None] = []
    for n in apart(layers):
        learned += [n.weight, n.norm.weight, n.norm.bias, n.norm.offset]
    return learned


def linear_lif(x: Tensor, steps: int, *layers: Any) -> tuple[Tensor, ...]:
    """See the reference."""
    bits, dtype, each = bits_of(x) if torch.is_grad_enabled() else None, dtype_of(x), apart(layers)
    learned = learned_by(layers)
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
        spikes, kept, known = fire_layers(x, each, learned[::4], keeps=keeps)
        ctx.save_for_backward(x if bits is None else bits, *known)
        ctx.packed, ctx.each, ctx.dtype = bits is not None, each, learned[0].dtype
        ctx.set_materialize_grads(False)  # bits have none
        return *spikes, *kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        x, *known = ctx.saved_tensors
        x = first(unpacked(x, known[0].dtype)) if ctx.packed else x
        wants = ctx.needs_input_grad[0]
        grad_x, learned = back_layers(x, known, ctx.each, grads[: len(ctx.each)], ctx.dtype, wants)
        return grad_x, None, None, None, *learned


def fire_layers(
    x: Tensor, each: Sequence[Layer], weights: Sequence[Tensor], *, keeps: bool, writes: bool = True
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Spikes of each layer where it `writes` them, their bits where it `keeps` them.

    And what `back_layers` has to know besides the input.
    """
    flat, weight = _rows(x), _stacked(weights).to(x.dtype)
    T, B, H, W, _ = last(x).shape
    y = first((flat @ weight.T).view(T, B, H, W, -1))
    mean, cov = moments(flat)
    spread, N = spread_of(weight, cov), len(weight)
    coefs: list[Tensor] = []
    spikes: list[Tensor] = []
    kept: list[Tensor] = []
    for n, own in zip(each, _places(each), strict=True):
        coefs.append(measured(weight[own], spread[own], mean, n.norm, len(flat)))
        s = None
        if writes:
            s = first(torch.empty(T, B, H, W, len(n.weight), dtype=x.dtype, device=x.device))
            spikes.append(s)
        size = (T, B, H, W, len(n.weight) // 8) if keeps else (0,)
        b = torch.empty(size, dtype=torch.uint8, device=x.device)
        kept.append(b)
        neuron = constants(n.decay, n.gain, n.fire)  # type: ignore[arg-type]  # see refuses
        how = n.fire.rest, T, neuron
        fire_steps(y[:, :, own], coefs[-1], s, b, *how, keeps=keeps, row=N)
    return spikes, kept, [weight, y, mean, spread, *coefs]


def back_layers(
    x: Tensor, known: Sequence[Tensor], each: Sequence[Layer], grads: Sequence[Tensor | None],
    dtype: torch.dtype, wants: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:  # fmt: skip
    """Gradient of the input where one is wanted; of each layer those of what it learns, flat."""
    weight, y, mean, spread, *coefs = known
    flat, places = _rows(x), _places(each)
    g = torch.empty_like(last(y))
    partial = [
        _behind(y[:, :, own], coef, grad, first(g)[:, :, own], n, len(weight))
        for n, own, coef, grad in zip(each, places, coefs, grads, strict=True)
    ]
    g = g.flatten(0, 3)
    product = exact_product(g.T, flat).float()
    grad_w = torch.empty_like(weight, dtype=dtype)
    passed, turned = torch.empty_like(weight), weight.new_empty(len(weight), len(mean) + WIDER)
    learned: list[Tensor | None] = []
    for n, own, coef, p in zip(each, places, coefs, partial, strict=True):
        measures = weight[own], spread[own], mean, coef, product[own], p
        both = passed[own], turned[own]
        sums = turn(*measures, grad_w[own], len(flat), n.gain, *both)
        of_offset = None if n.norm.offset is None else sums[3]
        learned += [grad_w[own, :, None, None], sums[2], sums[0], of_offset]
    if not wants:
        return None, learned
    return first(_grad_x(g, flat, weight, passed, turned).view(last(x).shape)), learned


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


def _grad_x(g: Tensor, x: Tensor, weight: Tensor, passed: Tensor, turned: Tensor) -> Tensor:
    """Gradient of rows: g passed + x W^T turned + a row."""
    K = weight.shape[1]
    both = turned.T @ weight  # W^T `turned` is symmetric
    grad = torch.addmm(both[K], x, both[:K])
    return grad.addmm_(g, passed)
