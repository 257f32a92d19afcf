"""The spike and the table of its derivatives, against numbers worked out by hand."""

import pytest
import torch

from saccade.ops import SURROGATE, Fire, spike

# derivative at u for alpha = 2, by hand
BY_HAND = {
    "sigmoid": {0.0: 2 * 0.25, 0.5: 2 * 0.7310585786300049 * 0.2689414213699951},
    "atan": {0.0: 1.0, 1 / torch.pi: 0.5},
    "rectangle": {0.0: 2.0, 0.2: 2.0, 0.3: 0.0},
    "triangle": {0.0: 2.0, 0.25: 1.0, 0.75: 0.0},
    "fast_sigmoid": {0.0: 1.0, 0.5: 0.25},
}


def test_every_surrogate_is_worked_out_here():
    assert set(BY_HAND) == set(SURROGATE)


@pytest.mark.parametrize("name", SURROGATE.list())
@pytest.mark.parametrize("sign", [1, -1])
def test_derivative_is_the_one_in_the_table(name: str, sign: int):
    for u, expected in BY_HAND[name].items():
        x = torch.tensor(sign * u, dtype=torch.float64, requires_grad=True)
        spike(x, name, 2.0).backward()
        assert x.grad.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", SURROGATE.list())
def test_derivative_is_never_negative_and_somewhere_positive(name: str):
    u = torch.linspace(-3, 3, 601)
    d = SURROGATE[name].derivative(u, SURROGATE[name].alpha)
    assert (d >= 0).all()
    assert d.max() > 0


def test_the_threshold_itself_fires():
    assert spike(torch.tensor([-1e-6, 0.0, 1e-6])).tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"surrogate": "sigmod"}, "did you mean 'sigmoid'"),
        ({"alpha": 0.0}, "above 0"),
        ({"v_threshold": 0.0}, "would fire"),
        ({"v_reset": 2.0}, "more than v_reset"),
    ],
)
def test_constants_that_cannot_work_are_refused(constants: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Fire(**constants)
