"""One picture file as an array, through Pillow: folders of images and single predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})
"""File endings that are taken for pictures, in lower case."""
CENTRE = 0.875
"""Side of the middle that a test sees, over the largest possible: 224 of 256 pixels is usual."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge, in pixels."""


def read_image(
    path: str | Path,
    *,
    image_size: int | Sequence[int] | None,
    channels: int,
    centre: bool = False,
) -> UInt8[np.ndarray, "C H W"]:
    """Read a picture, upright, resized and with the channels asked for.

    The camera's orientation mark (EXIF) is honoured, transparent pixels become black, 16-bit grey
    is cut to its upper 8 bits, and of an animation the first frame is taken.

    Args:
        path: of the file.
        image_size: (H, W) or the side of a square, in pixels: bilinear, aspect not kept.
            None keeps the picture's own size.
        channels: 1 for grey, 3 for red-green-blue.
        centre: take the middle alone, in the aspect of `image_size`, as the test of a data set
            with random crops does.

    Raises:
        ValueError: for a bad size or number of channels, or a file that is no sound picture.
        FileNotFoundError: where there is no such file.
        ImportError: without Pillow.
    """
    size = image_grid(image_size)
    if channels not in (1, 3):
        raise ValueError(f"got channels={channels}, expected 1 (grey) or 3 (red-green-blue)")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected a picture")
    picture = open_picture(path, str(path), channels=channels)
    whole = picture.height, picture.width
    H, W = size or whole
    return pixels_of(picture, (H, W), middle(*whole, aspect=W / H) if centre else None)


def open_picture(file: Path | IO[bytes], name: str, *, channels: int) -> "Image":
    """A decoded picture, upright, grey or red-green-blue.

    Args:
        file: path, or what can be read and sought.
        name: how errors call it.
        channels: 1 or 3.

    Raises:
        ValueError: for what is no sound picture.
        ImportError: without Pillow.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("reading pictures needs Pillow: pip install saccade[train]") from error
    try:
        with Image.open(file) as opened:
            opened.load()
            return _to_mode(ImageOps.exif_transpose(opened), "L" if channels == 1 else "RGB")
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise ValueError(f"{name}: got {error}, expected a readable picture") from error


def pixels_of(
    picture: "Image",
    size: tuple[int, int],
    box: Box | None = None,
) -> UInt8[np.ndarray, "C H W"]:
    """The pixels of a picture, or of a box of it, at another size.

    Args:
        picture: grey or red-green-blue.
        size: (H, W).
        box: which part of it.
    """
    from PIL import Image

    if box is not None or picture.size != size[::-1]:
        picture = picture.resize(size[::-1], Image.Resampling.BILINEAR, box)
    pixels = np.array(picture, dtype=np.uint8)  # a copy, which may be written to
    return np.ascontiguousarray(pixels.reshape(*size, -1).transpose(2, 0, 1))


def middle(height: int, width: int, *, aspect: float, side: float = CENTRE) -> Box:
    """Left, top, right, bottom of the middle: `side` times the largest box of that aspect."""
    w = side * min(width, height * aspect)
    h = w / aspect
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def image_grid(image_size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """(H, W) of a size given as a side, as a pair, or not at all.

    Raises:
        ValueError: unless it is one or two whole numbers above 0.
    """
    if image_size is None:
        return None
    sides = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
    if len(sides) != 2 or not all(isinstance(s, int) and s > 0 for s in sides):
        raise ValueError(
            f"got image_size={image_size!r}, expected a number of pixels or a pair (H, W)"
        )
    return sides[0], sides[1]


def _to_mode(picture: "Image", mode: str) -> "Image":
    from PIL import Image

    if picture.mode in ("I", "F"):
        raise ValueError("32-bit pixels, whose white is unknown")
    if picture.mode.startswith("I;16"):  # Pillow's own conversion has clipped these at 255
        high = (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(high).convert(mode)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    return picture.convert(mode)
