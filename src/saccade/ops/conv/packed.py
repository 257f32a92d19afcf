"""cuDNN and cuBLAS around an input that is kept as bits."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear

from saccade.kernels import bits as kernels
from saccade.ops._packed import bits_of
from saccade.ops._triton import channels_last, first, last, launch, operator, tiles


def refuses(x: Tensor, *others: Any) -> str | None:
    """For CUDA; torch.compile does as well with the plain convolution."""
    if x.device.type != "cuda":
        return f"the tensors are on {x.device.type}, not cuda"
    return "torch.compile sees the plain convolution" if torch.compiler.is_compiling() else None


@operator("unpack")
def unpacked(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """[T B H W C/8] bytes to spikes in the same order, [T B H W C]."""
    s = torch.empty(*bits.shape[:-1], 8 * bits.shape[-1], dtype=dtype, device=bits.device)
    launch(kernels.unpack, (tiles(bits.numel(), 256),), bits, s, bits.numel(), BLOCK=256)
    return s


def conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """See the reference."""
    return convs(x, stride, weight)[0]


def convs(x: Tensor, stride: int, *weights: Tensor) -> tuple[Tensor, ...]:
    """See the reference."""
    bits = bits_of(x) if torch.is_grad_enabled() else None
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x = x.to(dtype)
    ys: tuple[Tensor, ...] = _Convs.apply(x, bits, stride, *weights)  # type: ignore[no-untyped-call]
    return ys


def _forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    x = channels_last(x)
    if _is_linear(weight, stride):
        return first(linear(last(x), weight[:, :, 0, 0]))
    y = conv2d(_frames(x), _kernel(weight), None, stride, weight.shape[-1] // 2)
    return channels_last(y.view(*x.shape[:2], *y.shape[1:]))


def _is_linear(weight: Tensor, stride: int) -> bool:
    return weight.shape[-1] == 1 and stride == 1


def _frames(x: Tensor) -> Tensor:
    """Steps and samples as one axis, channels-last also in torch's eyes."""
    return x.flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _kernel(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


class _Convs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bits: Tensor | None, stride: int, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.packed, ctx.stride, ctx.dtypes = bits is not None, stride, [w.dtype for w in weights]
        weights = tuple(w.to(x.dtype) for w in weights)
        ctx.save_for_backward(x if bits is None else bits, *weights)
        ctx.set_materialize_grads(False)  # nobody may have used one of them
        return tuple(_forward(x, weight, stride) for weight in weights)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        kept, *weights = ctx.saved_tensors
        x = first(unpacked(kept, weights[0].dtype)) if ctx.packed else kept
        back = _back_linear if _is_linear(weights[0], ctx.stride) else back_through
        grad_x, of_weights, wants = None, [], ctx.needs_input_grad
        for grad, weight, wanted, dtype in zip(grads, weights, wants[3:], ctx.dtypes, strict=True):
            of_weight = None
            if grad is not None:
                g, which = channels_last(grad.to(weight.dtype)), (wants[0], wanted)
                grad_x, of_weight = back(g, x, weight, ctx.stride, which, grad_x)
            of_weights.append(None if of_weight is None else of_weight.to(dtype))
        return grad_x, None, None, *of_weights


Grads = tuple[Tensor | None, Tensor | None]


def _back_linear(
    g: Tensor, x: Tensor, weight: Tensor, stride: int, wants: tuple[bool, bool], onto: Tensor | None
) -> Grads:
    """Gradients of x, added to `onto` in place where that is given, and of the weight."""
    flat, matrix = last(g).flatten(0, 3), weight[:, :, 0, 0]
    of_weight = None
    if wants[1]:
        rows = last(channels_last(x)).flatten(0, 3)
        of_weight = exact_product(flat.T, rows)[:, :, None, None]
    if not wants[0]:
        return None, of_weight
    if onto is None:
        return first(last(g) @ matrix), of_weight
    last(onto).view(-1, matrix.shape[1]).addmm_(flat, matrix)
    return onto, of_weight


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """a b, on a GPU in float32 also of shorter numbers, which are added up so anyway."""
    if a.device.type == "cuda" and a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b


def back_through(
    g: Tensor, x: Tensor, weight: Tensor, stride: int, wants: tuple[bool, bool], onto: Tensor | None
) -> Grads:
    """As `_back_linear`, by cuDNN."""
    grad_x, of_weight, _ = torch.ops.aten.convolution_backward(
        _frames(g), _frames(x), _kernel(weight), None, [stride] * 2, [weight.shape[-1] // 2] * 2,
        [1, 1], False, [0, 0], 1, [*wants, False],
    )  # fmt: skip
    if grad_x is None:
        return None, of_weight
    grad_x = grad_x.view(x.shape)
    return grad_x if onto is None else onto.add_(grad_x), of_weight
