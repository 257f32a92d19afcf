"""Inference with folded norms on a CPU: layers of 8-bit weights cost what their inputs fire."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.weak import WeakTensorKeyDictionary

from saccade.ops._numba import DTYPES, LANES, array, cell, fresh, nothing, run
from saccade.ops._numba import refuses as no_kernel
from saccade.ops.lif.reference import Fire
from saccade.ops.norm_lif.numba import fire as fire_rows
from saccade.ops.norm_lif.numba import learned, pooled_side, rows
from saccade.ops.norm_lif.reference import summed

EXACT = 2**24
"""Whole numbers up to here are exact in float32."""
_LAID: "WeakTensorKeyDictionary" = WeakTensorKeyDictionary()


def affine_refuses(
    y: Tensor, scale: Tensor, shift: Tensor, decay: float, gain: float, fire: Fire, steps: int,
    pools: bool, dtype: torch.dtype, v: Tensor | None = None, onto: Tensor | None = None,
) -> str | None:  # fmt: skip
    """For inference: no gradient; channels last in memory."""
    if torch.is_grad_enabled() and y.requires_grad:
        return "it has no gradient"
    if not rows(y).is_contiguous():
        return "the currents are not channels-last in memory"
    if dtype not in (*DTYPES, torch.int8):
        return f"{str(dtype).removeprefix('torch.')} spikes are left to torch"
    return no_kernel(y) or _cannot_hold(v)


def _cannot_hold(v: Tensor | None) -> str | None:
    if v is None or (v.dtype == torch.float32 and v.permute(0, 2, 3, 1).is_contiguous()):
        return None
    return "the membranes are not float32, channels-last in memory"


def affine(
    y: Tensor, scale: Tensor, shift: Tensor, decay: float, gain: float, fire: Fire, steps: int,
    pools: bool, dtype: torch.dtype, v: Tensor | None = None, onto: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """See `saccade.ops.affine_lif`."""
    p = cell(decay, gain, fire)
    return summed(fire_rows(y, learned(scale), learned(shift), p, steps, pools, dtype, v), onto)


def project_refuses(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, decay: float, gain: float, fire: Fire,
    stride: int, pools: bool, v: Tensor | None = None, onto: Tensor | None = None,
) -> str | None:  # fmt: skip
    """Eight bits, nothing below 0, and sums that float32 holds."""
    if x.dtype != torch.int8 or weight.dtype != torch.int8:
        return f"{x.dtype} spikes and {weight.dtype} weights, not int8"
    if why := no_kernel(x, (torch.int8,)) or _cannot_hold(v):
        return why
    if not x.numel():
        return "there are no inputs"
    if weight.shape[-1] % 2 == 0:
        return f"the side of its kernel is even, {weight.shape[-1]}"
    low, high = _bounds(x)
    if low < 0:
        return f"the inputs reach down to {low}; spikes and their sums begin at 0"
    return _too_large(weight, high)


def _bounds(x: Tensor) -> tuple[int, int]:
    low, high = rows(x).flatten().aminmax()  # along memory, which is fastest
    return int(low), int(high)


def _too_large(weight: Tensor, most: int) -> str | None:
    if most * 128 * weight[0].numel() > EXACT:
        return f"sums of {weight[0].numel()} inputs up to {most} may need more than 24 bits"
    return None


def overflows(x: Tensor, weight: Tensor, *args: Any) -> str | None:
    """Why float32 may not hold the sums of an 8-bit layer, or None where it does."""
    if torch.compiler.is_compiling() or not x.numel():
        return "how large the inputs are is not known"
    low, high = _bounds(x)
    return _too_large(weight, max(-low, high))


def project(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, decay: float, gain: float, fire: Fire,
    stride: int, pools: bool, v: Tensor | None = None, onto: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """See `saccade.ops.project_lif`."""
    from saccade.kernels import cpu_project as kernels

    T, B, _, H, W = x.shape
    N, side = len(weight), weight.shape[-1]
    h, w = ((n - 1) // stride + 1 for n in (H, W))
    seen, s = rows(x).contiguous(), fresh(T, B, h, w, N, dtype=torch.int8)
    most = max(1, int(seen.max()))
    both: Any = array(seen), array(s)
    if side == stride == 1:  # places have no neighbours: all of them are one row
        both = (z.reshape(T, 1, 1, B * H * W, -1) for z in both)
    given, out = both
    held = nothing() if v is None else array(v.permute(0, 2, 3, 1), -1)
    known = learned(scale), learned(shift), held
    p = cell(decay, gain, fire)
    run(kernels.project, given, array(_laid(weight)), side, stride, *known, out, most, p)
    if pools:
        full, s = s, fresh(T, B, pooled_side(h), pooled_side(w), N, dtype=torch.int8)
        run(kernels.pool, *(array(z.flatten(0, 1)) for z in (full, s)))
    return summed(s.permute(0, 1, 4, 2, 3), onto)


def _laid(weight: Tensor) -> Tensor:
    """Kernels [N K k k] as `saccade.kernels.cpu_project` reads them; made anew when they change."""
    if weight.is_inference():  # nobody knows when they change
        return _lay(weight)
    if weight not in _LAID or _LAID[weight][1] != weight._version:
        _LAID[weight] = _lay(weight), weight._version
    laid: Tensor = _LAID[weight][0]
    return laid


def _lay(weight: Tensor) -> Tensor:
    wide, N = 4 * LANES, len(weight)
    matrix = pad(weight.permute(2, 3, 1, 0).flatten(0, 2), (0, -N % LANES)).to(torch.int16)
    cut = matrix[:, : N // wide * wide], matrix[:, N // wide * wide :]
    parts = (
        z.reshape(len(z), z.shape[1] // size, size).transpose(0, 1).flatten()
        for z, size in zip(cut, (wide, LANES), strict=True)
    )
    return torch.cat(list(parts))
