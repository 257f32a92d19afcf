"""The recurrence as printed: one step after the other, differentiated by autograd."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saccade._registry import nearest
from saccade.ops.surrogate import SURROGATE, spike


@dataclass(frozen=True, kw_only=True)
class Fire:
    """Constants of firing and reset.

    Args:
        v_threshold: the membrane fires where h >= v_threshold.
        strict: fires only where h > v_threshold: a tie stays silent.
        v_reset: a spike sets the membrane to this value (hard reset); None takes v_threshold
            off instead (soft reset).
        v_rest: where the membrane starts and what it leaks to; None is v_reset, or 0 with a soft
            reset.
        detach_reset: whether the spike is a constant in the reset line of the backward pass.
        detach_membrane: whether the membrane of the step before is a constant in the backward
            pass, so that no gradient passes through membrane time (BrainCog's nodes).
        surrogate: name in the table of surrogate derivatives.
        alpha: its sharpness; None takes the table's own.

    Raises:
        ValueError: for an unknown surrogate, alpha <= 0, or a rest that reaches v_threshold.
    """

    v_threshold: float = 1.0
    v_reset: float | None = 0.0
    detach_reset: bool = True
    detach_membrane: bool = False
    surrogate: str = "sigmoid"
    alpha: float | None = None
    v_rest: float | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if self.surrogate not in SURROGATE:
            raise ValueError(
                f"unknown surrogate {self.surrogate!r}; {nearest(self.surrogate, SURROGATE.list())}"
            )
        if self.sharpness <= 0:
            raise ValueError(f"got alpha={self.alpha}, expected a number above 0")
        if self.rest >= self.v_threshold:
            raise ValueError(
                f"got v_threshold={self.v_threshold}, expected more than "
                f"{'v_reset' if self.v_rest is None else 'v_rest'}={self.rest}: a neuron at rest "
                "would fire"
            )

    @property
    def rest(self) -> float:
        """The membrane before the first input."""
        if self.v_rest is not None:
            return self.v_rest
        return 0.0 if self.v_reset is None else self.v_reset

    @property
    def sharpness(self) -> float:
        """`alpha`, or what the table gives."""
        return SURROGATE[self.surrogate].alpha if self.alpha is None else self.alpha


def scan(
    x: Float[Tensor, "T *dims"],
    v0: Float[Tensor, "*dims"] | None,
    decay: float | Tensor,
    gain: float | Tensor,
    fire: Fire,
) -> tuple[Float[Tensor, "T *dims"], Float[Tensor, "*dims"]]:
    """Eq. LIF-1 to LIF-3 over axis 0.

    h_t = decay v_{t-1} + gain x_t + (1 - decay) rest;  s_t = 1[h_t >= v_threshold], or > if strict;
    v_t = v_reset where s_t else h_t (hard), or h_t - v_threshold s_t (soft).

    Args:
        x: input currents.
        v0: membrane before the first step; None starts at rest.
        decay, gain: 1 - 1/tau and 1/tau for a LIF whose input decays too; tensors (of a
            broadcastable shape) where they are learned.
        fire: threshold, reset and surrogate.

    Returns:
        spikes, and the membrane after the last step.
    """
    rest = fire.rest
    v = torch.full_like(x[0], rest) if v0 is None else v0
    spikes = []
    for x_t in x:
        h = decay * (v.detach() if fire.detach_membrane else v) + gain * x_t
        if rest:
            h = h + (1 - decay) * rest
        s = spike(h - fire.v_threshold, fire.surrogate, fire.sharpness, strict=fire.strict)
        s_reset = s.detach() if fire.detach_reset else s
        if fire.v_reset is None:
            v = h - fire.v_threshold * s_reset
        else:
            v = (1 - s_reset) * h + s_reset * fire.v_reset
        spikes.append(s)
    return torch.stack(spikes), v
