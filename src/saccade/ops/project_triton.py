"""Launches of the inference kernels; see `saccade.ops.project`."""

import torch
from torch import Tensor

from saccade.kernels import norm_lif as norm_kernels
from saccade.kernels import project as kernels
from saccade.ops._triton import FLAGS, launch, operator, tiles
from saccade.ops._triton import refuses as no_kernel
from saccade.ops.lif.constants import constants, fire_of, scalars
from saccade.ops.lif.reference import Fire
from saccade.ops.norm_lif.triton import channels_last_memory, fire_tile, pooled_side

ROWS, COLUMNS, DEPTH, WARPS, STAGES, GROUP = 64, 128, 128, 8, 3, 8
"""Tile of the product: tokens, channels and inputs at once."""
STEPS = 4
"""T up to which the accumulators of all steps fit in registers."""


def affine_refuses(
    y: Tensor, scale: Tensor, shift: Tensor, decay: float, gain: float, fire: Fire, steps: int,
    pools: bool,
) -> str | None:  # fmt: skip
    """For inference: no gradient."""
    if torch.is_grad_enabled() and y.requires_grad:
        return "it has no gradient"
    if not y.permute(0, 1, 3, 4, 2).is_contiguous():
        return "the currents are not channels-last in memory"
    return no_kernel(y, steps) or (f"{y.shape[2]} channels" if y.shape[2] % 8 else None)


@operator("affine_fire")
def _affine(
    y: Tensor, scale: Tensor, shift: Tensor, steps: int, pools: bool, decay: float, gain: float,
    v_threshold: float, v_reset: float | None, v_rest: float, strict: bool, detach_reset: bool,
    surrogate: str, alpha: float,
) -> Tensor:  # fmt: skip
    fire = fire_of(v_threshold, v_reset, v_rest, strict, detach_reset, surrogate, alpha)
    _, B, C, H, W = y.shape
    coef = torch.stack((scale, shift, scale, shift)).float()
    h, w = (pooled_side(H), pooled_side(W)) if pools else (H, W)
    s = channels_last_memory(y, steps, B, C, h, w, dtype=y.dtype)
    BR, BC = fire_tile(C, steps)
    common = {"T": steps, "ONCE": len(y) < steps, "BITS": False, "C": C, "BR": BR, "BC": BC}
    common |= constants(decay, gain, fire) | FLAGS
    grid, rows = (tiles(B * h * w, BR), tiles(C, BC)), B * h * w
    if pools:
        sizes = rows, H, W, h, w, fire.rest
        launch(norm_kernels.fire_pool, grid, y, coef, s, s, s, *sizes, **common)
    else:
        launch(norm_kernels.fire, grid, y, coef, s, s, rows, fire.rest, **common)
    return s


def affine(
    y: Tensor, scale: Tensor, shift: Tensor, decay: float, gain: float, fire: Fire, steps: int,
    pools: bool,
) -> Tensor:  # fmt: skip
    """See `saccade.ops.affine_lif`."""
    s: Tensor = _affine(y, scale, shift, steps, pools, decay, gain, *scalars(fire))
    return s


def project_refuses(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, decay: float, gain: float, fire: Fire
) -> str | None:
    """Eight bits, channels last in memory, 16 | K, and few steps."""
    if x.dtype != torch.int8 or weight.dtype != torch.int8:
        return f"{x.dtype} spikes and {weight.dtype} weights, not int8"
    if len(x) > STEPS:
        return f"T={len(x)} is more than the {STEPS} steps that fit in registers"
    if x.shape[2] % 16 or len(weight) % 16:
        return f"16 does not divide {x.shape[2]} and {len(weight)} channels"
    if not x.permute(0, 1, 3, 4, 2).is_contiguous():
        return "the spikes are not channels-last in memory"
    return no_kernel(scale, len(x))


@operator("project_fire")
def _project(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, decay: float, gain: float,
    v_threshold: float, v_reset: float | None, v_rest: float, strict: bool, detach_reset: bool,
    surrogate: str, alpha: float,
) -> Tensor:  # fmt: skip
    fire = fire_of(v_threshold, v_reset, v_rest, strict, detach_reset, surrogate, alpha)
    T, B, K, H, W = x.shape
    M, N = B * H * W, len(weight)
    s = channels_last_memory(x, T, B, N, H, W, dtype=torch.int8)
    launch(
        kernels.project, (tiles(M, ROWS) * tiles(N, COLUMNS),), x, weight, scale, shift, s, M,
        fire.rest, T=T, N=N, K=K, BM=ROWS, BN=COLUMNS, BK=DEPTH, GROUP=GROUP,
        num_warps=WARPS, num_stages=STAGES, **constants(decay, gain, fire), **FLAGS,
    )  # fmt: skip
    return s


def project(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, decay: float, gain: float, fire: Fire
) -> Tensor:
    """See `saccade.ops.project_lif`."""
    s: Tensor = _project(x, weight, scale, shift, decay, gain, *scalars(fire))
    return s
