"""CIFAR-10 and CIFAR-100 in three formats, which give the same `ImageData`.

Official binary batches, official Python batches (see `_unpickle.py`), and packed shards
`cifar10_train_0.npz ...` (see `_shards.py`). Krizhevsky, "Learning Multiple Layers of Features from
Tiny Images", 2009: a technical report without DOI, hence no `source`.
"""

import logging
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from saccade.data._base import DATA, ImageData, Images
from saccade.data._download import Remote, fetch_archive
from saccade.data._shards import read_shard
from saccade.data._unpickle import load_arrays

_LOG = logging.getLogger("saccade")
_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_PIXELS = 3 * 32 * 32  # of one image, as [C H W]

Split = tuple[UInt8[np.ndarray, "N 3 32 32"], Int64[np.ndarray, " N"]]
Files = dict[str, list[Path]]

_NAMES_10 = "airplane automobile bird cat deer dog frog horse ship truck"
_NAMES_100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange
orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit
raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip
turtle wardrobe whale willow_tree wolf woman worm
"""


@dataclass(frozen=True, kw_only=True)
class _Edition:
    """What tells the two datasets apart; file names are given as (train, test)."""

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    label_bytes: int  # before each image in a binary batch; the last one is the class
    label_key: str
    binary_folder: str
    binary_files: tuple[tuple[str, ...], tuple[str, ...]]
    python_folder: str
    python_files: tuple[tuple[str, ...], tuple[str, ...]]
    archive: Remote


_EDITION_10 = _Edition(
    name="cifar10",
    classes=tuple(_NAMES_10.split()),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    label_bytes=1,
    label_key="labels",
    binary_folder="cifar-10-batches-bin",
    binary_files=(tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",)),
    python_folder="cifar-10-batches-py",
    python_files=(tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",)),
    archive=Remote(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        checksum="md5:c32a1d4ab5d03f1284b67883e8d87530",
    ),
)
_EDITION_100 = _Edition(
    name="cifar100",
    classes=tuple(_NAMES_100.split()),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    label_bytes=2,
    label_key="fine_labels",
    binary_folder="cifar-100-binary",
    binary_files=(("train.bin",), ("test.bin",)),
    python_folder="cifar-100-python",
    python_files=(("train",), ("test",)),
    archive=Remote(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        checksum="md5:eb9058c3a382ffc7106e4002c42a8d85",
    ),
)


@DATA.add("cifar10")
def load_cifar10(root: Path, *, verify: bool = True) -> ImageData:
    """50,000 + 10,000 colour photographs, 32x32 pixels, 10 classes.

    Looked for in `root/cifar10`, `root/cifar-10-batches-bin`, `root/cifar-10-batches-py` and
    `root`; fetched if absent.

    Args:
        root: the data folder.
        verify: compare packed shards with the checksums of their pixels.

    Raises:
        ValueError: naming the file that is not what it should be.
        FileNotFoundError: where files are missing and could not be fetched.
    """
    return _load(root, _EDITION_10, verify)


@DATA.add("cifar100")
def load_cifar100(root: Path, *, verify: bool = True) -> ImageData:
    """50,000 + 10,000 colour photographs, 32x32 pixels, 100 classes (the fine labels).

    Looked for in `root/cifar100`, `root/cifar-100-binary`, `root/cifar-100-python` and `root`;
    fetched if absent.

    Args:
        root: the data folder.
        verify: compare packed shards with the checksums of their pixels.

    Raises:
        ValueError: naming the file that is not what it should be.
        FileNotFoundError: where files are missing and could not be fetched.
    """
    return _load(root, _EDITION_100, verify)


def _load(root: Path, edition: _Edition, verify: bool) -> ImageData:
    found = _find(root, edition, verify)
    if found is None:
        fetch_archive(edition.name, edition.archive, root / edition.name, page=_PAGE)
        found = _find(root, edition, verify)
    if found is None:
        raise FileNotFoundError(f"{root / edition.name}: no batches of {edition.name} found")
    files, read = found
    train, test = _read_all(files, read)
    for split, part, official in (("train", train, 50_000), ("test", test, 10_000)):
        if len(part) != official:
            _LOG.warning(
                "%s: got %d %s images, the official set has %d",
                *(edition.name, len(part), split, official),
            )
    return ImageData(
        name=edition.name,
        classes=edition.classes,
        train=train,
        test=test,
        white=255.0,
        mean=edition.mean,
        std=edition.std,
        source=None,
    )


def _find(
    root: Path, edition: _Edition, verify: bool
) -> tuple[Files, Callable[[Path], Split]] | None:
    """The first format of which there are files, and how to read one of them."""
    folders = (edition.binary_folder, edition.python_folder)
    home = root / edition.name
    for folder in (home, *(home / f for f in folders), *(root / f for f in folders), root):
        if files := _shard_files(folder, edition):
            return files, lambda path: read_shard(path, classes=edition.classes, verify=verify)
        if files := _named_files(folder, edition.binary_files):
            return files, lambda path: read_binary(path, label_bytes=edition.label_bytes)
        if files := _named_files(folder, edition.python_files):
            return files, lambda path: read_python(path, label_key=edition.label_key)
    return None


def _named_files(folder: Path, names: tuple[tuple[str, ...], tuple[str, ...]]) -> Files:
    missing = [n for n in (*names[0], *names[1]) if not (folder / n).is_file()]
    if len(missing) == len(names[0]) + len(names[1]):
        return {}
    if missing:
        raise FileNotFoundError(f"{folder}: got some batches but not {', '.join(missing)}")
    train, test = ([folder / name for name in part] for part in names)
    return {"train": train, "test": test}


def _shard_files(folder: Path, edition: _Edition) -> Files:
    files: Files = {}
    for split in ("train", "test"):
        pattern = re.compile(rf"{edition.name}_{split}_(\d+)\.npz")
        there = list(folder.iterdir()) if folder.is_dir() else []
        numbered = {int(m[1]): path for path in there if (m := pattern.fullmatch(path.name))}
        if sorted(numbered) != list(range(len(numbered))):
            raise FileNotFoundError(
                f"{folder}: got {split} shards {sorted(numbered)}, expected all from 0 on"
            )
        files[split] = [numbered[i] for i in sorted(numbered)]
    if bool(files["train"]) != bool(files["test"]):
        raise FileNotFoundError(f"{folder}: got shards of one split only, expected train and test")
    return files if files["train"] else {}


def _read_all(files: Files, read: Callable[[Path], Split]) -> list[Images]:
    """Training and test set, whose files are unpacked side by side."""
    count = sum(len(paths) for paths in files.values())
    with ThreadPoolExecutor(min(count, os.cpu_count() or 1)) as pool:
        read_splits = [pool.map(read, files[split]) for split in ("train", "test")]
        parts = [list(of_split) for of_split in read_splits]
    return [
        Images(
            images=np.concatenate([images for images, _ in part]),
            labels=np.concatenate([labels for _, labels in part]),
        )
        for part in parts
    ]


def read_binary(path: Path, *, label_bytes: int) -> Split:
    """A binary batch: records of label bytes, the last of which counts, and 3,072 pixels.

    Raises:
        ValueError: naming the file, unless it is a whole number of records.
    """
    data, record = np.fromfile(path, np.uint8), label_bytes + _PIXELS
    if not data.size or data.size % record:
        raise ValueError(
            f"{path}: got {data.size} bytes, expected a multiple of {record} "
            f"({label_bytes} of label, {_PIXELS} of pixels)"
        )
    records = data.reshape(-1, record)
    labels = records[:, label_bytes - 1].astype(np.int64)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), labels


def read_python(path: Path, *, label_key: str) -> Split:
    """A Python batch: a pickled dictionary of `data` and labels, read without trust.

    Raises:
        ValueError: naming the file, where it is damaged, asks for anything to be run, or lacks
            the pixels or the labels.
    """
    batch = load_arrays(path.read_bytes(), name=str(path))
    data, labels = batch.get("data"), batch.get(label_key)
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2):
        raise ValueError(f"{path}: got no 'data' of uint8 [N {_PIXELS}] among {sorted(batch)}")
    if data.shape[1] != _PIXELS or not len(data):
        raise ValueError(f"{path}: got data of shape {data.shape}, expected [N {_PIXELS}]")
    if not (isinstance(labels, list) and all(isinstance(label, int) for label in labels)):
        raise ValueError(f"{path}: got no list of integers {label_key!r} among {sorted(batch)}")
    if len(labels) != len(data):
        raise ValueError(f"{path}: got {len(data)} images and {len(labels)} labels")
    # as in the binary format, where a label is a byte: a giant integer would not fit int64
    if any(not 0 <= label < 256 for label in labels):
        raise ValueError(f"{path}: got a label beyond 0..255 in {label_key!r}")
    return data.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)
