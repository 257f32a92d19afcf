"""The transformer body: stem, blocks of attention and MLP, head. It knows parts by name only."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Real
from torch import Tensor, nn

from saccade._registry import Part, Registry, split_part
from saccade.attention import Site, install
from saccade.models._body import BodyConfig, SpikingModel, in_words
from saccade.nn import MLPS, STEM, Head, Projection, Stem, added

Init = Callable[[nn.Module], None]
INIT: Registry[Init] = Registry("projection_init")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(BodyConfig):
    """Everything that tells one spiking transformer from another.

    Args:
        dim: channels D of the tokens.
        depth: blocks L.
        heads: h of the attention.
        mlp_ratio: hidden channels of the MLP over dim.
        stem, attention, mlp, neuron: parts by name, or {"name": ..., options}.
        in_channels, image_size, num_classes, T: those of `BodyConfig`.
        projection_init: "kaiming_uniform" (torch's own) or "trunc_normal" (sd 0.02, bias 0; the
            official CIFAR code, whose projections are Linear layers), for the blocks.

    Raises:
        ValueError: for a size below 1.
    """

    dim: int
    depth: int
    heads: int = 8
    mlp_ratio: float = 4.0
    stem: Part = "sps"
    attention: Part = "ssa"
    mlp: Part = "mlp"
    neuron: Part = "lif"
    projection_init: str = "kaiming_uniform"

    PARTS: ClassVar[Mapping[str, Registry[Any]]] = {"stem": STEM, "mlp": MLPS, **BodyConfig.PARTS}
    WHOLE = ("dim", "depth", "heads", *BodyConfig.WHOLE)

    def __post_init__(self) -> None:
        super().__post_init__()
        ratio = self.mlp_ratio
        if isinstance(ratio, str) or not 1 <= self.dim * ratio < math.inf:
            raise ValueError(
                f"got mlp_ratio={ratio!r}, expected a number that leaves the MLP 1 channel or "
                f"more of dim={self.dim}"
            )


class Block(nn.Module):
    """x + attention(x), then x + mlp(x): integers in, integers out (SEW addition)."""

    def __init__(
        self, site: Site, *, attention: Part = "ssa", mlp: Part = "mlp", mlp_ratio: float = 4.0
    ) -> None:
        super().__init__()
        self.attention = install(site, attention, kind="mixer")
        hidden = int(site.dim * mlp_ratio)
        self.mlp: nn.Module = MLPS.build(mlp, site.dim, hidden, neuron=site.neuron)

    def forward(self, x: Real[Tensor, "T B C H W"]) -> Real[Tensor, "T B C H W"]:
        """Each branch adds spikes, so the stream grows by at most 2."""
        x = added(x, self.attention, x)
        return added(x, self.mlp, x)


class SpikingTransformer(SpikingModel):
    """A stem, `depth` blocks, a head. Every call starts at rest; nothing is carried over.

    Build one with `saccade.create_model`.
    """

    config: TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        c = self.config = config
        self.stem: Stem = STEM.build(
            c.stem, c.in_channels, c.dim, image_size=c.size, neuron=c.neuron
        )
        site = Site(dim=c.dim, heads=c.heads, T=c.T, grid=self.stem.grid, neuron=c.neuron)
        self.blocks = nn.ModuleList(
            Block(site, attention=c.attention, mlp=c.mlp, mlp_ratio=c.mlp_ratio)
            for _ in range(c.depth)
        )
        self.head = Head(c.dim, c.num_classes)
        self.blocks.apply(INIT[c.projection_init])
        _trunc_normal(self.head.linear)

    @property
    def frame(self) -> tuple[int, ...]:
        """Shape of one input frame of one sample; a stem for series takes [F]."""
        return self.stem.frame

    def steps(self, x: Float[Tensor, "T B *frame"]) -> Float[Tensor, "T B K"]:
        """Logits of each step."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits

    def structure(self) -> dict[str, str]:
        """The parts in words."""
        c, (H, W) = self.config, self.stem.grid
        attention, _ = split_part(c.attention)
        return {
            "stem": f"{split_part(c.stem)[0]} -> {c.dim} channels on a grid of {H} x {W} tokens",
            "blocks": f"{c.depth} x [{attention} with {c.heads} heads, MLP x{c.mlp_ratio:g}]; "
            "branches are added (integers)",
            "attention": in_words(c.attention),
            "neuron": split_part(c.neuron)[0],
            "head": f"mean over tokens and steps, linear to {c.num_classes} classes",
        }


@INIT.add("trunc_normal")
def _trunc_normal(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@INIT.add("kaiming_uniform")
def _kaiming_uniform(module: nn.Module) -> None:
    if isinstance(module, Projection):
        module.conv.reset_parameters()
