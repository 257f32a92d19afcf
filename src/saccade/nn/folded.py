"""Projections for inference, their norms folded into kernels of few bits."""

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from saccade.nn.layers import Projection
from saccade.ops import affine_lif, conv, project_lif, sense_lif


class Folded(nn.Module):
    """A projection whose batch norm, by its running statistics, is part of the kernel.

    Args:
        projection: in evaluation mode, with a neuron whose charge is constant.
        dtype: of the kernel. torch.int8 rounds each output channel to 255 equal steps and takes
            integers of eight bits. Any other type rounds the folded kernel to it.
        emits: type of the spikes: that of the kernel, or torch.int8.
    """

    weight: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(
        self, projection: Projection, dtype: torch.dtype, *, emits: torch.dtype | None = None
    ) -> None:
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
        self.emits = emits or dtype
        sees = dtype != self.emits  # pictures, as [C H W] in memory
        order = torch.contiguous_format if sees else torch.channels_last
        self.register_buffer("weight", weight.to(dtype).contiguous(memory_format=order))
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.neuron, self.pools, self.stride = projection.neuron, projection.pools, layer.stride[0]

    def forward(self, x: Shaped[Tensor, "T B C H W"]) -> Shaped[Tensor, "T B D h w"]:
        """Integers or reals in, spikes out."""
        known, cell = (self.scale, self.shift), (*self.neuron.charge(), self.neuron.fire)
        if self.weight.dtype == torch.int8:
            s: Tensor = project_lif(x, self.weight, *known, *cell, self.stride, self.pools)
            return s
        once = x[:1] if len(x) > 1 and x.stride(0) == 0 else x
        if self.emits != self.weight.dtype:
            s = sense_lif(once, self.weight, self.shift, *cell, len(x), self.stride, self.pools)
            return s
        y = conv(once.to(self.weight.dtype), self.weight, self.stride)
        s = affine_lif(y, *known, *cell, len(x), self.pools, self.emits)
        return s
