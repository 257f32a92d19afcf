"""Launches of the inference kernels; see `saccade.ops.project`."""

from typing import NamedTuple

import torch
from torch import Tensor

from saccade.kernels import project as kernels
from saccade.kernels import sense as sense_kernels
from saccade.ops._triton import FLAGS, launch, multiprocessors, operator, power_of_two, tiles
from saccade.ops._triton import refuses as no_kernel
from saccade.ops.lif.constants import constants, fire_of, scalars
from saccade.ops.lif.reference import Fire
from saccade.ops.norm_lif.passes import (
    channels_last_memory,
    elsewhere,
    fire_steps,
    pool,
    pooled_side,
    word,
)

GROUP = 16
"""Tiles of places that are worked on before the next tile of output channels."""
TAPS = 64
"""Taps of all channels together that the kernel for pictures takes at once."""
STEPS = 4
"""T up to which the accumulators of all steps fit in registers."""


def affine_refuses(
    y: Tensor, scale: Tensor, shift: Tensor, decay: float, gain: float, fire: Fire, steps: int,
    pools: bool, dtype: torch.dtype, v: Tensor | None = None, onto: Tensor | None = None,
) -> str | None:  # fmt: skip
    """For inference: it has no gradient."""
    if torch.is_grad_enabled() and y.requires_grad:
        return "it has no gradient"
    if not y.permute(0, 1, 3, 4, 2).is_contiguous():
        return "the currents are not channels-last in memory"
    if y.shape[2] % 8:
        return f"8 does not divide its {y.shape[2]} channels"
    wrong = elsewhere(onto, (steps, *y.shape[1:]), dtype, pools)
    return wrong or _misplaced(v) or no_kernel(y, steps)


def _misplaced(v: Tensor | None) -> str | None:
    """Why membranes that go on in v cannot do so in a kernel."""
    if v is None or (v.dtype == torch.float32 and v.permute(0, 2, 3, 1).is_contiguous()):
        return None
    return "the membranes are not float32 and channels-last in memory"


@operator("affine_fire", mutates=("v",))
def _affine(
    y: Tensor, scale: Tensor, shift: Tensor, v: Tensor | None, onto: Tensor | None, steps: int,
    pools: bool, dtype: torch.dtype,
    decay: float, gain: float, v_threshold: float, v_reset: float | None, v_rest: float,
    strict: bool, detach_reset: bool, surrogate: str, alpha: float,
) -> Tensor:  # fmt: skip
    fire = fire_of(v_threshold, v_reset, v_rest, strict, detach_reset, surrogate, alpha)
    _, B, C, H, W = y.shape
    coef = torch.stack((scale, shift, scale, shift)).float()
    neuron = constants(decay, gain, fire)
    if pools:
        s = channels_last_memory(y, 1, B, C, H, W, dtype=word(steps))
    else:
        s = channels_last_memory(y, steps, B, C, H, W, dtype=dtype)
    fire_steps(y, coef, s, s, fire.rest, steps, neuron, trains=pools, held=v, onto=onto)
    return _pooled(s, steps, dtype) if pools else s


