"""One picture at a time."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.data import read_image

COLOURS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray = COLOURS, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def test_colours_come_back_exactly_with_channels_first(tmp_path: Path):
    image = read_image(save(tmp_path / "a.png"), image_size=None, channels=3)
    assert np.array_equal(image, COLOURS.transpose(2, 0, 1))
    assert (image.dtype, image.flags.c_contiguous) == (np.uint8, True)
    assert image.flags.writeable


def test_grey_is_spread_to_three_channels_and_colour_weighed_into_one(tmp_path: Path):
    grey = read_image(save(tmp_path / "g.png", COLOURS[..., 0]), image_size=None, channels=3)
    assert np.array_equal(grey, np.broadcast_to(COLOURS[..., 0], (3, 4, 6)))
    one = read_image(save(tmp_path / "c.png"), image_size=None, channels=1)
    # luma by ITU-R 601-2
    np.testing.assert_allclose(one[0], COLOURS @ [0.299, 0.587, 0.114], atol=1)


@pytest.mark.parametrize(
    ("size", "shape"), [(8, (3, 8, 8)), ((2, 5), (3, 2, 5)), ([3, 1], (3, 3, 1))]
)
def test_size_is_height_and_width_or_the_side_of_a_square(tmp_path: Path, size, shape):
    assert read_image(save(tmp_path / "a.png"), image_size=size, channels=3).shape == shape


def test_resizing_keeps_a_single_colour(tmp_path: Path):
    path = save(tmp_path / "a.png", np.full((7, 9, 3), 77, np.uint8))
    assert (read_image(path, image_size=4, channels=3) == 77).all()


def test_a_picture_taken_sideways_is_turned_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned a quarter to the left
    image = read_image(save(tmp_path / "a.png", exif=exif), image_size=None, channels=3)
    assert np.array_equal(image.transpose(1, 2, 0), np.rot90(COLOURS, -1))


def test_transparent_pixels_become_black(tmp_path: Path):
    alpha = np.full((4, 6, 1), 255, np.uint8)
    alpha[0] = 0
    path = save(tmp_path / "a.png", np.concatenate([COLOURS, alpha], axis=2))
    image = read_image(path, image_size=None, channels=3)
    assert not image[:, 0].any()
    assert np.array_equal(image[:, 1:], COLOURS.transpose(2, 0, 1)[:, 1:])


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_grey_keeps_its_upper_bits(tmp_path: Path, channels: int):
    deep = np.array([[0, 256, 65535, 32768]], dtype=np.uint16)
    image = read_image(save(tmp_path / "a.png", deep), image_size=None, channels=channels)
    assert image.tolist() == [[[0, 1, 255, 128]]] * channels


def test_pixels_of_unknown_white_are_refused(tmp_path: Path):
    path = save(tmp_path / "a.tif", np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"a\.tif: got 32-bit pixels"):
        read_image(path, image_size=None, channels=1)


def test_a_palette_becomes_its_colours(tmp_path: Path):
    flat = np.zeros((4, 6, 3), np.uint8)
    flat[:2] = 200, 10, 30
    Image.fromarray(flat).quantize(2).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", image_size=None, channels=3)
    assert np.array_equal(image, flat.transpose(2, 0, 1))


@pytest.mark.parametrize("keep", [0, 20, 70])
def test_a_damaged_picture_is_named(tmp_path: Path, keep: int):
    path = save(tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a\.png: got .*expected a readable picture"):
        read_image(path, image_size=8, channels=3)


def test_an_absent_picture_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"a\.png: no such file"):
        read_image(tmp_path / "a.png", image_size=8, channels=3)


@pytest.mark.parametrize("size", [0, -4, (3,), (3, 0), (1, 2, 3), [2, -1]])
def test_a_size_that_is_none_is_refused(tmp_path: Path, size: object):
    with pytest.raises(ValueError, match="image_size"):
        read_image(save(tmp_path / "a.png"), image_size=size, channels=3)


def test_two_channels_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="channels=2, expected 1"):
        read_image(save(tmp_path / "a.png"), image_size=None, channels=2)


def test_without_pillow_the_error_says_what_to_install(tmp_path: Path, monkeypatch):
    path = save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install saccade\[train\]"):
        read_image(path, image_size=8, channels=3)
