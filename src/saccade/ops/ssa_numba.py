"""Spiking self-attention on a CPU: Q (K^T V), scaled, and the neuron behind it, over all steps.

q, k, v and the output are spikes [T B C H W], channels-last in memory, and stay as they lie: no
copy by heads. K^T V of each step, sample and head is kept for the backward pass, in float32; the
currents are found again.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from saccade.ops._numba import DTYPES, LANES, array, cell, run
from saccade.ops._numba import refuses as no_kernel
from saccade.ops._triton import channels_last
from saccade.ops.lif.exact import inexact
from saccade.ops.lif.reference import Fire


def refuses(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float,
    decay: float | Tensor, gain: float | Tensor, fire: Fire,
) -> str | None:  # fmt: skip
    """Constants only, channels last in memory, heads that fill half vectors, and exact sums."""
    if isinstance(decay, Tensor) or isinstance(gain, Tensor):
        return "decay and gain are learned here"
    d = q.shape[2] // heads
    if d % (LANES // 2):
        return f"heads of {d} channels, not a multiple of {LANES // 2}"
    if not all(x.permute(0, 1, 3, 4, 2).is_contiguous() for x in (q, k, v)):
        return "the spikes are not channels-last in memory"
    most = q.shape[3] * q.shape[4] * d
    return inexact(len(q), most, scale, decay, gain, fire) or no_kernel(q, (*DTYPES, torch.int8))


def scan(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float,
    decay: float, gain: float, fire: Fire,
) -> Tensor:  # fmt: skip
    """See `saccade.attention.ssa`."""
    s: Tensor = _Attend.apply(q, k, v, heads, scale, cell(decay, gain, fire))  # type: ignore[no-untyped-call]
    return s


def _tokens(x: Tensor) -> Any:
    """[T B C H W] as [T B N C], as it lies in memory."""
    T, B, C, H, W = x.shape
    return array(x.permute(0, 1, 3, 4, 2), T, B, H * W, C)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, p: Any
    ) -> Tensor:
        from saccade.kernels import cpu_ssa as kernels

        T, B, C = q.shape[:3]
        d = C // heads
        kv, s = torch.empty(T, B, d, C), torch.empty_like(q)
        spikes = (_tokens(x) for x in (q, k, v))
        ctx.save_for_backward(q, k, v, kv)
        ctx.constants = d, np.float32(scale), p
        run(kernels.attend, *spikes, array(kv, -1), _tokens(s), *ctx.constants)
        return s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        from saccade.kernels import cpu_ssa as kernels

        *spikes, kv = ctx.saved_tensors
        given = channels_last(grads[0])
        out = [torch.empty_like(x) for x in spikes]
        tokens = (_tokens(x) for x in (*spikes, given, *out))
        q, k, v, *rest = tokens
        run(kernels.back_attend, q, k, v, array(kv, -1), *rest, *ctx.constants)
        return *out, None, None, None
