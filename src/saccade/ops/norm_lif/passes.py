"""Passes over currents and their gradients, in rows of channels; R = B*H*W rows a step."""

from typing import Any

import torch
from torch import Tensor

from saccade.kernels import norm_lif as kernels
from saccade.kernels import pool as pool_kernels
from saccade.ops._triton import FLAGS, launch, multiprocessors, power_of_two, tiles
from saccade.ops.lif.reference import Fire

Pass = dict[str, Any]
"""Keyword arguments of a kernel."""
TALL = (256, 8)
"""Partial sums and channels that are added up at once."""

SQUARES = 256
"""Of four pixels and one channel, that a program goes back through at once; half behind T = 4."""
TOGETHER = 8
"""T up to which it goes back through all four pixels of them."""


def no_neuron(decay: float | Tensor, gain: float | Tensor, fire: Fire, channels: int) -> str | None:
    """Why the kernels have no neuron of these constants."""
    if isinstance(decay, Tensor) or isinstance(gain, Tensor):
        return "decay and gain are learned here"
    if fire.detach_membrane:
        return "detach_membrane has no kernel"
    return f"8 does not divide its {channels} channels" if channels % 8 else None


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


def programs(rows: int, BR: int, columns: int, device: torch.device, at_once: int = 4) -> int:
    """Of each column, as many as leave partial sums at the same time."""
    return max(1, min(tiles(rows, BR), at_once * multiprocessors(device) // columns))


def sizes(y: Tensor) -> tuple[int, int]:
    """Rows of a step, and channels."""
    return y.shape[1] * y.shape[3] * y.shape[4], y.shape[2]


def pooled_side(side: int) -> int:
    """Of a side behind the max-pool."""
    return (side - 1) // 2 + 1


def channels_last_memory(y: Tensor, *shape: int, dtype: torch.dtype) -> Tensor:
    """Memory for [T B C H W] of this shape."""
    T, B, C, H, W = shape
    return torch.empty(T, B, H, W, C, dtype=dtype, device=y.device).permute(0, 1, 4, 2, 3)


def word(steps: int) -> torch.dtype:
    """The smallest integers that have a bit for each step."""
    return torch.uint8 if steps <= 8 else torch.int16 if steps <= 16 else torch.int32


def taps_a_word(steps: int) -> int:
    """How many steps share a word that says where pooled spikes came from, four bits each."""
    return 4 if steps <= 4 else 8


def codes(s: Tensor) -> Tensor:
    """Memory for those words, of pooled spikes [T B C h w]."""
    T, *shape = s.shape
    dtype = torch.int16 if taps_a_word(T) == 4 else torch.int32
    return channels_last_memory(s, tiles(T, taps_a_word(T)), *shape, dtype=dtype)


def sums_of(y: Tensor) -> Tensor:
    """Of each channel, shifted by its first value, and of its square: partial ones [P, 2, C]."""
    (rows, C), frames = sizes(y), len(y)
    BR, BC = fire_tile(C, 1, 4096)
    P = programs(frames * rows, BR, tiles(C, BC), y.device)
    partial = torch.empty(P, 2, C, device=y.device)
    grid = P, tiles(C, BC)
    launch(kernels.sums, grid, y, partial, frames * rows, C=C, BR=BR, BC=BC, num_warps=8)
    return partial


def fire_steps(
    y: Tensor, coef: Tensor, s: Tensor | None, bits: Tensor, rest: float, steps: int,
    neuron: Pass, *,
    keeps: bool = False, trains: bool = False, held: Tensor | None = None,
    onto: Tensor | None = None, row: int | None = None,
) -> None:  # fmt: skip
    """Spikes of the current coef[2] y + coef[3] to `s`; or their trains, [1 B C H W] words.

    Where there is no `s` they are left as bits alone.

    Membranes begin at rest, or in `held` [B C H W], where they stay. Spikes are added to `onto`.
    Rows of y are C numbers apart, or `row`.
    """
    rows, C = sizes(y)
    BR, BC = fire_tile(C, steps)
    launch(
        kernels.fire, (tiles(rows, BR), tiles(C, BC)), y, coef, s, bits, held, onto, rows, rest,
        T=steps, ONCE=len(y) < steps, BITS=keeps, TRAINS=trains, C=C, ROW=row or C, BR=BR, BC=BC,
        **neuron, **FLAGS,
    )  # fmt: skip


def pool(trains: Tensor, s: Tensor, code: Tensor, bits: Tensor, *, keeps: bool = False) -> None:
    """The 3x3 max-pool of stride 2 of trains [1 B C H W] to spikes [T B C h w].

    Where it `keeps` what the way back needs, bits of the spikes and `codes` of them are written.
    """
    (T, B, C, h, w), (H, W) = s.shape, trains.shape[3:]
    BR, BC = fire_tile(C, T if keeps else 1)
    launch(
        pool_kernels.pool, (tiles(B * h * w, BR), tiles(C, BC)), trains, s, code, bits, B * h * w,
        H, W, h, w, T=T, KEEPS=keeps, LONG=taps_a_word(T), C=C, BR=BR, BC=BC,
    )  # fmt: skip


def back_sums(
    y: Tensor, coef: Tensor, grad_s: Tensor, out: Tensor | None, steps: int, rest: float,
    neuron: Pass, *, row: int | None = None,
) -> Tensor:  # fmt: skip
    """Of the gradient behind the norm its two sums, partial ones [P, 2, C].

    Or that gradient itself to `out`, and its first sums. Rows of y and `out` are C numbers apart,
    or `row`.
    """
    rows, C = sizes(y)
    BR, BC = fire_tile(C, steps, 512)
    columns = tiles(C, BC)
    P = programs(rows, BR, columns, y.device, at_once=8)
    partial = torch.empty(P, 2, C, device=y.device)
    leaves, warps = ("sums", 2) if out is None else ("behind", 4)
    launch(
        kernels.back, (P, columns), y, coef, None, grad_s, out, partial, rows, steps * rows, rest,
        T=steps, ONCE=len(y) < steps, LEAVES=leaves, BATCH=False, C=C, ROW=row or C, BR=BR, BC=BC,
        num_warps=warps, **neuron,
    )  # fmt: skip
    return partial


def back_pool(
    y: Tensor, coef: Tensor, grad_s: Tensor, code: Tensor, out: Tensor, steps: int, rest: float,
    neuron: Pass,
) -> Tensor:  # fmt: skip
    """The gradient behind the norm to `out`, through the max-pool; partial sums [P, 2, C] of it."""
    (_, B, C, H, W), (h, w) = y.shape, grad_s.shape[3:]
    BC = min(64, power_of_two(C))
    columns, BR = tiles(C, BC), max(1, (SQUARES if steps <= 4 else SQUARES // 2) // BC)
    P = programs(B * h, 1, columns, y.device, at_once=16)
    # more steps of four pixels neither fit in registers nor are compiled in reasonable time
    shares = [(0, 3)] if steps <= TOGETHER else [(pixel, pixel) for pixel in range(4)]
    partial = torch.empty(len(shares), P, 2, C, device=y.device)
    for n, (first, last) in enumerate(shares):
        launch(
            kernels.back_pool, (P, columns), y, coef, grad_s, code, out, partial[n], B, H, W, h, w,
            rest, FIRST=first, LAST=last, T=steps, ONCE=len(y) < steps, LONG=taps_a_word(steps),
            C=C, BR=BR, BC=BC, **neuron,
        )  # fmt: skip
    return partial.flatten(0, 1)


def correct(
    g: Tensor, y: Tensor, coef: Tensor, sums: Tensor, steps: int, gain: float, batch: bool
) -> None:
    """From the gradient behind the norm to that before it, in place."""
    (rows, C), n = sizes(y), steps * sizes(y)[0]
    pixels, (BR, BC) = len(y) * rows, fire_tile(C, steps)
    launch(
        kernels.back_norm, (tiles(pixels, BR), tiles(C, BC)), g, y, coef, sums, pixels, n, gain,
        n / pixels, BATCH=batch, C=C, BR=BR, BC=BC,
    )  # fmt: skip


def total(partial: Tensor, coef: Tensor, sums: Tensor) -> None:
    """Add up partial sums [P, 2, C]."""
    C = sums.shape[1]
    grid = (tiles(C, TALL[1]),)
    launch(kernels.total, grid, partial, coef, sums, len(partial), C=C, BP=TALL[0], BC=TALL[1])
