"""Charge, fire, reset over time: the recurrence that every neuron of the library runs."""

import torch
from torch import Tensor

from saccade.ops._op import Op
from saccade.ops._triton import AVAILABLE, MISSING
from saccade.ops.lif import analytic, numba
from saccade.ops.lif.reference import Fire as Fire
from saccade.ops.lif.reference import scan


def _example() -> tuple[Tensor, Tensor, float, float, Fire]:
    g = torch.Generator().manual_seed(0)
    # currents on a grid of 1/64 make exact ties with the threshold
    x = torch.randn(5, 3, 16, generator=g).mul(160).add(32).round() / 64
    v0 = torch.rand(3, 16, generator=g).mul(64).round() / 64
    return x, v0, 0.5, 0.5, Fire()


lif = Op("lif", scan, _example)
"""lif(x, v0, decay, gain, fire) -> (spikes, v_T): see `saccade.ops.lif.reference.scan`."""

if AVAILABLE:
    from saccade.ops.lif import triton

    lif.fast("triton", refuses=triton.refuses)(triton.scan)
    """One pass over the currents each way, on a GPU; nothing but the currents is kept."""
else:
    lif.lacks("triton", MISSING)

lif.fast("numba", refuses=numba.refuses)(numba.scan)
"""The same on a CPU."""

lif.fast("analytic", refuses=analytic.refuses)(analytic.scan)
