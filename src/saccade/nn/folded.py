"""Projections for inference, their norms folded into kernels of few bits."""

from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from saccade.nn.layers import Projection, once, per_frame
from saccade.ops import affine_lif, conv, project_lif, sense_lif, summed


class Folded(nn.Module):
    """A projection whose batch norm, by its running statistics, is part of the kernel.

    As in `Projection`, a neuron that is watched runs by itself, on the same currents. The
    convolution's sizes have the names that they have in torch.nn.Conv2d.

    Args:
        projection: in evaluation mode, with a neuron whose charge is constant.
        dtype: of the kernel. torch.int8 rounds each output channel to 255 equal steps and takes
            integers of eight bits. Any other type rounds the folded kernel to it.
        emits: type of the spikes; that of the kernel unless given. Where it is torch.int8 and
            the kernel is not, the sums are float32: the input may be a picture.
    """

    adds_onto: ClassVar[bool] = True
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
        self.sees = self.emits == torch.int8 != dtype  # perhaps pictures, as [C H W] in memory
        order = torch.contiguous_format if self.sees else torch.channels_last
        self.register_buffer("weight", weight.to(dtype).contiguous(memory_format=order))
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.neuron, self.pools = projection.neuron, projection.pools
        self.kernel_size, self.stride, self.padding = layer.kernel_size, layer.stride, layer.padding
        self.dilation, self.groups, self.out_channels = layer.dilation, layer.groups, len(weight)

    def forward(
        self, x: Shaped[Tensor, "T B C H W"], onto: Tensor | None = None
    ) -> Shaped[Tensor, "T B D h w"]:
        """Integers or reals in, spikes out. Only what comes as int8 meets 8-bit weights as such.

        Args:
            x: their values.
            onto: what the spikes are added to, of their shape; None leaves them.
        """
        return self._fired(x, None, onto)

    def scan(
        self,
        x: Shaped[Tensor, "T B C H W"],
        state: Float[Tensor, "B D i j"] | None = None,
    ) -> tuple[Shaped[Tensor, "T B D h w"], Float[Tensor, "B D i j"]]:
        """As `forward`, and the membrane, so that a sequence may go on: it does in `state`."""
        if state is None:
            B, D = x.shape[1], self.out_channels
            h, w = (-(-n // s) for n, s in zip(x.shape[-2:], self.stride, strict=True))
            rest = x.new_full((B, h, w, D), self.neuron.fire.rest, dtype=torch.float32)
            state = rest.permute(0, 3, 1, 2)
        return self._fired(x, state), state

    def _fired(self, x: Tensor, v: Tensor | None, onto: Tensor | None = None) -> Tensor:
        """Spikes, added to `onto`: in the kernel that fires, where they are of its type."""
        there = onto if onto is not None and onto.dtype == self.emits else None
        known, cell = (self.scale, self.shift), (*self.neuron.charge(), self.neuron.fire)
        kernel, stride, eight = self.weight, self.stride[0], self.weight.dtype == torch.int8
        if self.neuron.unfusable():
            s, there = self._apart(x, v), None
        elif eight and x.dtype == torch.int8:
            there = there if self.emits == torch.int8 else None
            s = project_lif(x, kernel, *known, *cell, stride, self.pools, v, there).to(self.emits)
        elif self.sees:
            s = sense_lif(once(x), kernel, self.shift, *cell, len(x), stride, self.pools, v)
            there = None
        else:
            kernel = kernel.float() if eight else kernel
            y = conv(once(x).to(kernel.dtype), kernel, stride)
            s = affine_lif(y, *known, *cell, len(x), self.pools, self.emits, v, there)
        return s if there is not None else summed(s, onto)

    def _apart(self, x: Tensor, v: Tensor | None) -> Tensor:
        """Current, neuron and pool one by one; sums of integers are exact in float32."""
        kernel = self.weight
        if self.sees:
            x = x.to(kernel.dtype)
        if kernel.dtype == torch.int8 or self.sees:
            x, kernel = x.float(), kernel.float()
        y = conv(x.to(kernel.dtype), kernel, self.stride[0])
        wide = y.to(torch.promote_types(y.dtype, torch.float32))
        current = wide * self.scale[:, None, None] + self.shift[:, None, None]
        s: Tensor
        s, end = self.neuron(current, v, with_membrane=True)
        if v is not None:
            v.copy_(end)
        if self.pools:
            s = per_frame(lambda frames: max_pool2d(frames, 3, 2, 1), s)
        return s.to(self.emits)


class Exact(nn.Module):
    """An attention in float32 between layers whose spikes are of another type.

    Args:
        attention: whose projections take integers of any type and emit float32.
        dtype: of the spikes that leave it.
    """

    def __init__(self, attention: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention, self.dtype = attention, dtype

    def forward(self, x: Shaped[Tensor, "T B C H W"]) -> Shaped[Tensor, "T B C H W"]:
        """Integers in, spikes out."""
        s: Tensor = self.attention(x)
        return s.to(self.dtype)
