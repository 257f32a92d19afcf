"""Blends of pictures: what they keep, and how often they come."""

import math

import pytest
import torch
from torch import Tensor

from saccade.data.mix import Mix, _rectangle, mix

K = 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(B: int = 6) -> tuple[Tensor, Tensor]:
    """Picture b is b everywhere, of class b mod K."""
    labels = torch.arange(B) % K
    x = torch.arange(float(B))[:, None, None, None].expand(B, 3, 8, 10).contiguous()
    return x, torch.nn.functional.one_hot(labels, K).float()


def test_mixup_is_one_weighted_sum_of_pictures_and_of_labels():
    x, target = batch()
    mixed, soft = mix(x, target, Mix(mixup=1), seeded())
    partner = torch.tensor([_partner(x, mixed, target, soft, b) for b in range(6)])
    assert sorted(partner.tolist()) == list(range(6))
    moved = partner != torch.arange(6)
    shares = ((mixed[:, 0, 0, 0] - partner) / (torch.arange(6) - partner))[moved]
    torch.testing.assert_close(shares, shares[:1].expand_as(shares))
    share = float(shares[0])
    torch.testing.assert_close(soft, share * target + (1 - share) * target[partner])


def _partner(x: Tensor, mixed: Tensor, target: Tensor, soft: Tensor, b: int) -> int:
    """Found by trying: the only picture that explains picture and label with one share."""
    fits = []
    for p in range(len(x)):
        far = float(x[p, 0, 0, 0] - x[b, 0, 0, 0])
        t = float(mixed[b, 0, 0, 0] - x[b, 0, 0, 0]) / far if far else 0.0
        want = (1 - t) * target[b] + t * target[p]
        ok = 0 <= t <= 1 and torch.allclose(want, soft[b], atol=1e-4)
        if ok and torch.allclose(mixed[b], (1 - t) * x[b] + t * x[p], atol=1e-4):
            fits.append(p)
    assert len(fits) == 1
    return fits[0]


def test_cutmix_takes_a_rectangle_and_its_share_of_the_label():
    x, target = batch(B=32)
    seen = set()
    for seed in range(40):
        mixed, soft = mix(x, target, Mix(cutmix=1.0), seeded(seed))
        other = (mixed != x).any(1)
        boxes = {tuple(map(tuple, o.nonzero().tolist())) for o in other if o.any()}
        if not boxes:
            continue
        (box,) = boxes  # the same for the whole batch
        rows, columns = {r for r, _ in box}, {c for _, c in box}
        assert len(box) == len(rows) * len(columns)
        assert max(rows) - min(rows) < len(rows)
        assert max(columns) - min(columns) < len(columns)
        share = len(box) / 80
        for b in range(32):
            p = int(mixed[b, 0, box[0][0], box[0][1]])
            torch.testing.assert_close(soft[b], (1 - share) * target[b] + share * target[p])
        seen.add(len(box))
    assert len(seen) > 10


def test_a_rectangle_has_the_asked_area_until_the_border_cuts_it():
    sizes = [_rectangle(10, 20, 0.25, seeded(n)) for n in range(200)]
    for rows, columns in sizes:
        assert 0 <= rows.start <= rows.stop <= 10
        assert 0 <= columns.start <= columns.stop <= 20
    areas = {(r.stop - r.start, c.stop - c.start) for r, c in sizes}
    assert max(areas) == (5, 10)
    whole = [a for a in areas if a == (5, 10)]
    assert whole
    assert all(a <= 5 and b <= 10 for a, b in areas)


def test_shares_follow_the_beta_distribution():
    """Of Beta(a, a) the mean is 1/2 and the variance 1 / (4 (2 a + 1))."""
    x = torch.zeros(2, 1, 1, 1)
    x[1] = 1
    for alpha in (0.5, 2.0):
        drawn = []
        for seed in range(800):
            mixed, _ = mix(x, torch.eye(2), Mix(mixup=alpha), seeded(seed))
            drawn.append(float(mixed[0]))
        shares = torch.tensor([d for d in drawn if 0 < d < 1])  # 0: its own partner
        assert 320 < len(shares) < 480
        variance = 1 / (4 * (2 * alpha + 1))
        assert abs(float(shares.mean()) - 0.5) < 4 * math.sqrt(variance / len(shares))
        assert float(shares.var()) == pytest.approx(variance, rel=0.2)


def test_how_often_and_which():
    x, target = batch()
    both = Mix(mixup=1.0, cutmix=1.0, probability=0.5, switch=0.25)
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    for seed in range(600):
        mixed, soft = mix(x, target, both, seeded(seed))
        if soft is target:
            assert mixed is x
            kinds["none"] += 1
        else:
            whole = bool((mixed == mixed.round()).all())
            kinds["cutmix" if whole else "mixup"] += 1
    assert 250 < kinds["none"] < 350  # 4 sd of 12
    assert 45 < kinds["cutmix"] < 115
    assert 185 < kinds["mixup"] < 265


def test_chance_is_the_generators_and_the_arguments_are_kept():
    x, target = batch()
    kept = x.clone()
    for how in (Mix(mixup=0.4), Mix(cutmix=0.7)):
        a, b = mix(x, target, how, seeded(3)), mix(x, target, how, seeded(3))
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
        assert not torch.equal(a[1], mix(x, target, how, seeded(4))[1])
    assert torch.equal(x, kept)


def test_with_everything_off_no_chance_is_drawn():
    generator, (x, target) = seeded(), batch()
    before = generator.get_state()
    assert mix(x, target, Mix(), generator) == (x, target)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(
    "bad",
    [
        *({"mixup": -0.1}, {"cutmix": math.nan}, {"mixup": math.inf}, {"probability": 1.1}),
        *({"switch": -0.1}, {"until": 2}),
    ],
    ids=repr,
)
def test_values_beyond_their_bounds_are_refused(bad: dict[str, float]):
    with pytest.raises(ValueError, match=f"got mix.{next(iter(bad))}="):
        Mix(**bad)
