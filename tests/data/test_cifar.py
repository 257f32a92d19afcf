"""Three formats, one dataset."""

import hashlib
import logging
import lzma
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from saccade.data import ImageData, cifar, load_data
from saccade.data.cifar import _NAMES_10, _NAMES_100, read_binary, read_python

RNG = np.random.default_rng(0)
# six batches of two or three images each: [N 3072] pixels, and labels
BATCHES = [
    (RNG.integers(0, 256, (n, 3072), dtype=np.uint8), RNG.integers(0, 10, n).tolist())
    for n in (2, 3, 2, 2, 2, 3)
]
BINARY = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
PYTHON = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
SHARDS = [*(f"cifar10_train_{i}.npz" for i in range(5)), "cifar10_test_0.npz"]


def write_binary(folder: Path) -> None:
    for name, (pixels, labels) in zip(BINARY, BATCHES, strict=True):
        records = np.column_stack([np.array(labels, np.uint8), pixels])
        (folder / name).write_bytes(records.tobytes())


def write_python(folder: Path) -> None:
    for name, (pixels, labels) in zip(PYTHON, BATCHES, strict=True):
        batch = {b"batch_label": b"x", b"labels": labels, b"data": pixels, b"filenames": [b"a"]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def write_shards(folder: Path) -> None:
    for name, (pixels, labels) in zip(SHARDS, BATCHES, strict=True):
        images = pixels.reshape(-1, 3, 32, 32)
        shape = np.array([len(images), 32, 32, 3])
        nhwc = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        np.savez(
            folder / name,
            codec="med-xz-1",
            shape=shape,
            payload=np.frombuffer(lzma.compress(differences(images), preset=0), np.uint8),
            labels=np.array(labels, np.uint8),
            classes=np.array(_NAMES_10.split()),
            sha256_pixels=np.frombuffer(hashlib.sha256(nhwc.tobytes()).digest(), np.uint8),
        )


def differences(images: np.ndarray) -> bytes:
    r, g, b = images.astype(np.int16).transpose(1, 0, 2, 3)
    planes = np.stack([g, r - g, b - g])
    left, up = planes[..., 1:, :-1], planes[..., :-1, 1:]
    predicted = np.zeros_like(planes)
    predicted[..., 0, 1:], predicted[..., 1:, 0] = planes[..., 0, :-1], planes[..., :-1, 0]
    flat = left + up - planes[..., :-1, :-1]
    predicted[..., 1:, 1:] = np.clip(flat, np.minimum(left, up), np.maximum(left, up))
    return (planes - predicted).astype(np.uint8).tobytes()


FORMATS = {"binary": write_binary, "python": write_python, "shards": write_shards}
FOLDERS = {
    "binary": ["cifar10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", "."],
    "python": ["cifar10", "cifar-10-batches-py", "cifar10/cifar-10-batches-py", "."],
    "shards": ["cifar10", "."],
}
PLACES = [(form, place) for form, places in FOLDERS.items() for place in places]


def write(form: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    FORMATS[form](folder)
    return folder


def facts(data: ImageData) -> tuple[object, ...]:
    arrays = (data.train.images, data.train.labels, data.test.images, data.test.labels)
    return (
        *((a.tobytes(), a.shape, a.dtype, a.flags.c_contiguous, a.flags.writeable) for a in arrays),
        *(data.name, data.classes, data.white, data.mean, data.std, data.source),
    )


@pytest.mark.parametrize(("form", "place"), PLACES)
def test_each_format_in_each_place_gives_the_same_dataset(tmp_path: Path, form: str, place: str):
    write(form, tmp_path / place)
    data = load_data("cifar10", tmp_path)
    pixels = np.concatenate([p for p, _ in BATCHES]).reshape(-1, 3, 32, 32)
    assert np.array_equal(data.train.images, pixels[:11])
    assert np.array_equal(data.test.images, pixels[11:])
    assert data.train.labels.tolist() == [y for _, labels in BATCHES[:5] for y in labels]
    write("binary", tmp_path / "twin" / "cifar10")
    assert facts(data) == facts(load_data("cifar10", tmp_path / "twin"))


@pytest.mark.parametrize("form", ["binary", "python"])
def test_cifar100_counts_by_its_fine_labels(tmp_path: Path, form: str):
    for split, (pixels, labels) in zip(("train", "test"), BATCHES[:2], strict=True):
        fine = [90 + y for y in labels]
        if form == "binary":
            records = np.column_stack([np.array(labels), np.array(fine), pixels]).astype(np.uint8)
            (tmp_path / f"{split}.bin").write_bytes(records.tobytes())
        else:
            batch = {b"coarse_labels": labels, b"fine_labels": fine, b"data": pixels}
            (tmp_path / split).write_bytes(pickle.dumps(batch, protocol=2))
    data = load_data("cifar100", tmp_path)
    assert np.array_equal(data.test.images, BATCHES[1][0].reshape(-1, 3, 32, 32))
    assert data.test.labels.tolist() == [90 + y for y in BATCHES[1][1]]
    assert data.num_classes == 100


def test_the_hundred_names_are_in_alphabetical_order():
    names = _NAMES_100.split()
    assert (len(set(names)), names) == (100, sorted(names))


def test_a_set_that_is_not_the_official_size_is_remarked_on(tmp_path: Path, caplog):
    write("binary", tmp_path)
    with caplog.at_level(logging.WARNING, logger="saccade"):
        load_data("cifar10", tmp_path)
    assert "got 11 train images, the official set has 50000" in caplog.text


@pytest.mark.parametrize(
    ("form", "gone", "message"),
    [
        ("binary", "data_batch_3.bin", "not data_batch_3.bin"),
        ("python", "test_batch", "not test_batch"),
        ("shards", "cifar10_train_2.npz", r"train shards \[0, 1, 3, 4\], expected all from 0"),
        ("shards", "cifar10_test_0.npz", "one split only"),
    ],
)
def test_an_incomplete_set_is_not_trained_on(tmp_path: Path, form: str, gone: str, message: str):
    (write(form, tmp_path / "cifar10") / gone).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load_data("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_files_are_named_with_their_place(tmp_path: Path, name: str):
    with pytest.raises(FileNotFoundError, match="the network is down") as caught:
        load_data(name, tmp_path)
    words = (str(tmp_path / name / "cifar-10"), "SACCADE_DATA", "--data-root", "kriz/cifar.html")
    assert all(word in str(caught.value) for word in words)


def test_a_malicious_batch_is_refused_and_not_run(tmp_path: Path):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'trace'}",)

    path = write("python", tmp_path) / "data_batch_2"
    path.write_bytes(pickle.dumps({b"data": Payload(), b"labels": [0]}, protocol=2))
    with pytest.raises(ValueError, match=r"data_batch_2: got the refused global \w+\.system"):
        load_data("cifar10", tmp_path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("size", [0, 3072, 2 * 3073 - 1])
def test_a_short_binary_batch_is_refused(tmp_path: Path, size: int):
    (tmp_path / "batch.bin").write_bytes(bytes(size))
    with pytest.raises(ValueError, match=rf"batch\.bin: got {size} bytes, expected a multiple of"):
        read_binary(tmp_path / "batch.bin", label_bytes=1)


def test_a_label_out_of_range_is_named(tmp_path: Path):
    path = write("binary", tmp_path) / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(ValueError, match="cifar10: got label 10 at index 0 of test"):
        load_data("cifar10", tmp_path)


ONE = np.zeros((1, 3072), np.uint8)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"labels": [0]}, "got no 'data'"),
        ({"data": ONE.astype(float), "labels": [0]}, "got no 'data' of uint8"),
        ({"data": ONE[:, 1:], "labels": [0]}, r"got data of shape \(1, 3071\)"),
        ({"data": ONE[:0], "labels": []}, r"got data of shape \(0, 3072\)"),
        ({"data": ONE}, "got no list of integers 'labels' among"),
        ({"data": ONE, "labels": ["cat"]}, "got no list of integers"),
        ({"data": ONE, "labels": [0, 1]}, "got 1 images and 2 labels"),
        ({"data": ONE, "labels": [2**80]}, r"got a label beyond 0\.\.255"),
    ],
)
def test_a_python_batch_without_its_parts_is_refused(tmp_path: Path, batch: dict, message: str):
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(ValueError, match=f"batch: {message}"):
        read_python(path, label_key="labels")


