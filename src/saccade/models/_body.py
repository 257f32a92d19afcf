"""What every body shares: sizes and parts of its configuration, time first, logits averaged."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saccade._registry import Part, Registry, keywords, nearest, split_part
from saccade.attention import ATTENTION
from saccade.nn import NEURON


@dataclass(frozen=True, kw_only=True)
class BodyConfig:
    """Abstract: what the configuration of any body says.

    Args:
        attention, neuron: parts by name, or {"name": ..., options}. What the attention asks of
            other parts (`SpikingAttention.asks`) is set in them.
        in_channels: of the picture.
        image_size: (H, W) of the picture, in pixels; an int is a square.
        num_classes: K.
        T: time steps that a static picture is shown for.

    Raises:
        ValueError: for a size below 1, or where a part cannot do, or is told not to do, what the
            attention asks of it.
    """

    attention: Part = "none"
    neuron: Part = "lif"
    in_channels: int = 3
    image_size: int | tuple[int, int] = 224
    num_classes: int = 1000
    T: int = 4

    PARTS: ClassVar[Mapping[str, Registry[Any]]] = {"attention": ATTENTION, "neuron": NEURON}
    WHOLE: ClassVar[tuple[str, ...]] = ("in_channels", "num_classes", "T")

    def __post_init__(self) -> None:
        size = self.image_size
        pair = (size, size) if isinstance(size, int) else size
        if not isinstance(pair, Sequence) or [type(side) for side in pair] != [int, int]:
            raise ValueError(f"got image_size={size!r}, expected a side or (H, W), in whole pixels")
        object.__setattr__(self, "image_size", tuple(pair))
        for part in self.PARTS:
            name, options = split_part(getattr(self, part))
            object.__setattr__(self, part, {"name": name, **options})
        name, options = split_part(self.attention)
        for part, wanted in ATTENTION[name].asks(options).items():
            object.__setattr__(self, part, self._granted(part, wanted))
        for name in self.WHOLE:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"got {name}={value!r}, expected a whole number of 1 or more")

    def _granted(self, field: str, wanted: Mapping[str, Any]) -> Part:
        """A part with the options that the attention asks of it."""
        asking = f"attention {split_part(self.attention)[0]!r}"
        if field not in self.PARTS:
            raise ValueError(
                f"{asking} asks for {dict(wanted)} of the {field}, which this body has not; "
                + nearest(field, list(self.PARTS))
            )
        registry = self.PARTS[field]
        name, options = split_part(getattr(self, field))
        for option, value in wanted.items():
            if option not in keywords(registry[name]):
                able = [n for n in registry if option in keywords(registry[n])]
                raise ValueError(
                    f"{asking} asks the {field} for {option}={value!r}, and {field} {name!r} has "
                    f"no such option; {nearest(name, able)}"
                )
            if options.get(option, value) != value:
                raise ValueError(
                    f"got {field} {name!r} with {option}={options[option]!r}, expected {value!r}, "
                    f"which {asking} asks for: leave one of the two out"
                )
        return {"name": name, **options, **wanted}

    def _whole(self, *names: str) -> None:
        """Make tuples of fields that hold several whole numbers of 1 or more."""
        for name in names:
            values = getattr(self, name)
            ok = isinstance(values, Sequence) and not isinstance(values, str)
            if not ok or not all(isinstance(v, int) and v >= 1 for v in values):
                raise ValueError(f"got {name}={values!r}, expected whole numbers of 1 or more")
            object.__setattr__(self, name, tuple(values))

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture."""
        assert isinstance(self.image_size, tuple)
        return self.image_size


class SpikingModel(nn.Module, ABC):
    """Abstract: pictures or frames in, logits out. Every call starts at rest.

    Build one with `saccade.create_model`. A subclass names the weight of its last layer in
    `last` and how many of its rows vote for one class in `voters`.
    """

    name: str = ""
    config: BodyConfig
    last: str = "head.linear.weight"
    voters: int = 1

    @abstractmethod
    def steps(self, x: Float[Tensor, "T B *frame"]) -> Float[Tensor, "T B K"]:
        """Logits of each step."""

    @abstractmethod
    def structure(self) -> dict[str, str]:
        """The parts of the body in words, from input to output."""

    def forward(
        self, x: Tensor, *, per_step: bool = False, any_size: bool = False
    ) -> Float[Tensor, "B K"] | Float[Tensor, "T B K"]:
        """Logits, averaged over the steps unless `per_step`.

        Args:
            x: pictures [B C H W], shown for `config.T` steps; or frames [T B C H W]. A stem
                for series takes [B F] or [T B F].
            per_step: keep the logits of every step.
            any_size: let other heights and widths through. Convolutions and mixers that have no
                parameter or constant for each token can take them; it is for the caller to know.

        Raises:
            ValueError: for another number of axes, channels, or another size; and for another
                number of steps where parameters depend on it.
        """
        logits = self.steps(self._frames(x, any_size))
        return logits if per_step else logits.mean(0)

    def forward_steps(self, x: Tensor) -> Float[Tensor, "T B K"]:
        """Logits of each step; otherwise as the call itself."""
        logits: Tensor = self(x, per_step=True)
        return logits

    @property
    def frame(self) -> tuple[int, ...]:
        """Shape of one input frame of one sample."""
        return (self.config.in_channels, *self.config.size)

    def _frames(self, x: Tensor, any_size: bool) -> Tensor:
        frame = self.frame
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"got input of {kind}, expected a tensor of floating point: pictures normalised "
                "as the model was trained on, or counts of events, x.float()"
            )
        if any_size and len(frame) == 3 and x.dim() >= 4:
            frame = (frame[0], *x.shape[-2:])
        static = x.dim() == len(frame) + 1
        if x.dim() - len(frame) not in (1, 2) or x.shape[-len(frame) :] != frame or 0 in x.shape:
            sizes = ", ".join(map(str, frame))
            raise ValueError(
                f"got input of shape {list(x.shape)}, expected [B, {sizes}] or [T, B, {sizes}] "
                "with B and T of 1 or more; another size or number of channels is another model: "
                "create_model(..., image_size=, in_channels=)"
            )
        return x.expand(self.config.T, *x.shape) if static else x


class StepDropout(nn.Module):
    """Dropout with one mask for all steps, so that the mean over time is dropped as a whole."""

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"got dropout={p}, expected a share from 0 to below 1")
        self.p = p

    def forward(self, x: Float[Tensor, "T *dims"]) -> Float[Tensor, "T *dims"]:
        """Zeros for a share p of the features while training."""
        if not self.training or not self.p:
            return x
        return x * nn.functional.dropout(torch.ones_like(x[:1]), self.p)


def in_words(part: Part) -> str:
    """A part as `structure` prints it: its name, then its options."""
    name, options = split_part(part)
    return " ".join([name, ", ".join(f"{k}={v}" for k, v in options.items())]).rstrip()
