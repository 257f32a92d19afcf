"""Batch norm, LIF over T and max-pool in one pass; only the tensor before the norm is kept.

Memory is channels-last: rows of C channels, R = B*H*W rows a step. Passes over it:

    forward   sums of each channel (while training); then norm, fire and pool
    backward  sums of each channel of the gradient; then the gradient itself

Both passes of the backward find the membranes again, which costs arithmetic and no memory. A
picture that is shown at every step arrives as one step and is read once.
"""

from typing import Any

import torch
from torch import Tensor

from saccade.kernels import norm_lif as kernels
from saccade.ops._packed import remember
from saccade.ops._triton import (
    FLAGS,
    Kernels,
    channels_last,
    launch,
    operator,
    power_of_two,
    tiles,
)
from saccade.ops._triton import refuses as no_kernel
from saccade.ops.lif.constants import constants, scalars
from saccade.ops.lif.reference import Fire
from saccade.ops.norm_lif.reference import Norm

PROGRAMS = 2048
"""Programs that leave partial sums, at most: enough to fill any card, few enough to add up."""
TALL = (128, 8)
"""Partial sums and channels that are added up at once."""


def refuses(
    y: Tensor,
    norm: Norm,
    decay: float | Tensor,
    gain: float | Tensor,
    fire: Fire,
    steps: int,
    pools: bool,
) -> str | None:
    """Constants only, channels last in memory, and 8 | C."""
    if isinstance(decay, Tensor) or isinstance(gain, Tensor):
        return "decay and gain are learned here"
    if fire.detach_membrane:
        return "detach_membrane has no kernel"
    if y.shape[2] % 8:
        return f"8 does not divide its {y.shape[2]} channels"
    if not y.permute(0, 1, 3, 4, 2).is_contiguous():
        return "the currents are not channels-last in memory"
    return no_kernel(y, steps)


