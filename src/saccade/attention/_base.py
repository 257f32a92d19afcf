"""The attention contract: a map from [T B C H W] to the same shape, built for a `Site`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float, Real
from torch import Tensor, nn

from saccade._registry import Part, Registry, nearest, split_part
from saccade._sources import Equation, Source
from saccade.nn import Gate, Neuron, make_neuron

ATTENTION: Registry[type["SpikingAttention"]] = Registry(
    "attention", "; one of your own has to be imported first (saccade --import FILE)"
)
Tokens = Real[Tensor, "T B C H W"]
"""Integers, of any type that holds them, or the currents of a gate."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where an attention is installed: all that the body of a model knows about the place.

    Args:
        dim: channels C.
        heads: h; d = C / h channels each.
        T: time steps that the model is built for.
        grid: (H, W) of the tokens; N = H * W.
        neuron: the neuron in use, by name or by name and options.
        feeds_neuron: whether a neuron follows, on whose membrane a gate may act, and not an
            addition of currents.

    Raises:
        ValueError: for sizes below 1, or heads that do not divide dim.
    """

    dim: int
    heads: int = 8
    T: int = 4
    grid: tuple[int, int] = (8, 8)
    neuron: Part = "lif"
    feeds_neuron: bool = True

    def __post_init__(self) -> None:
        for name, size in (("dim", self.dim), ("heads", self.heads), ("T", self.T)):
            if size < 1:
                raise ValueError(f"got {name}={size}, expected 1 or more")
        if min(self.grid) < 1:
            raise ValueError(f"got grid={self.grid}, expected sides of 1 or more")
        if self.dim % self.heads:
            fit = [h for h in range(1, self.dim + 1) if self.dim % h == 0]
            best = min(fit, key=lambda h: abs(h - self.heads))
            raise ValueError(
                f"got dim={self.dim} and heads={self.heads}, expected heads that divide dim; the "
                f"nearest is heads={best}"
            )

    @property
    def tokens(self) -> int:
        """N = H * W."""
        return self.grid[0] * self.grid[1]

    def fires(self, **constants: Any) -> Neuron:
        """A neuron of the site's kind; `constants` win over the site's."""
        return make_neuron(self.neuron, **constants)


class SpikingAttention(nn.Module, ABC):
    """Abstract. A subclass is final: it declares its source and defines `forward` and `adds`.

    A mixer maps spikes to spikes; a gate maps currents to currents.
    """

    source: ClassVar[Source]
    equations: ClassVar[tuple[Equation, ...]]
    kind: ClassVar[Literal["mixer", "gate"]] = "mixer"
    takes_integers: ClassVar[bool] = False  # whether its input and spikes may be int8 or bf16
    adds_onto: ClassVar[bool] = False  # whether `forward` takes a tensor to add its spikes to
    causal: bool = True  # False where a step may see later steps, as temporal gates do
    golden: ClassVar[Literal["official", "independent reference", "reconstruction"]]
    site: Site

    @abstractmethod
    def forward(self, x: Tokens) -> Tokens:
        """Mix information across time, channels or tokens."""

    @abstractmethod
    def adds(self) -> int:
        """Additions of the mixing for one sample if every spike fires (projections aside).

        A gate works on real numbers, so it counts its multiply-accumulates instead.
        """

    def at_membrane(self) -> Gate | None:
        """What the neuron behind a gate applies between charge and fire; None: nothing.

        None wherever the site feeds no neuron.
        """
        return None

    @classmethod
    def asks(cls, options: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """Options that other parts of a body get on its behalf, by the part's field; {}: none.

        The configuration of a body sets them and refuses what contradicts them. An attention that
        is built alone goes without.

        Args:
            options: those that it is given itself.
        """
        return {}

    @classmethod
    def for_vectors(cls, site: Site, **options: Any) -> "SpikingAttention | None":
        """What stands in at a layer without a grid; None: such layers go without.

        Args:
            site: the layer; its grid is 1 x 1.
            options: those that the part was given.
        """
        return None

    def state(self) -> int | None:
        """Numbers that one token leaves to the next in a pass over the tokens.

        Per sample and time step, with buffers for neighbours left out; what papers call the
        storage of an attention. None where no order of the products goes token by token.
        """
        return None

    def scores(self, x: Tokens) -> Float[Tensor, "T B h N N"] | None:
        """How loudly each token (row) hears each other (column); None where there is no map."""
        return None


def create_attention(
    name: str,
    *,
    dim: int,
    heads: int = 8,
    T: int = 4,
    grid: tuple[int, int] = (8, 8),
    neuron: Part = "lif",
    **options: Any,
) -> SpikingAttention:
    """Build an attention by name, for use inside any model.

    Args:
        name: see `list_attention()`.
        dim: channels C of its input [T B C H W].
        heads: h; must divide dim.
        T: time steps; only mechanisms whose parameters depend on T hold you to it.
        grid: (H, W) of the tokens.
        neuron: name, or {"name": ..., options}.
        options: of the mechanism.

    Raises:
        ValueError: for an unknown name or option (the nearest is named), or sizes that do not
            fit together.
    """
    site = Site(dim=dim, heads=heads, T=T, grid=grid, neuron=neuron)
    return install(site, {"name": name, **options})


def install(site: Site, part: Part, *, kind: str | None = None) -> SpikingAttention:
    """Build an attention part for a site, as the body of a model does.

    Args:
        site: the place.
        part: name, or name and options.
        kind: what the body can take; None takes both.

    Raises:
        ValueError: for a part of the other kind, naming those that fit.
    """
    name, _ = split_part(part)
    if kind is not None and (found := ATTENTION[name].kind) != kind:
        fit = [n for n in ATTENTION if ATTENTION[n].kind == kind]
        raise ValueError(
            f"got attention {name!r}, a {found}, expected a {kind} (a mixer maps spikes to spikes "
            "in a transformer, a gate scales currents in a convolutional net); "
            + nearest(name, fit)
        )
    attention: SpikingAttention = ATTENTION.build(part, site)
    return attention


def list_attention(pattern: str = "*") -> list[str]:
    """Names of the attention mechanisms that match a shell pattern."""
    return ATTENTION.list(pattern)
