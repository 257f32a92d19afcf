"""Pictures in tar files beside their class numbers, in the layout of WebDataset.

A sample is two neighbouring members of one name: `name.jpg` (or another picture) and `name.cls`,
a class number in decimal digits. Other members are passed over. The tar files are indexed once,
by their headers, and pictures are then read where they lie; so the files must not be compressed.
"""

import re
import tarfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from saccade.data._base import DATA, ImageData
from saccade.data._picture import SUFFIXES, image_grid
from saccade.data._stream import Stream, TarMembers, sample_statistics


@DATA.add("tar")
def load_tar(
    root: Path,
    *,
    train: str | Sequence[str] | None = None,
    test: str | Sequence[str] | None = None,
    classes: int | Sequence[str] | None = None,
    image_size: int | Sequence[int] | None = None,
    channels: int = 3,
    crop: Sequence[float] | None = None,
) -> ImageData:
    """Pictures in tar shards, read as they are needed.

    Args:
        root: where relative names start.
        train: tar files to learn from: one name, or several; `{000..146}` stands for each number.
        test: those to be judged on.
        classes: how many there are, or their names in the order of the labels.
        image_size: (H, W) or the side of a square, in pixels.
        channels: 1 for grey, 3 for red-green-blue.
        crop: as for the data set `folder`.

    Raises:
        ValueError: naming what is missing: an option, tar files, half of a sample; or the sample
            whose label is no class.
        ImportError: without Pillow.
    """
    options = {"train": train, "test": test, "classes": classes, "image_size": image_size}
    if missing := [name for name, value in options.items() if value is None]:
        raise ValueError(f"dataset 'tar' got no {', '.join(missing)}, expected each of them")
    assert train is not None
    assert test is not None
    assert classes is not None
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
    size = image_grid(image_size)
    assert size is not None
    box = tuple(crop) if crop is not None else None
    first, second = (
        index_shards(_expand(root, given), frame=(channels, *size), crop=box, classes=len(names))
        for given in (train, test)
    )
    mean, std = sample_statistics(first)
    return ImageData(
        name="tar",
        classes=names,
        train=first,
        test=second,
        white=255.0,
        mean=mean,
        std=std,
        source=None,
    )


def index_shards(
    paths: Sequence[Path],
    *,
    frame: tuple[int, int, int],
    crop: tuple[float, ...] | None,
    classes: int,
) -> Stream:
    """Every sample of tar files, in their order.

    Raises:
        ValueError: naming the file and the sample that is not as described above.
    """
    if gone := [str(path) for path in paths if not path.is_file()]:
        more = f" and {len(gone) - 5} more" if len(gone) > 5 else ""
        raise ValueError(
            f"got {len(paths)} tar files, but {', '.join(gone[:5])}{more} cannot be found; "
            "expected each of them"
        )
    parts = [_index(path, classes) for path in paths]
    rows = np.concatenate(parts)
    count = [len(part) for part in parts]
    files = TarMembers(
        paths=tuple(map(str, paths)),
        first=np.cumsum([0, *count[:-1]]),
        offsets=rows[:, 0],
        sizes=rows[:, 1],
    )
    return Stream(
        files=files, rows=np.arange(len(rows)), labels=rows[:, 2].copy(), frame=frame, crop=crop
    )


def _index(path: Path, classes: int) -> np.ndarray:
    """Offset, size and label of each sample: int64 [N, 3]."""
    rows: list[tuple[int, int, int]] = []
    halves: dict[str, tuple[int, int] | int] = {}
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as raw:
            for member in tar:
                folder, _, file = member.name.rpartition("/")
                key, _, suffix = file.partition(".")
                if not member.isfile() or not (suffix == "cls" or f".{suffix}".lower() in SUFFIXES):
                    continue
                where = f"{path}: sample {len(rows)} ({member.name})"
                half: tuple[int, int] | int = member.offset_data, member.size
                if suffix == "cls":
                    raw.seek(member.offset_data)
                    half = _label(raw.read(member.size), where, classes)
                _pair(halves, f"{folder}/{key}", half, where, rows)
                tar.members = []  # type: ignore[attr-defined]  # else every header is kept
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{path}: got {error}, expected a whole, uncompressed tar file") from error
    if halves or not rows:
        left = f"{next(iter(halves))} without its other half" if halves else "no samples"
        raise ValueError(f"{path}: got {left}, expected pairs of a picture and a .cls file")
    return np.array(rows, dtype=np.int64)


def _pair(
    halves: dict[str, tuple[int, int] | int],
    key: str,
    half: tuple[int, int] | int,
    where: str,
    rows: list[tuple[int, int, int]],
) -> None:
    """Keep half a sample until its other half comes."""
    other = halves.pop(key, None)
    if other is None and not halves:
        halves[key] = half
    elif isinstance(other, tuple) and isinstance(half, int):
        rows.append((*other, half))
    elif isinstance(other, int) and isinstance(half, tuple):
        rows.append((*half, other))
    else:
        raise ValueError(
            f"{where}: got it beside {next(iter(halves), key)}, expected a picture and its .cls "
            "file next to each other"
        )


def _label(raw: bytes, where: str, classes: int) -> int:
    text = raw.decode("ascii", errors="replace").strip()
    if not re.fullmatch(r"\d+", text) or int(text) >= classes:
        raise ValueError(f"{where}: got label {text[:20]!r}, expected 0..{classes - 1}")
    return int(text)


def _expand(root: Path, given: str | Sequence[str]) -> list[Path]:
    """Paths of names in which `{000..146}` stands for each number of as many digits."""
    paths: list[Path] = []
    for name in [given] if isinstance(given, str) else given:
        parts = re.split(r"\{(\d+)\.\.(\d+)\}", name)
        spans = [
            [f"{n:0{len(low)}}" for n in range(int(low), int(high) + 1)]
            for low, high in zip(parts[1::3], parts[2::3], strict=True)
        ]
        for chosen in product(*spans):
            filled = "".join(a + b for a, b in zip(parts[::3], [*chosen, ""], strict=True))
            paths.append(root / Path(filled).expanduser())
    return paths
