"""The transformer body: stem, blocks of attention and MLP, head. It knows parts by name only."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from saccade._registry import Part, Registry, split_part
from saccade.attention import Site, install
from saccade.nn import MLPS, STEM, Head, Projection, Stem

Init = Callable[[nn.Module], None]
INIT: Registry[Init] = Registry("projection_init")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Everything that tells one spiking transformer from another.

    Args:
        dim: channels D of the tokens.
        depth: blocks L.
        heads: h of the attention.
        mlp_ratio: hidden channels of the MLP over dim.
        stem, attention, mlp, neuron: parts by name, or {"name": ..., options}.
        projection_init: "kaiming_uniform" (torch's own) or "trunc_normal" (sd 0.02, bias 0; the
            official CIFAR code, whose projections are Linear layers), for the blocks.
        in_channels: of the picture.
        image_size: (H, W) of the picture, in pixels; an int is a square.
        num_classes: K.
        T: time steps that a static picture is shown for.

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
    in_channels: int = 3
    image_size: int | tuple[int, int] = 224
    num_classes: int = 1000
    T: int = 4

    def __post_init__(self) -> None:
        size = self.image_size
        pair = (size, size) if isinstance(size, int) else tuple(size)
        if len(pair) != 2:
            raise ValueError(f"got image_size={size!r}, expected a side or (H, W)")
        object.__setattr__(self, "image_size", pair)
        for part in ("stem", "attention", "mlp", "neuron"):
            name, options = split_part(getattr(self, part))
            object.__setattr__(self, part, {"name": name, **options})
        for name in ("dim", "depth", "heads", "in_channels", "num_classes", "T"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"got {name}={value!r}, expected a whole number of 1 or more")

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture."""
        assert isinstance(self.image_size, tuple)
        return self.image_size


class Block(nn.Module):
    """x + attention(x), then x + mlp(x): integers in, integers out (SEW addition)."""

    def __init__(
        self, site: Site, *, attention: Part = "ssa", mlp: Part = "mlp", mlp_ratio: float = 4.0
    ) -> None:
        super().__init__()
        self.attention = install(site, attention)
        hidden = int(site.dim * mlp_ratio)
        self.mlp: nn.Module = MLPS.build(mlp, site.dim, hidden, neuron=site.neuron)

    def forward(self, x: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B C H W"]:
        """Each branch adds spikes, so the stream grows by at most 2."""
        x = x + self.attention(x)
        y: Tensor = x + self.mlp(x)
        return y


class SpikingTransformer(nn.Module):
    """A stem, `depth` blocks, a head. Every call starts at rest; nothing is carried over.

    Build one with `saccade.create_model`.
    """

    name: str = ""

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

    def forward(
        self, x: Tensor, *, per_step: bool = False
    ) -> Float[Tensor, "B K"] | Float[Tensor, "T B K"]:
        """Logits, averaged over the steps unless `per_step`.

        Args:
            x: pictures [B C H W], shown for `config.T` steps; or frames [T B C H W]. A stem
                for series takes [B F] or [T B F].
            per_step: keep the logits of every step.

        Raises:
            ValueError: for another number of axes, channels, or another size.
        """
        x = self.stem(self._frames(x))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits if per_step else logits.mean(0)

    @property
    def frame(self) -> tuple[int, ...]:
        """Shape of one input frame of one sample."""
        return self.stem.frame

    def forward_steps(self, x: Tensor) -> Float[Tensor, "T B K"]:
        """Logits of each step; otherwise as the call itself."""
        logits: Tensor = self(x, per_step=True)
        return logits

    def _frames(self, x: Tensor) -> Tensor:
        frame = self.stem.frame
        static = x.dim() == len(frame) + 1
        if x.dim() - len(frame) not in (1, 2) or x.shape[-len(frame) :] != frame or 0 in x.shape:
            sizes = ", ".join(map(str, frame))
            raise ValueError(
                f"got input of shape {list(x.shape)}, expected [B, {sizes}] or [T, B, {sizes}] "
                "with B and T of 1 or more; another size or number of channels is another model: "
                "create_model(..., image_size=, in_channels=)"
            )
        return x.expand(self.config.T, *x.shape) if static else x


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
