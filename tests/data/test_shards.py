"""The packed shards, real ones and ones written here."""

import hashlib
import lzma
from pathlib import Path

import numpy as np
import pytest

from saccade.data._shards import decode, read_shard
from saccade.data.cifar import _NAMES_10

CLASSES = ("cat", "dog")
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
PIXELS[0] //= 64  # and one smooth picture


def encode(pixels: np.ndarray) -> bytes:
    """Differences [C N H W] by the definition: one image, one pixel, one plane at a time."""
    wide = pixels.astype(int)
    planes = np.stack([wide[..., 1], wide[..., 0] - wide[..., 1], wide[..., 2] - wide[..., 1]])
    out = np.zeros(planes.shape, np.uint8)
    for c, n, i, j in np.ndindex(planes.shape):
        p = planes[c, n]
        if i and j:
            a, b, d = p[i, j - 1], p[i - 1, j], p[i - 1, j - 1]
            predicted = int(np.median([a, b, a + b - d]))
        else:
            predicted = p[i - 1, j] if i else p[i, j - 1] if j else 0
        out[c, n, i, j] = (p[i, j] - predicted) % 256
    return out.tobytes()


def write_shard(path: Path, pixels: np.ndarray = PIXELS, **changed: object) -> Path:
    shard = {
        "codec": "med-xz-1",
        "shape": np.array(pixels.shape),
        "payload": np.frombuffer(lzma.compress(encode(pixels), preset=0), np.uint8),
        "labels": (np.arange(len(pixels)) % 2).astype(np.uint8),
        "classes": np.array(CLASSES),
        "sha256_pixels": np.frombuffer(hashlib.sha256(pixels.tobytes()).digest(), np.uint8),
    }
    np.savez(path, **{k: v for k, v in {**shard, **changed}.items() if v is not None})
    return path


def test_decoding_undoes_the_definition():
    assert np.array_equal(decode(encode(PIXELS), PIXELS.shape), PIXELS)


def test_a_shard_is_read_with_its_channels_first(tmp_path: Path):
    images, labels = read_shard(write_shard(tmp_path / "s.npz"), classes=CLASSES, verify=True)
    assert np.array_equal(images, PIXELS.transpose(0, 3, 1, 2))
    assert (labels.tolist(), labels.dtype) == ([0, 1, 0, 1], np.int64)
    assert images.flags.c_contiguous


def test_a_real_shard_agrees_with_its_checksum_and_has_equal_classes(real_root: Path):
    names = tuple(_NAMES_10.split())
    path = real_root / "cifar10" / "cifar10_test_0.npz"
    images, labels = read_shard(path, classes=names, verify=True)
    assert images.shape == (10_000, 3, 32, 32)
    assert np.bincount(labels).tolist() == [1_000] * 10
    pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    with np.load(path) as shard:
        assert hashlib.sha256(pixels.data).digest() == shard["sha256_pixels"].tobytes()


def test_wrong_pixels_are_found_unless_told_not_to_look(tmp_path: Path):
    path = write_shard(tmp_path / "s.npz", sha256_pixels=np.zeros(32, np.uint8))
    with pytest.raises(ValueError, match=r"s\.npz: got pixels of sha256 .*expected 00000000"):
        read_shard(path, classes=CLASSES, verify=True)
    assert len(read_shard(path, classes=CLASSES, verify=False)[0]) == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"codec": "jpeg"}, "got codec jpeg"),
        ({"codec": None}, "expected a shard of codec med-xz-1"),
        ({"classes": np.array(["dog", "cat"])}, r"got classes \['dog', 'cat'\]"),
        ({"shape": np.array([4, 5, 6])}, r"got shape \(4, 5, 6\)"),
        ({"shape": np.array([4, 5, 6, 1])}, "got shape"),
        ({"shape": np.array([4, 5, 7, 3])}, "got 360 bytes of differences"),
        ({"shape": np.array([4, 5, 5, 3])}, "got 301 bytes of differences or more, expected 300"),
        ({"shape": np.array([4, 2**31, 2**31, 3])}, "expected a shard"),
        ({"labels": np.zeros(3, np.uint8)}, r"of shape \(3,\), expected 4 integers"),
        ({"labels": np.zeros(4)}, "got labels float64"),
        ({"payload": np.zeros(9, np.uint8)}, "got 0 bytes of differences"),
        ({"payload": np.ones(99, np.uint8)}, "format not supported"),
        ({"labels": np.array([{}] * 4)}, "allow_pickle=False"),
    ],
)
def test_a_shard_that_is_not_one_is_refused(tmp_path: Path, changed: dict, message: str):
    path = write_shard(tmp_path / "s.npz", **changed)
    with pytest.raises(ValueError, match=rf"s\.npz: .*{message}"):
        read_shard(path, classes=CLASSES, verify=True)


def test_a_bare_array_is_no_shard(tmp_path: Path):
    with (tmp_path / "s.npz").open("wb") as file:
        np.save(file, PIXELS)
    with pytest.raises(ValueError, match=r"s\.npz: got a single array, expected an \.npz"):
        read_shard(tmp_path / "s.npz", classes=CLASSES, verify=True)


def test_a_truncated_shard_is_refused(tmp_path: Path):
    path = write_shard(tmp_path / "s.npz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"s\.npz: got"):
        read_shard(path, classes=CLASSES, verify=True)
