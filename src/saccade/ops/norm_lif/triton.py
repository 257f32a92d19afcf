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
from saccade.kernels import pool as pool_kernels
from saccade.ops._packed import remember
from saccade.ops._triton import (
    FLAGS,
    Kernels,
    channels_last,
    function,
    launch,
    multiprocessors,
    operator,
    power_of_two,
    tiles,
)
from saccade.ops._triton import refuses as no_kernel
from saccade.ops.lif.constants import constants, fire_of, scalars
from saccade.ops.lif.reference import Fire
from saccade.ops.norm_lif.joined import Join
from saccade.ops.norm_lif.reference import Norm

REGISTERS = 128
"""Of a thread that goes back through a pool, at most: four programs at a time, not three."""
Pass = dict[str, Any]
"""Keyword arguments of a kernel."""
TALL = (256, 8)
"""Partial sums and channels that are added up at once."""


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
    """Constants only, channels last in memory, and 8 | C."""
    if isinstance(decay, Tensor) or isinstance(gain, Tensor):
        return "decay and gain are learned here"
    if fire.detach_membrane:
        return "detach_membrane has no kernel"
    if y.shape[2] % 8:
        return f"8 does not divide its {y.shape[2]} channels"
    if not y.permute(0, 1, 3, 4, 2).is_contiguous():
        return "the currents are not channels-last in memory"
    return elsewhere(onto, (steps, *y.shape[1:]), y.dtype, pools) or no_kernel(y, steps)


def elsewhere(
    onto: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, pools: bool
) -> str | None:
    """Why a kernel cannot add its spikes to `onto` as it fires them."""
    if onto is None:
        return None
    if pools:
        return "its spikes are pooled before they are added"
    if onto.shape != shape or onto.dtype != dtype:
        return f"spikes {list(shape)} of {dtype} are added to {list(onto.shape)} of {onto.dtype}"
    if not onto.permute(0, 1, 3, 4, 2).is_contiguous():
        return "what the spikes are added to is not channels-last in memory"
    return None