def _tile(C: int, steps: int) -> tuple[int, int]:
    """Rows and channels of a program's tile."""
    least_waste = min((128, 64), key=lambda n: tiles(C, n) * n)
    columns = least_waste if C >= 64 else power_of_two(C)
    elements = 1024 if steps <= 4 else max(256, 4096 // power_of_two(steps))
    return max(1, elements // columns), columns


def _programs(rows: int, BR: int, columns: int) -> int:
    return max(1, min(tiles(rows, BR), PROGRAMS // columns))


def _shape(y: Tensor) -> tuple[int, int]:
    """Rows of a step, and channels."""
    return y.shape[1] * y.shape[3] * y.shape[4], y.shape[2]


def _pooled(side: int) -> int:
    return (side - 1) // 2 + 1


def _channels_last(y: Tensor, *shape: int, dtype: torch.dtype) -> Tensor:
    """Memory for [T B C H W] of this shape."""
    T, B, C, H, W = shape
    return torch.empty(T, B, H, W, C, dtype=dtype, device=y.device).permute(0, 1, 4, 2, 3)


@operator("norm_statistics", mutates=("running_mean", "running_var"))
def _measure(
    y: Tensor, weight: Tensor, bias: Tensor, offset: Tensor | None, running_mean: Tensor,
    running_var: Tensor, momentum: float, eps: float, steps: int,
) -> Tensor:  # fmt: skip
    """Coefficients [4, C]: mean, 1/sd, and the norm as a y + b."""
    (rows, C), frames = _shape(y), len(y)
    BR, BC = _tile(C, 1)
    P = _programs(frames * rows, BR, tiles(C, BC))
    partial = torch.empty(P, 2, C, device=y.device)
    coef = torch.empty(4, C, device=y.device)
    launch(kernels.sums, (P, tiles(C, BC)), y, partial, frames * rows, C=C, BR=BR, BC=BC)
    seen = steps * rows
    launch(
        kernels.statistics, (tiles(C, TALL[1]),), y, partial, weight, bias, offset, running_mean,
        running_var, coef, P, frames * rows, seen / max(1, seen - 1), momentum, eps,
        OFFSET=offset is not None, C=C, BP=TALL[0], BC=TALL[1],
    )  # fmt: skip
    return coef


def _run(
    y: Tensor, weight: Tensor, bias: Tensor, offset: Tensor | None, coef: Tensor, batch: bool,
    steps: int, pools: bool, keeps: bool, decay: float, gain: float, v_threshold: float,
    v_reset: float | None, v_rest: float, strict: bool, detach_reset: bool, surrogate: str,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Spikes, their bits (eight channels a byte), and where each pooled spike came from."""
    fire = Fire(v_threshold=v_threshold, v_reset=v_reset, v_rest=v_rest, strict=strict, alpha=alpha)
    (rows, C), (_, B, _, H, W) = _shape(y), y.shape
    h, w = (_pooled(H), _pooled(W)) if pools else (H, W)
    s = _channels_last(y, steps, B, C, h, w, dtype=y.dtype)
    bits = torch.empty((steps, B, h, w, C // 8) if keeps else 0, dtype=torch.uint8, device=y.device)
    BR, BC = _tile(C, steps)
    common = {
        "T": steps, "ONCE": len(y) < steps, "BITS": keeps, "C": C, "BR": BR, "BC": BC,
    }  # fmt: skip
    common |= constants(decay, gain, fire) | FLAGS
    grid = tiles(B * h * w, BR), tiles(C, BC)
    if not pools:
        launch(kernels.fire, grid, y, coef, s, bits, rows, fire.rest, **common)
        return s, bits, torch.empty(0, dtype=torch.uint8, device=y.device)
    code = _channels_last(y, *s.shape, dtype=torch.uint8) if keeps else torch.empty_like(bits)
    launch(
        kernels.fire_pool, grid, y, coef, s, code, bits, B * h * w, H, W, h, w, fire.rest, **common
    )
    return s, bits, code


@operator("norm_fire_backward")
def _run_back(
    y: Tensor, coef: Tensor, grad_s: Tensor, code: Tensor, batch: bool, steps: int, pools: bool,
    decay: float, gain: float, v_threshold: float, v_reset: float | None,
    v_rest: float, strict: bool, detach_reset: bool, surrogate: str, alpha: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of y, and [2, C] sums that are those of bias and weight."""
    fire = Fire(v_threshold=v_threshold, v_reset=v_reset, v_rest=v_rest, strict=strict, alpha=alpha)
    (rows, C), (H, W) = _shape(y), y.shape[3:]
    BR, BC = _tile(C, steps)
    columns, rows_out = tiles(C, BC), grad_s[0].numel() // C
    P = _programs(rows_out, BR, columns)
    partial = torch.empty(P, 2, C, device=y.device)
    sums = torch.empty(2, C, device=y.device)
    grad_y = torch.empty_like(y)
    pieces: dict[str, Any] = {"C": C, "BR": BR, "BC": BC}
    common: dict[str, Any] = {
        "DETACH": detach_reset, "KIND": surrogate, "T": steps, "ONCE": len(y) < steps,
    }  # fmt: skip
    common |= constants(decay, gain, fire) | pieces
    wide: dict[str, Any] = {"C": C, "BP": TALL[0], "BC": TALL[1]}
    sum_up, n = (kernels.total, (tiles(C, TALL[1]),), partial, sums, P), steps * rows
    if not pools:
        given, common = (y, coef, sums, grad_s), common | {"BATCH": batch}
        size = rows, n, fire.rest
        launch(kernels.back, (P, columns), *given, partial, *size, APPLY=False, **common)
        launch(*sum_up, **wide)
        grid = tiles(rows, BR), columns
        launch(kernels.back, grid, *given, grad_y, *size, APPLY=True, **common)
        return grad_y, sums
    shape = rows_out, H, W, *grad_s.shape[3:], fire.rest
    given = y, coef, grad_s, code
    launch(kernels.back_pool, (P, columns), *given, grad_y, partial, *shape, **common)
    launch(*sum_up, **wide)
    pixels = len(y) * rows
    grid, pieces["BATCH"] = (tiles(pixels, BR), columns), batch
    launch(kernels.back_norm, grid, grad_y, y, coef, sums, pixels, n, gain, n / pixels, **pieces)
    return grad_y, sums


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    y, _, _, offset, coef, ctx.batch, ctx.steps, ctx.pools, _, *ctx.constants = inputs
    ctx.offset = offset is not None
    ctx.save_for_backward(y, coef, output[2])


def _differentiate(ctx: Any, grad_s: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    y, coef, code = ctx.saved_tensors
    grad_y, sums = _run_back(
        y, coef, channels_last(grad_s), code, ctx.batch, ctx.steps, ctx.pools, *ctx.constants
    )
    grad_offset = sums[0] * (0.0 if ctx.batch else coef[2]) if ctx.offset else None
    others = (None for _ in range(5 + len(ctx.constants)))
    return grad_y, sums[1] * coef[1], sums[0], grad_offset, *others


_op = Kernels("norm_fire", _run, _keep, _differentiate)


def scan(
    y: Tensor, norm: Norm, decay: float, gain: float, fire: Fire, steps: int, pools: bool
) -> Tensor:
    """See `saccade.ops.norm_lif.reference.scan`."""
    with torch.no_grad():
        coef = _measured(y, norm, steps) if norm.training else _known(norm)
    keeps = torch.is_grad_enabled() and y.requires_grad
    s, bits, _ = _op(
        y, norm.weight, norm.bias, norm.offset, coef, norm.training, steps, pools, keeps, decay,
        gain, *scalars(fire),
    )  # fmt: skip
    if keeps:
        remember(s, bits)
    spikes: Tensor = s
    return spikes


def _measured(y: Tensor, norm: Norm, steps: int) -> Tensor:
    learned, running = (norm.weight, norm.bias, norm.offset), (norm.running_mean, norm.running_var)
    coef: Tensor = _measure(y, *learned, *running, norm.momentum, norm.eps, steps)
    return coef


def _known(norm: Norm) -> Tensor:
    rstd = torch.rsqrt(norm.running_var + norm.eps)
    mean = norm.running_mean if norm.offset is None else norm.running_mean - norm.offset
    a = norm.weight * rstd
    return torch.stack((mean, rstd, a, norm.bias - mean * a))
