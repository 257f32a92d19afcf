"""Multi-dimensional attention: gates over time (T), channel (C) and space (S), one class.

Source: Yao et al., "Attention Spiking Neural Networks", TPAMI 2023, arXiv:2209.13929v1; code
BICLab/Attention-SNN. Equations: MA-1 to MA-5.
Axes: T time, B batch, C channel, H W grid; sigma the logistic function; no biases.

Paper and released code are two models, hence two presets:

| preset        | C, S act on the      | statistics     | S kernel | C ratio | at the end |
|---------------|----------------------|----------------|----------|---------|------------|
| official_code | current              | one per sample | 3        | 8       | ReLU       |
| paper         | membrane before fire | one per step   | 7        | 16      | nothing    |

T acts on the current in both: on the membrane it would need the future. The reset rules differ as
well; they belong to the neuron (`ma_lif`, option reset).

In a residual block an addition of currents follows the gate and no neuron. The paper's residual
nets (Att-Res-SNN, Eq. 15 and 16, here MA-5) gate the current there, and so does its preset. That C
and S keep one statistic a step there is read from Eq. 10 to 13 [inferred]; with T = 1, as in all
but one of the published residual nets, it makes no difference.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saccade._keymap import KeyMap
from saccade._registry import one_of
from saccade._sources import Equation
from saccade.attention._base import ATTENTION, Site, SpikingAttention
from saccade.nn import Gate, check_maps
from saccade.nn.released import MA_SNN


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What tells the paper's gates from those of the released code; `PRESETS` are the two.

    Fields are the options of `MultiDimensionalGate`; its ratios are those of a long enough axis.

    Raises:
        ValueError: for an unknown choice, an even kernel, statistics per sample at the membrane.
    """

    ratio_t: int
    ratio_c: int
    kernel: int
    stats: str
    location: str
    post_relu: bool

    def __post_init__(self) -> None:
        one_of("stats", self.stats, ("per_sample", "per_step"))
        one_of("location", self.location, ("current", "membrane"))
        if (self.stats, self.location) == ("per_sample", "membrane"):
            raise ValueError(
                "got stats='per_sample' with location='membrane', expected 'per_step': inside the "
                "neuron's step the later steps are not known"
            )
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(
                f"got kernel={self.kernel}, expected an odd number; the nearest is "
                f"{max(1, self.kernel + 1)}"
            )

    def at(self, site: Site, **given: Any) -> "Settings":
        """These settings, but for what is given and not None, as they hold at a site.

        Raises:
            ValueError: as above; for a membrane where the site feeds no neuron.
        """
        given = {option: value for option, value in given.items() if value is not None}
        if not site.feeds_neuron:
            if given.get("location") == "membrane":
                raise ValueError(
                    "got location='membrane' where an addition follows the gate and no neuron, "
                    "expected 'current', as in the paper's own residual nets (Eq. 15 and 16)"
                )
            given.setdefault("location", "current")
        return replace(self, **given)


PRESETS = {
    "official_code": Settings(
        ratio_t=5, ratio_c=8, kernel=3, stats="per_sample", location="current", post_relu=True
    ),
    # the paper's supplement (S2) with its ratio over time could not be read: the code's is kept
    "paper": Settings(
        ratio_t=5, ratio_c=16, kernel=7, stats="per_step", location="membrane", post_relu=False
    ),
}


