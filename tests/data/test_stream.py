"""Pictures that are read as they are needed: folders and tar shards."""

import io
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.data import Images, Stream, folder, load_data, read_image
from saccade.data._picture import CENTRE, middle
from saccade.data._stream import random_box
from tests.data.test_folder import fill, load, save


def encoded(value: int, size: tuple[int, int] = (4, 6)) -> bytes:
    """A PNG of rows that grow brighter from `value`."""
    pixels = (
        np.full((*size, 3), value, np.uint8) + np.arange(size[0], dtype=np.uint8)[:, None, None]
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def pack(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, raw in members:
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return path


def samples(first: int, count: int, K: int = 3) -> list[tuple[str, bytes]]:
    """Sample n has pixels from 10 n and class n modulo K."""
    pairs = [
        ((f"a/{n:04}.png", encoded(10 * n)), (f"a/{n:04}.cls", b"%d\n" % (n % K)))
        for n in range(first, first + count)
    ]
    return [half for pair in pairs for half in pair]


def shards(top: Path) -> Path:
    pack(top / "train-08.tar", samples(0, 4))
    pack(top / "train-09.tar", samples(4, 1))
    pack(top / "train-10.tar", samples(5, 3))
    pack(top / "test.tar", samples(8, 2))
    return top


def load_tar(top: Path, **changes: object):
    known = {"train": "train-{08..10}.tar", "test": "test.tar", "classes": 3, "image_size": [4, 6]}
    return load_data({"name": "tar", **known, **changes}, top)


def test_shards_are_one_split_in_their_order_with_the_pixels_that_were_packed(tmp_path: Path):
    data = load_tar(shards(tmp_path))
    assert (len(data.train), len(data.test), data.classes) == (8, 2, ("0", "1", "2"))
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert data.test.labels.tolist() == [2, 0]
    pixels = data.train.read(np.arange(8))
    assert pixels.shape == (8, 3, 4, 6)
    assert pixels[:, 0, :, 0].tolist() == [[10 * n + i for i in range(4)] for n in range(8)]
    assert data.mean == pytest.approx([(pixels / 255).mean()] * 3)
    assert data.std == pytest.approx([(pixels / 255).std()] * 3)
    part = data.train.take(np.array([6, 1]))
    assert part.read(np.arange(2))[:, 0, 0, 0].tolist() == [60, 10]
    assert part.labels.tolist() == [0, 1]


def test_a_label_may_stand_before_its_picture_and_other_members_are_passed_over(tmp_path: Path):
    (a, b), other = samples(1, 1), ("a/0001.json", b"{}")
    pack(tmp_path / "t.tar", [b, a, other, *samples(2, 1)])
    data = load_tar(tmp_path, train=["t.tar"], test=["t.tar"], classes=["x", "y", "z"])
    assert (data.train.labels.tolist(), data.classes) == ([1, 2], ("x", "y", "z"))
    assert data.train.read(np.array([0]))[0, 0, 0, 0] == 10


def test_missing_shards_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"got 5 tar files, but .*train-11\.tar, .*12\.tar cannot"):
        load_tar(shards(tmp_path), train="train-{08..12}.tar")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", encoded(0)), ("a.cls", b"3")], r"t\.tar: sample 0 \(a\.cls\): got label '3'"),
        ([*samples(0, 2), ("b.png", b"x"), ("b.cls", b"-1")], r"sample 2 \(b\.cls\): got label"),
        ([("a.png", encoded(0)), ("a.cls", b"cat")], r"got label 'cat', expected 0\.\.2"),
        ([("a.png", encoded(0)), ("b.png", encoded(0))], r"sample 0 \(b\.png\): got it beside /a"),
        ([("a.png", encoded(0))], r"t\.tar: got /a without its other half"),
        ([("a.txt", b"x")], r"t\.tar: got no samples, expected pairs"),
    ],
)
def test_a_shard_that_is_not_as_described_is_named_with_the_sample(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
):
    pack(tmp_path / "t.tar", members)
    with pytest.raises(ValueError, match=message):
        load_tar(tmp_path, train="t.tar", test="t.tar")


@pytest.mark.parametrize("kept", [100, 700, 1500])
def test_a_truncated_shard_is_named(tmp_path: Path, kept: int):
    path = shards(tmp_path) / "train-08.tar"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"train-08\.tar: got "):
        load_tar(tmp_path)


def test_a_corrupt_picture_is_named_by_shard_and_number(tmp_path: Path):
    members = samples(0, 3)
    members[4] = (members[4][0], b"no picture")
    pack(tmp_path / "t.tar", members)
    with pytest.raises(ValueError, match=r"t\.tar \(picture 2\): got .*expected a readable"):
        load_tar(tmp_path, train="t.tar", test="t.tar")


def test_options_that_are_missing_are_listed():
    with pytest.raises(ValueError, match="got no train, classes, image_size, expected each"):
        load_data({"name": "tar", "test": "x"})


