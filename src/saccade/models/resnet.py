"""The residual body: membrane shortcuts, gates on the branch or behind the addition."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from saccade._registry import Part, Registry, one_of, split_part
from saccade.attention import Site, install
from saccade.models._body import BodyConfig, SpikingModel, StepDropout, in_words
from saccade.nn import Head, make_neuron, per_frame


class StemConv(NamedTuple):
    """One convolution of a stem: kernel side, stride, whether it has a bias."""

    kernel: int
    stride: int
    bias: bool


STEMS: dict[str, tuple[StemConv, ...]] = {
    "conv7": (StemConv(7, 2, False),),
    "three_conv3": (StemConv(3, 2, True), StemConv(3, 1, True), StemConv(3, 1, True)),
}
"""Convolutions in front of the first batch norm; no neuron and no pooling follows."""

Place = Callable[[nn.Module, Tensor, Tensor], Tensor]
PLACEMENT: dict[str, Place] = {
    "branch": lambda gate, y, skip: gate(y) + skip,
    "after_add": lambda gate, y, skip: gate(y + skip),
}
"""Where the gate stands: Att-Res-SNN-1 and Att-Res-SNN-2."""

SHORTCUT: Registry[Callable[[int, int, int], nn.Module]] = Registry("shortcut")


@SHORTCUT.add("conv")
def _strided(c_in: int, c_out: int, stride: int) -> nn.Module:
    return nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False)


@SHORTCUT.add("avgpool")
def _pooled(c_in: int, c_out: int, stride: int) -> nn.Module:
    pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
    return nn.Sequential(pool, nn.Conv2d(c_in, c_out, 1, bias=False))


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(BodyConfig):
    """Everything that tells one membrane-shortcut residual net from another.

    Args:
        depths: blocks of each stage; the first of every stage halves the grid.
        widths: channels of each stage.
        stem: "conv7" or "three_conv3"; both halve the grid.
        shortcut: where sizes change: "conv" (1x1 with stride) or "avgpool" (then 1x1).
        placement: of the gate: "branch" (in front of the addition, Att-Res-SNN-1) or "after_add"
            (Att-Res-SNN-2).
        norm_scale: initial weight of the batch norms; the threshold, 0.5, in the official codes.
        branch_scale: that of a block's last batch norm.
        dropout: share of the channels dropped between the mean over the grid and the head.
        attention: a gate.
        neuron, in_channels, image_size, num_classes, T: those of `BodyConfig`.

    Raises:
        ValueError: for a size below 1, unlike numbers of depths and widths, or an image that the
            stages do not halve.
    """

    depths: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: str = "conv7"
    shortcut: str = "avgpool"
    placement: str = "branch"
    norm_scale: float = 0.5
    branch_scale: float = 0.1
    dropout: float = 0.0
    neuron: Part = "mem_update"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("depths", "widths")
        if not self.depths or len(self.depths) != len(self.widths):
            raise ValueError(
                f"got {len(self.widths)} widths for {len(self.depths)} depths, expected one each"
            )
        one_of("stem", self.stem, STEMS)
        one_of("placement", self.placement, PLACEMENT)
        by = 2 ** (1 + len(self.depths))
        if any(side < 1 or side % by for side in self.size):
            fit = tuple(max(by, round(side / by) * by) for side in self.size)
            raise ValueError(
                f"got image_size={self.size}, expected multiples of {by} (stem and stages each "
                f"halve the grid); the nearest is {fit}"
            )


class ConvNorm(nn.Sequential):
    """Convolution and batch norm of each frame: `conv`, `norm`."""

    def __init__(self, conv: nn.Module, dim: int, *, scale: float) -> None:
        super().__init__()
        self.add_module("conv", conv)
        norm = nn.BatchNorm2d(dim)
        nn.init.constant_(norm.weight, scale)
        self.add_module("norm", norm)

    def forward(self, x: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B D h w"]:
        """Currents."""
        return per_frame(super().forward, x)


class ResidualBlock(nn.Module):
    """Neuron, convolution, neuron, convolution; what is added are currents, never spikes.

    Args:
        c_in: channels of the input.
        site: channels and grid of the output, T, neuron.
        stride: of the first convolution.
        attention: the gate.
        placement, shortcut: see `ResNetConfig`.
        norm_scale, branch_scale: initial weights of the batch norms.

    Behind the gate's place stands an addition and no neuron, so gates act on the current there,
    the paper's too: its Eq. 15 and 16 put them in front of the addition and behind it.
    """

    def __init__(
        self,
        c_in: int,
        site: Site,
        *,
        stride: int = 1,
        attention: Part = "none",
        placement: str = "branch",
        shortcut: str = "avgpool",
        norm_scale: float = 0.5,
        branch_scale: float = 0.1,
    ) -> None:
        super().__init__()
        dim = site.dim
        self.neuron1, self.neuron2 = site.fires(), site.fires()
        first = nn.Conv2d(c_in, dim, 3, stride=stride, padding=1, bias=False)
        self.layer1 = ConvNorm(first, dim, scale=norm_scale)
        second = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.layer2 = ConvNorm(second, dim, scale=branch_scale)
        self.gate = install(replace(site, feeds_neuron=False), attention, kind="gate")
        self.place = PLACEMENT[one_of("placement", placement, PLACEMENT)]
        changes = stride != 1 or c_in != dim
        self.shortcut = (
            ConvNorm(SHORTCUT[shortcut](c_in, dim, stride), dim, scale=norm_scale)
            if changes
            else nn.Identity()
        )

    def forward(self, x: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B D h w"]:
        """Currents in, currents out."""
        y = self.layer2(self.neuron2(self.layer1(self.neuron1(x))))
        return self.place(self.gate, y, self.shortcut(x))


class SpikingResNet(SpikingModel):
    """Stem, stages of residual blocks, a last neuron, mean over the grid, a linear head."""

    config: ResNetConfig

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        c = self.config = config
        self.stem = _stem(c)
        grid = (c.size[0] // 2, c.size[1] // 2)
        stages, c_in = [], c.widths[0]
        for depth, dim in zip(c.depths, c.widths, strict=True):
            grid = (grid[0] // 2, grid[1] // 2)
            site = Site(dim=dim, heads=1, T=c.T, grid=grid, neuron=c.neuron)
            blocks = [self._block(c_in if i == 0 else dim, site, i) for i in range(depth)]
            stages.append(nn.Sequential(*blocks))
            c_in = dim
        self.stages = nn.Sequential(*stages)
        self.neuron = make_neuron(c.neuron)
        self.dropout = StepDropout(c.dropout)
        self.head = Head(c.widths[-1], c.num_classes)

    def _block(self, c_in: int, site: Site, index: int) -> ResidualBlock:
        c = self.config
        return ResidualBlock(
            c_in,
            site,
            stride=2 if index == 0 else 1,
            attention=c.attention,
            placement=c.placement,
            shortcut=c.shortcut,
            norm_scale=c.norm_scale,
            branch_scale=c.branch_scale,
        )

    def steps(self, x: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B K"]:
        """Logits of each step."""
        rates = self.neuron(self.stages(self.stem(x))).mean((-2, -1), keepdim=True)
        logits: Tensor = self.head(self.dropout(rates))
        return logits

    def structure(self) -> dict[str, str]:
        """The parts in words."""
        c = self.config
        return {
            "stem": f"{c.stem}, {c.widths[0]} channels",
            "stages": f"{', '.join(map(str, c.depths))} blocks of "
            f"{', '.join(map(str, c.widths))} channels; currents are added",
            "shortcut": c.shortcut,
            "gate": f"{in_words(c.attention)} at {c.placement}",
            "neuron": split_part(c.neuron)[0],
            "head": f"mean over grid and steps, linear to {c.num_classes} classes",
        }


def _stem(c: ResNetConfig) -> ConvNorm:
    convs, c_in = nn.Sequential(), c.in_channels
    for kernel, stride, bias in STEMS[c.stem]:
        conv = nn.Conv2d(c_in, c.widths[0], kernel, stride=stride, padding=kernel // 2, bias=bias)
        convs.append(conv)
        c_in = c.widths[0]
    return ConvNorm(convs, c.widths[0], scale=c.norm_scale)
