"""A local receptive field: dilated depth-wise 3x3 kernels over the grid of tokens.

Source: "Neural Dynamics Self-Attention", arXiv:2603.19290, where the kernels stand beside
attention. Read in secondary sources; bias, padding and initialisation are not known. Here: no
bias, zeros, and kernels from U(0, 2/9) [reconstruction], whose nine entries sum to 1 on average:
the paper's theorems take the kernel for a distribution over neighbours. A body that draws all its
convolutions anew, as the CIFAR Spikformer does, draws these too.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d

from saccade.nn.layers import per_frame


class LocalField(nn.Module):
    """Sum over dilations of a depth-wise 3x3 cross-correlation, zero padding = dilation.

    Args:
        channels: C.
        dilations: one kernel a channel for each, in tokens.
        heads: h; only `shared_heads` reads it.
        shared_heads: whether the heads share the kernels of their d = C/h channels.
        norm: batch norm on the sum.
    """

    def __init__(
        self,
        channels: int,
        dilations: Sequence[int],
        *,
        heads: int = 1,
        shared_heads: bool = False,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.width = channels // heads if shared_heads else channels
        self.kernels = nn.ModuleDict({str(d): _depthwise(self.width, d) for d in dilations})
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()

    def forward(self, x: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B C H W"]:
        """What each token hears of its neighbours."""
        return per_frame(self._frames, x)

    def _frames(self, frames: Tensor) -> Tensor:
        folded = frames.reshape(-1, self.width, *frames.shape[-2:])  # heads beside frames
        first, *others = self.kernels.values()
        y: Tensor = first(folded)
        for kernel in others:
            y += kernel(folded)  # in place: a convolution does not keep its result
        normed: Tensor = self.norm(y.reshape_as(frames))
        return normed

    def matrix(self, grid: tuple[int, int], heads: int) -> Float[Tensor, "h N N"]:
        """The block-Toeplitz matrix of the kernels, averaged over the channels of each head.

        Rows hear columns. With `norm`, kernels are weighted as batch norm does in eval.
        """
        H, W = grid
        gain, total = self._gain(), torch.zeros(())
        for d, conv in self.kernels.items():
            assert isinstance(conv, nn.Conv2d)
            repeated = conv.weight.repeat(len(gain) // self.width, 1, 1, 1)
            kernel = (repeated * gain.reshape(-1, 1, 1, 1)).reshape(heads, -1, 1, 3, 3).mean(1)
            impulses = torch.eye(H * W).to(kernel).reshape(-1, 1, H, W)
            heard = conv2d(impulses, kernel, padding=int(d), dilation=int(d))
            total = total.to(heard) + heard
        return total.permute(1, 2, 3, 0).reshape(heads, H * W, H * W)

    def _gain(self) -> Tensor:
        """By what batch norm multiplies each channel in eval."""
        norm = self.norm
        if not isinstance(norm, nn.BatchNorm2d):
            return torch.ones(self.channels).to(next(self.parameters()))
        assert norm.running_var is not None
        return norm.weight / (norm.running_var + norm.eps).sqrt()


def _depthwise(width: int, dilation: int) -> nn.Conv2d:
    conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=width, bias=False)
    nn.init.uniform_(conv.weight, 0, 2 / 9)
    return conv


def fitted(dilations: Sequence[int], grid: tuple[int, int]) -> tuple[int, ...]:
    """Dilations lowered to what reaches a neighbour on this grid; none on a single token."""
    return tuple(sorted({min(d, max(grid) - 1) for d in dilations} - {0}))


def checked(dilations: Sequence[int], grid: tuple[int, int]) -> tuple[int, ...]:
    """Dilations that each reach a neighbour.

    Raises:
        ValueError: for a dilation below 1, named twice, or so wide that no token has a neighbour
            there: it must be less than the longer side of the grid.
    """
    widest = max(grid) - 1
    for d in dilations:
        if not isinstance(d, int) or isinstance(d, bool) or not 1 <= d <= widest:
            nearest = f"the nearest is {min(max(1, round(d)), widest)}" if widest else "none fits"
            raise ValueError(
                f"got dilation {d!r}, expected a whole number from 1 to {widest} on a grid of "
                f"{grid[0]} x {grid[1]} tokens (further off there is no neighbour); {nearest}"
            )
    if len(set(dilations)) < len(dilations):
        raise ValueError(
            f"got dilations={list(dilations)}, expected each once; the nearest is "
            f"{sorted(set(dilations))}"
        )
    return tuple(dilations)


def taps(dilations: Sequence[int], grid: tuple[int, int]) -> int:
    """Pairs of a token and a neighbour that the kernels join on this grid, centres included."""
    H, W = grid
    return sum((H + 2 * max(0, H - d)) * (W + 2 * max(0, W - d)) for d in dilations)
