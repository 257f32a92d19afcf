"""PNG files against matplotlib's reader, and the scale of heat maps."""

import base64
import io

import matplotlib.image
import numpy as np
import pytest

from saccade.report.pixels import heat, picture, png, unit


def decode(address: str) -> np.ndarray:
    head, data = address.split(",")
    assert head == "data:image/png;base64"
    pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(data)), format="png")
    return (255 * pixels).round().astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_keeps_every_pixel(channels: int):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    assert np.array_equal(decode(png(pixels)).reshape(pixels.shape), pixels)


def test_large_pictures_are_averaged_in_blocks():
    image = np.zeros((1, 200, 100), np.uint8)
    image[0, 0, :3] = 90  # a third of the first block of 3 x 3: 90 * 3 / 9 = 30
    small = decode(picture(image, longest=96))
    assert small.shape[:2] == (67, 34)
    assert small[0, 0] == 30


def test_small_pictures_are_left_alone():
    image = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    assert np.array_equal(decode(picture(image)), image.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 2.0, 4.0], [0, 0.5, 1]),
        ([2.0, 4.0], [0.5, 1]),
        ([-1.0, 1.0], [0, 1]),
        ([0.0, 0.0], [0, 0]),
        ([np.nan, 5.0], [0, 1]),
    ],
)
def test_unit_keeps_zero_at_zero(values: list[float], expected: list[float]):
    assert unit(np.array(values)).tolist() == expected


def test_an_overlay_is_clearer_where_the_value_is_low():
    opacity = decode(heat(np.array([[0.0, 1.0]]), overlay=True))[0, :, 3]
    assert opacity[0] < 60 < 200 < opacity[1]
