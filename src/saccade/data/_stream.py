"""A split that is never in memory as a whole: each picture is decoded when it is asked for.

The random crop is that of Szegedy et al., arXiv:1409.4842v1, section 6: a share of the area, at
an aspect ratio between 3/4 and 4/3.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Int64, UInt8

from saccade.data._base import Split, channel_statistics
from saccade.data._picture import Box, middle, open_picture, pixels_of

ASPECT = (3 / 4, 4 / 3)
_SAMPLE = 512


class Files(ABC):
    """Abstract: encoded pictures by number."""

    @abstractmethod
    def open(self, n: int) -> IO[bytes]:
        """The bytes of a picture."""

    @abstractmethod
    def name(self, n: int) -> str:
        """How errors call it."""


@dataclass(frozen=True)
class PictureFiles(Files):
    """Each picture a file."""

    paths: tuple[str, ...]

    def open(self, n: int) -> IO[bytes]:
        """The file."""
        return Path(self.paths[n]).open("rb")

    def name(self, n: int) -> str:
        """Path and number."""
        return f"{self.paths[n]} (picture {n})"


@dataclass(frozen=True, kw_only=True, eq=False)
class TarMembers(Files):
    """Pictures inside uncompressed tar files, by where their bytes lie.

    Args:
        paths: of the tar files.
        first: int64 [shards], number of the first picture of each.
        offsets, sizes: int64 [N], in bytes.
    """

    paths: tuple[str, ...]
    first: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    def open(self, n: int) -> IO[bytes]:
        """The bytes of a picture."""
        with Path(self.paths[self._shard(n)]).open("rb") as file:
            file.seek(int(self.offsets[n]))
            return BytesIO(file.read(int(self.sizes[n])))

    def name(self, n: int) -> str:
        """Tar file, and number of the picture in it."""
        shard = self._shard(n)
        return f"{self.paths[shard]} (picture {n - int(self.first[shard])})"

    def _shard(self, n: int) -> int:
        return int(np.searchsorted(self.first, n, side="right")) - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream(Split):
    """A split that is read as it is needed.

    Args:
        files: encoded pictures.
        rows: int64 [N], which of the files each picture of the split is.
        labels: int64 [N], class numbers from 0.
        frame: (C, H, W) of every picture, once decoded.
        crop: smallest and largest share of the area that a random crop keeps. None resizes the
            whole picture, without keeping its aspect, in training and test alike; otherwise a
            test sees the middle, in the aspect of `frame`.

    Raises:
        ValueError: unless 0 < smallest <= largest <= 1.
    """

    files: Files
    rows: np.ndarray
    labels: np.ndarray
    frame: tuple[int, int, int]
    crop: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.crop is not None and not (
            len(self.crop) == 2 and 0 < self.crop[0] <= self.crop[1] <= 1
        ):
            raise ValueError(
                f"got crop={list(self.crop)}, expected the smallest and the largest share of a "
                "picture, such as [0.08, 1]"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every picture."""
        return self.frame

    def take(self, index: Int64[np.ndarray, " n"]) -> "Stream":
        """The pictures of an index; nothing is read."""
        return replace(self, rows=self.rows[index], labels=self.labels[index])

    def read(self, index: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n C H W"]:
        """Decode the pictures of an index, as a test sees them."""
        return np.stack([self.one(int(n)) for n in index])

    def one(self, n: int, chance: np.random.Generator | None = None) -> UInt8[np.ndarray, "C H W"]:
        """Decode a picture; with a source of chance, a random crop of it where there are crops.

        Raises:
            ValueError: naming file and number, for what is no sound picture.
        """
        C, H, W = self.frame
        row = int(self.rows[n])
        with self.files.open(row) as file:
            picture = open_picture(file, self.files.name(row), channels=C)
        if self.crop is None:
            box = None
        elif chance is None:
            box = middle(picture.height, picture.width, aspect=W / H)
        else:
            box = random_box(picture.height, picture.width, self.crop, chance)
        return pixels_of(picture, (H, W), box)


def random_box(
    height: int, width: int, share: tuple[float, ...], chance: np.random.Generator
) -> Box:
    """Left, top, right, bottom of a random part: `share` of the area, aspect 3/4 to 4/3.

    Where ten draws have not fitted, the middle at the nearest aspect that is allowed.
    """
    for _ in range(10):
        area = height * width * chance.uniform(share[0], share[1])
        aspect = math.exp(chance.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        left, top = (width - w) * chance.random(), (height - h) * chance.random()
        if w <= width and h <= height:
            return left, top, left + w, top + h
    return middle(height, width, aspect=min(max(width / height, ASPECT[0]), ASPECT[1]), side=1.0)


def sample_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and spread of each channel over 512 pictures at equal distances, in units of 255."""
    index = np.linspace(0, len(split) - 1, min(_SAMPLE, len(split))).astype(np.int64)
    return channel_statistics(split.read(index), white=255.0)
