"""oneDNN with channels last in memory, on a CPU: 1x1 kernels are matrix products of rows [n, C]."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear

from saccade.ops._triton import channels_last


def refuses(x: Tensor, weight: Tensor, stride: int) -> str | None:
    """For the types that oneDNN has vectors for; float64 stays as it was compared."""
    if x.device.type != "cpu":
        return f"the tensors are on {x.device.type}, not cpu"
    if x.dtype not in (torch.float32, torch.bfloat16):
        return f"{str(x.dtype).removeprefix('torch.')} is left to torch"
    return None


def conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """See the reference."""
    x = channels_last(x)
    if weight.shape[-1] == 1 and stride == 1:
        rows = linear(x.permute(0, 1, 3, 4, 2), weight[:, :, 0, 0])
        return rows.permute(0, 1, 4, 2, 3)
    frames = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    y = conv2d(frames, weight, None, stride, weight.shape[-1] // 2)
    return channels_last(y.view(*x.shape[:2], *y.shape[1:]))