def _pooled(trains: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Spikes behind the max-pool of trains [1 B C H W]."""
    _, B, C, H, W = trains.shape
    s = channels_last_memory(trains, steps, B, C, pooled_side(H), pooled_side(W), dtype=dtype)
    pool(trains, s, s, s)
    return s


def affine(
    y: Tensor, scale: Tensor, shift: Tensor, decay: float, gain: float, fire: Fire, steps: int,
    pools: bool, dtype: torch.dtype, v: Tensor | None = None, onto: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """See `saccade.ops.affine_lif`."""
    how = steps, pools, dtype, decay, gain, *scalars(fire)
    s: Tensor = _affine(y, scale, shift, v, onto, *how)
    return s


def project_refuses(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, decay: float, gain: float, fire: Fire,
    stride: int, pools: bool, v: Tensor | None = None, onto: Tensor | None = None,
) -> str | None:  # fmt: skip
    """Eight bits, channels last in memory, 16 | K, and few steps."""
    if x.dtype != torch.int8 or weight.dtype != torch.int8:
        return f"{x.dtype} spikes and {weight.dtype} weights, not int8"
    if len(x) > STEPS:
        return f"T={len(x)} is more than the {STEPS} steps that fit in registers"
    if x.shape[2] % 16 or len(weight) % 16:
        return f"16 does not divide {x.shape[2]} and {len(weight)} channels"
    rows, kernel = x.permute(0, 1, 3, 4, 2), weight.permute(0, 2, 3, 1)
    if not (rows.is_contiguous() and kernel.is_contiguous()):
        return "spikes or weights are not channels-last in memory"
    sides = (-(-n // stride) for n in x.shape[3:])
    wrong = elsewhere(onto, (*x.shape[:2], len(weight), *sides), torch.int8, pools)
    return wrong or _misplaced(v) or no_kernel(scale, len(x))


class Tile(NamedTuple):
    """Places, output channels and inputs that a program takes at once, and how it is launched."""

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int

    def programs(self, M: int, N: int, device: torch.device) -> int:
        """As many as run at the same time: one a multiprocessor of 8 warps, two of 4."""
        at_once = 8 // self.num_warps * multiprocessors(device)
        return min(tiles(M, self.BM) * tiles(N, self.BN), at_once)


def tile_of(N: int, K: int) -> Tile:
    """The fastest on an H200 of those that leave least empty; see docs/performance.md."""
    BK, BN = _least_empty(K), _least_empty(N)
    if BK == BN == 128:
        return Tile(64, 128, BK, 8, 3)
    return Tile(128, 32, BK, 4, 3) if BN == 32 else Tile(64, 64, BK, 4, 4)


def _least_empty(n: int) -> int:
    return min((128, 64, 32), key=lambda size: tiles(n, size) * size)


@operator("project_fire", mutates=("v",))
def _project(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, v: Tensor | None,
    onto: Tensor | None, stride: int, pools: bool,
    decay: float, gain: float, v_threshold: float, v_reset: float | None, v_rest: float,
    strict: bool, detach_reset: bool, surrogate: str, alpha: float,
) -> Tensor:  # fmt: skip
    fire = fire_of(v_threshold, v_reset, v_rest, strict, detach_reset, surrogate, alpha)
    (T, B, K, H, W), (N, _, side, _) = x.shape, weight.shape
    h, w = ((length - 1) // stride + 1 for length in (H, W))
    M = B * h * w
    steps, dtype = (1, word(T)) if pools else (T, torch.int8)
    tile = tile_of(N, K)
    s = channels_last_memory(x, steps, B, N, h, w, dtype=dtype)
    launch(
        kernels.project, (tile.programs(M, N, x.device),), x, weight, scale, shift, s, v, onto,
        M, H, W, h, w, fire.rest, T=T, N=N, K=K, SIDE=side, STRIDE=stride, TRAINS=pools,
        GROUP=GROUP, **tile._asdict(), **constants(decay, gain, fire), **FLAGS,
    )  # fmt: skip
    return _pooled(s, T, torch.int8) if pools else s


def project(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, decay: float, gain: float, fire: Fire,
    stride: int, pools: bool, v: Tensor | None = None, onto: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """See `saccade.ops.project_lif`."""
    how = stride, pools, decay, gain, *scalars(fire)
    s: Tensor = _project(x, weight, scale, shift, v, onto, *how)
    return s


def sense_refuses(
    x: Tensor, weight: Tensor, shift: Tensor, decay: float, gain: float, fire: Fire, steps: int,
    stride: int, pools: bool, v: Tensor | None = None,
) -> str | None:  # fmt: skip
    """Pictures as [C H W] in memory, and few taps."""
    if (taps := weight[0].numel()) > TAPS:
        return f"{taps} taps are more than the {TAPS} that a program takes at once"
    if not (x.is_contiguous() and weight.is_contiguous()):
        return "pictures or kernels lie in memory with gaps"
    if pools and len(weight) % 8:
        return f"8 does not divide its {len(weight)} channels"
    return _misplaced(v) or no_kernel(weight, steps)


@operator("sense_fire", mutates=("v",))
def _sense(
    x: Tensor, weight: Tensor, shift: Tensor, v: Tensor | None, steps: int, stride: int,
    pools: bool, decay: float, gain: float, v_threshold: float, v_reset: float | None,
    v_rest: float, strict: bool, detach_reset: bool, surrogate: str, alpha: float,
) -> Tensor:  # fmt: skip
    fire = fire_of(v_threshold, v_reset, v_rest, strict, detach_reset, surrogate, alpha)
    (t, B, C, H, W), (N, _, side, _) = x.shape, weight.shape
    h, w = ((length - 1) // stride + 1 for length in (H, W))
    left, dtype = (1, word(steps)) if pools else (steps, torch.int8)
    s = channels_last_memory(x, left, B, N, h, w, dtype=dtype)
    M, BM, BN = B * h * w, 128, min(64, max(16, power_of_two(N)))
    launch(
        sense_kernels.sense, (tiles(M, BM), tiles(N, BN)), x, weight, None, shift, None, s, None, v,
        M, H, W, h, w, fire.rest, T=steps, ONCE=t < steps, N=N, C=C, SIDE=side, STRIDE=stride,
        TRAINS=pools, BITS=False, BM=BM, BN=BN, BK=max(16, power_of_two(C * side * side)),
        PRECISION="ieee", **constants(decay, gain, fire), **FLAGS,
    )  # fmt: skip
    return _pooled(s, steps, torch.int8) if pools else s


def sense(
    x: Tensor, weight: Tensor, shift: Tensor, decay: float, gain: float, fire: Fire, steps: int,
    stride: int, pools: bool, v: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """See `saccade.ops.sense_lif`."""
    s: Tensor = _sense(x, weight, shift, v, steps, stride, pools, decay, gain, *scalars(fire))
    return s
