"""Each operation against PIL's, or against what it must keep; and the draw among them."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from saccade.data import Augment, augment
from saccade.data.randaugment import OPERATION, RandAugment, affine, randaugment


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(B: int = 4, H: int = 32, W: int = 40) -> Tensor:
    """Whole levels of 255, dull and dark, so that stretching has something to do."""
    levels = torch.randint(40, 180, (B, 3, H, W), generator=seeded(1))
    return levels / 255


def as_pil(x: Tensor) -> Image.Image:
    return Image.fromarray((x * 255).round().byte().permute(1, 2, 0).numpy())


def by_pil(change, x: Tensor) -> Tensor:
    done = [np.asarray(change(as_pil(image), b)) for b, image in enumerate(x)]
    return torch.from_numpy(np.stack(done)).permute(0, 3, 1, 2) / 255


M = torch.tensor([-1.0, -0.25, 0.5, 1.0])
FACTOR = [0.1, 0.775, 1.45, 1.9]
BITS = [4, 7, 6, 4]
PIL = {
    "autocontrast": (lambda image, b: ImageOps.autocontrast(image), 1.01),
    "equalize": (lambda image, b: ImageOps.equalize(image), 0.01),
    "solarize": (lambda image, b: ImageOps.solarize(image, [0, 192, 128, 0][b]), 0.01),
    "posterize": (lambda image, b: ImageOps.posterize(image, BITS[b]), 0.01),
    "color": (lambda image, b: ImageEnhance.Color(image).enhance(FACTOR[b]), 1.51),
    "contrast": (lambda image, b: ImageEnhance.Contrast(image).enhance(FACTOR[b]), 1.51),
    "brightness": (lambda image, b: ImageEnhance.Brightness(image).enhance(FACTOR[b]), 1.01),
    "sharpness": (lambda image, b: ImageEnhance.Sharpness(image).enhance(FACTOR[b]), 1.51),
}
"""What PIL does, and by how many of 255 levels its rounding may differ."""


@pytest.mark.parametrize("name", PIL)
def test_a_change_of_values_is_pils(name: str):
    change, levels = PIL[name]
    x = pictures()
    got, expected = OPERATION[name](x, M), by_pil(change, x)
    assert (got - expected).abs().max() * 255 <= levels
    assert not torch.equal(got, x)


def test_pils_blur_is_the_one_that_sharpness_goes_away_from():
    assert ImageFilter.SMOOTH.filterargs == ((3, 3), 13, 0, (1, 1, 1, 1, 5, 1, 1, 1, 1))


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_flat_picture_stays_flat(value: float):
    x = torch.full((4, 3, 8, 8), value)
    for name in ("autocontrast", "equalize", "sharpness", "contrast", "color"):
        torch.testing.assert_close(OPERATION[name](x, M), x, atol=1e-6, rtol=0)


def test_equalize_by_hand():
    """Levels 0, 100, 200 on 200, 200, 400 pixels: PIL's step is (800 - 400) // 255 = 1."""
    x = torch.tensor([0] * 200 + [100] * 200 + [200] * 400).reshape(1, 1, 20, 40) / 255
    got = OPERATION["equalize"](x, torch.ones(1)) * 255
    assert got.round().unique().tolist() == [0, 200, 255]


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_a_move_of_magnitude_0_is_none_and_of_the_other_sign_its_mirror(name: str):
    x = pictures(H=12, W=12)
    torch.testing.assert_close(OPERATION[name](x, 0 * M), x)
    axis = -2 if name.endswith("_y") else -1
    mirrored = OPERATION[name](x.flip(axis), -M).flip(axis)
    torch.testing.assert_close(OPERATION[name](x, M), mirrored, atol=1e-5, rtol=0)
    assert not torch.allclose(OPERATION[name](x, M), x, atol=0.1)


def test_moves_by_hand():
    x = pictures(B=1, H=20, W=20)
    one = torch.ones(1)
    right = OPERATION["translate_x"](x, one)  # 0.45 of 20 pixels
    torch.testing.assert_close(right[..., :11], x[..., 9:], atol=1e-5, rtol=0)
    assert not right[..., 11:].any()
    down = OPERATION["translate_y"](x, -one)
    torch.testing.assert_close(down[..., 9:, :], x[..., :11, :], atol=1e-5, rtol=0)
    # a quarter turn: what stood right of the middle comes from above it
    zero = torch.zeros(1)
    torch.testing.assert_close(
        affine(x, (zero, -one, one, zero)), x.rot90(1, (2, 3)), atol=1e-5, rtol=0
    )
    # a shear by 0.3 moves the row that is 5 pixels below the middle by 1.5
    line = torch.zeros(1, 1, 21, 21)
    line[..., 10] = 1
    slanted = OPERATION["shear_x"](line, one)[0, 0, 15]
    assert slanted.nonzero()[:, 0].tolist() == [8, 9]
    torch.testing.assert_close(slanted[8:10], torch.tensor([0.5, 0.5]), atol=1e-5, rtol=0)


