"""The plain convolutional body: gated layers, fully connected ones, a vote. Parts by name only."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from saccade._registry import Registry, one_of, split_part
from saccade.attention import ATTENTION, Site, SpikingAttention, install
from saccade.models._body import BodyConfig, SpikingModel, StepDropout, in_words
from saccade.nn import per_frame

POOL: Registry[Callable[[int], nn.Module]] = Registry("pooling")
POOL.add("avg")(nn.AvgPool2d)
POOL.add("max")(nn.MaxPool2d)
POOL_AT = {"current": False, "spikes": True}
"""Whether the pooling follows the neuron."""


@dataclass(frozen=True, kw_only=True)
class ConvConfig(BodyConfig):
    """Everything that tells one plain spiking convolutional net from another.

    Args:
        channels: of each 3x3 convolution.
        pools: side of the pooling of each convolution; 1 is none.
        hidden: widths of the fully connected layers but the last.
        pooling: "avg" or "max".
        pool_at: "current" (behind the batch norm) or "spikes" (behind the neuron).
        dropout: share dropped in front of each fully connected layer.
        voters: neurons of the last layer that vote for one class.
        fc_norm: whether fully connected layers have a batch norm.
        attention: a gate, which every layer has; fully connected layers take what of it needs no
            grid.
        neuron, in_channels, image_size, num_classes, T: those of `BodyConfig`.

    Raises:
        ValueError: for a size below 1, as many pools as there are not channels, or an image that
            the pooling leaves nothing of.
    """

    channels: tuple[int, ...]
    pools: tuple[int, ...]
    hidden: tuple[int, ...] = (256,)
    pooling: str = "avg"
    pool_at: str = "current"
    dropout: float = 0.0
    voters: int = 1
    fc_norm: bool = True

    WHOLE = ("voters", *BodyConfig.WHOLE)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("channels", "pools", "hidden")
        if not self.channels or len(self.pools) != len(self.channels):
            raise ValueError(
                f"got {len(self.pools)} pools for {len(self.channels)} channels, expected one each"
            )
        one_of("pool_at", self.pool_at, POOL_AT)
        if min(self.grids()[-1]) < 1:
            whole = 1
            for p in self.pools:
                whole *= p
            raise ValueError(
                f"got image_size={self.size}, expected sides of {whole} or more, which the pooling "
                f"by {list(self.pools)} divides; the nearest is "
                f"{tuple(max(whole, side) for side in self.size)}"
            )

    def grids(self) -> list[tuple[int, int]]:
        """(H, W) in front of each pooling, and behind the last."""
        grids = [self.size]
        for p in self.pools:
            H, W = grids[-1]
            grids.append((H // p, W // p))
        return grids


class GatedLayer(nn.Module):
    """Convolution, batch norm, pooling, gate, neuron: the gate meets the current, or the membrane.

    Args:
        c_in: channels of the input.
        gate: sees the current behind the pooling; its site says channels, grid and neuron.
        kernel: side of the square kernel; the padding keeps the grid. 1 is a linear map.
        pool: None for none.
        pool_spikes: whether the pooling follows the neuron instead.
        norm: whether there is a batch norm.
    """

    def __init__(
        self,
        c_in: int,
        gate: SpikingAttention,
        *,
        kernel: int = 3,
        pool: nn.Module | None = None,
        pool_spikes: bool = False,
        norm: bool = True,
    ) -> None:
        super().__init__()
        site = gate.site
        self.conv = nn.Conv2d(c_in, site.dim, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(site.dim) if norm else nn.Identity()
        self.pool = pool or nn.Identity()
        self.pool_spikes = pool_spikes
        self.gate = gate
        self.neuron = site.fires()

    def forward(self, x: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B D h w"]:
        """Spikes in, spikes out."""
        x = per_frame(lambda frames: self.norm(self.conv(frames)), x)
        if not self.pool_spikes:
            x = per_frame(self.pool, x)
        spikes: Tensor = self.neuron(self.gate(x), gate=self.gate.at_membrane())
        return per_frame(self.pool, spikes) if self.pool_spikes else spikes


class SpikingCNN(SpikingModel):
    """Gated convolutions, fully connected layers; the last neurons' spikes are the logits."""

    config: ConvConfig

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        c = self.config = config
        layers, after = [], POOL_AT[c.pool_at]
        grids = list(pairwise(c.grids()))
        widths = pairwise((c.in_channels, *c.channels))
        for (c_in, dim), p, (before, behind) in zip(widths, c.pools, grids, strict=True):
            gate = install(self._site(dim, before if after else behind), c.attention, kind="gate")
            pool = POOL[c.pooling](p) if p > 1 else None
            layers.append(GatedLayer(c_in, gate, pool=pool, pool_spikes=after))
        self.layers = nn.ModuleList(layers)
        H, W = grids[-1][1]
        rows = (c.channels[-1] * H * W, *c.hidden, c.num_classes * c.voters)
        self.fc = nn.ModuleList(
            GatedLayer(a, self._vector_gate(b), kernel=1, norm=c.fc_norm) for a, b in pairwise(rows)
        )
        self.dropout = StepDropout(c.dropout)
        self.voters, self.last = c.voters, f"fc.{len(c.hidden)}.conv.weight"

    def _site(self, dim: int, grid: tuple[int, int] = (1, 1)) -> Site:
        return Site(dim=dim, heads=1, T=self.config.T, grid=grid, neuron=self.config.neuron)

    def _vector_gate(self, dim: int) -> SpikingAttention:
        name, options = split_part(self.config.attention)
        site = self._site(dim)
        return ATTENTION[name].for_vectors(site, **options) or install(site, "none")

    def steps(self, x: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B K"]:
        """Spikes of the last layer, or the mean of a class's voters, at each step."""
        for layer in self.layers:
            x = layer(x)
        x = x.flatten(2)[..., None, None]
        for layer in self.fc:
            x = layer(self.dropout(x))
        return x.reshape(*x.shape[:2], self.config.num_classes, self.voters).mean(-1)

    def structure(self) -> dict[str, str]:
        """The parts in words."""
        c = self.config
        pools = ", ".join(map(str, c.pools))
        rows = ", ".join(map(str, (*c.hidden, c.num_classes * c.voters)))
        return {
            "layers": f"3x3 convolutions to {', '.join(map(str, c.channels))} channels",
            "pooling": f"{c.pooling} by {pools}, of the {c.pool_at}",
            "gate": in_words(c.attention),
            "neuron": split_part(c.neuron)[0],
            "head": f"fully connected {rows}; mean over steps"
            f"{' and voters' if c.voters > 1 else ''}, {c.num_classes} classes",
        }
