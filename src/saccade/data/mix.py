"""Blends of the pictures of a batch with each other, and of their labels.

Everything is drawn once for the whole batch ("batch mode"), so two tensor operations do the work.
Axes: B batch, C channels, H W grid, K classes.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saccade.data.moved import moved


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Which blends to make; the defaults make none.

    Args:
        mixup: alpha of Beta(alpha, alpha), the share of the first picture in a weighted sum;
            0 is off. Source: Zhang et al., ICLR 2018, arXiv:1710.09412.
        cutmix: alpha of the same for the area of the first picture that a rectangle of the second
            leaves; 0 is off. Source: Yun et al., ICCV 2019, arXiv:1905.04899.
        probability: share of the batches that are blended at all.
        switch: where both are on, share of the blends that are cutmix.
        until: share of all steps after which nothing is blended any more.

    Raises:
        ValueError: for a negative alpha, or a share beyond 0..1.
    """

    mixup: float | int = 0.0  # a recipe may say 1
    cutmix: float | int = 0.0
    probability: float | int = 1.0
    switch: float | int = 0.5
    until: float | int = 1.0

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"got mix.{name}={getattr(self, name)}, expected 0 or more")
        for name in ("probability", "switch", "until"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"got mix.{name}={getattr(self, name)}, expected 0 to 1")


def mix(
    x: Float[Tensor, "B C H W"],
    target: Float[Tensor, "B K"],
    how: Mix,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"]]:
    """Blend each picture with its partner; a picture may be its own.

    Args:
        x: pictures, in any units.
        target: shares of the classes, such as one-hot labels.
        how: the blends.
        generator: the only source of chance.

    Returns:
        pictures and targets; the arguments themselves where nothing is blended.
    """
    alpha = _draw_alpha(how, generator)
    if alpha is None:
        return x, target
    kind, value = alpha
    share = _beta(value, generator)
    drawn = torch.randperm(len(x), generator=generator, device=generator.device)
    partner = moved(drawn, x.device)
    if kind == "mixup":
        mixed = torch.lerp(x[partner], x, share)
    else:
        box = _rectangle(x.shape[2], x.shape[3], 1 - share, generator)
        mixed = x.clone()
        mixed[..., box[0], box[1]] = x[partner][..., box[0], box[1]]
        covered = (box[0].stop - box[0].start) * (box[1].stop - box[1].start)
        share = 1 - covered / (x.shape[2] * x.shape[3])  # of whole pixels, clipped at the border
    return mixed, torch.lerp(target[partner], target, share)


def _draw_alpha(how: Mix, generator: torch.Generator) -> tuple[str, float] | None:
    """Which blend with which alpha, or none."""
    kinds = {n: float(getattr(how, n)) for n in ("mixup", "cutmix") if getattr(how, n)}
    if not kinds or _uniform(generator) >= how.probability:
        return None
    if len(kinds) == 2:
        kind = "cutmix" if _uniform(generator) < how.switch else "mixup"
    else:
        (kind,) = kinds
    return kind, kinds[kind]


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator, device=generator.device))


def _beta(alpha: float, generator: torch.Generator) -> float:
    """One number from Beta(alpha, alpha)."""
    both = torch.full((2,), alpha, dtype=torch.float64, device=generator.device)
    a, b = torch._standard_gamma(both, generator=generator).tolist()
    return 1.0 if a + b == 0 else a / (a + b)  # a tiny alpha underflows: no blend


def _rectangle(H: int, W: int, area: float, generator: torch.Generator) -> tuple[slice, slice]:
    """Rows and columns of a rectangle of that share of the area, centred anywhere, clipped."""
    sides = []
    for length in (H, W):
        half = int(length * math.sqrt(area)) / 2
        centre = _uniform(generator) * length
        low, high = max(0, math.floor(centre - half)), min(length, math.floor(centre + half))
        sides.append(slice(low, high))
    return sides[0], sides[1]
