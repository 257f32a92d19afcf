"""Key maps are strict both ways."""

import pytest
import torch

from saccade._keymap import KeyMap

MAP = KeyMap(
    rules=((r"(\w)_linear\.weight", r"\1.conv.weight"), (r"a\.(\d)\.b", r"b.\1")),
    drops=((r"norm\..+", "never called"),),
)


def test_renames_drops_and_refuses():
    assert MAP.rename("q_linear.weight") == "q.conv.weight"
    assert MAP.rename("norm.weight") is None
    assert MAP.reason("norm.weight") == "never called"
    with pytest.raises(ValueError, match="'z' is not in the key map"):
        MAP.rename("z")


def test_goes_under_a_prefix_with_groups_of_its_own():
    deeper = MAP.under(r"block\.(\d+)\.", r"blocks.\1.")
    assert deeper.rename("block.12.q_linear.weight") == "blocks.12.q.conv.weight"
    assert deeper.rename("block.3.a.7.b") == "blocks.3.b.7"
    assert deeper.rename("block.0.norm.bias") is None


def test_linear_and_convolution_of_kernel_one_are_one_map():
    value = torch.arange(6.0).reshape(2, 3)
    ours = {"q.conv.weight": torch.zeros(2, 3, 1, 1)}
    for shape in ((2, 3), (2, 3, 1), (2, 3, 1, 1)):
        state = MAP.load({"q_linear.weight": value.reshape(shape)}, ours)
        assert torch.equal(state["q.conv.weight"].flatten(1), value)


@pytest.mark.parametrize(
    ("official", "message"),
    [
        ({"q_linear.weight": torch.zeros(3, 2)}, "got shape"),
        ({"v_linear.weight": torch.zeros(2, 3)}, "which this model does not have"),
        ({}, "holds nothing for q.conv.weight"),
        ({"q_linear.weight": torch.zeros(2, 3), "x": torch.zeros(1)}, "'x' is not in the key map"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(official: dict, message: str):
    with pytest.raises(ValueError, match=message):
        MAP.load(official, {"q.conv.weight": torch.zeros(2, 3, 1, 1)})


def test_two_names_for_one_parameter_are_refused():
    both = KeyMap(rules=(("a|b", "c"),))
    with pytest.raises(ValueError, match="a second time"):
        both.load({"a": torch.zeros(1), "b": torch.zeros(1)}, {"c": torch.zeros(1)})
