"""RandAugment on a whole batch: one pass for each operation, over the images that drew it.

Source: Cubuk et al., "RandAugment", arXiv:1909.13719; its fourteen operations, with the ranges of
AutoAugment (arXiv:1805.09501). What a move leaves bare is black. Axes as in `augment`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from saccade._registry import Registry
from saccade.data.moved import moved

TURN, SHEAR, MOVE, ENHANCE, BITS = 30.0, 0.3, 0.45, 0.9, 4
"""Of the largest magnitude: degrees, slope, share of the side, change of a factor, lost bits."""
TOP = 10.0
"""The largest magnitude."""
LUMA = (0.299, 0.587, 0.114)
"""Brightness of red, green and blue (ITU-R BT.601)."""

Operation = Callable[[Tensor, Tensor], Tensor]
OPERATION: Registry[Operation] = Registry("operation of RandAugment")
"""Name -> function of images [B C H W] in 0..1 and signed magnitudes [B] in -1..1."""


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """How much of RandAugment; the defaults do none.

    Args:
        layers: N, operations one after another.
        magnitude: M, from 0 to 10.
        spread: sd of each image's own magnitude around M, cut to 0..10; 0 is the paper's.
        probability: with which an image takes the operation that it drew; 1 is the paper's.
        operations: names to draw from; none stands for all of them.

    Raises:
        ValueError: for values beyond their bounds, or an unknown operation (the nearest is named).
    """

    layers: int = 0
    magnitude: float | int = 9.0  # a recipe may say 9
    spread: float | int = 0.0
    probability: float | int = 1.0
    operations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, bound in (
            ("layers", 99),
            ("magnitude", TOP),
            ("spread", TOP),
            ("probability", 1),
        ):
            if not 0 <= getattr(self, name) <= bound:
                raise ValueError(
                    f"got randaugment.{name}={getattr(self, name)}, expected 0 to {bound:g}"
                )
        for name in self.operations:
            OPERATION[name]


def randaugment(
    x: Float[Tensor, "B C H W"], how: RandAugment, generator: torch.Generator
) -> Float[Tensor, "B C H W"]:
    """Each image through its own draw of operations and magnitudes.

    Args:
        x: pixels in 0..1; left as they are.
        how: how much.
        generator: the only source of chance.
    """
    names, B, home = how.operations or tuple(OPERATION), len(x), generator.device
    for _ in range(how.layers):
        choice = torch.randint(len(names), (B,), generator=generator, device=home)
        taken = torch.rand(B, generator=generator, device=home) < how.probability
        sign = 1 - 2 * torch.randint(2, (B,), generator=generator, device=home)
        level = how.magnitude + how.spread * torch.randn(B, generator=generator, device=home)
        # side by side by operation, so that each works on one block; those that take none are last
        kind = torch.where(taken, choice, len(names))
        order = kind.argsort(stable=True)
        counts = kind.bincount(minlength=len(names) + 1).tolist()
        signed = (sign * level.clamp(0, TOP) / TOP).to(x.dtype)[order]
        places = moved(torch.stack([order, order.argsort()]), x.device)
        blocks = torch.split(x[places[0]], counts)
        strengths = torch.split(moved(signed, x.device), counts)
        x = torch.cat(
            [
                block if k == len(names) else OPERATION[names[k]](block, strengths[k])
                for k, block in enumerate(blocks)
                if len(block)
            ]
        )[places[1]]
    return x


def affine(
    x: Float[Tensor, "B C H W"], rows: tuple[Tensor, Tensor, Tensor, Tensor], dx: Tensor | float = 0
) -> Float[Tensor, "B C H W"]:
    """Take pixel (x, y), counted from the middle, from (a x + b y + dx W, c x + d y); bilinear.

    Args:
        x: images.
        rows: a, b, c, d of each image, each [B].
        dx: share of the width to move by.
    """
    a, b, c, d = rows
    # grid coordinates run from -1 to 1 along both axes: without the aspect a turn would shear
    aspect, zero = x.shape[2] / x.shape[3], torch.zeros_like(a)
    lines = [a, b * aspect, zero + 2 * dx], [c / aspect, d, zero]
    theta = torch.stack([torch.stack(line, dim=1) for line in lines], dim=1).to(x.dtype)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="zeros", align_corners=False)


@OPERATION.add("identity")
def _identity(x: Tensor, m: Tensor) -> Tensor:
    return x


@OPERATION.add("autocontrast")
def _autocontrast(x: Tensor, m: Tensor) -> Tensor:
    """Each channel stretched to 0..1; a flat one stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    width = high - low
    return torch.where(width > 0, (x - low) / width.clamp(min=1e-12), x)