def test_a_rotation_goes_by_thirty_degrees_against_the_clock_as_pils():
    hand = torch.zeros(2, 1, 31, 31)
    hand[..., 15, 18:28] = 1
    turned = OPERATION["rotate"](hand, torch.tensor([1.0, -0.5]))[:, 0]
    grid = torch.arange(31.0) - 15
    mass = turned.sum((1, 2))
    y, x = (turned.sum(2) * grid).sum(1) / mass, (turned.sum(1) * grid).sum(1) / mass
    assert torch.rad2deg(torch.atan2(y, x)).tolist() == pytest.approx(
        [-30.0, 15.0], abs=0.5
    )  # y runs down


@pytest.mark.parametrize("name", OPERATION.list())
@pytest.mark.parametrize("shape", [(3, 3, 9, 7), (3, 1, 8, 8), (3, 2, 2, 5)])
def test_every_operation_keeps_shape_bounds_and_its_neighbours_apart(name: str, shape):
    x, m = torch.rand(shape, generator=seeded()), torch.tensor([-1.0, 0.3, 0.9])
    kept = x.clone()
    y = OPERATION[name](x, m)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert ((y >= -1e-6) & (y <= 1 + 1e-6)).all()
    assert torch.equal(x, kept)
    alone = torch.cat([OPERATION[name](x[b : b + 1], m[b : b + 1]) for b in range(3)])
    torch.testing.assert_close(y, alone, atol=1e-6, rtol=0)


def test_there_are_the_papers_fourteen():
    assert len(OPERATION.list()) == 14


def test_each_picture_has_its_own_draw_and_the_generator_is_the_only_chance():
    x = pictures(B=1).expand(64, -1, -1, -1)
    how = RandAugment(layers=2, spread=2.0)
    y = randaugment(x, how, seeded())
    assert len({tuple(image.flatten().tolist()) for image in y}) > 40
    assert torch.equal(y, randaugment(x, how, seeded()))
    assert not torch.equal(y, randaugment(x, how, seeded(1)))


def test_draws_are_those_that_were_asked_for():
    x = pictures(B=1).expand(400, -1, -1, -1)
    how = RandAugment(layers=1, magnitude=5, probability=0.5, operations=("posterize",))
    y = randaugment(x, how, seeded())
    posterized = OPERATION["posterize"](x, torch.full((400,), 0.5))
    changed = (y != x).flatten(1).any(1)
    assert 160 < changed.sum() < 240  # 4 sd of 10
    assert torch.equal(y[changed], posterized[changed])
    two = randaugment(x, RandAugment(layers=1, operations=("identity", "solarize")), seeded())
    assert 160 < (two != x).flatten(1).any(1).sum() < 240
    strength = randaugment(
        torch.full((400, 1, 4, 4), 0.5), RandAugment(layers=1, operations=("brightness",)), seeded()
    )[:, 0, 0, 0]
    assert strength.unique().tolist() == pytest.approx([0.5 * 0.19, 0.5 * 1.81], abs=1e-5)
    spread = RandAugment(layers=1, magnitude=5, spread=1.0, operations=("brightness",))
    drawn = randaugment(torch.full((400, 1, 4, 4), 0.25), spread, seeded())[:, 0, 0, 0] / 0.25 - 1
    assert float((drawn.abs() / 0.9).mean()) == pytest.approx(0.5, abs=0.02)
    assert float((drawn.abs() / 0.9).std()) == pytest.approx(0.1, abs=0.02)
    wild = RandAugment(layers=1, magnitude=5, spread=10, operations=("brightness",))
    drawn = randaugment(torch.full((400, 1, 4, 4), 0.25), wild, seeded())[:, 0, 0, 0] / 0.25 - 1
    assert float(drawn.abs().max()) == pytest.approx(0.9, abs=1e-5)
    assert 0 in drawn  # cut at either end


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"layers": -1}, "got randaugment.layers=-1, expected 0 to 99"),
        ({"magnitude": 11}, "got randaugment.magnitude=11, expected 0 to 10"),
        ({"spread": float("nan")}, "got randaugment.spread=nan"),
        ({"probability": 2}, "got randaugment.probability=2, expected 0 to 1"),
        ({"operations": ("equalise",)}, "did you mean 'equalize'"),
    ],
)
def test_values_beyond_their_bounds_are_refused(bad, message: str):
    with pytest.raises(ValueError, match=message):
        RandAugment(**bad)


def test_erasing_covers_one_rectangle_inside_in_the_asked_share_of_pictures():
    y = augment(torch.ones(800, 2, 24, 30), Augment(erase=0.25), seeded())
    black = (y == 0)[:, 0]
    assert torch.equal(black, (y == 0)[:, 1])
    hit = black.flatten(1).any(1)
    assert 151 < hit.sum() < 249  # 4 sd of 12.2
    rows, columns = black[hit].any(2).sum(1), black[hit].any(1).sum(1)
    assert torch.equal(rows * columns, black[hit].sum((1, 2)))  # a rectangle
    area, aspect = rows * columns / 720, rows / columns
    assert 0.015 < area.min() < 0.06
    assert 0.28 < area.max() < 0.36
    assert 0.25 < aspect.min() < 0.5
    assert 2.5 < aspect.max() < 4.2  # 10/3, and sides are rounded
    for axis in (1, 2):  # up to every border
        assert black.any(0).any(axis - 1).all()
