"""The recurrence in one pass over the currents each way, on a CPU; only the currents are kept."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from saccade.ops._numba import LANES, array, cell, nothing, run, tasks_of
from saccade.ops._numba import refuses as no_kernel
from saccade.ops._triton import dense, like
from saccade.ops.lif.reference import Fire


def refuses(
    x: Tensor, v0: Tensor | None, decay: float | Tensor, gain: float | Tensor, fire: Fire
) -> str | None:
    """Constants only."""
    if isinstance(decay, Tensor) or isinstance(gain, Tensor):
        return "decay and gain are learned here"
    return no_kernel(x)


def scan(
    x: Tensor, v0: Tensor | None, decay: float, gain: float, fire: Fire
) -> tuple[Tensor, Tensor]:
    """See `saccade.ops.lif.reference.scan`. The last membrane is float32."""
    s, v = _Scan.apply(x, v0, cell(decay, gain, fire))  # type: ignore[no-untyped-call]
    return s, v


def _flat(x: Tensor, layout: Tensor) -> Any:
    """[T *dims], or [*dims], as [T, n] or [n] in the order of memory of `layout`, a step."""
    strides = layout.stride()
    order = sorted(range(layout.dim()), key=lambda axis: -strides[axis])
    lead = x.dim() - layout.dim()
    x = x.permute(*range(lead), *(lead + axis for axis in order)).contiguous()
    return array(x, *x.shape[:lead], layout.numel())


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, v0: Tensor | None, p: Any) -> tuple[Tensor, Tensor]:
        from saccade.kernels import cpu as kernels

        x = x if dense(x) else x.contiguous()
        ctx.save_for_backward(x, v0)
        ctx.p = p
        ctx.set_materialize_grads(False)  # nobody may need the last membrane
        s, v = torch.empty_like(x), torch.empty_like(x[0], dtype=torch.float32)
        start = nothing() if v0 is None else _flat(v0.float(), x[0])
        run(kernels.fire, _flat(x, x[0]), *_identity(), start, _flat(s, x[0]), _flat(v, x[0]), p)
        return s, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_s: Tensor | None, grad_v: Tensor | None) -> Any:
        from saccade.kernels import cpu as kernels

        x, v0 = ctx.saved_tensors
        grad_x, grad_v0 = torch.empty_like(x), torch.empty_like(x[0], dtype=torch.float32)
        tasks, share = tasks_of(x[0].numel(), LANES)
        given = torch.zeros_like(x) if grad_s is None else like(grad_s, x)
        run(
            kernels.back, _flat(x, x[0]), *_identity(), _identity()[1],
            nothing() if v0 is None else _flat(v0.float(), x[0]),
            _flat(given, x[0]), nothing() if grad_v is None else _flat(grad_v, x[0]),
            _flat(grad_x, x[0]), nothing() if v0 is None else _flat(grad_v0, x[0]),
            np.empty((tasks, 2, 0), np.float32), share, ctx.p,
        )  # fmt: skip
        return grad_x, None if v0 is None else grad_v0.to(v0.dtype), None


def _identity() -> tuple[Any, Any]:
    """The norm that changes nothing: a, b of a vector."""
    return np.ones(LANES, np.float32), np.zeros(LANES, np.float32)
