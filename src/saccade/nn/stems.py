"""Stems: from pictures [T B Cin Hin Win], or series [T B F], to a grid of tokens [T B C H W]."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from jaxtyping import Float, Real
from torch import Tensor, nn
from torch.nn.functional import interpolate

from saccade._registry import Part, Registry
from saccade._sources import Equation, Source
from saccade.nn.layers import DepthwiseConvolution, Projection
from saccade.nn.neurons import make_neuron

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

SPIKFORMER_V2 = Source(
    key="zhou2024spikformer",
    title="Spikformer V2: Join the High Accuracy Club on ImageNet with an SNN Ticket",
    authors="Zhou, Zhaokun and Che, Kaiwei and Fang, Wei and Tian, Keyu and Zhu, Yuesheng and "
    "Yan, Shuicheng and Tian, Yonghong and Yuan, Li",
    venue="arXiv",
    year=2024,
    id="arXiv:2401.02020",
)
WIDTHS = (8, 4, 2, 1)
"""Channels of the four stages of SPS and SCS, as fractions of dim."""


class Stem(nn.Module, ABC):
    """Abstract. A subclass is final.

    It announces the shape of one input frame, such as (C, H, W), and the grid of its tokens.
    """

    source: ClassVar[Source]
    equations: ClassVar[tuple[Equation, ...]]
    frame: tuple[int, ...]
    grid: tuple[int, int]

    @abstractmethod
    def forward(self, x: Float[Tensor, "T B *frame"]) -> Real[Tensor, "T B C H W"]:
        """Cut frames into tokens."""


@STEM.add("sps")
class SPS(Stem):
    """Spiking patch splitting: four convolutions, some with max-pooling, and a position branch.

    Source: Spikformer, arXiv:2209.15425, Eq. SPS-1 to SPS-3; the relative position embedding
    (RPE) is a convolution whose spikes are added, so the tokens are integers 0, 1 or 2.

    Args:
        in_channels, dim: channels of the picture and of the tokens.
        image_size: (H, W) of the picture, in pixels.
        neuron: by name, or name and options.
        pools: for each stage, whether a 3x3 max-pooling of stride 2 follows the spikes. The
            official CIFAR code pools after the last two stages, the others after all four.
        dwc: whether a depthwise 3x3 convolution with a neuron follows the stages (a reading of
            SAFormer).

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
        dwc: bool = False,
    ) -> None:
        super().__init__()
        if len(pools) != len(WIDTHS):
            raise ValueError(f"got pools={list(pools)}, expected {len(WIDTHS)}, one a stage")
        self.frame, self.pools = (in_channels, *image_size), tuple(pools)
        self.grid = _divided(image_size, 2 ** sum(self.pools))
        channels = [in_channels, *(_share(dim, w) for w in WIDTHS)]
        self.stages = nn.Sequential(
            *(
                Projection(a, b, kernel=3, neuron=neuron, pools=pool)
                for (a, b), pool in zip(pairwise(channels), self.pools, strict=True)
            )
        )
        after = (DepthwiseConvolution(dim), make_neuron(neuron)) if dwc else ()
        self.after = nn.Sequential(*after)
        self.position = Projection(channels[-1], channels[-1], kernel=3, neuron=neuron)

    def forward(self, x: Float[Tensor, "T B Cin Hin Win"]) -> Real[Tensor, "T B C H W"]:
        """Pictures in, integer tokens out."""
        x = self.after(self.stages(x))
        y: Tensor = x + self.position(x)
        return y


@STEM.add("scs")
class SCS(Stem):
    """Spiking convolutional stem, after the abstract of Spikformer V2: a design of this library.

    Source: Zhou et al., arXiv:2401.02020, of which only the abstract could be read; the layout of
    its stem is not public and there is no code. Here: four stages, each a 3x3 convolution of
    stride 2 and `repeats` more of stride 1; then, at full width, a residual pair of 3x3
    convolutions that widen by `expansion`; then the position branch of SPS. The defaults meet
    the published parameter counts within 1 %; nothing else is claimed.

    Args:
        in_channels, dim: channels of the picture and of the tokens.
        image_size: (H, W) of the picture, in pixels; multiples of 16.
        neuron: by name, or name and options.
        repeats: further convolutions a stage.
        expansion: hidden channels of the residual pair over dim; 0 leaves the pair out.

    Raises:
        ValueError: where 16 does not divide the image, or 8 not dim.
    """

    source = SPIKFORMER_V2
    equations = ()

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        image_size: tuple[int, int],
        neuron: Part = "lif",
        repeats: int = 1,
        expansion: int = 4,
    ) -> None:
        super().__init__()
        self.frame, self.grid = (in_channels, *image_size), _divided(image_size, 2 ** len(WIDTHS))
        channels = [in_channels, *(_share(dim, w) for w in WIDTHS)]
        layers = []
        for a, b in pairwise(channels):
            layers.append(Projection(a, b, kernel=3, stride=2, neuron=neuron))
            layers += [Projection(b, b, kernel=3, neuron=neuron) for _ in range(repeats)]
        self.stages = nn.Sequential(*layers)
        hidden = dim * expansion
        pair = ((dim, hidden), (hidden, dim)) if expansion else ()
        self.expand = nn.Sequential(*(Projection(a, b, kernel=3, neuron=neuron) for a, b in pair))
        self.position = Projection(dim, dim, kernel=3, neuron=neuron)

    def forward(self, x: Float[Tensor, "T B Cin Hin Win"]) -> Real[Tensor, "T B C H W"]:
        """Pictures in, integer tokens out."""
        x = self.stages(x)
        if len(self.expand):
            x = x + self.expand(x)
        y: Tensor = x + self.position(x)
        return y


@STEM.add("folded_sps")
class FoldedSPS(Stem):
    """A series of channels, folded into a small picture, then SPS: for spoken digits (SHD).

    Source: the official code of TIM, arXiv:2401.11687: 700 cochlear channels become 2 x 350 (the
    first half is channel 0), then 2 x 256 by the nearest neighbour, then 2 x 16 x 16 by rows.

    Args:
        in_channels, dim, image_size, neuron, pools: of the picture and its SPS.
        features: F, channels of the series; a multiple of in_channels.

    Raises:
        ValueError: where in_channels does not divide features, or as SPS does.
    """

    source = SPIKFORMER
    equations = ()

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        image_size: tuple[int, int],
        neuron: Part = "lif",
        pools: Sequence[bool] = (False, False, True, True),
        features: int = 700,
    ) -> None:
        super().__init__()
        if features < in_channels or features % in_channels:
            best = max(1, round(features / in_channels)) * in_channels
            raise ValueError(
                f"got features={features}, expected a multiple of in_channels={in_channels}; the "
                f"nearest is {best}"
            )
        self.sps = SPS(in_channels, dim, image_size=image_size, neuron=neuron, pools=pools)
        self.frame, self.grid = (features,), self.sps.grid

    def forward(self, x: Float[Tensor, "T B F"]) -> Real[Tensor, "T B C H W"]:
        """Series in, integer tokens out."""
        T, B, _ = x.shape
        C, H, W = self.sps.frame
        folded = interpolate(x.reshape(T * B, C, -1), size=H * W, mode="nearest")
        y: Tensor = self.sps(folded.reshape(T, B, C, H, W))
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
