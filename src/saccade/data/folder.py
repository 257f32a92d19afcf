"""Pictures, one folder per class: small sets are kept in memory, large ones read as needed."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from saccade.data._base import (
    DATA,
    ImageData,
    Images,
    Split,
    channel_statistics,
    stratified_split,
)
from saccade.data._picture import SUFFIXES, image_grid, read_image
from saccade.data._stream import PictureFiles, Stream, sample_statistics

MEMORY = 2**30
"""Bytes of pixels (1 GiB) beyond which a folder is read as it is needed, unless told otherwise."""
log = logging.getLogger("saccade")


@DATA.add("folder")
def load_folder(
    root: Path,
    *,
    path: str | Path | None = None,
    image_size: int | Sequence[int] | None = None,
    channels: int = 3,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    stream: bool | None = None,
    crop: Sequence[float] | None = None,
) -> ImageData:
    """Pictures in `path/train/<class>/` and `path/test/<class>/`, or in `path/<class>/`.

    Without folders `train` and `test` each class is split at random. Classes are numbered in the
    order of their names. Hidden files, and files that do not end like a picture, are passed over.

    Args:
        root: not read.
        path: the folder; a relative one starts at the current directory, ~ is the home.
        image_size: (H, W) or the side of a square, in pixels; by default that of the first
            picture, which all others must then have.
        channels: 1 for grey, 3 for red-green-blue.
        test_fraction: share of each class kept for the test, where the folder has no split.
        split_seed: of that split.
        stream: read pictures as they are needed instead of keeping them in memory, which wants an
            image_size; by default where their pixels take more than 1 GiB, or with `crop`.
        crop: smallest and largest share of a picture that a random crop for training keeps, such
            as [0.08, 1]; the test sees the middle. See `saccade.data._stream.Stream`.

    Raises:
        ValueError: naming the file or folder that is not as described above.
        ImportError: without Pillow.
    """
    if path is None:
        raise ValueError("dataset 'folder' got no path, expected the option path: a folder")
    top = Path(path).expanduser().absolute()
    if not top.is_dir():
        raise ValueError(f"{top}: no such folder, expected one that holds a folder per class")
    split = _is_split(top)
    classes, files, labels = _list_classes(top / "train" if split else top)
    if stream is None:
        stream = crop is not None or _is_large(top, files, image_size, channels)

    def read(files: list[Path], labels: np.ndarray, size: int | Sequence[int] | None) -> Split:
        if not stream:
            return Images(images=_read(files, size, channels), labels=labels)
        return _stream(top, files, labels, size, channels, crop)

    if split:
        test_files, test_labels = _list_test(top, classes)
        train = read(files, labels, image_size)
        test = read(test_files, test_labels, train.shape[1:])
    else:
        first, second = _split(top, classes, labels, test_fraction, split_seed)
        everything = read(files, labels, image_size)
        train, test = everything.take(first), everything.take(second)
    return _describe(classes, train, test)


def _describe(classes: tuple[str, ...], train: Split, test: Split) -> ImageData:
    if isinstance(train, Images):
        mean, std = channel_statistics(train.images, white=255.0)
    else:
        mean, std = sample_statistics(train)
    return ImageData(
        name="folder",
        classes=classes,
        train=train,
        test=test,
        white=255.0,
        mean=mean,
        std=std,
        source=None,
    )


def _list_test(top: Path, classes: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    test_classes, files, labels = _list_classes(top / "test")
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise ValueError(f"{top}: got {odd} in only one of train and test, expected in both")
    return files, labels


def _is_large(
    top: Path, files: list[Path], image_size: int | Sequence[int] | None, channels: int
) -> bool:
    """Whether the pixels would take too much memory; says so where they would."""
    size = image_grid(image_size)
    if size is None:
        size = read_image(files[0], image_size=None, channels=channels).shape[1:]
    if (total := len(files) * channels * size[0] * size[1]) <= MEMORY:
        return False
    log.info(
        "%s: %d pictures take %.1f GiB, so they are read as they are needed (data.stream=false "
        "keeps them in memory)",
        *(top, len(files), total / 2**30),
    )
    return True


def _stream(
    top: Path,
    files: list[Path],
    labels: np.ndarray,
    image_size: int | Sequence[int] | None,
    channels: int,
    crop: Sequence[float] | None,
) -> Stream:
    size = image_grid(image_size)
    if size is None:
        raise ValueError(
            f"{top}: got no image_size, expected one, such as 224, where pictures are read as they "
            "are needed (stream, crop, or more than 1 GiB of pixels)"
        )
    return Stream(
        files=PictureFiles(tuple(map(str, files))),
        rows=np.arange(len(files)),
        labels=labels,
        frame=(channels, *size),
        crop=tuple(crop) if crop is not None else None,
    )


def _is_split(top: Path) -> bool:
    """Whether `top` holds a train and a test folder, and not classes that happen to be so named."""
    halves = [h for h in ("train", "test") if any(_folders(top / h))]
    if len(halves) == 1:
        missing = "test" if halves == ["train"] else "train"
        raise ValueError(f"{top}: got classes in {halves[0]}/ alone, expected {missing}/ beside it")
    return len(halves) == 2


def _folders(top: Path) -> list[Path]:
    if not top.is_dir():
        return []
    return sorted(p for p in top.iterdir() if p.is_dir() and not p.name.startswith("."))


def _list_classes(top: Path) -> tuple[tuple[str, ...], list[Path], np.ndarray]:
    """Class names, and the picture files with their class numbers."""
    folders = _folders(top)
    if len(folders) < 2:
        raise ValueError(
            f"{top}: got {len(folders)} class folders, expected at least 2, each with pictures"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = sorted(
            p
            for p in folder.iterdir()
            if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith(".")
        )
        if not found:
            raise ValueError(
                f"{folder}: got no pictures, expected files that end in "
                f"{', '.join(sorted(SUFFIXES))} directly in the class folder"
            )
        files += found
        labels += [label] * len(found)
    return tuple(f.name for f in folders), files, np.array(labels, dtype=np.int64)


def _split(
    top: Path, classes: tuple[str, ...], labels: np.ndarray, test_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    for label, count in Counter(labels.tolist()).items():
        if count < 2:
            raise ValueError(
                f"{top / classes[label]}: got 1 picture, expected at least 2, "
                "one to train on and one to test on"
            )
    return stratified_split(labels, test_fraction=test_fraction, seed=seed)


def _read(
    files: list[Path], image_size: int | Sequence[int] | None, channels: int
) -> UInt8[np.ndarray, "N C H W"]:
    size = image_grid(image_size)
    images = [read_image(file, image_size=size, channels=channels) for file in files]
    odd = [
        f"{file} is {image.shape[1]}x{image.shape[2]}"
        for file, image in zip(files, images, strict=True)
        if image.shape != images[0].shape
    ]
    if odd:
        H, W = images[0].shape[1:]
        more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
        raise ValueError(
            f"got pictures of unequal size: {files[0]} is {H}x{W}, but {', '.join(odd[:5])}{more}; "
            f"expected one size, or the option image_size, such as [{H}, {W}]"
        )
    return np.stack(images)
