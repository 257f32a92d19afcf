"""Folders of pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.data import ImageData, load_data


def save(path: Path, value: int = 0, size: tuple[int, int] = (4, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size, 3), value, np.uint8)
    pixels[0, 0] = 255
    Image.fromarray(pixels).save(path)


def fill(top: Path, count: int = 5) -> Path:
    for n in range(count):
        save(top / "dog" / f"{n}.png", 100 + n)
        save(top / "cat" / f"{n}.PNG", n)
    return top


def load(top: Path, **options: object) -> ImageData:
    return load_data({"name": "folder", "path": str(top), **options})


def test_a_folder_per_class_is_split_by_class(tmp_path: Path):
    fill(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "cat" / ".hidden.png").write_text("no picture")
    (tmp_path / ".cache").mkdir()
    data = load(tmp_path)
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (8, 2)
    assert sorted(data.test.labels) == [0, 1]
    assert (data.channels, data.image_size) == (3, (4, 6))
    # the class is that of the folder: cats were painted darker than 100
    values = data.train.images[:, 0, 1, 1]
    assert np.array_equal(values >= 100, data.train.labels == 1)


def test_the_split_follows_its_seed_and_fraction(tmp_path: Path):
    fill(tmp_path, count=10)
    first, again, other = (load(tmp_path, split_seed=s, test_fraction=0.5) for s in (0, 0, 1))
    assert len(first.test) == 10
    assert np.array_equal(first.test.images, again.test.images)
    assert not np.array_equal(first.test.images, other.test.images)


def test_train_and_test_folders_are_kept_apart(tmp_path: Path):
    fill(tmp_path / "train", count=3)
    fill(tmp_path / "test", count=1)
    data = load(tmp_path, channels=1, image_size=[8, 8])
    assert (len(data.train), len(data.test)) == (6, 2)
    assert (data.channels, data.image_size) == (1, (8, 8))


def test_statistics_are_those_of_the_training_images(tmp_path: Path):
    data = load(fill(tmp_path))
    np.testing.assert_allclose(data.mean, (data.train.images / 255).mean((0, 2, 3)))
    np.testing.assert_allclose(data.std, (data.train.images / 255).std((0, 2, 3)))
    assert data.white == 255


def test_a_relative_path_starts_here_and_a_tilde_is_home(tmp_path: Path, monkeypatch):
    fill(tmp_path / "pets")
    monkeypatch.chdir(tmp_path)
    assert len(load(Path("pets")).train) == 8
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load(Path("~/pets")).train) == 8


def test_classes_may_be_called_train_and_test(tmp_path: Path):
    for name in ("train", "test", "bus"):
        save(tmp_path / name / "1.png")
        save(tmp_path / name / "2.png")
    assert load(tmp_path).classes == ("bus", "test", "train")


def test_a_path_must_be_given_and_exist(tmp_path: Path):
    with pytest.raises(ValueError, match="got no path, expected the option path"):
        load_data("folder")
    with pytest.raises(ValueError, match="pets: no such folder"):
        load(tmp_path / "pets")


def test_an_empty_folder_and_a_single_class_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=rf"{tmp_path}: got 0 class folders, expected at least 2"):
        load(tmp_path)
    save(tmp_path / "cat" / "1.png")
    with pytest.raises(ValueError, match=rf"{tmp_path}: got 1 class folders"):
        load(tmp_path)


def test_a_class_without_pictures_is_named(tmp_path: Path):
    fill(tmp_path)
    (tmp_path / "eel").mkdir()
    (tmp_path / "eel" / "eel.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"eel: got no pictures, expected files that end in \.bmp"):
        load(tmp_path)


def test_a_class_of_one_picture_cannot_be_split(tmp_path: Path):
    fill(tmp_path)
    save(tmp_path / "eel" / "1.png")
    with pytest.raises(ValueError, match="eel: got 1 picture, expected at least 2"):
        load(tmp_path)


def test_one_half_of_a_split_is_not_enough(tmp_path: Path):
    fill(tmp_path / "train")
    with pytest.raises(ValueError, match="classes in train/ alone, expected test/ beside it"):
        load(tmp_path)


def test_both_halves_must_have_the_same_classes(tmp_path: Path):
    fill(tmp_path / "train")
    fill(tmp_path / "test")
    save(tmp_path / "test" / "eel" / "1.png")
    with pytest.raises(ValueError, match=r"got \['eel'\] in only one of train and test"):
        load(tmp_path)


def test_pictures_of_unequal_size_are_listed(tmp_path: Path):
    fill(tmp_path)
    for n in range(7):
        save(tmp_path / "eel" / f"{n}.png", size=(8, 9))
    with pytest.raises(ValueError, match=r"0\.PNG is 4x6, but .*0\.png is 8x9.* and 2 more"):
        load(tmp_path)
    assert load(tmp_path, image_size=5).image_size == (5, 5)


def test_test_pictures_take_the_size_of_the_training_pictures(tmp_path: Path):
    fill(tmp_path / "train")
    for name in ("cat", "dog"):
        save(tmp_path / "test" / name / "1.png", size=(8, 9))
    assert load(tmp_path).test.images.shape == (2, 3, 4, 6)


def test_a_damaged_picture_is_named(tmp_path: Path):
    fill(tmp_path)
    (tmp_path / "cat" / "3.PNG").write_bytes(b"\x89PNG\r\n\x1a\nnothing else")
    with pytest.raises(ValueError, match=r"3\.PNG: got .*expected a readable picture"):
        load(tmp_path)