@pytest.mark.slow
def test_the_whole_of_cifar10_has_equal_classes_and_the_published_statistics(real_root: Path):
    data = load_data("cifar10", real_root)
    assert np.bincount(data.train.labels).tolist() == [5_000] * 10
    assert np.bincount(data.test.labels).tolist() == [1_000] * 10
    for c in range(3):
        assert data.train.images[:, c].mean() / 255 == pytest.approx(data.mean[c], abs=1e-4)
        assert data.train.images[:, c].std() / 255 == pytest.approx(data.std[c], abs=1e-4)


def test_an_absent_set_is_fetched_into_its_own_folder_and_read(tmp_path: Path, monkeypatch):
    def fetch(dataset: str, remote: object, folder: Path, *, page: str) -> None:
        write("binary", folder / "cifar-10-batches-bin")

    monkeypatch.setattr(cifar, "fetch_archive", fetch)
    assert len(load_data("cifar10", tmp_path).train) == 11
    assert [p.name for p in tmp_path.iterdir()] == ["cifar10"]


def test_an_archive_without_batches_is_reported(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(cifar, "fetch_archive", lambda *args, **options: None)
    with pytest.raises(FileNotFoundError, match="cifar10: no batches of cifar10 found"):
        load_data("cifar10", tmp_path)
