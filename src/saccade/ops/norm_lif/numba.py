"""Batch norm, LIF over T and max-pool in few passes on a CPU; only the pre-norm tensor stays.

Memory is channels-last. Passes over it:

    forward   sums of each channel (while training); then norm, fire and pool
    backward  membranes again, the gradient behind the norm and its sums; then that before it
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from saccade.ops._numba import array, cell, nothing, run, tasks_of, tile_of
from saccade.ops._numba import refuses as no_kernel
from saccade.ops._triton import channels_last
from saccade.ops.lif.reference import Fire
from saccade.ops.norm_lif.reference import Norm


class Affine(NamedTuple):
    """The norm as a y + b, with the statistics that it rests on; all [C], float32."""

    mean: Tensor
    rstd: Tensor
    a: Tensor
    b: Tensor


def refuses(
    y: Tensor,
    norm: Norm,
    decay: float | Tensor,
    gain: float | Tensor,
    fire: Fire,
    steps: int,
    pools: bool,
) -> str | None:
    """Constants only, and channels last in memory."""
    if isinstance(decay, Tensor) or isinstance(gain, Tensor):
        return "decay and gain are learned here"
    if norm.training and norm.join is not None:
        return "its statistics are those of several processes"
    if not y.permute(0, 1, 3, 4, 2).is_contiguous():
        return "the currents are not channels-last in memory"
    return no_kernel(y)


def scan(
    y: Tensor, norm: Norm, decay: float, gain: float, fire: Fire, steps: int, pools: bool
) -> Tensor:
    """See `saccade.ops.norm_lif.reference.scan`."""
    with torch.no_grad():
        affine = _measured(y, norm, steps) if norm.training else _known(norm)
    p = cell(decay, gain, fire)
    learned = norm.weight, norm.bias, norm.offset
    s: Tensor = _NormFire.apply(y, *learned, affine, norm.training, p, steps, pools)  # type: ignore[no-untyped-call]
    return s


def _measured(y: Tensor, norm: Norm, steps: int) -> Affine:
    """Statistics of the batch; moves the running ones."""
    from saccade.kernels import cpu as kernels

    C, L = y.shape[2], tile_of(y.shape[2])
    rows = _rows(y)
    shift = rows.flatten()[:C].float()
    tasks, per_task = tasks_of(y.numel(), L)
    partial = torch.empty(tasks, 2, L)
    run(kernels.sums, array(rows, -1), array(shift.repeat(L // C)), per_task, array(partial))
    first, second = _total(partial, C).div(y.numel() // C)
    mean, var = (shift + first).float(), (second - first * first).clamp(min=0).float()
    seen, offset = steps * (y[0].numel() // C), 0 if norm.offset is None else norm.offset
    norm.running_mean.lerp_((mean + offset).to(norm.running_mean), norm.momentum)
    spread = var * (seen / max(1, seen - 1))
    norm.running_var.lerp_(spread.to(norm.running_var), norm.momentum)
    return _affine(norm, mean, torch.rsqrt(var + norm.eps))


def _known(norm: Norm) -> Affine:
    mean = norm.running_mean if norm.offset is None else norm.running_mean - norm.offset
    return _affine(norm, mean.float(), torch.rsqrt(norm.running_var.float() + norm.eps))


def _affine(norm: Norm, mean: Tensor, rstd: Tensor) -> Affine:
    a = norm.weight.float() * rstd
    return Affine(mean, rstd, a, norm.bias.float() - mean * a)


def _total(partial: Tensor, C: int) -> Tensor:
    """Sums [2, C] of partial ones [tasks, 2, L], in float64."""
    return partial.double().sum(0).view(2, -1, C).sum(1)


def _rows(x: Tensor) -> Tensor:
    """[t B C H W] as [t B H W C]."""
    return x.permute(0, 1, 3, 4, 2)


def _pooled(side: int) -> int:
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
        from saccade.kernels import cpu as kernels

        ctx.save_for_backward(y, weight, *affine)
        ctx.offset, ctx.constants = offset is not None, (batch, p, steps, pools)
        t, B, C, H, W = y.shape
        h, w = (_pooled(H), _pooled(W)) if pools else (H, W)
        s = torch.empty(steps, B, h, w, C, dtype=y.dtype)
        a, b = _repeated(affine.a, affine.b, length=W * C if pools else tile_of(C))
        if pools:
            run(kernels.fire_pool, array(_rows(y), t, B, H, W * C), a, b, array(s), p)
        else:
            none, ends = nothing(y.dtype), nothing()
            run(kernels.fire, array(_rows(y), t, -1), a, b, none, array(s, steps, -1), ends, p)
        return s.permute(0, 1, 4, 2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        y, weight, *affine = ctx.saved_tensors
        batch, *constants = ctx.constants
        known = Affine(*affine)
        grad_y, sums = _behind_norm(y, channels_last(grads[0]), known, *constants)
        _through_norm(grad_y, y, known, sums if batch else None)
        sums = sums.to(weight)
        grad_offset = sums[0] * (0.0 if batch else known.a) if ctx.offset else None
        return grad_y, sums[1] * known.rstd, sums[0], grad_offset, *(None for _ in range(5))


def _repeated(*coefficients: Tensor, length: int) -> list[Any]:
    return [array(c.repeat(length // len(c))) for c in coefficients]


def _behind_norm(
    y: Tensor, grad_s: Tensor, affine: Affine, p: Any, steps: int, pools: bool
) -> tuple[Tensor, Tensor]:
    """The gradient of a y + b, as y lies; and [2, C]: the sums of it, and of it times y - mean."""
    from saccade.kernels import cpu as kernels

    t, B, C, H, W = y.shape
    grad, L = torch.empty_like(_rows(y)), W * C if pools else tile_of(C)
    coefficients = _repeated(affine.a, affine.b, affine.mean, length=L)
    if pools:
        partial = torch.empty(B, 2, L)
        lines = (array(_rows(x), t, B, H, L) for x in (y, grad.permute(0, 1, 4, 2, 3)))
        y_lines, grad_lines = lines
        given = y_lines, *coefficients, array(_rows(grad_s))
        run(kernels.back_pool, *given, grad_lines, array(partial), p)
    else:
        tasks, per_task = tasks_of(y[0].numel(), L)
        partial, none = torch.empty(tasks, 2, L), nothing(y.dtype)
        given = array(_rows(y), t, -1), *coefficients, none, array(_rows(grad_s), steps, -1)
        out = array(grad, t, -1), none, array(partial)
        run(kernels.back, *given, nothing(), *out, per_task, p)
    return grad.permute(0, 1, 4, 2, 3), _total(partial, C)


def _through_norm(grad: Tensor, y: Tensor, affine: Affine, sums: Tensor | None) -> None:
    """In place, from the gradient behind the norm to that before it."""
    from saccade.kernels import cpu as kernels

    slant, level, C = torch.zeros_like(affine.a), torch.zeros_like(affine.a), len(affine.a)
    if sums is not None:  # the statistics are the batch's own
        # of one step that stands for T, sums and samples are both T times as many
        first, second = (sums / (y.numel() // C)).float()
        slant = -affine.a * affine.rstd.square() * second
        level = -affine.a * first - slant * affine.mean
    flat = (array(_rows(x), -1) for x in (grad, y))
    run(kernels.back_norm, *flat, *_repeated(affine.a, slant, level, length=tile_of(C)))
