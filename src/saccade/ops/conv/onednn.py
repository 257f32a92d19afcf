"""oneDNN with channels last in memory, on a CPU.

1x1 kernels are convolutions here too: as matrix products of rows they take the same time in
bfloat16, and a quarter more in float32, where torch calls MKL.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

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
    frames = channels_last(x).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    kernel = weight.contiguous(memory_format=torch.channels_last)
    y = conv2d(frames, kernel, None, stride, weight.shape[-1] // 2)
    return channels_last(y.view(*x.shape[:2], *y.shape[1:]))
