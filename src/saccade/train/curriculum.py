"""What changes while a run goes on: steps and size of the pictures, sharpness of surrogates.

All are functions of the share of all steps that has been taken, so a resumed run is at the same
stage as one that was never stopped.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from saccade.models import SpikingModel, describe, rebuild
from saccade.ops import Fire


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How the model is trained up to some share of all steps; behind the last stage, as built.

    Args:
        until: share of all steps at which the stage ends.
        T: steps that a picture is shown for; 0 is the model's own T. Batch norm keeps one set of
            statistics over all stages.
        size: shorter side that pictures are resized to, in pixels; 0 leaves them as they are.
        sharpness: factor on every neuron's alpha; below 1 the surrogate is wider. Forward passes
            do not depend on it.
    """

    until: float
    T: int = 0
    size: int = 0
    sharpness: float | int = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise ValueError(
                f"got until={self.until} in curriculum, expected a share above 0 and up to 1"
            )
        for name in ("T", "size"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"got {name}={getattr(self, name)} in curriculum, expected 1 or more, or 0 "
                    "for the model's own"
                )
        if not 0 < self.sharpness < float("inf"):
            raise ValueError(
                f"got sharpness={self.sharpness} in curriculum, expected a number above 0"
            )

    def resized(self, frame: tuple[int, ...]) -> tuple[int, int] | None:
        """(H, W) for frames [C H W] in this stage, of the same aspect; None: as they are."""
        if not self.size:
            return None
        H, W = frame[-2:]
        return round(H * self.size / min(H, W)), round(W * self.size / min(H, W))


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
    """Show a copy of the model one picture as each stage would; the model itself is left alone.

    At another size it has to answer as a model that is built for that size with the same weights,
    in float64 on the CPU, bit for bit.

    Raises:
        ValueError: where it cannot, rather than in the middle of a run.
    """
    asked = {(stage.T, stage.size): stage for stage in stages if stage.T or stage.size}
    if not asked:
        return
    copy = _wake(deepcopy(model).cpu().double().eval())
    for stage in asked.values():
        try:
            _try(copy, stage)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"curriculum asks for T={stage.T or model.config.T} and size "
                f"{stage.size or min(model.frame[-2:])}, which model {model.name!r} cannot be "
                f"trained with: {error}"
            ) from error


def _wake(model: SpikingModel) -> SpikingModel:
    """Let layers fire that are silent before training: they would prove nothing."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.bias is not None:
            module.bias.uniform_(-1, 4)  # with tau 2, a current of 2 fires at once
    return model


def _try(model: SpikingModel, stage: Stage) -> None:
    if stage.size and len(model.frame) != 3:
        raise ValueError("it takes series, which have no height and width")
    C, size = model.frame[0], stage.resized(model.frame)
    shape = model.frame if size is None else (C, *size)
    x = torch.rand(stage.T or model.config.T, 2, *shape, dtype=torch.float64) * 4 - 2
    seen = model(x, any_size=size is not None)
    if size is not None:
        told = describe(model)
        twin = rebuild({**told, "config": {**told["config"], "image_size": size}}).double().eval()
        twin.load_state_dict(model.state_dict())
        if not torch.equal(twin(x), seen):
            raise ValueError("it answers otherwise than a model built for that size")


class Sharpness:
    """Scales the surrogate's alpha of every neuron of a model, from what it was built with."""

    def __init__(self, model: nn.Module) -> None:
        found = ((m, getattr(m, "fire", None)) for m in model.modules())
        self.built = [(module, fire) for module, fire in found if isinstance(fire, Fire)]
        self.factor = 1.0

    def set(self, factor: float) -> None:
        """Let alpha be `factor` times the one that the model was built with."""
        if factor == self.factor:
            return
        self.factor = factor
        for module, fire in self.built:
            alpha = fire.alpha if factor == 1 else fire.sharpness * factor
            setattr(module, "fire", replace(fire, alpha=alpha))  # noqa: B010  (of any class)