def test_a_streamed_folder_holds_the_same_pictures_as_one_in_memory(tmp_path: Path):
    fill(tmp_path, count=10)
    kept, read = (load(tmp_path, image_size=[5, 7], stream=s) for s in (False, True))
    assert isinstance(kept.train, Images)
    assert isinstance(read.train, Stream)
    for ours, other in ((read.train, kept.train), (read.test, kept.test)):
        assert np.array_equal(ours.labels, other.labels)
        assert np.array_equal(ours.read(np.arange(len(ours))), other.read(np.arange(len(other))))
    assert (read.mean, read.std) == (kept.mean, kept.std)
    assert read.image_size == (5, 7)


def test_a_large_folder_is_streamed_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    fill(tmp_path)
    with caplog.at_level(logging.INFO, logger="saccade"):
        monkeypatch.setattr(folder, "MEMORY", 10 * 3 * 4 * 6)
        assert isinstance(load(tmp_path).train, Images)
        assert not caplog.records
        monkeypatch.setattr(folder, "MEMORY", 10 * 3 * 4 * 6 - 1)
        assert isinstance(load(tmp_path, image_size=[4, 6]).train, Stream)
    assert "10 pictures take 0.0 GiB, so they are read as they are needed" in caplog.text
    with pytest.raises(ValueError, match="got no image_size, expected one, such as 224"):
        load(tmp_path)


def test_a_damaged_picture_of_a_streamed_folder_is_named_with_its_number(tmp_path: Path):
    fill(tmp_path / "train")
    fill(tmp_path / "test")
    data = load(tmp_path, image_size=4, stream=True)
    (tmp_path / "train" / "dog" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing else")
    with pytest.raises(ValueError, match=r"dog/1\.png \(picture 6\): got .*readable picture"):
        data.train.read(np.arange(10))


@pytest.mark.parametrize("crop", [[0, 1], [0.5, 0.4], [0.5, 1.5], [0.5]])
def test_a_crop_that_is_no_share_is_refused(tmp_path: Path, crop: list[float]):
    with pytest.raises(ValueError, match=r"got crop=.*expected the smallest and the largest"):
        load(fill(tmp_path), image_size=4, crop=crop)


@pytest.mark.parametrize(("height", "width"), [(100, 100), (40, 200), (300, 30)])
def test_random_boxes_lie_inside_and_have_the_shares_and_aspects_asked_for(height: int, width: int):
    chance, areas = np.random.default_rng(0), []
    for _ in range(500):
        left, top, right, bottom = random_box(height, width, (0.08, 0.5), chance)
        assert 0 <= left < right <= width + 1e-9
        assert 0 <= top < bottom <= height + 1e-9
        assert 0.75 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9
        areas.append((right - left) * (bottom - top) / (height * width))
    if height == width:
        assert min(areas) == pytest.approx(0.08, abs=0.01)
        assert max(areas) == pytest.approx(0.5, abs=0.01)
        assert np.mean(areas) == pytest.approx(0.29, abs=0.02)


def test_a_box_that_never_fits_is_the_middle_at_the_nearest_aspect():
    # 1 in 10 high, so that no part of nine tenths of the area has an aspect of 4/3 or less
    assert random_box(10, 100, (0.9, 0.9), np.random.default_rng(0)) == pytest.approx(
        (50 - 20 / 3, 0, 50 + 20 / 3, 10)
    )


def test_a_test_sees_the_middle():
    # the largest square of 100 x 60 has a side of 60, of which 0.875 are 52.5
    assert CENTRE == 0.875
    assert middle(60, 100, aspect=1.0) == pytest.approx((23.75, 3.75, 76.25, 56.25))
    assert middle(60, 100, aspect=2.0, side=1.0) == pytest.approx((0, 5, 100, 55))


def test_a_random_crop_is_a_matter_of_chance_alone_and_a_test_has_none(tmp_path: Path):
    save(tmp_path / "cat" / "1.png", 9, (40, 60))
    save(tmp_path / "cat" / "2.png", 7, (40, 60))
    save(tmp_path / "dog" / "1.png", 8, (40, 60))
    save(tmp_path / "dog" / "2.png", 6, (40, 60))
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    for path in tmp_path.rglob("*.png"):
        Image.fromarray(noise).save(path)
    data = load(tmp_path, image_size=8, crop=[0.1, 1])
    assert isinstance(data.train, Stream)
    one, again, other = (data.train.one(0, np.random.default_rng(s)) for s in (1, 1, 2))
    assert one.shape == (3, 8, 8)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert np.array_equal(data.train.one(0), data.train.read(np.array([0]))[0])
    shown = read_image(tmp_path / "cat" / "1.png", image_size=8, channels=3, centre=True)
    assert np.array_equal(data.train.one(0), shown)
