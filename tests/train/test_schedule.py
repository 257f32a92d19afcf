"""The way down of the learning rate, by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.train.optim import make_optimizer
from saccade.train.recipe import Optim
from saccade.train.schedule import SCHEDULE, learning_rate, rate_share, set_rates


def rates(schedule, steps: int = 5, **changes) -> list[float]:
    optim = Optim(lr=2.0, schedule=schedule, **{"warmup": 0.0, "final": 0.1} | changes)
    return [learning_rate(optim, n, steps) for n in range(steps + 1)]


def test_each_schedule_by_hand():
    assert rates("constant") == [2.0] * 6
    assert rates("linear") == pytest.approx([2.0, 1.64, 1.28, 0.92, 0.56, 0.2])
    half = [math.cos(math.pi * n / 5) for n in range(6)]
    assert rates("cosine") == pytest.approx([0.2 + 0.9 * (1 + c) for c in half])
    expected = [2.0, 2.0, 2.0, 2.0, 1.1, 0.2]  # the last two fifths go down from 2 to 0.2
    assert rates({"name": "trapezoid", "cooldown": 0.4}) == pytest.approx(expected)
    assert rates("trapezoid") == pytest.approx([2.0] * 5 + [0.2])


@pytest.mark.parametrize("name", SCHEDULE.list())
def test_warm_up_is_the_same_for_all(name: str):
    assert rates(name, steps=10, warmup=0.4)[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


@pytest.mark.parametrize("name", sorted({*SCHEDULE} - {"constant"}))
@given(warmup=st.floats(0, 1, exclude_max=True), final=st.floats(0, 1), steps=st.integers(1, 50))
def test_a_rate_never_leaves_its_bounds_and_falls_behind_the_warm_up(
    name: str, warmup: float, final: float, steps: int
):
    optim = Optim(schedule=name, warmup=warmup, final=final)
    shares = [rate_share(optim, n, steps) for n in range(steps)]
    assert all(0 <= share <= 1 + 1e-12 for share in shares)
    behind = shares[int(warmup * steps) :]
    assert behind == sorted(behind, reverse=True)
    assert rate_share(optim, steps, steps) == pytest.approx(final)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("cosin", r"unknown schedule 'cosin'; did you mean 'cosine'\?"),
        ({"name": "cosine", "final": 1}, r"schedule 'cosine' has no option 'final'"),
        ({"name": "trapezoid", "cool": 1}, r"no option 'cool'; did you mean 'cooldown'\?"),
        ({"name": "trapezoid", "cooldown": 0}, r"got cooldown=0, expected a share above 0"),
    ],
)
def test_a_schedule_that_is_wrong_is_refused(schedule, message: str):
    with pytest.raises(ValueError, match=message):
        rate_share(Optim(schedule=schedule), 0, 1)


def test_every_group_follows_from_its_own_peak():
    from saccade.models import create_model

    model = create_model("spikformer", dim=16, depth=1, heads=2, image_size=8)
    optimizer = make_optimizer(model, Optim(name="muon", lr=1e-3))
    for share in (0.5, 0.25):
        set_rates(optimizer, share)
        rates = [g["lr"] for g in optimizer.param_groups]
        assert rates == [0.02 * share, 1e-3 * share, 1e-3 * share]
