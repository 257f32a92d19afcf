"""Convolutions of every step of every sample: the synapses."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

from saccade.ops._op import Op
from saccade.ops._triton import AVAILABLE, MISSING
from saccade.ops.conv import onednn


def _reference(
    x: Float[Tensor, "T B C H W"], weight: Float[Tensor, "D C k k"], stride: int
) -> Float[Tensor, "T B D h w"]:
    """Square kernel, without bias; padding k // 2 keeps the grid where the stride is 1."""
    y = conv2d(x.flatten(0, 1), weight, None, stride, weight.shape[-1] // 2)
    return y.view(*x.shape[:2], *y.shape[1:])


def _example() -> tuple[Tensor, Tensor, int]:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 5, 6, 16, generator=g).round().permute(0, 1, 4, 2, 3)
    # weights on a grid of 1/64: every order of summation gives the same
    return x, torch.randn(8, 16, 3, 3, generator=g).mul(16).round() / 64, 1


def _each_reference(
    x: Float[Tensor, "T B C H W"], stride: int, *weights: Float[Tensor, "_ C k k"]
) -> tuple[Tensor, ...]:
    """Of one input, with the kernels of several layers."""
    return tuple(_reference(x, weight, stride) for weight in weights)


def _each_example() -> tuple[Any, ...]:
    x, weight, stride = _example()
    return x, stride, weight, -weight[:5], weight[2:]


conv = Op("conv", _reference, _example)
"""conv(x, weight, stride) -> currents."""

convs = Op("convs", _each_reference, _each_example)
"""convs(x, stride, *weights) -> currents of each."""

if AVAILABLE:
    from saccade.ops.conv import packed

    conv.fast("packed", refuses=packed.refuses)(packed.conv)
    """Keeps the bits of its input for the backward pass; 1x1 kernels are matrix products."""
    convs.fast("packed", refuses=packed.refuses)(packed.convs)
    """The same; the gradients of the input are added up in the products."""
else:
    conv.lacks("packed", MISSING)
    convs.lacks("packed", MISSING)

conv.fast("onednn", refuses=onednn.refuses)(onednn.conv)
"""Channels last in memory, as the neuron behind it wants them on a CPU."""


@convs.fast("composed", refuses=lambda *args: None)
def _each(x: Tensor, stride: int, *weights: Tensor) -> tuple[Tensor, ...]:
    """Whatever variant of `conv` runs, one after the other."""
    return tuple(conv(x, weight, stride) for weight in weights)
