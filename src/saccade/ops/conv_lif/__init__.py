"""A convolution with its batch norm, its neuron and, where it has one, its max-pool."""

from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor

from saccade.ops._op import Fn, Op
from saccade.ops._triton import AVAILABLE, MISSING
from saccade.ops.conv import conv
from saccade.ops.lif.reference import Fire
from saccade.ops.norm_lif import Norm, norm_lif


def _with(conv: Fn, norm_lif: Fn) -> Fn:
    """Currents, then the norm, the neuron and the pool."""

    def conv_lif(
        x: Real[Tensor, "t B C H W"],
        weight: Float[Tensor, "D C k k"],
        stride: int,
        norm: Norm,
        decay: float | Tensor,
        gain: float | Tensor,
        fire: Fire,
        steps: int,
        pools: bool,
        onto: Tensor | None = None,
    ) -> Float[Tensor, "T B D h w"]:
        y = conv(x, weight, stride)
        s: Tensor = norm_lif(y, norm, decay, gain, fire, steps, pools, onto)
        return s

    return conv_lif


def _example() -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(0)
    # whole numbers, so that every order of summation gives the same
    x = torch.randn(1, 2, 2, 6, 7, generator=g).mul(32).round()
    weight = torch.randn(8, 2, 3, 3, generator=g).mul(64).round()
    gamma, beta = (torch.randn(8, generator=g) / 8 + k for k in (1, 0.7))
    mean, var = torch.zeros(8), torch.ones(8)
    norm = Norm(weight=gamma, bias=beta, running_mean=mean, running_var=var, training=True)
    return x, weight, 1, norm, 0.5, 0.5, Fire(), 4, True


conv_lif = Op("conv_lif", _with(conv.reference, norm_lif.reference), _example)
"""conv_lif(x, weight, stride, norm, decay, gain, fire, steps, pools, onto=None) -> spikes.

One step of x stands for `steps` equal ones; the other arguments are those of `norm_lif`.
"""

if AVAILABLE:
    from saccade.ops.conv_lif import triton

    conv_lif.fast("triton", refuses=triton.refuses, slower=triton.slower)(triton.conv_lif)
    """The layer that sees pictures: its currents are found again where they are needed."""
else:
    conv_lif.lacks("triton", MISSING)

conv_lif.fast("composed", refuses=lambda *args: None)(_with(conv, norm_lif))
"""Whatever variants of `conv` and `norm_lif` run."""
