"""Random changes to training images, and the way from stored pixels to network input.

The order is `unit` (bytes to 0..1), `augment` (still 0..1, so that the zeros that it fills in are
black), `normalise` (zero mean, unit spread). Axes: B batch, C channels, H W grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from saccade.data.moved import moved
from saccade.data.randaugment import RandAugment, affine, randaugment

ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)
"""Share of the picture that random erasing covers, and height over width: Zhong et al.,
arXiv:1708.04896, with the upper area that Spikformer's recipes use (0.4 in the paper)."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Which random changes to make, each image on its own; the defaults make none.

    Args:
        shift: most whole pixels to move by, in either direction along either axis.
        flip: mirror left and right, one image in two.
        rotate: most degrees to turn by, either way.
        scale: most relative zoom: 0.1 draws from 0.9 to 1.1.
        randaugment: so many operations out of a list, drawn for each image.
        cutout: side in pixels of a black square, centred anywhere, clipped at the borders.
        erase: share of the images in which a black rectangle of random size covers something
            (random erasing).

    Raises:
        ValueError: for a negative value, rotate above 180, scale of 1 or more, erase above 1.
    """

    shift: int = 0
    flip: bool = False
    rotate: float | int = 0.0  # a recipe may say 15
    scale: float | int = 0.0
    randaugment: RandAugment = field(default_factory=RandAugment)
    cutout: int = 0
    erase: float | int = 0.0

    def __post_init__(self) -> None:
        bounds = {"shift": math.inf, "rotate": 180.0, "cutout": math.inf, "erase": 1.0}
        for name, bound in bounds.items():
            if not 0 <= getattr(self, name) <= bound:
                raise ValueError(f"got {name}={getattr(self, name)}, expected 0 to {bound:g}")
        if not 0 <= self.scale < 1:
            raise ValueError(f"got scale={self.scale}, expected 0 or more and below 1")


def augment(
    x: Float[Tensor, "B C H W"], how: Augment, generator: torch.Generator
) -> Float[Tensor, "B C H W"]:
    """Change each image at random; the input is left as it is.

    Flip, turn and zoom (one bilinear pass), shift, RandAugment, cutout, erasing, in this order.

    Args:
        x: pixels in 0..1.
        how: the changes.
        generator: the only source of chance. The same state gives the same result on every
            device, because numbers are drawn where the generator lives and then moved.

    Raises:
        ValueError: where the shift could move an image out of its frame, or the cutout is
            larger than the image.
    """
    for name, limit in (("shift", min(x.shape[2:]) - 1), ("cutout", min(x.shape[2:]))):
        if getattr(how, name) > limit:
            raise ValueError(
                f"got {name}={getattr(how, name)} for images of {x.shape[2]}x{x.shape[3]} pixels, "
                f"expected at most {limit}"
            )
    if how.flip:
        x = _flip(x, generator)
    if how.rotate or how.scale:
        x = _turn_and_zoom(x, how, generator)
    if how.shift:
        x = _shift(x, how.shift, generator)
    if how.randaugment.layers:
        x = randaugment(x, how.randaugment, generator)
    if how.cutout:
        x = _cut_out(x, how.cutout, generator)
    if how.erase:
        x = _erase(x, float(how.erase), generator)
    return x


def unit(images: UInt8[Tensor, "B C H W"], white: float) -> Float[Tensor, "B C H W"]:
    """Stored pixels as float32, `white` becoming 1."""
    return images.to(torch.float32) / white


def normalise(
    x: Float[Tensor, "B C H W"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "B C H W"]:
    """Take each channel's mean off and divide by its spread, both in units of white.

    Raises:
        ValueError: unless there is one mean and one std for each channel.
    """
    if not len(mean) == len(std) == x.shape[1]:
        raise ValueError(
            f"got {len(mean)} means and {len(std)} stds, expected {x.shape[1]}: one a channel"
        )
    both = moved(torch.tensor((mean, std), dtype=x.dtype), x.device)
    centre, spread = both[:, None, :, None, None].unbind()
    return (x - centre) / spread


def _uniform(
    batch: Float[Tensor, "B C H W"], low: float, high: float, generator: torch.Generator
) -> Float[Tensor, " B"]:
    """One number for each image of the batch."""
    drawn = torch.rand(len(batch), generator=generator, device=generator.device)
    return moved(low + (high - low) * drawn, batch.device)


def _flip(x: Float[Tensor, "B C H W"], generator: torch.Generator) -> Float[Tensor, "B C H W"]:
    mirrored = _uniform(x, 0.0, 1.0, generator) < 0.5
    return torch.where(mirrored[:, None, None, None], x.flip(-1), x)


def _turn_and_zoom(
    x: Float[Tensor, "B C H W"], how: Augment, generator: torch.Generator
) -> Float[Tensor, "B C H W"]:
    angle = _uniform(x, -float(how.rotate), float(how.rotate), generator) * (math.pi / 180)
    zoom = 1 + _uniform(x, -float(how.scale), float(how.scale), generator)
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    return affine(x, (cos, -sin, sin, cos))


def _shift(
    x: Float[Tensor, "B C H W"], most: int, generator: torch.Generator
) -> Float[Tensor, "B C H W"]:
    """Move by whole pixels: values are copied, never interpolated."""
    B, C, H, W = x.shape
    dy, dx = (_uniform(x, 0.0, 2.0 * most + 1, generator).long().clamp(max=2 * most) for _ in "yx")
    padded = functional.pad(x, (most,) * 4)
    rows = torch.arange(H, device=x.device) + dy[:, None]
    columns = torch.arange(W, device=x.device) + dx[:, None]
    y = padded.gather(2, rows[:, None, :, None].expand(B, C, H, padded.shape[3]))
    return y.gather(3, columns[:, None, None, :].expand(B, C, H, W))


def _cut_out(
    x: Float[Tensor, "B C H W"], side: int, generator: torch.Generator
) -> Float[Tensor, "B C H W"]:
    covered = []
    for length in x.shape[2:]:
        centre = _uniform(x, 0.0, float(length), generator).long().clamp(max=length - 1)
        offset = torch.arange(length, device=x.device) - centre[:, None] + side // 2
        covered.append((offset >= 0) & (offset < side))
    square = covered[0][:, None, :, None] & covered[1][:, None, None, :]
    return x.masked_fill(square, 0.0)


def _erase(
    x: Float[Tensor, "B C H W"], probability: float, generator: torch.Generator
) -> Float[Tensor, "B C H W"]:
    """Cover a rectangle that lies inside; a side longer than the image is cut, not drawn again."""
    chosen = _uniform(x, 0.0, 1.0, generator) < probability
    area = _uniform(x, *ERASED_AREA, generator)
    flat, tall = (math.log(a) for a in ERASED_ASPECT)
    aspect = _uniform(x, flat, tall, generator).exp()
    covered = []
    for length, sides in zip(x.shape[2:], (aspect.sqrt(), aspect.rsqrt()), strict=True):
        side = (sides * (area * x.shape[2] * x.shape[3]).sqrt()).round().clamp(1, length)
        start = (_uniform(x, 0.0, 1.0, generator) * (length - side + 1)).floor()
        offset = torch.arange(length, device=x.device) - start.clamp(max=length - 1)[:, None]
        covered.append((offset >= 0) & (offset < side[:, None]))
    box = covered[0][:, None, :, None] & covered[1][:, None, None, :]
    return x.masked_fill(box & chosen[:, None, None, None], 0.0)