@OPERATION.add("equalize")
def _equalize(x: Tensor, m: Tensor) -> Tensor:
    """Each channel of 256 levels made about equally frequent, in whole numbers as PIL does."""
    level = (x * 255).round().long().flatten(2)  # [B C HW]
    count = level.new_zeros(*level.shape[:2], 256).scatter_add_(2, level, torch.ones_like(level))
    highest = level.amax(2, keepdim=True)
    step = (level.shape[2] - count.gather(2, highest)) // 255
    below = count.cumsum(2) - count
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    spread = table.gather(2, level).to(x.dtype) / 255
    return torch.where(step > 0, spread, x.flatten(2)).reshape(x.shape)


@OPERATION.add("rotate")
def _rotate(x: Tensor, m: Tensor) -> Tensor:
    angle = torch.deg2rad(TURN * m)
    cos, sin = angle.cos(), angle.sin()
    return affine(x, (cos, -sin, sin, cos))


@OPERATION.add("shear_x")
def _shear_x(x: Tensor, m: Tensor) -> Tensor:
    one, zero = torch.ones_like(m), torch.zeros_like(m)
    return affine(x, (one, SHEAR * m, zero, one))


@OPERATION.add("shear_y")
def _shear_y(x: Tensor, m: Tensor) -> Tensor:
    return _shear_x(x.mT, m).mT


@OPERATION.add("translate_x")
def _translate_x(x: Tensor, m: Tensor) -> Tensor:
    one, zero = torch.ones_like(m), torch.zeros_like(m)
    return affine(x, (one, zero, zero, one), MOVE * m)


@OPERATION.add("translate_y")
def _translate_y(x: Tensor, m: Tensor) -> Tensor:
    return _translate_x(x.mT, m).mT


@OPERATION.add("solarize")
def _solarize(x: Tensor, m: Tensor) -> Tensor:
    """Invert what is brighter than a threshold, which falls from white as the magnitude grows."""
    return torch.where(x > 1 - _each(m.abs()), 1 - x, x)


@OPERATION.add("posterize")
def _posterize(x: Tensor, m: Tensor) -> Tensor:
    """Drop up to four of eight bits."""
    size = 2 ** _each((BITS * m.abs()).round())
    return ((x * 255).round() / size).floor() * size / 255


@OPERATION.add("color")
def _color(x: Tensor, m: Tensor) -> Tensor:
    return _away(x, _grey(x), m)


@OPERATION.add("contrast")
def _contrast(x: Tensor, m: Tensor) -> Tensor:
    return _away(x, _grey(x).mean((2, 3), keepdim=True), m)


@OPERATION.add("brightness")
def _brightness(x: Tensor, m: Tensor) -> Tensor:
    return _away(x, torch.zeros_like(x), m)


@OPERATION.add("sharpness")
def _sharpness(x: Tensor, m: Tensor) -> Tensor:
    """Against a 3x3 blur with weight 5 in the middle; the outermost pixels stay."""
    if min(x.shape[2:]) < 3:
        return x
    C, smooth = x.shape[1], x.clone()
    kernel = x.new_ones(3, 3)
    kernel[1, 1] = 5
    weight = (kernel / kernel.sum()).expand(C, 1, 3, 3)
    smooth[..., 1:-1, 1:-1] = functional.conv2d(x, weight, groups=C)
    return _away(x, smooth, m)


def _away(x: Tensor, origin: Tensor, m: Tensor) -> Tensor:
    """Towards (m < 0) or away from (m > 0) a poorer image."""
    return (origin + (1 + ENHANCE * _each(m)) * (x - origin)).clamp(0, 1)


def _grey(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
    """Brightness; of other than three channels, their mean."""
    if x.shape[1] != len(LUMA):
        return x.mean(1, keepdim=True)
    return (x * moved(torch.tensor(LUMA, dtype=x.dtype), x.device)[:, None, None]).sum(
        1, keepdim=True
    )


def _each(m: Float[Tensor, " B"]) -> Float[Tensor, "B 1 1 1"]:
    return m[:, None, None, None]