def fire_tile(C: int, steps: int, elements: int = 1024) -> tuple[int, int]:
    """Rows and channels of a program's tile; less of it where more steps stay in registers."""
    least_waste = min((128, 64), key=lambda n: tiles(C, n) * n)
    columns = least_waste if C >= 64 else power_of_two(C)
    elements = elements if steps <= 4 else max(256, 4 * elements // power_of_two(steps))
    return max(1, elements // columns), columns


def _programs(rows: int, BR: int, columns: int, device: torch.device, at_once: int = 4) -> int:
    """Of each column, as many as leave partial sums at the same time."""
    return max(1, min(tiles(rows, BR), at_once * multiprocessors(device) // columns))


def _shape(y: Tensor) -> tuple[int, int]:
    """Rows of a step, and channels."""
    return y.shape[1] * y.shape[3] * y.shape[4], y.shape[2]


def pooled_side(side: int) -> int:
    """Of a side behind the max-pool."""
    return (side - 1) // 2 + 1


def channels_last_memory(y: Tensor, *shape: int, dtype: torch.dtype) -> Tensor:
    """Memory for [T B C H W] of this shape."""
    T, B, C, H, W = shape
    return torch.empty(T, B, H, W, C, dtype=dtype, device=y.device).permute(0, 1, 4, 2, 3)


@operator("norm_statistics", mutates=("running_mean", "running_var"))
def _measure(
    y: Tensor, weight: Tensor, bias: Tensor, offset: Tensor | None, running_mean: Tensor,
    running_var: Tensor, momentum: float, eps: float, steps: int,
) -> Tensor:  # fmt: skip
    """Coefficients [4, C]: mean, 1/sd, and the norm as a y + b."""
    (rows, C), partial = _shape(y), _sums(y)
    coef = torch.empty(4, C, device=y.device)
    seen = steps * rows
    launch(
        kernels.statistics, (tiles(C, TALL[1]),), y, partial, weight, bias, offset, running_mean,
        running_var, coef, len(partial), len(y) * rows, seen / max(1, seen - 1), momentum, eps,
        OFFSET=offset is not None, C=C, BP=TALL[0], BC=TALL[1],
    )  # fmt: skip
    return coef


def _sums(y: Tensor) -> Tensor:
    """Of each channel, shifted by its first value, and of its square: partial ones [P, 2, C]."""
    (rows, C), frames = _shape(y), len(y)
    BR, BC = fire_tile(C, 1, 4096)
    P = _programs(frames * rows, BR, tiles(C, BC), y.device)
    partial = torch.empty(P, 2, C, device=y.device)
    grid = P, tiles(C, BC)
    launch(kernels.sums, grid, y, partial, frames * rows, C=C, BR=BR, BC=BC, num_warps=8)
    return partial


def _measure_joined(y: Tensor, norm: Norm, steps: int, join: Join) -> Tensor:
    """As `_measure`, over all processes; and [1, C], the share of this one in what they saw."""
    (rows, C), partial = _shape(y), _sums(y)
    n, grid = len(y) * rows, (tiles(C, TALL[1]),)
    sums = torch.empty(2 * C + 1, dtype=torch.float64, device=y.device)
    launch(kernels.moments, grid, y, partial, sums, len(partial), n, C=C, BP=TALL[0], BC=TALL[1])
    join(sums)
    coef = torch.empty(5, C, device=y.device)
    launch(
        kernels.joined_statistics, grid, sums, norm.weight, norm.bias, norm.offset,
        norm.running_mean, norm.running_var, coef, n, steps / len(y), norm.momentum, norm.eps,
        OFFSET=norm.offset is not None, C=C, BC=TALL[1],
    )  # fmt: skip
    return coef


def _run(
    y: Tensor, weight: Tensor, bias: Tensor, offset: Tensor | None, coef: Tensor,
    onto: Tensor | None, batch: bool, steps: int, pools: bool, keeps: bool, decay: float,
    gain: float, v_threshold: float, v_reset: float | None, v_rest: float, strict: bool,
    detach_reset: bool, surrogate: str, alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Spikes, their bits (eight channels a byte), and where each pooled spike came from.

    Sums of spikes and `onto` have no bits.
    """
    fire = fire_of(v_threshold, v_reset, v_rest, strict, detach_reset, surrogate, alpha)
    _, B, C, H, W = y.shape
    keeps = keeps and onto is None
    h, w = (pooled_side(H), pooled_side(W)) if pools else (H, W)
    s = channels_last_memory(y, steps, B, C, h, w, dtype=y.dtype)
    bits = torch.empty((steps, B, h, w, C // 8) if keeps else 0, dtype=torch.uint8, device=y.device)
    neuron = constants(decay, gain, fire)
    if not pools:
        fire_steps(y, coef, s, bits, fire.rest, steps, neuron, keeps=keeps, onto=onto)
        return s, bits, torch.empty(0, dtype=torch.uint8, device=y.device)
    code = channels_last_memory(y, *s.shape, dtype=torch.uint8) if keeps else torch.empty_like(bits)
    trains = channels_last_memory(y, 1, B, C, H, W, dtype=word(steps))
    fire_steps(y, coef, trains, bits, fire.rest, steps, neuron, trains=True)
    pool(trains, s, code, bits, keeps=keeps)
    return s, bits, code


def fire_steps(
    y: Tensor, coef: Tensor, s: Tensor, bits: Tensor, rest: float, steps: int, neuron: Pass, *,
    keeps: bool = False, trains: bool = False, held: Tensor | None = None,
    onto: Tensor | None = None,
) -> None:  # fmt: skip
    """Spikes of the current coef[2] y + coef[3] to `s`; or their trains, [1 B C H W] words.

    Membranes begin at rest, or in `held` [B C H W], where they stay. Spikes are added to `onto`.
    """
    rows, C = _shape(y)
    BR, BC = fire_tile(C, steps)
    launch(
        kernels.fire, (tiles(rows, BR), tiles(C, BC)), y, coef, s, bits, held, onto, rows, rest,
        T=steps, ONCE=len(y) < steps, BITS=keeps, TRAINS=trains, C=C, BR=BR, BC=BC, **neuron,
        **FLAGS,
    )  # fmt: skip


def pool(trains: Tensor, s: Tensor, code: Tensor, bits: Tensor, *, keeps: bool = False) -> None:
    """The 3x3 max-pool of stride 2 of trains [1 B C H W] to spikes [T B C h w]."""
    (T, B, C, h, w), (H, W) = s.shape, trains.shape[3:]
    BR, BC = fire_tile(C, T if keeps else 1)
    launch(
        pool_kernels.pool, (tiles(B * h * w, BR), tiles(C, BC)), trains, s, code, bits, B * h * w,
        H, W, h, w, T=T, KEEPS=keeps, C=C, BR=BR, BC=BC,
    )  # fmt: skip


def word(steps: int) -> torch.dtype:
    """The smallest integers that have a bit for each step."""
    return torch.uint8 if steps <= 8 else torch.int16 if steps <= 16 else torch.int32


@operator("norm_fire_backward")
def _run_back(
    y: Tensor, coef: Tensor, grad_s: Tensor, code: Tensor, batch: bool, steps: int, pools: bool,
    decay: float, gain: float, v_threshold: float, v_reset: float | None,
    v_rest: float, strict: bool, detach_reset: bool, surrogate: str, alpha: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of y, and [3, C]: sums, the first the gradient of the bias; then the weight's."""
    p = decay, gain, v_threshold, v_reset, v_rest, strict, detach_reset, surrogate, alpha
    return _back(y, coef, grad_s, code, batch, steps, pools, p, None)


def _back(
    y: Tensor, coef: Tensor, grad_s: Tensor, code: Tensor, batch: bool, steps: int, pools: bool,
    p: tuple[Any, ...], join: Join | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `_run_back`; where processes join theirs, the sums that are returned stay this one's."""
    decay, gain, *others = p
    detach_reset, surrogate = others[4:6]
    fire = fire_of(*others)
    pass_over = _back_pooled if pools else _back_plain
    neuron = constants(decay, gain, fire) | {"DETACH": detach_reset, "KIND": surrogate}
    return pass_over(y, coef, grad_s, code, batch, steps, fire.rest, neuron, join)


def _back_plain(
    y: Tensor, coef: Tensor, grad_s: Tensor, code: Tensor, batch: bool, steps: int, rest: float,
    neuron: Pass, join: Join | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Find the gradient twice: for its sums, then to write it."""
    (rows, C), grad_y = _shape(y), torch.empty_like(y)
    BR, BC = fire_tile(C, steps, 512)
    columns = tiles(C, BC)
    P = _programs(rows, BR, columns, y.device, at_once=8)
    partial, sums = torch.empty(P, 2, C, device=y.device), torch.empty(3, C, device=y.device)
    sizes = rows, steps * rows, rest
    how = neuron | {"T": steps, "ONCE": len(y) < steps, "BATCH": batch, "C": C, "BR": BR, "BC": BC}
    given = y, coef, sums, grad_s, partial, *sizes
    launch(kernels.back, (P, columns), *given, APPLY=False, num_warps=2, **how)
    _total(partial, coef, sums)
    means, grid = _joined(sums, coef, join), (tiles(rows, BR), columns)
    launch(kernels.back, grid, y, coef, means, grad_s, grad_y, *sizes, APPLY=True, **how)
    return grad_y, sums


def _back_pooled(
    y: Tensor, coef: Tensor, grad_s: Tensor, code: Tensor, batch: bool, steps: int, rest: float,
    neuron: Pass, join: Join | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Finding it through the max-pool is dear: write it behind the norm, then correct it."""
    (rows, C), (H, W), (h, w) = _shape(y), y.shape[3:], grad_s.shape[3:]
    squares, grad_y = y.shape[1] * h * w, torch.empty_like(y)
    BR, BC = fire_tile(C, steps)
    columns = tiles(C, BC)
    P = _programs(squares, BR, columns, y.device)
    partial, sums = torch.empty(4, P, 2, C, device=y.device), torch.empty(3, C, device=y.device)
    how = neuron | {"T": steps, "ONCE": len(y) < steps, "C": C, "BR": BR, "BC": BC}
    for pixel in range(4):
        given = y, coef, grad_s, code, grad_y, partial[pixel], squares, H, W, h, w, rest
        launch(kernels.back_pool, (P, columns), *given, PIXEL=pixel, maxnreg=REGISTERS, **how)
    _total(partial.flatten(0, 1), coef, sums)
    pixels, n = len(y) * rows, steps * rows
    launch(
        kernels.back_norm, (tiles(pixels, BR), columns), grad_y, y, coef,
        _joined(sums, coef, join), pixels, n, neuron["gain"], n / pixels, BATCH=batch, C=C, BR=BR,
        BC=BC,
    )  # fmt: skip
    return grad_y, sums


def _total(partial: Tensor, coef: Tensor, sums: Tensor) -> None:
    """Add up partial sums [P, 2, C]."""
    C = sums.shape[1]
    grid = (tiles(C, TALL[1]),)
    launch(kernels.total, grid, partial, coef, sums, len(partial), C=C, BP=TALL[0], BC=TALL[1])


def _joined(sums: Tensor, coef: Tensor, join: Join | None) -> Tensor:
    """Sums over all processes, as long as if this one had seen them all by itself."""
    if join is None:
        return sums
    everywhere = sums[:2].double()
    join(everywhere)
    return (everywhere * coef[4]).float()


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    y, _, _, offset, coef, onto, ctx.batch, ctx.steps, ctx.pools, _, *ctx.constants = inputs
    ctx.offset, ctx.onto = offset is not None, onto is not None
    ctx.set_materialize_grads(False)  # bits and codes have none
    ctx.save_for_backward(y, coef, output[2])


def _differentiate(ctx: Any, grad_s: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    y, coef, code = ctx.saved_tensors
    grad_y, sums = _run_back(
        y, coef, channels_last(grad_s), code, ctx.batch, ctx.steps, ctx.pools, *ctx.constants
    )
    grad_offset = sums[0] * (0.0 if ctx.batch else coef[2]) if ctx.offset else None
    return _grads(ctx, grad_y, sums, grad_offset, grad_s)


def _grads(
    ctx: Any, grad_y: Tensor, sums: Tensor, grad_offset: Tensor | None, grad_s: Tensor
) -> tuple[Tensor | None, ...]:
    """Those of the arguments of `_run`; what spikes are added to has that of the sum."""
    others = (None for _ in range(4 + len(ctx.constants)))
    learned = sums[2], sums[0], grad_offset
    return grad_y, *learned, None, grad_s if ctx.onto else None, *others


_op = Kernels("norm_fire", _run, _keep, _differentiate)


def _run_joined(join: Join, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _run(*args)


def _keep_joined(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.join = inputs[0]
    _keep(ctx, inputs[1:], output)


def _differentiate_joined(ctx: Any, grad_s: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    y, coef, code = ctx.saved_tensors
    given = y, coef, channels_last(grad_s), code, ctx.batch, ctx.steps, ctx.pools
    grad_y, sums = _back(*given, tuple(ctx.constants), ctx.join)
    grad_offset = torch.zeros_like(sums[0]) if ctx.offset else None
    return None, *_grads(ctx, grad_y, sums, grad_offset, grad_s)


_op_joined = function("norm_fire_joined", _run_joined, _keep_joined, _differentiate_joined)
"""No operator of torch: processes that talk inside it are nothing that could be exported."""


def scan(
    y: Tensor, norm: Norm, decay: float, gain: float, fire: Fire, steps: int, pools: bool,
    onto: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """See `saccade.ops.norm_lif.reference.scan`."""
    join = norm.join if norm.training else None
    with torch.no_grad():
        if join is not None:
            coef = _measure_joined(y, norm, steps, join)
        else:
            coef = _measured(y, norm, steps) if norm.training else _known(norm)
    learned = y, norm.weight, norm.bias, norm.offset
    keeps = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in learned)
    args = (
        y, norm.weight, norm.bias, norm.offset, coef, onto, norm.training, steps, pools, keeps,
        decay, gain, *scalars(fire),
    )  # fmt: skip
    s, bits, _ = _op(*args) if join is None else _op_joined(join, *args)
    if bits.numel():
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
