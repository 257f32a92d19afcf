"""Fashion-MNIST as published, and the strictness of the IDX reader."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from saccade.data import load_data
from saccade.data._download import matches
from saccade.data.idx import _EDITIONS, _FASHION, _FILES, parse_idx


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


TRAIN = np.random.default_rng(0).integers(0, 256, (20, 4, 5), dtype=np.uint8)
TEST = TRAIN[::-2].copy()
CONTENT = {
    "train-images-idx3-ubyte": idx_bytes(TRAIN),
    "train-labels-idx1-ubyte": idx_bytes(np.arange(20, dtype=np.uint8) % 10),
    "t10k-images-idx3-ubyte": idx_bytes(TEST),
    "t10k-labels-idx1-ubyte": idx_bytes(np.arange(10, dtype=np.uint8)),
}


def write(folder: Path, *, packed: bool = True, **changed: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in CONTENT.items():
        data = changed.get(name.partition("-idx")[0].replace("-", "_"), data)
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(data, 1) if packed else data)
    return folder


def test_fashion_mnist_has_60000_and_10000_images_in_equal_classes(real_root: Path):
    data = load_data("fashion_mnist", real_root)
    assert data.train.images.shape == (60_000, 1, 28, 28)
    assert data.test.images.shape == (10_000, 1, 28, 28)
    assert np.bincount(data.train.labels).tolist() == [6_000] * 10
    assert np.bincount(data.test.labels).tolist() == [1_000] * 10
    assert data.mean == pytest.approx(((data.train.images / np.float32(255)).mean(),), abs=1e-4)
    assert (data.classes[9], data.source.id) == ("ankle boot", "arXiv:1708.07747")


def test_the_checksums_are_those_of_the_published_files(real_root: Path):
    for remote in _FASHION.remotes:
        assert matches(real_root / "fashion_mnist" / remote.name, remote.checksum), remote.name


def test_names_and_checksums_stand_in_the_same_order():
    for edition in _EDITIONS:
        assert [r.name for r in edition.remotes] == [f"{f}.gz" for f in _FILES.values()]
        assert len(set(edition.md5)) == 4


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["fashion_mnist", "mnist"])
@pytest.mark.parametrize("place", ["{name}", "{torchvision}/raw", "."])
def test_the_files_are_found_in_each_place(tmp_path: Path, name: str, place: str, packed: bool):
    torchvision = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name]
    write(tmp_path / place.format(name=name, torchvision=torchvision), packed=packed)
    data = load_data(name, tmp_path)
    assert np.array_equal(data.train.images[:, 0], TRAIN)
    assert np.array_equal(data.test.images[:, 0], TEST)
    assert data.test.labels.tolist() == list(range(10))
    assert data.train.images.flags.writeable  # else torch.from_numpy warns


def test_one_dataset_is_not_taken_for_its_neighbour(real_root: Path):
    with pytest.raises(ValueError, match="got the files of fashion_mnist, expected mnist"):
        load_data("mnist", real_root / "fashion_mnist")


def test_missing_files_are_named_with_their_place(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="the network is down") as caught:
        load_data("fashion_mnist", tmp_path)
    text = str(caught.value)
    assert all(str(tmp_path / "fashion_mnist" / f"{name}.gz") in text for name in CONTENT)
    assert all(w in text for w in ("SACCADE_DATA", "--data-root", "github.com/zalandoresearch"))


def test_a_label_out_of_range_is_named(tmp_path: Path):
    bad = np.arange(20, dtype=np.uint8) % 10
    bad[7] = 10
    write(tmp_path, train_labels=idx_bytes(bad))
    with pytest.raises(ValueError, match="fashion_mnist: got label 10 at index 7 of train"):
        load_data("fashion_mnist", tmp_path)


def test_unequal_counts_are_named(tmp_path: Path):
    write(tmp_path, train_labels=idx_bytes(np.zeros(19, np.uint8)))
    with pytest.raises(ValueError, match="20 images and 19 labels in train"):
        load_data("mnist", tmp_path)


@pytest.mark.parametrize("keep", [5, 40, -3])
def test_a_truncated_gzip_is_named(tmp_path: Path, keep: int):
    path = write(tmp_path) / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz: .*whole gzip file"):
        load_data("fashion_mnist", tmp_path)


def test_a_file_that_is_no_gzip_is_named(tmp_path: Path):
    (write(tmp_path) / "t10k-labels-idx1-ubyte.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz: got Not a gzipped file"):
        load_data("fashion_mnist", tmp_path)


GOOD = idx_bytes(np.zeros((2, 3, 4), np.uint8))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "got 0 bytes, expected a header of 16"),
        (b"\x1f\x8b" + GOOD[2:], "got magic 1f8b0803"),
        (GOOD[:2] + b"\x0d" + GOOD[3:], r"got dtype 0x0d \(float32\), expected 0x08"),
        (GOOD[:2] + b"\x55" + GOOD[3:], "no IDX dtype"),
        (GOOD[:3] + b"\x01" + GOOD[4:], "got 1 axes, expected 3"),
        (GOOD[:-1], "got 23 bytes of values, expected 24"),
        (GOOD + b"\0", "got 25 bytes of values, expected 24"),
        (idx_bytes(np.zeros((0, 3, 4), np.uint8)), "more than none"),
        (GOOD[:4] + b"\xff" * 12 + GOOD[16:], "got 24 bytes of values"),
    ],
)
def test_a_damaged_idx_file_is_refused(data: bytes, message: str):
    with pytest.raises(ValueError, match=f"^some file: .*{message}"):
        parse_idx(data, name="some file", axes=3)


@given(array_shapes(min_dims=1, max_dims=4, max_side=5).flatmap(lambda s: arrays(np.uint8, s)))
def test_what_was_written_is_read_back(array: np.ndarray):
    assert np.array_equal(parse_idx(idx_bytes(array), name="x", axes=array.ndim), array)


@given(st.binary(max_size=64), st.integers(0, 16), st.integers(1, 3))
def test_arbitrary_bytes_raise_nothing_but_value_error(tail: bytes, kept: int, axes: int):
    try:
        said = f"x: got {parse_idx(GOOD[:kept] + tail, name='x', axes=axes).size} values"
    except ValueError as error:
        said = str(error)
    assert said.startswith("x: got ")
