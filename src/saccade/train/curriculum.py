"""What changes while a run goes on: steps a picture is shown, sharpness of surrogates.

Both are functions of the share of all steps that has been taken, so a resumed run is at the same
stage as one that was never stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from saccade.models import SpikingModel
from saccade.ops import Fire


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How the model is trained up to some share of all steps; behind the last stage, as built.

    Args:
        until: share of all steps at which the stage ends.
        T: steps that a picture is shown for; 0 is the model's own T. Batch norm keeps one set of
            statistics over all stages.
        sharpness: factor on every neuron's alpha; below 1 the surrogate is wider. Forward passes
            do not depend on it.
    """

    until: float
    T: int = 0
    sharpness: float | int = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise ValueError(
                f"got until={self.until} in curriculum, expected a share above 0 and up to 1"
            )
        if self.T < 0:
            raise ValueError(f"got T={self.T} in curriculum, expected 1 or more (0: the model's)")
        if not 0 < self.sharpness < float("inf"):
            raise ValueError(
                f"got sharpness={self.sharpness} in curriculum, expected a number above 0"
            )


AS_BUILT = Stage(until=1.0)


def check_stages(stages: Sequence[Stage]) -> None:
    """Raise ValueError unless each stage ends after the one before."""
    ends = [stage.until for stage in stages]
    if ends != sorted(set(ends)):
        raise ValueError(f"got curriculum stages until {ends}, expected rising shares")


def stage_at(stages: Sequence[Stage], step: int, steps: int) -> Stage:
    """The stage of a step: the first whose end, in steps, lies behind it."""
    return next((stage for stage in stages if step < round(stage.until * steps)), AS_BUILT)


@torch.no_grad()
def try_stages(model: SpikingModel, stages: Sequence[Stage]) -> None:
    """Show the model one blank picture at the T of each stage; its training mode is kept.

    Raises:
        ValueError: where it can only be run with its own T, rather than in the middle of a run.
    """
    was, device = model.training, next(model.parameters()).device
    model.eval()
    for T in {stage.T for stage in stages if stage.T}:
        try:
            model(torch.zeros(T, 1, *model.frame, device=device))
        except ValueError as error:
            raise ValueError(
                f"curriculum asks for T={T}, which this model cannot be shown: {error}"
            ) from error
    model.train(was)


class Sharpness:
    """Scales the surrogate's alpha of every neuron of a model, from what it was built with."""

    def __init__(self, model: nn.Module) -> None:
        found = ((m, getattr(m, "fire", None)) for m in model.modules())
        self.built = [(module, fire) for module, fire in found if isinstance(fire, Fire)]

    def set(self, factor: float) -> None:
        """Let alpha be `factor` times the one that the model was built with."""
        for module, fire in self.built:
            alpha = fire.alpha if factor == 1 else fire.sharpness * factor
            setattr(module, "fire", replace(fire, alpha=alpha))  # noqa: B010  (of any class)
