"""Projections for inference, their norms folded into kernels of few bits."""

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from saccade.nn.layers import Projection
from saccade.nn.stems import Stem
from saccade.ops import affine_lif, conv, project_lif


class Folded(nn.Module):
    """A projection whose batch norm, by its running statistics, is part of the kernel.

    Args:
        projection: in evaluation mode, with a neuron whose charge is constant.
        dtype: of the kernel. torch.int8 rounds each output channel to 255 equal steps and takes
            integers of eight bits; its spikes leave as int8. Any other type rounds the folded
            kernel to it, and its spikes leave in it.
    """

    weight: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, projection: Projection, dtype: torch.dtype) -> None:
        super().__init__()
        norm, layer = projection.norm, projection.conv
        assert norm.running_mean is not None
        assert norm.running_var is not None
        a = (norm.weight * torch.rsqrt(norm.running_var + norm.eps)).detach()
        bias = 0.0 if layer.bias is None else layer.bias.detach()
        shift = norm.bias.detach() + (bias - norm.running_mean) * a
        weight, scale = layer.weight.detach() * a[:, None, None, None], torch.ones_like(a)
        if dtype == torch.int8:
            scale = weight.abs().amax((1, 2, 3)).clamp(min=1e-12) / 127
            weight = (weight / scale[:, None, None, None]).round()
        self.register_buffer("weight", weight.to(dtype))
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.neuron, self.pools, self.stride = projection.neuron, projection.pools, layer.stride[0]

    def forward(self, x: Shaped[Tensor, "T B C H W"]) -> Shaped[Tensor, "T B D h w"]:
        """Integers or reals in, spikes out, in the type of the kernel."""
        charge, fire = self.neuron.charge(), self.neuron.fire
        if self.weight.dtype == torch.int8:
            matrix = self.weight[:, :, 0, 0]
            s: Tensor = project_lif(x, matrix, self.scale, self.shift, *charge, fire)
            return s
        once = x[:1] if len(x) > 1 and x.stride(0) == 0 else x
        y = conv(once.to(self.weight.dtype), self.weight, self.stride)
        s = affine_lif(y, self.scale, self.shift, *charge, fire, len(x), self.pools)
        return s


class IntegerStem(Stem):
    """A stem whose tokens leave as int8: they are small integers.

    Args:
        stem: whose tokens are integers up to 127.
    """

    def __init__(self, stem: Stem) -> None:
        super().__init__()
        self.stem, self.frame, self.grid = stem, stem.frame, stem.grid

    def forward(self, x: Shaped[Tensor, "T B *frame"]) -> Shaped[Tensor, "T B C H W"]:
        """Pictures in, integers of eight bits out."""
        tokens: Tensor = self.stem(x)
        return tokens.to(torch.int8)
