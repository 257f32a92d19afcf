"""Linear maps of one input, each with its batch norm and its neuron."""

from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor

from saccade.ops._op import Fn, Op
from saccade.ops._triton import AVAILABLE, MISSING
from saccade.ops.conv import convs
from saccade.ops.lif.reference import Fire
from saccade.ops.linear_lif.layers import apart
from saccade.ops.norm_lif import Norm, norm_lif


def _with(convs: Fn, norm_lif: Fn) -> Fn:
    """Currents of all layers, then the norm and the neuron of each."""

    def linear_lif(
        x: Real[Tensor, "t B C H W"], steps: int, *layers: Any
    ) -> tuple[Float[Tensor, "T B _ H W"], ...]:
        each = apart(layers)
        ys = convs(x, 1, *(layer.weight for layer in each))
        return tuple(
            norm_lif(y, n.norm, n.decay, n.gain, n.fire, steps, False)
            for y, n in zip(ys, each, strict=True)
        )

    return linear_lif


def _example() -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 16, (3, 4, 5, 6, 16), generator=g).float().permute(0, 1, 4, 2, 3)
    layers: list[Any] = []
    for n in (24, 16):
        weight = torch.randn(n, 16, 1, 1, generator=g).mul(128).round()
        gamma, beta = (torch.randn(n, generator=g) / 8 + k for k in (1, 0.7))
        norm = Norm(
            weight=gamma,
            bias=beta,
            running_mean=torch.zeros(n),
            running_var=torch.ones(n),
            training=True,
        )
        layers += [weight, norm, 0.5, 0.5, Fire()]
    return x, 3, *layers


linear_lif = Op("linear_lif", _with(convs.reference, norm_lif.reference), _example)
"""linear_lif(x, steps, *layers) -> spikes of each: five arguments a layer, see `layers.Layer`.

One step of x stands for `steps` equal ones.
"""

if AVAILABLE:
    from saccade.ops.linear_lif import triton

    linear_lif.fast("triton", refuses=triton.refuses, slower=triton.slower)(triton.linear_lif)
    """Norms and their gradients from the Gram matrix of x: no pass over currents to measure."""
else:
    linear_lif.lacks("triton", MISSING)

linear_lif.fast("composed", refuses=lambda *args: None)(_with(convs, norm_lif))
"""Whatever variants of `convs` and `norm_lif` run."""
