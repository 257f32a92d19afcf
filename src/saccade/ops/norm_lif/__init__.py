"""What stands before a neuron, and the neuron: batch norm, LIF over T, and a max-pool behind it."""

import torch
from torch import Tensor

from saccade.ops._op import Op
from saccade.ops._triton import AVAILABLE, MISSING
from saccade.ops.lif.reference import Fire
from saccade.ops.norm_lif import composed, numba
from saccade.ops.norm_lif.joined import Join as Join
from saccade.ops.norm_lif.reference import Norm as Norm
from saccade.ops.norm_lif.reference import scan
from saccade.ops.norm_lif.reference import summed as summed


def _example() -> tuple[Tensor, Norm, float, float, Fire, int, bool]:
    g = torch.Generator().manual_seed(0)
    y = torch.randn(3, 2, 5, 6, 16, generator=g).permute(0, 1, 4, 2, 3)  # channels-last in memory
    weight, bias, mean, offset = (torch.randn(16, generator=g) / 8 + k for k in (2, 0.5, 1, 1))
    norm = Norm(
        weight=weight,
        bias=bias,
        running_mean=mean,
        running_var=weight.square(),
        training=False,
        offset=offset,
    )
    return y, norm, 0.5, 0.5, Fire(), 3, True


norm_lif = Op("norm_lif", scan, _example)
"""norm_lif(y, norm, decay, gain, fire, steps, pools, onto=None) -> spikes: see `reference.scan`."""

if AVAILABLE:
    from saccade.ops.norm_lif import triton

    norm_lif.fast("triton", refuses=triton.refuses)(triton.scan)
    """One pass over y to measure it and one to fire; only y is kept for the backward pass."""
else:
    norm_lif.lacks("triton", MISSING)

norm_lif.fast("numba", refuses=numba.refuses)(numba.scan)
"""The same on a CPU."""

norm_lif.fast("composed", refuses=lambda *args: None)(composed.scan)
"""torch's batch norm and pool around whatever variant of `lif` runs."""
