"""Random changes, each against what it must keep."""

import math

import pytest
import torch
from torch import Tensor

from saccade.data import Augment, augment, normalise, unit

ALL = Augment(shift=2, flip=True, rotate=20.0, scale=0.1, cutout=3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(B: int = 6, C: int = 3, H: int = 8, W: int = 10) -> Tensor:
    return torch.rand(B, C, H, W, generator=seeded(9))


def test_with_everything_off_nothing_changes_and_no_chance_is_drawn():
    generator, x = seeded(), batch()
    before = generator.get_state()
    assert torch.equal(augment(x, Augment(), generator), x)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(
    "how",
    [
        *(Augment(shift=2), Augment(flip=True), Augment(rotate=30.0), Augment(scale=0.2)),
        *(Augment(cutout=4), ALL),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_seed_gives_the_same_images_and_the_input_is_kept(how: Augment, dtype):
    x = batch().to(dtype)
    kept = x.clone()
    y = augment(x, how, seeded())
    assert (y.shape, y.dtype) == (x.shape, dtype)
    assert torch.equal(y, augment(x, how, seeded()))
    assert not torch.equal(y, augment(x, how, seeded(1)))
    assert torch.equal(x, kept)
    assert not torch.equal(y, x)
    assert ((y >= 0) & (y <= 1)).all()


def test_images_of_a_batch_are_changed_each_on_its_own():
    x = batch(B=1).expand(32, -1, -1, -1)
    assert len({tuple(y.flatten().tolist()) for y in augment(x, ALL, seeded())}) == 32


def test_a_shift_moves_whole_pixels_and_leaves_black_behind():
    x = torch.zeros(64, 2, 9, 11)
    x[:, :, 2:7, 2:9] = torch.rand(64, 2, 5, 7, generator=seeded())
    y = augment(x, Augment(shift=2), seeded())
    assert torch.equal(x.flatten(1).sort().values, y.flatten(1).sort().values)
    offsets = set()
    for before, after in zip(x, y, strict=True):
        moves = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
        fits = [m for m in moves if torch.equal(torch.roll(before, m, (1, 2)), after)]
        assert len(fits) == 1
        offsets.add(fits[0])
    assert {dy for dy, _ in offsets} == {dx for _, dx in offsets} == {-2, -1, 0, 1, 2}


def test_what_leaves_the_frame_does_not_come_back_on_the_other_side():
    y = augment(torch.ones(64, 1, 4, 4), Augment(shift=3), seeded())
    kept = y.flatten(1).sum(1)
    assert set(kept.tolist()) <= {a * b for a in (1, 2, 3, 4) for b in (1, 2, 3, 4)}
    assert kept.min() < 16


def test_a_flip_mirrors_half_of_the_images_and_twice_is_none():
    x, how = batch(B=400), Augment(flip=True)
    once = augment(x, how, seeded())
    mirrored = (once == x.flip(-1)).flatten(1).all(1)
    assert torch.equal(torch.where(mirrored[:, None, None, None], x.flip(-1), x), once)
    assert 160 < mirrored.sum() < 240  # 4 standard deviations of 10
    assert torch.equal(augment(once, how, seeded()), x)


def test_a_turn_keeps_circles_even_in_an_oblong_frame():
    rows, columns = torch.meshgrid(torch.arange(21.0) - 10, torch.arange(41.0) - 20, indexing="ij")
    disc = torch.exp(-(rows**2 + columns**2) / 18)[None, None].expand(16, 1, 21, 41)
    y = augment(disc, Augment(rotate=180.0), seeded())
    assert (y - disc).abs().max() < 0.05


def test_a_turn_goes_by_the_angle_that_was_drawn():
    x = torch.zeros(200, 1, 31, 31)
    x[:, :, 15, 18:28] = 1  # a hand that points right
    y = augment(x, Augment(rotate=30.0), seeded())
    rows, columns = torch.meshgrid(torch.arange(31.0) - 15, torch.arange(31.0) - 15, indexing="ij")
    mass = y.sum((1, 2, 3))
    angle = torch.atan2((y[:, 0] * rows).sum((1, 2)) / mass, (y[:, 0] * columns).sum((1, 2)) / mass)
    degrees = angle * 180 / math.pi
    assert degrees.abs().max() <= 30.5
    assert degrees.max() > 25
    assert degrees.min() < -25


def test_whole_numbers_do_for_degrees():
    x = batch()
    turned = (augment(x, Augment(rotate=degrees), seeded()) for degrees in (15, 15.0))
    assert torch.equal(*turned)


def test_a_zoom_changes_areas_by_its_square():
    x = torch.zeros(200, 1, 32, 32)
    x[:, :, 11:21, 11:21] = 1
    side = augment(x, Augment(scale=0.2), seeded()).sum((1, 2, 3)).sqrt()
    assert 7.9 < side.min() < 8.5
    assert 11.5 < side.max() < 12.1


def test_a_cutout_blackens_one_square_clipped_at_the_border():
    y = augment(torch.ones(300, 2, 9, 7), Augment(cutout=3), seeded())
    black = y == 0
    assert torch.equal(black[:, 0], black[:, 1])
    rows, columns = black[:, 0].any(2).sum(1), black[:, 0].any(1).sum(1)
    assert torch.equal(rows * columns, black[:, 0].sum((1, 2)))  # a rectangle
    assert set(rows.tolist()) == set(columns.tolist()) == {2, 3}  # centred on some pixel
    assert black[:, 0].any(0).all()  # anywhere


@pytest.mark.parametrize(
    "bad",
    [
        *({"shift": -1}, {"cutout": -1}, {"rotate": -1.0}, {"rotate": 181.0}, {"scale": 1.0}),
        *({"scale": -0.1}, {"rotate": math.nan}, {"scale": math.nan}),
    ],
    ids=repr,
)
def test_values_beyond_their_bounds_are_refused(bad: dict[str, float]):
    with pytest.raises(ValueError, match=f"got {next(iter(bad))}="):
        Augment(**bad)


@pytest.mark.parametrize("how", [Augment(shift=8), Augment(cutout=9)], ids=repr)
def test_changes_larger_than_the_image_are_refused(how: Augment):
    with pytest.raises(ValueError, match="for images of 8x10 pixels, expected at most"):
        augment(batch(), how, seeded())


def test_bytes_become_units_of_white():
    images = torch.tensor([0, 8, 16], dtype=torch.uint8).reshape(1, 1, 1, 3)
    assert unit(images, 16.0).flatten().tolist() == [0.0, 0.5, 1.0]
    assert unit(images, 16.0).dtype == torch.float32


def test_normalising_takes_the_mean_off_and_divides_by_the_spread():
    x = torch.tensor([0.5, 1.0]).reshape(1, 2, 1, 1)
    assert normalise(x, (0.25, 0.5), (0.5, 0.25)).flatten().tolist() == [0.5, 2.0]
    y = batch()
    mean, std = y.mean((0, 2, 3)).tolist(), y.std((0, 2, 3)).tolist()
    z = normalise(y, mean, std)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(3))


def test_normalising_needs_one_number_for_each_channel():
    with pytest.raises(ValueError, match="got 1 means and 3 stds, expected 3"):
        normalise(batch(), (0.5,), (1.0, 1.0, 1.0))
