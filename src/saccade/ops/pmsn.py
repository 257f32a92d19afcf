"""The soma of the PMSN neuron: integrate what is positive, fire, drop whole thresholds.

Source: Chen et al., arXiv:2408.14917; code xychen-comp/PMSN @5288a94. Equation: PMSN-3.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from saccade.ops._op import Op
from saccade.ops.surrogate import spike

Current = Float[Tensor, "T *dims"]


def _soma_reference(y: Current, theta: float) -> Current:
    """Eq. PMSN-3 step by step: v = (v mod theta) + relu(y_t), a spike where v >= theta.

    A spike takes away all whole multiples of theta, not one. No gradient passes through the
    carried membrane, so a spike answers to the current of its own step alone.
    """
    v = torch.zeros_like(y[0])
    spikes = []
    for y_t in y.relu():
        h = v + y_t
        spikes.append(_fire(h, theta))
        v = (h - (h / theta).floor() * theta).detach()
    return torch.stack(spikes)


def _fire(h: Tensor, theta: float) -> Tensor:
    """1[h >= theta]; its derivative is the triangle max(0, 1 - |h - theta|)."""
    return spike(h - theta, "triangle", 1.0)


def _example() -> tuple[Tensor, float]:
    g = torch.Generator().manual_seed(0)  # on a grid of 1/64, so that sums are exact
    return torch.randn(40, 2, 3, generator=g).mul(64).round() / 64, 1.0


soma = Op("pmsn_soma", _soma_reference, _example)
"""soma(y, theta) -> spikes, over axis 0. Bit-equal unless rounding decides a tie."""


@soma.fast("cumulative", refuses=lambda y, theta: None)
def _soma_cumulative(y: Current, theta: float) -> Current:
    """All steps at once: what was integrated before, less the whole thresholds in it.

    The running sum is kept in float64: it grows with T, and its fraction decides.
    """
    charge = y.relu()
    total = charge.detach().double().cumsum(0)
    before = torch.cat([torch.zeros_like(total[:1]), total[:-1]])
    carried = before - (before / theta).floor() * theta
    return _fire(charge + carried.to(y.dtype), theta)