def pooled(x: Tensor, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and maximum over axes, which vanish; of equal maxima the first takes the gradient."""
    kept = tuple(axis for axis in range(x.dim()) if axis not in over)
    rows = x.permute(kept + over).flatten(len(kept))
    return rows.mean(-1), rows.max(-1).values


class SharedMLP(nn.Module):
    """sigma(W1 relu(W0 mean) + W1 relu(W0 max)): n statistics to n gates, through n // ratio."""

    def __init__(self, n: int, ratio: int) -> None:
        super().__init__()
        self.down = nn.Linear(n, n // ratio, bias=False)
        self.up = nn.Linear(n // ratio, n, bias=False)

    def forward(
        self, mean: Float[Tensor, "*b n"], peak: Float[Tensor, "*b n"]
    ) -> Float[Tensor, "*b n"]:
        """Gates in (0, 1), in the type of the weights: a membrane may be wider."""
        mean, peak = (x.to(self.down.weight.dtype) for x in (mean, peak))
        return torch.sigmoid(self.up(self.down(mean).relu()) + self.up(self.down(peak).relu()))

    def macs(self) -> int:
        """Multiply-accumulates for one vector of means and one of maxima."""
        return 2 * (self.down.weight.numel() + self.up.weight.numel())


class Time(nn.Module):
    """Eq. MA-1: one gate a step, from what the whole step holds."""

    def __init__(self, T: int, ratio: int) -> None:
        super().__init__()
        self.mlp = SharedMLP(T, ratio)

    def forward(self, x: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B 1 1 1"]:
        """Gates in (0, 1)."""
        mean, peak = pooled(x, (2, 3, 4))
        g: Tensor = self.mlp(mean.T, peak.T).T
        return g[..., None, None, None]


class Channel(nn.Module):
    """Eq. MA-2: one gate a channel, of each step or of the whole sample."""

    def __init__(self, C: int, ratio: int, *, per_step: bool) -> None:
        super().__init__()
        self.mlp, self.per_step = SharedMLP(C, ratio), per_step

    def forward(self, x: Float[Tensor, "T B C H W"]) -> Float[Tensor, "t B C 1 1"]:
        """Gates in (0, 1); t is T or 1."""
        g: Tensor = self.mlp(*pooled(x, (3, 4) if self.per_step else (0, 3, 4)))
        return (g if self.per_step else g[None])[..., None, None]


class Space(nn.Module):
    """Eq. MA-3: one gate a place of the grid, of each step or of the whole sample."""

    def __init__(self, kernel: int, *, per_step: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)
        self.per_step = per_step

    def forward(self, x: Float[Tensor, "T B C H W"]) -> Float[Tensor, "t B 1 H W"]:
        """Gates in (0, 1); t is T or 1."""
        stack = torch.stack(pooled(x, (2,) if self.per_step else (0, 2)), -3)
        stack = stack.to(self.conv.weight.dtype)
        maps = stack if self.per_step else stack[None]
        g: Tensor = self.conv(maps.flatten(0, 1))
        return torch.sigmoid(g).reshape(*maps.shape[:2], 1, *g.shape[-2:])


def winners(g: Tensor, share: float, axis: int) -> Tensor:
    """1 for the ceil(share n) largest gates along an axis, 0 for the others."""
    n = math.ceil(share * g.shape[axis])
    return torch.zeros_like(g).scatter(axis, g.topk(n, axis).indices, 1.0)


class MultiDimensionalGate(SpikingAttention):
    """Abstract: gates over a subset of time, channel and space, in that order (Eq. MA-4).

    Args:
        site: where the mechanism sits.
        preset: "official_code" or "paper"; what it says holds where an option below is None.
        ratio_t: T over the hidden width of T's MLP. None: the preset's, or T if that is less.
        ratio_c: C over the hidden width of C's MLP. None: the preset's, or C if that is less.
        kernel: side of S's convolution, odd.
        stats: whether C and S pool over all steps ("per_sample") or each for itself ("per_step").
        location: where C and S act: "current", or "membrane" (inside the neuron's step). Where
            the site feeds no neuron both presets have "current".
        post_relu: whether the gated current loses its negative part.
        keep_t, keep_c: share of the gates of T and of C that are kept, the largest; the others
            are set to 0 (the code's winner-take-all, "fbs", which no published net uses).

    Raises:
        ValueError: for an unknown choice, a ratio above what it divides, an even kernel, a share
            outside (0, 1], statistics per sample at the membrane, a membrane where no neuron
            follows, or another T in a call.
    """

    source = MA_SNN
    kind = "gate"
    golden = "official"
    causal = False
    parts: ClassVar[str]
    equations = tuple(
        Equation(
            name=name, text=text, source=MA_SNN, where=where, code=f"saccade.attention.ma.{code}"
        )
        for name, text, where, code in (
            ("MA-1", "g_t = sigma(W1 relu(W0 avg_chw X) + W1 relu(W0 max_chw X))", "(8-9)", "Time"),
            (
                "MA-2",
                "g_c = sigma(W1 relu(W0 avg_hw U_t) + W1 relu(W0 max_hw U_t))",
                "(10-11)",
                "Channel",
            ),
            ("MA-3", "g_s = sigma(Conv([avg_c U_t; max_c U_t]))", "(12-13)", "Space"),
            (
                "MA-4",
                "X' = g_t(X) X; V_t = H_{t-1} + X'_t; V'_t = g_c(V_t) V_t; U_t = g_s(V'_t) V'_t",
                "(14)",
                "MultiDimensionalGate",
            ),
            (
                "MA-5",
                "Y = A(F(X)) + X in Att-Res-SNN-1, Y = A(F(X) + X) in -2, A = g_s after g_c",
                "(15-16), on the current; in preset paper that of each step [inferred]",
                "MultiDimensionalGate",
            ),
        )
    )

    def __init__(
        self,
        site: Site,
        *,
        preset: str = "official_code",
        ratio_t: int | None = None,
        ratio_c: int | None = None,
        kernel: int | None = None,
        stats: str | None = None,
        location: str | None = None,
        post_relu: bool | None = None,
        keep_t: float = 1.0,
        keep_c: float = 1.0,
    ) -> None:
        super().__init__()
        chosen = PRESETS[one_of("preset", preset, PRESETS)].at(
            site, kernel=kernel, stats=stats, location=location, post_relu=post_relu
        )
        self.site, self.stats, self.location = site, chosen.stats, chosen.location
        self.post_relu = chosen.post_relu
        self.keep_t, self.keep_c = _share("keep_t", keep_t), _share("keep_c", keep_c)
        per_step = self.stats == "per_step"
        if "T" in self.parts:
            self.t = Time(site.T, checked_ratio("ratio_t", ratio_t, chosen.ratio_t, T=site.T))
        if "C" in self.parts:
            ratio = checked_ratio("ratio_c", ratio_c, chosen.ratio_c, C=site.dim)
            self.c = Channel(site.dim, ratio, per_step=per_step)
        if "S" in self.parts:
            self.s = Space(chosen.kernel, per_step=per_step)
        self.causal = "T" not in self.parts and per_step

    def forward(self, x: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B C H W"]:
        """The gated current; where C and S sit at the membrane, T's share of the work."""
        check_maps(x, self.site.dim if "C" in self.parts else None)
        kept = None
        if "T" in self.parts:
            same_steps(x, self.site.T)
            g = self.t(x)
            x, kept = g * x, winners(g, self.keep_t, 0) if self.keep_t < 1 else None
        if self.location == "current":
            x = self._channel_and_space(x)
        x = x if kept is None else x * kept  # last: the other gates see what the losers hold
        return x.relu() if self.post_relu else x

    def at_membrane(self) -> Gate | None:
        """C and S for one step, where they sit at the membrane."""
        if self.location == "current" or self.parts == "T":
            return None
        return lambda u: self._channel_and_space(u[None])[0]

    def _channel_and_space(self, x: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B C H W"]:
        kept = None
        if "C" in self.parts:
            g = self.c(x)
            x, kept = g * x, winners(g, self.keep_c, 2) if self.keep_c < 1 else None
        if "S" in self.parts:
            x = self.s(x) * x
        return x if kept is None else x * kept

    def extra_repr(self) -> str:
        """What the options came to, for printing."""
        return f"stats={self.stats!r}, location={self.location!r}, post_relu={self.post_relu}"

    def adds(self) -> int:
        """Multiply-accumulates: making the gates, and one product an element and dimension."""
        s = self.site
        times = s.T if self.stats == "per_step" else 1
        macs = len(self.parts) * s.T * s.dim * s.tokens
        if "T" in self.parts:
            macs += self.t.mlp.macs()
        if "C" in self.parts:
            macs += times * self.c.mlp.macs()
        if "S" in self.parts:
            macs += times * s.tokens * self.s.conv.weight.numel()
        return int(macs)

    @classmethod
    def for_vectors(cls, site: Site, **options: Any) -> SpikingAttention | None:
        """T alone, as the code's fully connected layers have it."""
        return TA(site, **options) if "T" in cls.parts else None


def _share(option: str, value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError(f"got {option}={value}, expected a share above 0 and up to 1")
    return value


def checked_ratio(option: str, ratio: int | None, default: int, **size: int) -> int:
    """A ratio that leaves at least one hidden unit; `size` is the axis and its length.

    Raises:
        ValueError: for a ratio that was given and does not.
    """
    ((axis, n),) = size.items()
    if ratio is None:
        return min(default, n)
    if not 1 <= ratio <= n:
        raise ValueError(
            f"got {option}={ratio} for {axis}={n}, expected 1 to {n}: {axis} // {option} hidden "
            f"units would be none; the nearest is {min(max(1, ratio), n)}"
        )
    return ratio


def same_steps(x: Tensor, T: int) -> None:
    """Raise a ValueError unless `x` has the T steps that the gate's parameters were built for."""
    if len(x) != T:
        raise ValueError(
            f"got {len(x)} time steps, expected {T}: the parameters of a gate over time depend on "
            f"T; build it with T={len(x)}"
        )


@ATTENTION.add("ta")
class TA(MultiDimensionalGate):
    """MA-SNN's gate over time."""

    parts = "T"


@ATTENTION.add("ca")
class CA(MultiDimensionalGate):
    """MA-SNN's gate over channels."""

    parts = "C"


@ATTENTION.add("sa")
class SA(MultiDimensionalGate):
    """MA-SNN's gate over space."""

    parts = "S"


@ATTENTION.add("tca")
class TCA(MultiDimensionalGate):
    """MA-SNN's gates over time and channels."""

    parts = "TC"


@ATTENTION.add("tsa")
class TSA(MultiDimensionalGate):
    """MA-SNN's gates over time and space."""

    parts = "TS"


@ATTENTION.add("csa")
class CSA(MultiDimensionalGate):
    """MA-SNN's gates over channels and space."""

    parts = "CS"


@ATTENTION.add("tcsa")
class TCSA(MultiDimensionalGate):
    """MA-SNN's gates over time, channels and space."""

    parts = "TCS"


KEYS = KeyMap(
    rules=(
        (r"([tc])a\.sharedMLP\.0\.weight", r"\1.mlp.down.weight"),
        (r"([tc])a\.sharedMLP\.2\.weight", r"\1.mlp.up.weight"),
        (r"sa\.conv\.weight", "s.conv.weight"),
    )
)
"""Parameters of the official wrappers TA, CA, SA, TCA, TSA, CSA, TCSA."""
