"""What a dataset is: two splits of labelled images, their classes and their pixel statistics.

A split lies in memory (`Images`) or is read as it is needed (`saccade.data._stream.Stream`).

Axes: N images, C channels, H W grid, K classes.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from saccade._registry import Part, Registry
from saccade._sources import Source

DATA: Registry[Callable[..., "ImageData"]] = Registry("dataset")
"""Name -> function of the data folder and options, which returns the whole dataset."""


class Split(ABC):
    """Abstract: labelled images, wherever they lie. A subclass is final.

    Args:
        labels: int64 [N], class numbers from 0.
    """

    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""

    @abstractmethod
    def take(self, index: Int64[np.ndarray, " n"]) -> "Split":
        """The images of an index, as a split of their own."""

    @abstractmethod
    def read(self, index: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n C H W"]:
        """The pixels of an index, without any chance in them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Images(Split):
    """A split in memory: image n is `images[n]` and shows class `labels[n]`.

    Args:
        images: uint8 [N C H W], pixels as stored, unscaled.
        labels: int64 [N], class numbers from 0.

    Raises:
        ValueError: for a wrong dtype or shape, no images, or unequal counts.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        for name, got, dtype, axes in (
            ("images", self.images, np.uint8, "N C H W"),
            ("labels", self.labels, np.int64, "N"),
        ):
            if got.dtype != dtype or got.ndim != len(axes.split()):
                raise ValueError(
                    f"{name}: got {got.dtype} of shape {got.shape}, "
                    f"expected {np.dtype(dtype)} [{axes}]"
                )
        if not self.images.size:
            raise ValueError(f"images: got shape {self.images.shape}, expected at least one pixel")
        if len(self.images) != len(self.labels):
            raise ValueError(
                f"got {len(self.images)} images and {len(self.labels)} labels, expected as many"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        C, H, W = self.images.shape[1:]
        return C, H, W

    def take(self, index: Int64[np.ndarray, " n"]) -> "Images":
        """A copy of the images of an index."""
        return Images(images=self.images[index], labels=self.labels[index])

    def read(self, index: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n C H W"]:
        """The pixels of an index."""
        pixels: np.ndarray = self.images[index]
        return pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageData:
    """A dataset: everything that training has to know about it.

    Args:
        name: under which it is registered.
        classes: the K class names, in the order of the labels.
        train: images to learn from.
        test: images to be judged on.
        white: the pixel value that counts as 1.0: 255, or 16 for the small digits.
        mean: of each channel over the training images, in units of white.
        std: standard deviation of the same.
        source: the publication to cite, where it has a DOI or an arXiv number.

    Raises:
        ValueError: where the splits, labels, channels or statistics do not fit each other.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    white: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: Source | None

    def __post_init__(self) -> None:
        for split, part in (("train", self.train), ("test", self.test)):
            self._check_labels(split, part.labels)
            if isinstance(part, Images) and self.white < part.images.max():
                raise ValueError(
                    f"{self.name}: got a pixel of {part.images.max()} in {split}, "
                    f"expected at most white={self.white:g}"
                )
        if self.train.shape != self.test.shape:
            raise ValueError(
                f"{self.name}: got [C H W] = {self.train.shape} in train and "
                f"{self.test.shape} in test, expected the same"
            )
        if not len(self.mean) == len(self.std) == self.channels or min(self.std) <= 0:
            raise ValueError(
                f"{self.name}: got mean {self.mean} and std {self.std}, "
                f"expected {self.channels} of each, and every std above 0"
            )

    def _check_labels(self, split: str, labels: Int64[np.ndarray, " N"]) -> None:
        bad = np.flatnonzero((labels < 0) | (labels >= self.num_classes))
        if bad.size:
            raise ValueError(
                f"{self.name}: got label {labels[bad[0]]} at index {bad[0]} of {split}, "
                f"expected 0..{self.num_classes - 1}"
            )

    @property
    def channels(self) -> int:
        """C: 1 for grey, 3 for red-green-blue."""
        return self.train.shape[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.train.shape[1:]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)


def data_root(root: str | Path | None = None) -> Path:
    """The folder that holds the datasets.

    That is the argument, else the environment variable SACCADE_DATA, else ~/.cache/saccade.
    """
    chosen = root or os.environ.get("SACCADE_DATA") or "~/.cache/saccade"
    return Path(chosen).expanduser()


def load_data(part: Part, root: str | Path | None = None) -> ImageData:
    """Load a dataset by name, or by name and options.

    Args:
        part: such as ``"cifar10"`` or ``{"name": "folder", "path": "~/photos"}``.
        root: the data folder; see `data_root`.

    Raises:
        ValueError: for an unknown name or option, or files that are not what they should be.
        FileNotFoundError: where files are missing and could not be fetched.
        ImportError: where the dataset needs an optional library.
    """
    data: ImageData = DATA.build(part, data_root(root))
    return data


def stratified_split(
    labels: Int64[np.ndarray, " N"], *, test_fraction: float, seed: int
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " test"]]:
    """Indices of a training and a test split in which every class has the same share.

    Each class gives the nearest whole number of its images to the test, and at least one to
    either side. The same seed gives the same split.

    Raises:
        ValueError: for a fraction outside (0, 1), or a class of a single image.
    """
    check_fraction(test_fraction)
    rng = np.random.default_rng(seed)
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise ValueError(f"got 1 image of class {label}, expected at least 2 to split")
        share = min(max(round(test_fraction * len(members)), 1), len(members) - 1)
        test[rng.permutation(members)[:share]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


def check_fraction(test_fraction: float) -> None:
    """Raise ValueError unless the fraction of test images lies strictly between 0 and 1."""
    if not 0 < test_fraction < 1:
        raise ValueError(f"got test_fraction={test_fraction}, expected between 0 and 1")


def channel_statistics(
    images: UInt8[np.ndarray, "N C H W"], white: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in units of white.

    A channel of a single value has no spread to divide by; its std is given as 1.
    """
    value, means, stds = np.arange(256) / white, [], []
    for c in range(images.shape[1]):
        # counting values is exact, and needs no copy of the images in floating point
        share = np.bincount(images[:, c].ravel(), minlength=256) / images[:, c].size
        mean = float(share @ value)
        means.append(mean)
        stds.append(float(np.sqrt(share @ (value - mean) ** 2)) if share.max() < 1 else 1.0)
    return tuple(means), tuple(stds)
