"""cuDNN and cuBLAS around an input that is kept as bits."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear

from saccade.kernels import bits as kernels
from saccade.ops._packed import bits_of
from saccade.ops._triton import channels_last, launch, operator, tiles


def refuses(x: Tensor, weight: Tensor, stride: int) -> str | None:
    """For CUDA; torch.compile does as well with the plain convolution."""
    if x.device.type != "cuda":
        return f"the tensors are on {x.device.type}, not cuda"
    return "torch.compile sees the plain convolution" if torch.compiler.is_compiling() else None


@operator("unpack")
def _unpacked(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """[T B H W C/8] bytes to spikes in the same order, [T B H W C]."""
    s = torch.empty(*bits.shape[:-1], 8 * bits.shape[-1], dtype=dtype, device=bits.device)
    launch(kernels.unpack, (tiles(bits.numel(), 256),), bits, s, bits.numel(), BLOCK=256)
    return s


def conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """See the reference."""
    bits = bits_of(x) if torch.is_grad_enabled() else None
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    y: Tensor = _Conv.apply(x, weight, bits, stride)  # type: ignore[no-untyped-call]
    return y


def _forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    x = channels_last(x)
    if weight.shape[-1] == 1 and stride == 1:
        rows = x.permute(0, 1, 3, 4, 2)
        return linear(rows, weight[:, :, 0, 0]).permute(0, 1, 4, 2, 3)
    y = conv2d(_frames(x), _kernel(weight), None, stride, weight.shape[-1] // 2)
    return channels_last(y.view(*x.shape[:2], *y.shape[1:]))


def _frames(x: Tensor) -> Tensor:
    """Steps and samples as one axis, channels-last also in torch's eyes."""
    return x.flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _kernel(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bits: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(x if bits is None else bits, weight)
        ctx.packed, ctx.stride = bits is not None, stride
        return _forward(x, weight, stride)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        kept, weight = ctx.saved_tensors
        x = _unpacked(kept, weight.dtype).permute(0, 1, 4, 2, 3) if ctx.packed else kept
        g, wants = channels_last(grads[0].to(weight.dtype)), ctx.needs_input_grad
        if weight.shape[-1] == 1 and ctx.stride == 1:
            g, rows = (a.permute(0, 1, 3, 4, 2) for a in (g, channels_last(x)))
            grad_x = (g @ weight[:, :, 0, 0]).permute(0, 1, 4, 2, 3) if wants[0] else None
            grad_w = g.flatten(0, 3).T @ rows.flatten(0, 3) if wants[1] else None
            return grad_x, None if grad_w is None else grad_w[:, :, None, None], None, None
        grad_x, grad_w, _ = torch.ops.aten.convolution_backward(
            _frames(g), _frames(x), _kernel(weight), None, [ctx.stride] * 2,
            [weight.shape[-1] // 2] * 2, [1, 1], False, [0, 0], 1, [wants[0], wants[1], False],
        )  # fmt: skip
        grad_x = None if grad_x is None else grad_x.view(x.shape)
        return grad_x, grad_w, None, None
