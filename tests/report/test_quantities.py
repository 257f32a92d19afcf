"""Numbers as text, against what a person would write."""

import pytest

from saccade.report import quantities


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.6, "1,235"), (12.345, "12.3"), (0.01234, "0.0123"), (-2.5, "-2.50")],
)
def test_three_digits(value: float, text: str):
    assert quantities.digits(value) == text


@pytest.mark.parametrize(
    ("mj", "text"),
    [
        (1.5e3, "1.50 J"),
        (2.0, "2.00 mJ"),
        (1.0957e-3, "1.10 µJ"),
        (9.12e-4, "912 nJ"),
        (4.6e-9, "4.60 pJ"),
        (4.6e-11, "0.0460 pJ"),
        (0.0, "0 pJ"),
        (None, "n/a"),
    ],
)
def test_energy_has_a_fitting_unit(mj: float | None, text: str):
    assert quantities.energy(mj) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(712.4, "712"), (123456.0, "123 k"), (1.03e6, "1.03 M"), (2.5e9, "2.50 G"), (None, "n/a")],
)
def test_counts_have_a_prefix(value: float | None, text: str):
    assert quantities.count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.04, "8.04 s"), (80.2, "1 min 20 s"), (2700.0, "45 min"), (7500.0, "2 h 05 min")],
)
def test_durations(seconds: float, text: str):
    assert quantities.duration(seconds) == text


def test_wilson_by_hand():
    # 8 of 10: centre (0.8 + 3.8416/20) / 1.38416 = 0.71674, spread 0.22659
    assert quantities.wilson(0.8, 10) == pytest.approx((0.49015, 0.94333), abs=1e-4)
    assert quantities.wilson(1.0, 10)[1] == 1.0
