"""Batch norm, LIF over T and max-pool in few passes on a CPU; only the pre-norm tensor stays.

Memory is channels-last. Passes over it:

    forward   sums of each channel (while training); then norm, fire and pool
    backward  membranes again, the gradient behind the norm and its sums; then that before it
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from saccade.ops._numba import array, cell, fresh, nothing, places, run, tasks_of
from saccade.ops._numba import refuses as no_kernel
from saccade.ops._triton import channels_last
from saccade.ops.lif.reference import Fire
from saccade.ops.norm_lif.reference import Norm, summed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Coefficients = NDArray[np.float32]


class Affine(NamedTuple):
    """The norm as a y + b, with the statistics that it rests on; all [C], float32, of numpy.

    On so few numbers an operation of torch takes longer than its arithmetic.
    """

    mean: "Coefficients"
    rstd: "Coefficients"
    a: "Coefficients"
    b: "Coefficients"


def refuses(
    y: Tensor,
    norm: Norm,
    decay: float | Tensor,
    gain: float | Tensor,
    fire: Fire,
    steps: int,
    pools: bool,
    onto: Tensor | None = None,
) -> str | None:
    """Constants only, and channels last in memory."""
    if isinstance(decay, Tensor) or isinstance(gain, Tensor):
        return "decay and gain are learned here"
    if norm.training and norm.join is not None:
        return "its statistics are those of several processes"
    if not y.permute(0, 1, 3, 4, 2).is_contiguous():
        return "the currents are not channels-last in memory"
    return no_kernel(y)


_QUIET = np.errstate(all="ignore")
"""What stops being finite is found by whoever trains; numpy keeps quiet, as torch does."""


@_QUIET
def scan(
    y: Tensor, norm: Norm, decay: float, gain: float, fire: Fire, steps: int, pools: bool,
    onto: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """See `saccade.ops.norm_lif.reference.scan`."""
    affine = _measured(y, norm, steps) if norm.training else _known(norm)
    p = cell(decay, gain, fire)
    parts = norm.weight, norm.bias, norm.offset
    s: Tensor = _NormFire.apply(y, *parts, affine, norm.training, p, steps, pools)  # type: ignore[no-untyped-call]
    return summed(s, onto)


def fire(
    y: Tensor,
    a: "Coefficients",
    b: "Coefficients",
    p: Any,
    steps: int,
    pools: bool,
    dtype: torch.dtype,
    v: Tensor | None = None,
) -> Tensor:
    """Spikes [T B C h w] of the current a y + b, without gradient; membranes go on in v."""
    from saccade.kernels import cpu as kernels

    t, B, C, H, W = y.shape
    h, w = (pooled_side(H), pooled_side(W)) if pools else (H, W)
    s = fresh(steps, B, h, w, C, dtype=dtype)
    held = nothing() if v is None else array(v.permute(0, 2, 3, 1), -1)
    if pools:
        a, b = (np.tile(x, W) for x in (a, b))
        run(kernels.fire_pool, array(rows(y), t, B, H, W * C), a, b, held, array(s), p)
    else:
        a, b = _spread(a), _spread(b)
        run(kernels.fire, array(rows(y), t, -1), a, b, held, array(s, steps, -1), held, p)
    return s.permute(0, 1, 4, 2, 3)


def _measured(y: Tensor, norm: Norm, steps: int) -> Affine:
    """Statistics of the batch; moves the running ones."""
    from saccade.kernels import cpu as kernels

    C = y.shape[2]
    flat, n = array(rows(y), -1), y.numel() // C
    shift = array(rows(y).reshape(-1)[:C].float())
    tasks, share = tasks_of(y.numel(), places(C))
    partial = np.empty((tasks, 2, places(C)), np.float32)
    run(kernels.sums, flat, _spread(shift), share, partial)
    first, second = _total(partial, C) / n
    mean, var = shift + first, np.maximum(second - first * first, 0)
    seen = steps * (y[0].numel() // C)
    offset = 0 if norm.offset is None else learned(norm.offset)
    with torch.no_grad():
        for running, batch in (
            (norm.running_mean, mean + offset),
            (norm.running_var, var * (seen / max(1, seen - 1))),
        ):
            running.lerp_(torch.from_numpy(batch).to(running), norm.momentum)
    return _affine(norm, mean, var)


def _known(norm: Norm) -> Affine:
    mean, var = (learned(x).astype(np.float64) for x in (norm.running_mean, norm.running_var))
    return _affine(norm, mean if norm.offset is None else mean - learned(norm.offset), var)


def _affine(norm: Norm, mean: "NDArray[np.float64]", var: "NDArray[np.float64]") -> Affine:
    m, rstd = mean.astype(np.float32), (1 / np.sqrt(var + norm.eps)).astype(np.float32)
    a = learned(norm.weight) * rstd
    return Affine(m, rstd, a, learned(norm.bias) - m * a)


def learned(x: Tensor) -> "Coefficients":
    """Numbers of each channel, in float32."""
    return array(x.detach().float().contiguous())


def _total(partial: "NDArray[np.float32]", C: int) -> "NDArray[np.float64]":
    """Sums [2, C] of partial ones [tasks, 2, places]."""
    total: NDArray[np.float64] = partial.sum(0, dtype=np.float64).reshape(2, -1, C).sum(1)
    return total


def _spread(x: "Coefficients") -> "Coefficients":
    """Repeated to whole vectors."""
    times = places(len(x)) // len(x)
    return x if times == 1 else np.tile(x, times)


def rows(x: Tensor) -> Tensor:
    """[t B C H W] as [t B H W C]."""
    return x.permute(0, 1, 3, 4, 2)


def pooled_side(side: int) -> int:
    """Of a side behind the max-pool."""
    return (side - 1) // 2 + 1


class _NormFire(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        offset: Tensor | None,
        affine: Affine,
        batch: bool,
        p: Any,
        steps: int,
        pools: bool,
    ) -> Tensor:
        ctx.save_for_backward(y, weight)
        ctx.constants = offset is not None, batch, affine, p, steps, pools
        return fire(y, affine.a, affine.b, p, steps, pools, y.dtype)

    @staticmethod
    @once_differentiable
    @_QUIET
    def backward(ctx: Any, *grads: Any) -> Any:
        y, weight = ctx.saved_tensors
        has_offset, batch, affine, *constants = ctx.constants
        grad_y, sums = _behind_norm(y, channels_last(grads[0]), affine, *constants)
        _through_norm(grad_y, y, affine, sums if batch else None)
        of_bias, of_weight = (
            torch.from_numpy(x).to(weight) for x in (sums[0], sums[1] * affine.rstd)
        )
        through = torch.from_numpy(sums[0] * (0.0 if batch else affine.a)).to(weight)
        return (
            grad_y,
            of_weight,
            of_bias,
            through if has_offset else None,
            *(None for _ in range(5)),
        )


def _behind_norm(
    y: Tensor, grad_s: Tensor, affine: Affine, p: Any, steps: int, pools: bool
) -> tuple[Tensor, "NDArray[np.float64]"]:
    """The gradient of a y + b, as y lies; and [2, C]: the sums of it, and of it times y - mean."""
    from saccade.kernels import cpu as kernels

    t, B, C, H, W = y.shape
    grad = fresh(t, B, H, W, C, dtype=y.dtype)
    if pools:
        partial = np.empty((B, 2, C), np.float32)
        a, b = (np.tile(x, W) for x in (affine.a, affine.b))
        lines, out = (array(x, t, B, H, W * C) for x in (rows(y), grad))
        run(kernels.back_pool, lines, a, b, affine.mean, array(rows(grad_s)), out, partial, p)
    else:
        tasks, share = tasks_of(y[0].numel(), places(C))
        partial, none = np.empty((tasks, 2, places(C)), np.float32), nothing()
        given = (_spread(x) for x in (affine.a, affine.b, affine.mean))
        currents, spikes, out = (array(x, len(x), -1) for x in (rows(y), rows(grad_s), grad))
        run(kernels.back, currents, *given, none, spikes, none, out, none, partial, share, p)
    return grad.permute(0, 1, 4, 2, 3), _total(partial, C)


def _through_norm(
    grad: Tensor, y: Tensor, affine: Affine, sums: "NDArray[np.float64] | None"
) -> None:
    """In place, from the gradient behind the norm to that before it."""
    from saccade.kernels import cpu as kernels

    slant, level = np.zeros_like(affine.a), np.zeros_like(affine.a)
    if sums is not None:  # the statistics are the batch's own
        # of one step that stands for T, sums and samples are both T times as many
        first, second = (sums / (y.numel() // len(affine.a))).astype(np.float32)
        slant = -affine.a * np.square(affine.rstd) * second
        level = -affine.a * first - slant * affine.mean
    flat = (array(rows(x), -1) for x in (grad, y))
    run(kernels.back_norm, *flat, *map(_spread, (affine.a, slant, level)))
