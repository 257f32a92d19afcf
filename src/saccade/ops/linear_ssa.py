"""SSA with its projections in Triton: q, k and v are bits, and never numbers in memory.

Spikes that only SSA reads are written as bits alone, a seventeenth of bits and numbers.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from saccade.ops import ssa
from saccade.ops._gram import dtype_of
from saccade.ops._packed import bits_of, remember
from saccade.ops._triton import channels_last, first
from saccade.ops.conv.packed import unpacked
from saccade.ops.lif.constants import scalars
from saccade.ops.lif.reference import Fire
from saccade.ops.linear_lif import triton as linear
from saccade.ops.linear_lif.layers import Layer, apart


def refuses(
    x: Tensor, steps: int, heads: int, scale: float, decay: float | Tensor, gain: float | Tensor,
    fire: Fire, *layers: Any,
) -> str | None:  # fmt: skip
    """What either of the two refuses, and projections to another width."""
    if (why := linear.refuses(x, steps, *layers)) is not None:
        return why
    if any(len(n.weight) != x.shape[2] for n in apart(layers)):
        return "q, k and v are not as wide as their input"
    return ssa.refuses(x, x, x, heads, scale, decay, gain, fire)


def slower(
    x: Tensor, steps: int, heads: int, scale: float, decay: float | Tensor, gain: float | Tensor,
    fire: Fire, *layers: Any,
) -> str | None:  # fmt: skip
    """See `saccade.ops.linear_lif.triton.slower`."""
    return linear.slower(x, steps, *layers)


def scan(
    x: Tensor, steps: int, heads: int, scale: float, decay: float, gain: float, fire: Fire,
    *layers: Any,
) -> Tensor:  # fmt: skip
    """See the reference."""
    bits = bits_of(x) if torch.is_grad_enabled() else None
    each, learned = apart(layers), linear.learned_by(layers)
    keeps = torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in learned)
    how = heads, scale, decay, gain, *scalars(fire)
    x = x.to(dtype_of(x))
    s, packed = _Attend.apply(x, bits, keeps, each, how, *learned)  # type: ignore[no-untyped-call]
    if keeps:
        remember(s, packed)
    spikes: Tensor = s
    return spikes


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bits: Tensor | None, keeps: bool, each: list[Layer],
        how: tuple[Any, ...], *learned: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        x = channels_last(x)
        _, qkv, known = linear.fire_layers(x, each, learned[::4], keeps=True, writes=False)
        heads, scale, *constants = how
        # x stands for the shape and the type of q, k and v, of which the kernels read the bits
        given: tuple[Any, ...] = (x, x, x, *qkv, heads, scale, keeps, *constants)
        s, packed, kv = ssa.run(*given)
        ctx.save_for_backward(x if bits is None else bits, *qkv, kv, *known)
        ctx.packed, ctx.each, ctx.how, ctx.dtype = bits is not None, each, how, learned[0].dtype
        ctx.set_materialize_grads(False)  # bits have none
        return s, packed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        x, *qkv, kv = ctx.saved_tensors[:5]
        known = ctx.saved_tensors[5:]
        x = first(unpacked(x, known[0].dtype)) if ctx.packed else x
        grads = ssa.run_back.eager(x, x, x, *qkv, kv, channels_last(grad), *ctx.how)
        wants = ctx.needs_input_grad[0]
        grad_x, learned = linear.back_layers(x, known, ctx.each, grads, ctx.dtype, wants)
        return grad_x, None, None, None, None, *learned
