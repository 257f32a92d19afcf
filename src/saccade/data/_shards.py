"""Packed image shards, codec 'med-xz-1': lossless, small, read without pickle.

A shard is an .npz. Each pixel is written as green, red - green, blue - green; each of these planes
as its difference from the MED prediction (the median of left, above and left + above - upper left;
LOCO-I, JPEG-LS), modulo 256; the differences, as planes [C N H W], are compressed by xz.
"""

import hashlib
import lzma
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int16, Int64, UInt8

_DAMAGE = (
    *(OSError, KeyError, EOFError, MemoryError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
_KEYS = ("codec", "shape", "payload", "labels", "classes", "sha256_pixels")


def read_shard(
    path: Path, *, classes: tuple[str, ...], verify: bool
) -> tuple[UInt8[np.ndarray, "N C H W"], Int64[np.ndarray, " N"]]:
    """Images and labels of a shard.

    Args:
        path: of the .npz file.
        classes: the class names that it must have.
        verify: compare the decoded pixels with the shard's own sha256.

    Raises:
        ValueError: naming the file, where it is damaged or of another kind.
    """
    try:
        shard = _load(path)
        shape = _check(shard, classes)
        pixels = decode(_decompress(shard["payload"].tobytes(), math.prod(shape)), shape)
    except _DAMAGE as error:
        raise ValueError(f"{path}: got {error}, expected a shard of codec med-xz-1") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if verify:
        got, expected = hashlib.sha256(pixels.data).hexdigest(), shard["sha256_pixels"].tobytes()
        if got != expected.hex():
            raise ValueError(f"{path}: got pixels of sha256 {got}, expected {expected.hex()}")
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), shard["labels"].astype(np.int64)


def decode(residuals: bytes, shape: tuple[int, int, int, int]) -> UInt8[np.ndarray, "N H W C"]:
    """Pixels from the uncompressed differences; pixel by pixel, but all images at once."""
    N, H, W, C = shape
    planes = np.frombuffer(residuals, np.uint8).reshape(C, N, H, W).transpose(2, 3, 0, 1)
    differences = np.ascontiguousarray(planes)
    pixels = np.empty((H, W, C, N), np.uint8)
    above = np.zeros((W, C, N), np.int16)
    for i in range(H):
        row = np.empty_like(above)
        for j in range(W):
            plane = differences[i, j] + _predict(row, above, i, j)
            green = plane[0] & 255
            # red - green lies in -255..255, but is written modulo 256: unique once green is known
            red, blue = (plane[1] + green) & 255, (plane[2] + green) & 255
            row[j] = green, red - green, blue - green
            pixels[i, j] = red, green, blue
        above = row
    return np.ascontiguousarray(pixels.transpose(3, 0, 1, 2))


def _predict(
    row: Int16[np.ndarray, "W C N"], above: Int16[np.ndarray, "W C N"], i: int, j: int
) -> Int16[np.ndarray, "C N"]:
    if i == 0:
        first: np.ndarray = row[j - 1] if j else np.zeros_like(above[0])
        return first
    if j == 0:
        edge: np.ndarray = above[0]
        return edge
    left, up = row[j - 1], above[j]
    # the median of the three
    low, high = np.minimum(left, up), np.maximum(left, up)
    inner: np.ndarray = np.maximum(low, np.minimum(high, left + up - above[j - 1]))
    return inner


def _load(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise ValueError("got a single array, expected an .npz of several")
        return {key: arrays[key] for key in _KEYS}


def _check(shard: Mapping[str, np.ndarray], classes: tuple[str, ...]) -> tuple[int, int, int, int]:
    if str(shard["codec"]) != "med-xz-1":
        raise ValueError(f"got codec {shard['codec']}, expected med-xz-1")
    if tuple(shard["classes"].tolist()) != classes:
        raise ValueError(f"got classes {shard['classes'].tolist()}, expected {list(classes)}")
    shape = tuple(int(axis) for axis in shard["shape"].ravel())
    if len(shape) != 4 or min(shape) < 1 or shape[3] != 3:
        raise ValueError(f"got shape {shape}, expected [N H W 3]")
    labels = shard["labels"]
    if labels.shape != shape[:1] or labels.dtype.kind not in "ui":
        raise ValueError(
            f"got labels {labels.dtype} of shape {labels.shape}, expected {shape[0]} integers"
        )
    return shape[0], shape[1], shape[2], shape[3]


def _decompress(payload: bytes, size: int) -> bytes:
    """Unpack xz, and never more than one byte beyond what is due."""
    data = lzma.LZMADecompressor().decompress(payload, max_length=size + 1)
    if len(data) != size:
        raise ValueError(f"got {len(data)} bytes of differences or more, expected {size}")
    return data
