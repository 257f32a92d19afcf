"""The inference half of a layer: a map whose norm is folded, and its neuron."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

from saccade.ops import project_numba
from saccade.ops._op import Op
from saccade.ops._triton import AVAILABLE, MISSING
from saccade.ops.conv import conv
from saccade.ops.lif import lif
from saccade.ops.lif.reference import Fire
from saccade.ops.lif.reference import scan as lif_scan
from saccade.ops.norm_lif.reference import summed


def _affine_reference(
    y: Float[Tensor, "t B C H W"],
    scale: Float[Tensor, " C"],
    shift: Float[Tensor, " C"],
    decay: float,
    gain: float,
    fire: Fire,
    steps: int,
    pools: bool,
    dtype: torch.dtype,
    v: Float[Tensor, "B C H W"] | None = None,
    onto: Tensor | None = None,
) -> Shaped[Tensor, "T B C h w"]:
    """Spikes of the current scale y + shift, which is taken in at least float32.

    Args:
        y: one step (t = 1) stands for `steps` equal ones.
        scale, shift: of each channel.
        decay, gain, fire: as for `saccade.ops.lif`.
        steps: T.
        pools: whether a 3x3 max-pool of stride 2 follows.
        dtype: of the spikes.
        v: the membrane before the first step, float32; in it lies that behind the last one
            afterwards. None begins at rest.
        onto: what the spikes are added to, of their shape; None leaves them.
    """
    x = _current(y, scale, shift, steps)
    return summed(_fired(lif_scan, x, v, decay, gain, fire, pools, dtype), onto)


def _current(y: Tensor, scale: Tensor, shift: Tensor, steps: int) -> Tensor:
    wide = torch.promote_types(y.dtype, torch.float32)
    x = y.to(wide) * scale[:, None, None].to(wide) + shift[:, None, None].to(wide)
    return x.expand(steps, *y.shape[1:])


def _fired(
    scan: Callable[..., tuple[Tensor, Tensor]], current: Float[Tensor, "T B C H W"],
    v: Tensor | None, decay: float, gain: float, fire: Fire, pools: bool, dtype: torch.dtype,
) -> Shaped[Tensor, "T B C h w"]:  # fmt: skip
    """Spikes of `lif`, or of its reference, behind the pool; membranes go on in v."""
    s, end = scan(current, v, decay, gain, fire)
    if v is not None:
        v.copy_(end)
    return _pooled(s, pools).to(dtype)


def _pooled(s: Float[Tensor, "T B C H W"], pools: bool) -> Float[Tensor, "T B C h w"]:
    if not pools:
        return s
    frames = max_pool2d(s.flatten(0, 1), 3, 2, 1)
    return frames.view(len(s), -1, *frames.shape[1:])


def _affine_example() -> tuple[Tensor, Tensor, Tensor, float, float, Fire, int, bool, torch.dtype]:
    g = torch.Generator().manual_seed(0)
    y = torch.randn(3, 2, 5, 6, 16, generator=g).mul(64).round().div(64).permute(0, 1, 4, 2, 3)
    scale, shift = (torch.randn(16, generator=g).mul(8).round() / 8 + 1 for _ in range(2))
    return y, scale, shift, 0.5, 0.5, Fire(), 3, True, torch.float32


affine_lif = Op("affine_lif", _affine_reference, _affine_example, learns=False)
"""affine_lif(y, scale, shift, decay, gain, fire, steps, pools, dtype, v=None, onto=None) -> spikes,
for inference."""


def _project_reference(
    x: Shaped[Tensor, "T B K H W"],
    weight: Shaped[Tensor, "N K k k"],
    scale: Float[Tensor, " N"],
    shift: Float[Tensor, " N"],
    decay: float,
    gain: float,
    fire: Fire,
    stride: int,
    pools: bool,
    v: Float[Tensor, "B N i j"] | None = None,
    onto: Tensor | None = None,
) -> Shaped[Tensor, "T B N h w"]:
    """Spikes, as int8, of integers that meet integer weights.

    Args:
        x: integers from -128 to 127.
        weight: int8; the sums are exact.
        scale, shift: of each output channel; the current is scale * sum + shift, in float32.
        decay, gain, fire: as for `saccade.ops.lif`.
        stride: of the convolution, whose padding is k // 2.
        pools: whether a 3x3 max-pool of stride 2 follows.
        v, onto: as for `affine_lif`.
    """
    frames = x.flatten(0, 1).double()
    sums = conv2d(frames, weight.double(), None, stride, weight.shape[-1] // 2).float()
    y = _current(sums.view(len(x), -1, *sums.shape[1:]), scale, shift, len(x))
    return summed(_fired(lif_scan, y, v, decay, gain, fire, pools, torch.int8), onto)


def _project_example() -> tuple[Tensor, Tensor, Tensor, Tensor, float, float, Fire, int, bool]:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 4, (3, 2, 4, 5, 48), generator=g).to(torch.int8).permute(0, 1, 4, 2, 3)
    weight = torch.randint(-127, 128, (32, 3, 3, 48), generator=g).to(torch.int8)
    scale, shift = torch.full((32,), 1 / 1024), torch.ones(32) / 2
    return x, weight.permute(0, 3, 1, 2), scale, shift, 0.5, 0.5, Fire(), 1, True


project_lif = Op("project_lif", _project_reference, _project_example, learns=False)
"""project_lif(x, weight, scale, shift, decay, gain, fire, stride, pools, v=None, onto=None) -> int8
spikes."""


def _sense_reference(
    x: Shaped[Tensor, "t B C H W"],
    weight: Float[Tensor, "N C k k"],
    shift: Float[Tensor, " N"],
    decay: float,
    gain: float,
    fire: Fire,
    steps: int,
    stride: int,
    pools: bool,
    v: Float[Tensor, "B N i j"] | None = None,
) -> Shaped[Tensor, "T B N h w"]:
    """Spikes, as int8, of numbers that meet a folded kernel; sums and currents are float32.

    Args:
        x: pictures or frames, rounded to the type of the kernel; one step (t = 1) stands for
            `steps` equal ones.
        weight: of floating point.
        shift: of each output channel.
        decay, gain, fire: as for `saccade.ops.lif`.
        steps: T.
        stride: of the convolution, whose padding is k // 2.
        pools: whether a 3x3 max-pool of stride 2 follows.
        v: as for `affine_lif`.
    """
    frames, kernel = x.flatten(0, 1).to(weight.dtype).float(), weight.float()
    y = conv2d(frames, kernel, None, stride, weight.shape[-1] // 2) + shift[:, None, None]
    current = y.view(len(x), -1, *y.shape[1:]).expand(steps, -1, *y.shape[1:])
    return _fired(lif_scan, current, v, decay, gain, fire, pools, torch.int8)


def _sense_example() -> tuple[Tensor, Tensor, Tensor, float, float, Fire, int, int, bool]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 3, 6, 5, generator=g).mul(8).round() / 8
    weight = torch.randn(16, 3, 3, 3, generator=g).mul(8).round() / 32
    return x, weight, torch.ones(16) / 2, 0.5, 0.5, Fire(), 3, 1, True


sense_lif = Op("sense_lif", _sense_reference, _sense_example, learns=False)
"""sense_lif(x, weight, shift, decay, gain, fire, steps, stride, pools, v=None) -> spikes int8."""


if AVAILABLE:
    from saccade.ops import project_triton

    affine_lif.fast("triton", refuses=project_triton.affine_refuses)(project_triton.affine)
    project_lif.fast("triton", refuses=project_triton.project_refuses)(project_triton.project)
    sense_lif.fast("triton", refuses=project_triton.sense_refuses)(project_triton.sense)
else:
    for op in (affine_lif, project_lif, sense_lif):
        op.lacks("triton", MISSING)

affine_lif.fast("numba", refuses=project_numba.affine_refuses)(project_numba.affine)
project_lif.fast("numba", refuses=project_numba.project_refuses)(project_numba.project)
"""Only inputs that are not 0 cost anything."""


@affine_lif.fast("composed", refuses=lambda *args: None)
def _affine_composed(
    y: Tensor, scale: Tensor, shift: Tensor, decay: float, gain: float, fire: Fire, steps: int,
    pools: bool, dtype: torch.dtype, v: Tensor | None = None, onto: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Whatever variant of `lif` runs."""
    x = _current(y, scale, shift, steps)
    return summed(_fired(lif, x, v, decay, gain, fire, pools, dtype), onto)


@project_lif.fast("composed", refuses=project_numba.overflows)
def _project_composed(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, decay: float, gain: float, fire: Fire,
    stride: int, pools: bool, v: Tensor | None = None, onto: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Whatever variants of `conv` and `affine_lif` run, in float32, which holds the sums."""
    y = conv(x.float(), weight.float(), stride)
    s: Tensor = affine_lif(y, scale, shift, decay, gain, fire, len(x), pools, torch.int8, v, onto)
    return s


@sense_lif.fast("composed", refuses=lambda *args: None)
def _sense_composed(
    x: Tensor, weight: Tensor, shift: Tensor, decay: float, gain: float, fire: Fire, steps: int,
    stride: int, pools: bool, v: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Whatever variants of `conv` and `affine_lif` run, in float32 on rounded numbers."""
    y = conv(x.to(weight.dtype).float(), weight.float(), stride)
    s: Tensor = affine_lif(
        y, torch.ones_like(shift), shift, decay, gain, fire, steps, pools, torch.int8, v
    )
    return s
