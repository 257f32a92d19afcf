"""What every dataset keeps, and how one is found."""

from pathlib import Path

import numpy as np
import pytest

from saccade.data import DATA, ImageData, Images, data_root, load_data
from saccade.data._base import channel_statistics, stratified_split


def split(labels: list[int], *, channels: int = 1, value: int = 7) -> Images:
    images = np.full((len(labels), channels, 2, 3), value, dtype=np.uint8)
    return Images(images=images, labels=np.array(labels, dtype=np.int64))


def dataset(train: Images, test: Images, **changes: object) -> ImageData:
    facts = {"white": 255.0, "mean": (0.5,), "std": (0.5,), "source": None}
    return ImageData(
        name="toy", classes=("cat", "dog"), train=train, test=test, **{**facts, **changes}
    )


def test_these_datasets_are_registered():
    assert DATA.list() == [
        "cifar10",
        "cifar100",
        "digits",
        "fashion_mnist",
        "folder",
        "mnist",
        "tar",
    ]


def test_properties_are_read_from_the_images():
    data = dataset(split([0, 1, 1]), split([1]))
    assert (data.channels, data.image_size, data.num_classes) == (1, (2, 3), 2)
    assert (len(data.train), len(data.test)) == (3, 1)


@pytest.mark.parametrize("bad", [-1, 2])
def test_a_label_out_of_range_is_named_with_split_and_index(bad: int):
    with pytest.raises(ValueError, match=rf"toy: got label {bad} at index 2 of test.*0\.\.1"):
        dataset(split([0]), split([0, 1, bad, bad]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.5, 0.5)}, "expected 1 of each"),
        ({"std": (0.0,)}, "every std above 0"),
        ({"white": 6.0}, "got a pixel of 7 in train, expected at most white=6"),
    ],
)
def test_statistics_must_fit_the_images(changes: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        dataset(split([0]), split([1]), **changes)


def test_both_splits_must_have_the_same_shape():
    with pytest.raises(ValueError, match=r"\(1, 2, 3\) in train and \(3, 2, 3\) in test"):
        dataset(split([0]), split([1], channels=3))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 1, 2, 2), np.float32), np.zeros(2, np.int64), "images: got float32"),
        (np.zeros((2, 2, 2), np.uint8), np.zeros(2, np.int64), r"expected uint8 \[N C H W\]"),
        (np.zeros((2, 1, 2, 2), np.uint8), np.zeros(2, np.int32), "labels: got int32"),
        (np.zeros((0, 1, 2, 2), np.uint8), np.zeros(0, np.int64), "at least one pixel"),
        (np.zeros((2, 1, 2, 2), np.uint8), np.zeros(3, np.int64), "2 images and 3 labels"),
    ],
)
def test_images_refuse_what_does_not_fit(images: np.ndarray, labels: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        Images(images=images, labels=labels)


def test_the_argument_wins_over_the_environment_and_that_over_home(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("SACCADE_DATA", str(tmp_path))
    assert data_root("here") == Path("here")
    assert data_root() == tmp_path
    monkeypatch.setenv("SACCADE_DATA", "")
    assert data_root() == Path.home() / ".cache" / "saccade"


def test_an_unknown_dataset_or_option_is_answered_with_the_nearest(tmp_path: Path):
    with pytest.raises(ValueError, match="did you mean 'cifar10'"):
        load_data("cifar_10", tmp_path)
    with pytest.raises(ValueError, match="did you mean 'split_seed'"):
        load_data({"name": "digits", "splitseed": 1}, tmp_path)


def test_every_class_gives_its_share_to_the_test():
    labels = np.repeat(np.arange(3), [10, 5, 2]).astype(np.int64)
    train, test = stratified_split(labels, test_fraction=0.2, seed=0)
    assert np.bincount(labels[test]).tolist() == [2, 1, 1]  # never none
    assert sorted([*train, *test]) == list(range(17))


def test_a_split_depends_on_its_seed_alone():
    labels = np.repeat(np.arange(4), 25).astype(np.int64)
    first, again, other = (
        stratified_split(labels, test_fraction=0.4, seed=s)[1] for s in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5])
def test_a_fraction_beyond_its_bounds_is_refused(fraction: float):
    with pytest.raises(ValueError, match="between 0 and 1"):
        stratified_split(np.array([0, 0, 1, 1]), test_fraction=fraction, seed=0)


def test_a_class_of_one_image_cannot_be_split():
    with pytest.raises(ValueError, match="1 image of class 1"):
        stratified_split(np.array([0, 0, 1]), test_fraction=0.5, seed=0)


def test_statistics_are_those_of_numpy_in_units_of_white():
    images = np.random.default_rng(0).integers(0, 17, (9, 2, 3, 4), dtype=np.uint8)
    mean, std = channel_statistics(images, white=16.0)
    np.testing.assert_allclose(mean, (images / 16).mean((0, 2, 3)))
    np.testing.assert_allclose(std, (images / 16).std((0, 2, 3)))


def test_a_channel_of_one_value_gets_a_spread_that_can_be_divided_by():
    mean, std = channel_statistics(np.full((2, 1, 2, 2), 51, np.uint8), white=255.0)
    assert (mean, std) == ((0.2,), (1.0,))
