"""MNIST and Fashion-MNIST: the four official IDX files, as published or unpacked.

IDX: two zero bytes, a byte for the dtype, one for the number of axes, each axis as a big-endian
32-bit length, then the values, last axis fastest.
"""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from saccade._sources import Source
from saccade.data._base import DATA, ImageData, Images
from saccade.data._download import Remote, fetch_files, matches

_FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
_DTYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32"}
_DTYPES |= {0x0E: "float64"}


@dataclass(frozen=True, kw_only=True)
class _Edition:
    """What tells one dataset of this format from another; `md5` in the order of `_FILES`."""

    name: str
    torchvision: str
    classes: tuple[str, ...]
    mean: float
    std: float
    url: str
    page: str
    md5: tuple[str, str, str, str]
    source: Source

    @property
    def remotes(self) -> list[Remote]:
        """The four published files."""
        return [
            Remote(url=f"{self.url}/{name}.gz", checksum=f"md5:{md5}")
            for name, md5 in zip(_FILES.values(), self.md5, strict=True)
        ]


_FASHION = _Edition(
    name="fashion_mnist",
    torchvision="FashionMNIST",
    classes=(
        *("t-shirt/top", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
    mean=0.2860,
    std=0.3530,
    url="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    page="https://github.com/zalandoresearch/fashion-mnist",
    md5=(
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    source=Source(
        key="xiao2017fashion",
        title="Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
        authors="Xiao, Han and Rasul, Kashif and Vollgraf, Roland",
        venue="arXiv preprint",
        year=2017,
        id="arXiv:1708.07747",
    ),
)
_MNIST = _Edition(
    name="mnist",
    torchvision="MNIST",
    classes=tuple("0123456789"),
    mean=0.1307,
    std=0.3081,
    url="https://ossci-datasets.s3.amazonaws.com/mnist",
    page="http://yann.lecun.com/exdb/mnist/",
    md5=(
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    source=Source(
        key="lecun1998gradient",
        title="Gradient-based learning applied to document recognition",
        authors="LeCun, Yann and Bottou, Leon and Bengio, Yoshua and Haffner, Patrick",
        venue="Proceedings of the IEEE",
        year=1998,
        id="doi:10.1109/5.726791",
    ),
)
_EDITIONS = (_FASHION, _MNIST)


@DATA.add("fashion_mnist")
def load_fashion_mnist(root: Path) -> ImageData:
    """60,000 + 10,000 grey pictures of clothing, 28x28 pixels, 10 classes.

    Looked for in `root/fashion_mnist`, `root/FashionMNIST/raw` and `root`; fetched if absent.

    Raises:
        ValueError: naming the file that is not what it should be.
        FileNotFoundError: where files are missing and could not be fetched.
    """
    return _load(root, _FASHION)


@DATA.add("mnist")
def load_mnist(root: Path) -> ImageData:
    """60,000 + 10,000 grey handwritten digits, 28x28 pixels.

    Looked for in `root/mnist`, `root/MNIST/raw` and `root`; fetched if absent.

    Raises:
        ValueError: naming the file that is not what it should be.
        FileNotFoundError: where files are missing and could not be fetched.
    """
    return _load(root, _MNIST)


def parse_idx(data: bytes, *, name: str, axes: int) -> UInt8[np.ndarray, "*dims"]:
    """The array in the bytes of an IDX file.

    Args:
        data: the whole file, unpacked.
        name: of the file, for messages.
        axes: how many axes the array must have.

    Raises:
        ValueError: saying what was got and expected, for anything but a sound file of bytes.
    """
    start = 4 + 4 * axes
    if len(data) < start:
        raise ValueError(f"{name}: got {len(data)} bytes, expected a header of {start}")
    if data[:2] != b"\0\0":
        raise ValueError(f"{name}: got magic {data[:4].hex()}, expected 0000 08 0{axes}")
    if data[2] != 0x08:
        kind = _DTYPES.get(data[2], "no IDX dtype")
        raise ValueError(f"{name}: got dtype {data[2]:#04x} ({kind}), expected 0x08 (uint8)")
    if data[3] != axes:
        raise ValueError(f"{name}: got {data[3]} axes, expected {axes}")
    shape = struct.unpack(f">{axes}I", data[4:start])
    if len(data) - start != math.prod(shape) or 0 in shape:
        raise ValueError(
            f"{name}: got {len(data) - start} bytes of values, expected {math.prod(shape)} "
            f"for shape {shape}, and more than none"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _load(root: Path, edition: _Edition) -> ImageData:
    folder = _find(root, edition)
    if folder is None:
        folder = root / edition.name
        fetch_files(edition.name, edition.remotes, folder, page=edition.page)
    _check_edition(folder, edition)
    return ImageData(
        name=edition.name,
        classes=edition.classes,
        train=_read_split(folder, "train"),
        test=_read_split(folder, "test"),
        white=255.0,
        mean=(edition.mean,),
        std=(edition.std,),
        source=edition.source,
    )


def _find(root: Path, edition: _Edition) -> Path | None:
    for folder in (root / edition.name, root / edition.torchvision / "raw", root):
        if all(_locate(folder, file) for file in _FILES.values()):
            return folder
    return None


def _locate(folder: Path, file: str) -> Path | None:
    return next((p for p in (folder / f"{file}.gz", folder / file) if p.is_file()), None)


def _check_edition(folder: Path, edition: _Edition) -> None:
    """All datasets of this format use the same file names: tell a neighbour by its labels."""
    labels = folder / f"{_FILES['train', 'labels']}.gz"
    for other in _EDITIONS:
        if other is not edition and labels.is_file() and matches(labels, f"md5:{other.md5[1]}"):
            raise ValueError(f"{folder}: got the files of {other.name}, expected {edition.name}")


def _read_split(folder: Path, split: str) -> Images:
    images = _read(folder, _FILES[split, "images"], axes=3)
    labels = _read(folder, _FILES[split, "labels"], axes=1)
    if len(images) != len(labels):
        raise ValueError(
            f"{folder}: got {len(images)} images and {len(labels)} labels in {split}, "
            "expected as many"
        )
    # a copy, because an array over the bytes of a file cannot be written to, and torch warns of it
    return Images(images=images[:, None].copy(), labels=labels.astype(np.int64))


def _read(folder: Path, file: str, *, axes: int) -> UInt8[np.ndarray, "*dims"]:
    path = _locate(folder, file)
    if path is None:
        raise FileNotFoundError(f"{folder / file}.gz: no such file")
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: got {error}, expected a whole gzip file") from error
    return parse_idx(data, name=str(path), axes=axes)
