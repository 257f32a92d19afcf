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
    Kernels,
    channels_last,
    function,
    launch,
    operator,
    tiles,
)
from saccade.ops._triton import refuses as no_kernel
from saccade.ops.lif.constants import constants, fire_of, scalars
from saccade.ops.lif.reference import Fire
from saccade.ops.norm_lif.joined import Join
from saccade.ops.norm_lif.passes import (
    TALL,
    Pass,
    back_pool,
    back_sums,
    channels_last_memory,
    codes,
    correct,
    elsewhere,
    fire_steps,
    fire_tile,
    no_neuron,
    pool,
    pooled_side,
    sizes,
    sums_of,
    total,
    word,
)
from saccade.ops.norm_lif.reference import Norm


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
    if (why := no_neuron(decay, gain, fire, y.shape[2])) is not None:
        return why
    if not y.permute(0, 1, 3, 4, 2).is_contiguous():
        return "the currents are not channels-last in memory"
    return elsewhere(onto, (steps, *y.shape[1:]), y.dtype, pools) or no_kernel(y, steps)


@operator("norm_statistics", mutates=("running_mean", "running_var"))
def _measure(
    y: Tensor, weight: Tensor, bias: Tensor, offset: Tensor | None, running_mean: Tensor,
    running_var: Tensor, momentum: float, eps: float, steps: int,
) -> Tensor:  # fmt: skip
    """Coefficients [4, C]: mean, 1/sd, and the norm as a y + b."""
    (rows, C), partial = sizes(y), sums_of(y)
    coef = torch.empty(4, C, device=y.device)
    seen = steps * rows
    launch(
        kernels.statistics, (tiles(C, TALL[1]),), y, partial, weight, bias, offset, running_mean,
        running_var, coef, len(partial), len(y) * rows, seen / max(1, seen - 1), momentum, eps,
        OFFSET=offset is not None, C=C, BP=TALL[0], BC=TALL[1],
    )  # fmt: skip
    return coef


def _measure_joined(y: Tensor, norm: Norm, steps: int, join: Join) -> Tensor:
    """As `_measure`, over all processes; and [1, C], the share of this one in what they saw."""
    (rows, C), partial = sizes(y), sums_of(y)
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
    code = codes(s) if keeps else torch.empty_like(bits)
    trains = channels_last_memory(y, 1, B, C, H, W, dtype=word(steps))
    fire_steps(y, coef, trains, bits, fire.rest, steps, neuron, trains=True)
    pool(trains, s, code, bits, keeps=keeps)
    return s, bits, code


@operator("norm_fire_backward")
def _run_back(
    y: Tensor, coef: Tensor, grad_s: Tensor, code: Tensor, batch: bool, steps: int, pools: bool,
    decay: float, gain: float, v_threshold: float, v_reset: float | None,
    v_rest: float, strict: bool, detach_reset: bool, surrogate: str, alpha: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of y, and [4, C]: sums, of which the first is the bias's; the weight's; zeros."""
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
    (rows, C), grad_y = sizes(y), torch.empty_like(y)
    sums = torch.empty(4, C, device=y.device)
    total(back_sums(y, coef, grad_s, None, steps, rest, neuron), coef, sums)
    means = _joined(sums, coef, join)
    BR, BC = fire_tile(C, steps, 512)
    launch(
        kernels.back, (tiles(rows, BR), tiles(C, BC)), y, coef, means, grad_s, grad_y, None, rows,
        steps * rows, rest, T=steps, ONCE=len(y) < steps, LEAVES="before", BATCH=batch, C=C, ROW=C,
        BR=BR, BC=BC, **neuron,
    )  # fmt: skip
    return grad_y, sums


def _back_pooled(
    y: Tensor, coef: Tensor, grad_s: Tensor, code: Tensor, batch: bool, steps: int, rest: float,
    neuron: Pass, join: Join | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Finding it through the max-pool is dear: write it behind the norm, then correct it."""
    grad_y, sums = torch.empty_like(y), torch.empty(4, y.shape[2], device=y.device)
    partial = back_pool(y, coef, grad_s, code, grad_y, steps, rest, neuron)
    total(partial, coef, sums)
    correct(grad_y, y, coef, _joined(sums, coef, join), steps, neuron["gain"], batch)
    return grad_y, sums


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
    return _grads(ctx, grad_y, sums, sums[3] if ctx.batch else sums[0] * coef[2], grad_s)


def _grads(
    ctx: Any, grad_y: Tensor, sums: Tensor, grad_offset: Tensor, grad_s: Tensor
) -> tuple[Tensor | None, ...]:
    """Those of the arguments of `_run`; what spikes are added to has that of the sum."""
    others = (None for _ in range(4 + len(ctx.constants)))
    learned = sums[2], sums[0], grad_offset if ctx.offset else None
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
    return None, *_grads(ctx, grad_y, sums, sums[3], grad_s)


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
