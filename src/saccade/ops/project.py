"""The inference half of a layer: a map whose norm is folded, and its neuron."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import max_pool2d

from saccade.ops._op import Op
from saccade.ops._triton import AVAILABLE, MISSING
from saccade.ops.lif.reference import Fire
from saccade.ops.lif.reference import scan as lif_scan


def _affine_reference(
    y: Float[Tensor, "t B C H W"],
    scale: Float[Tensor, " C"],
    shift: Float[Tensor, " C"],
    decay: float,
    gain: float,
    fire: Fire,
    steps: int,
    pools: bool,
) -> Float[Tensor, "T B C h w"]:
    """Spikes of the current scale y + shift, which is taken in at least float32.

    Args:
        y: one step (t = 1) stands for `steps` equal ones.
        scale, shift: of each channel.
        decay, gain, fire: as for `saccade.ops.lif`.
        steps: T.
        pools: whether a 3x3 max-pool of stride 2 follows.
    """
    wide = torch.promote_types(y.dtype, torch.float32)
    x = y.to(wide) * scale[:, None, None].to(wide) + shift[:, None, None].to(wide)
    s = lif_scan(x.expand(steps, *y.shape[1:]), None, decay, gain, fire)[0].to(y.dtype)
    if not pools:
        return s
    pooled = max_pool2d(s.flatten(0, 1), 3, 2, 1)
    return pooled.view(steps, -1, *pooled.shape[1:])


def _affine_example() -> tuple[Tensor, Tensor, Tensor, float, float, Fire, int, bool]:
    g = torch.Generator().manual_seed(0)
    y = torch.randn(3, 2, 5, 6, 16, generator=g).mul(64).round().div(64).permute(0, 1, 4, 2, 3)
    scale, shift = (torch.randn(16, generator=g).mul(8).round() / 8 + 1 for _ in range(2))
    return y, scale, shift, 0.5, 0.5, Fire(), 3, True


affine_lif = Op("affine_lif", _affine_reference, _affine_example, learns=False)
"""affine_lif(y, scale, shift, decay, gain, fire, steps, pools) -> spikes, for inference."""


def _project_reference(
    x: Shaped[Tensor, "T B K H W"],
    weight: Shaped[Tensor, "N K"],
    scale: Float[Tensor, " N"],
    shift: Float[Tensor, " N"],
    decay: float,
    gain: float,
    fire: Fire,
) -> Shaped[Tensor, "T B N H W"]:
    """Spikes, as int8, of integers that meet integer weights.

    Args:
        x: integers from -128 to 127.
        weight: int8; the sums are exact.
        scale, shift: of each output channel; the current is scale * sum + shift, in float32.
        decay, gain, fire: as for `saccade.ops.lif`.
    """
    rows = x.permute(0, 1, 3, 4, 2).double() @ weight.double().T
    current = (rows.float() * scale + shift).permute(0, 1, 4, 2, 3)
    return lif_scan(current, None, decay, gain, fire)[0].to(torch.int8)


def _project_example() -> tuple[Tensor, Tensor, Tensor, Tensor, float, float, Fire]:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 4, (3, 2, 4, 5, 48), generator=g).to(torch.int8).permute(0, 1, 4, 2, 3)
    weight = torch.randint(-127, 128, (32, 48), generator=g).to(torch.int8)
    return x, weight, torch.full((32,), 1 / 512), torch.ones(32) / 2, 0.5, 0.5, Fire()


project_lif = Op("project_lif", _project_reference, _project_example, learns=False)
"""project_lif(x, weight, scale, shift, decay, gain, fire) -> spikes int8, for inference."""


if AVAILABLE:
    from saccade.ops import project_triton

    affine_lif.fast("triton", refuses=project_triton.affine_refuses)(project_triton.affine)
    project_lif.fast("triton", refuses=project_triton.project_refuses)(project_triton.project)
else:
    affine_lif.lacks("triton", MISSING)
    project_lif.lacks("triton", MISSING)
