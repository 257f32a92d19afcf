"""The digits that come with scikit-learn."""

import sys
from pathlib import Path

import numpy as np
import pytest

from saccade.data import ImageData, load_data


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits")


def test_there_are_1797_digits_of_eight_by_eight(digits: ImageData):
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert (digits.channels, digits.image_size, digits.num_classes) == (1, (8, 8), 10)
    assert (digits.white, digits.train.images.max()) == (16.0, 16)


def test_the_split_is_stratified(digits: ImageData):
    share = np.bincount(digits.test.labels) / np.bincount(
        np.concatenate([digits.train.labels, digits.test.labels])
    )
    np.testing.assert_allclose(share, 0.2, atol=0.005)


def test_the_split_is_that_of_scikit_learn(digits: ImageData):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x_train, x_test, _, y_test = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    assert np.array_equal(digits.train.images.reshape(-1, 64), x_train)
    assert np.array_equal(digits.test.images.reshape(-1, 64), x_test)
    assert np.array_equal(digits.test.labels, y_test)


def test_the_split_is_the_same_each_time_and_another_with_another_seed(digits: ImageData):
    again = load_data({"name": "digits", "split_seed": 0, "test_fraction": 0.2})
    other = load_data({"name": "digits", "split_seed": 1})
    assert np.array_equal(again.test.images, digits.test.images)
    assert not np.array_equal(other.test.images, digits.test.images)


def test_mean_and_std_are_those_of_the_training_images(digits: ImageData):
    assert digits.mean == pytest.approx(((digits.train.images / 16).mean(),))
    assert digits.std == pytest.approx(((digits.train.images / 16).std(),))


def test_a_fraction_beyond_its_bounds_is_refused():
    with pytest.raises(ValueError, match=r"test_fraction=1\.5, expected between 0 and 1"):
        load_data({"name": "digits", "test_fraction": 1.5})


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install saccade\[demo\]"):
        load_data("digits", tmp_path)
