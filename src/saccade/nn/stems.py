"""Stems: from pictures [T B Cin Hin Win] to a grid of tokens [T B C H W]."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from saccade._registry import Part, Registry
from saccade._sources import Equation, Source
from saccade.nn.layers import Projection, per_frame

STEM: Registry[type["Stem"]] = Registry("stem")

SPIKFORMER = Source(
    key="zhou2023spikformer",
    title="Spikformer: When Spiking Neural Network Meets Transformer",
    authors="Zhou, Zhaokun and Zhu, Yuesheng and He, Chao and Wang, Yaowei and Yan, Shuicheng "
    "and Tian, Yonghong and Yuan, Li",
    venue="ICLR",
    year=2023,
    id="arXiv:2209.15425",
)

WIDTHS = (8, 4, 2, 1)
"""Channels of the four stages of SPS, as fractions of dim."""


class Stem(nn.Module, ABC):
    """Abstract. A subclass is final; it announces the grid of tokens that it makes."""

    source: ClassVar[Source]
    equations: ClassVar[tuple[Equation, ...]]
    grid: tuple[int, int]

    @abstractmethod
    def forward(self, x: Float[Tensor, "T B Cin Hin Win"]) -> Float[Tensor, "T B C H W"]:
        """Cut pictures into tokens."""


@STEM.add("sps")
class SPS(Stem):
    """Spiking patch splitting: four convolutions, some with max-pooling, and a position branch.

    Source: Spikformer, arXiv:2209.15425, Eq. SPS-1 to SPS-3; the relative position embedding (RPE) is
    a convolution whose spikes are added, so the tokens are integers 0, 1 or 2.

    Args:
        in_channels, dim: channels of the picture and of the tokens.
        image_size: (H, W) of the picture, in pixels.
        neuron: by name, or name and options.
        pools: for each stage, whether a 3x3 max-pooling of stride 2 follows the spikes. The
            official CIFAR code pools after the last two stages, the others after all four.

    Raises:
        ValueError: where the pooling does not divide the image, or 8 not dim.
    """

    source = SPIKFORMER
    equations = tuple(
        Equation(
            name=name,
            text=text,
            source=SPIKFORMER,
            where="section and printed number not verified",
            code="saccade.nn.stems.SPS",
        )
        for name, text in (
            ("SPS-1", "x_i = MaxPool(SN(BN(Conv3x3(x_{i-1})))), without the pool in some stages"),
            ("SPS-2", "RPE = SN(BN(Conv3x3(x)))"),
            ("SPS-3", "X_0 = x + RPE"),
        )
    )

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        image_size: tuple[int, int],
        neuron: Part = "lif",
        pools: Sequence[bool] = (False, False, True, True),
    ) -> None:
        super().__init__()
        if len(pools) != len(WIDTHS):
            raise ValueError(f"got pools={list(pools)}, expected {len(WIDTHS)}, one a stage")
        self.pools = tuple(pools)
        self.grid = _divided(image_size, 2 ** sum(self.pools))
        channels = [in_channels, *(_share(dim, w) for w in WIDTHS)]
        self.stages = nn.ModuleList(
            Projection(a, b, kernel=3, neuron=neuron) for a, b in pairwise(channels)
        )
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.position = Projection(channels[-1], channels[-1], kernel=3, neuron=neuron)

    def forward(self, x: Float[Tensor, "T B Cin Hin Win"]) -> Float[Tensor, "T B C H W"]:
        """Pictures in, integer tokens out."""
        for stage, pools in zip(self.stages, self.pools, strict=True):
            x = stage(x)
            if pools:
                x = per_frame(self.pool, x)
        y: Tensor = x + self.position(x)
        return y


def _divided(image_size: tuple[int, int], by: int) -> tuple[int, int]:
    H, W = image_size
    if H < 1 or W < 1 or H % by or W % by:
        fit = tuple(max(by, round(side / by) * by) for side in image_size)
        raise ValueError(
            f"got image_size={tuple(image_size)}, expected multiples of {by} (the stem pools by "
            f"{by}); the nearest is {fit}"
        )
    return H // by, W // by


def _share(dim: int, width: int) -> int:
    if dim % width:
        raise ValueError(
            f"got dim={dim}, expected a multiple of {width} (the narrowest stage of the stem has "
            f"dim/{width} channels); the nearest is {max(width, round(dim / width) * width)}"
        )
    return dim // width
