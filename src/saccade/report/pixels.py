"""Small pictures as PNG data addresses; the page enlarges them without smoothing."""

import base64
import struct
import zlib
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_COLOUR_TYPE = {1: 0, 3: 2, 4: 6}  # PNG: grey, RGB, RGB with opacity


def png(pixels: Array) -> str:
    """uint8 [H, W, C] with C 1, 3 or 4 as a `data:` address."""
    H, W, C = pixels.shape
    rows = np.zeros((H, 1 + W * C), np.uint8)  # each row begins with its filter, 0: none
    rows[:, 1:] = pixels.reshape(H, W * C)
    header = struct.pack(">IIBBBBB", W, H, 8, _COLOUR_TYPE[C], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def picture(image: Array, *, longest: int = 96) -> str:
    """A sample image uint8 [C, H, W]; blocks of pixels are averaged until no side is too long."""
    C, H, W = image.shape
    block = -(-max(H, W) // longest)
    if block > 1:
        pad = ((0, 0), (0, -H % block), (0, -W % block))
        padded = np.pad(image.astype(np.float64), pad, mode="edge")
        tiles = padded.reshape(C, padded.shape[1] // block, block, -1, block)
        image = tiles.mean((2, 4)).round().astype(np.uint8)
    return png(image.transpose(1, 2, 0))


def unit(values: Array) -> Array:
    """Values brought to 0..1 by one linear map that keeps 0 at 0 unless some are negative.

    Not-a-number counts as 0.
    """
    values = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = min(0.0, float(values.min(initial=0))), float(values.max(initial=0))
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def heat(values: Array, *, overlay: bool = False) -> str:
    """[H, W] in 0..1 as viridis; as an overlay, low values let the picture beneath show through."""
    colours = matplotlib.colormaps["viridis"](values)
    if overlay:
        colours[..., 3] = 0.2 + 0.65 * values
    else:
        colours = colours[..., :3]
    return png((255 * colours).round().astype(np.uint8))
