"""The front door: options, and errors that name the valid choice."""

import pytest
import torch
from torch import nn

from saccade.models import create_model, describe, rebuild, resolve


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "spikfomer_8_512"}, "unknown model 'spikfomer_8_512'; did you mean 'spikformer_"),
        ({"attention": "sssa"}, "unknown attention 'sssa'"),
        ({"attention": {"name": "ssa", "scael": 1}}, "no option 'scael'; did you mean 'scale'"),
        ({"dpeth": 2}, "no option 'dpeth'; did you mean 'depth'"),
        ({"T": 0}, "got T=0"),
        ({"T": True}, "got T=True"),
        ({"num_classes": 0}, "got num_classes=0"),
        ({"image_size": 30}, r"got image_size=\(30, 30\).*nearest is \(32, 32\)"),
        ({"image_size": (1, 2, 3)}, "expected a side or"),
        ({"dim": 20}, "got dim=20"),
        ({"heads": 7}, "nearest is heads=8"),
        ({"heads": 2.0}, "expected a whole number"),
        ({"neuron": {"name": "lif", "tau": 0}}, "got tau=0"),
        ({"projection_init": "xavier"}, "unknown projection_init 'xavier'"),
    ],
)
def test_bad_options_name_the_valid_choice(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        create_model(**{"name": "spikformer"} | options)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 3, 32, 31), (0, 3, 32, 32)])
def test_another_input_is_refused_with_both_shapes(shape: tuple[int, ...]):
    model = create_model("spikformer")
    with pytest.raises(ValueError, match=r"got input of shape .* expected \[B, 3, 32, 32\]"):
        model(torch.zeros(shape))


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="T of 1 or more"):
        create_model("spikformer")(torch.zeros(0, 1, 3, 32, 32))


def test_an_attention_part_keeps_the_models_other_options():
    kept = resolve("spikformer_4_384", {"attention": {"name": "ssa", "scale": 0.25}})
    assert kept.attention == {"name": "ssa", "scale": 0.25, "qkv_bias": True}
    assert resolve("spikformer_4_384", {"attention": "ssa"}).attention["qkv_bias"] is True
    assert resolve("spikformer_4_384", {"attention": {"scale": 0.25}}) == kept


def test_a_description_rebuilds_the_model():
    model = create_model("spikformer", dim=16, depth=1, image_size=(8, 12), T=2)
    again = rebuild(describe(model))
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    assert again.name == "spikformer"


def test_a_gate_of_the_same_family_keeps_the_models_ratios():
    assert resolve("ma_gait_5", {"attention": "ta"}).attention == {"name": "ta", "ratio_t": 2}
    assert resolve("ma_gait_5", {"attention": "none"}).attention == {"name": "none"}
    assert resolve("ma_gait_5", {"attention": "sj_twa"}).attention == {"name": "sj_twa"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("spikformer", {"attention": "ta"}, "'ta', a gate, expected a mixer .* Known: .*ssa"),
        ("ma_gesture_3", {"attention": "ssa"}, "'ssa', a mixer, expected a gate"),
        ("ma_gesture_3", {"T": 3, "attention": {"name": "ta", "ratio_t": 5}}, "ratio_t=5 for T=3"),
        ("ma_gesture_3", {"pools": (1, 2)}, "got 2 pools for 3 channels"),
        ("ma_gesture_3", {"image_size": 3}, r"sides of 4 or more.*nearest is \(4, 4\)"),
        ("ma_gesture_3", {"channels": (64, 0, 128)}, r"got channels=\(64, 0, 128\)"),
        ("ma_gesture_3", {"pooling": "mean"}, "unknown pooling 'mean'"),
        ("ma_gesture_3", {"pool_at": "spike"}, "got pool_at='spike'; did you mean 'spikes'"),
        ("ma_gesture_3", {"dropout": 1.0}, "got dropout=1.0"),
        ("ma_gesture_3", {"neuron": {"name": "ma_lif", "decay": 1.5}}, "decay=1.5.*nearest is 1"),
    ],
)
def test_bad_options_of_convolutional_nets_name_the_valid_choice(
    name: str, options: dict, message: str
):
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)


def test_a_part_gets_what_the_attention_asks_of_it():
    asked = {"attention": {"name": "sasa", "dwc": "mlp"}}
    config = resolve("spikformer", asked)
    assert config.mlp == {"name": "mlp", "dwc": True}
    assert resolve("saformer_4_384", {"attention": {"dwc": "mlp"}}).mlp == config.mlp
    assert resolve("spikformer", asked | {"mlp": {"dwc": True}}) == config
    assert resolve("spikformer", {}).mlp == {"name": "mlp"}
    stem = resolve("spikformer_4_384", {"attention": {"name": "sasa", "dwc": "stem"}}).stem
    assert stem == {"name": "sps", "pools": (False, False, True, True), "dwc": True}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "spikformer",
            {"attention": {"name": "sasa", "dwc": "mlp"}, "mlp": {"dwc": False}},
            "got mlp 'mlp' with dwc=False, expected True, which attention 'sasa' asks for",
        ),
        (
            "spikformer",
            {"attention": {"name": "sasa", "dwc": "stem"}, "stem": "scs"},
            "asks the stem for dwc=True, and stem 'scs' has no such option.*Known: sps",
        ),
        (
            "tim_2_256_shd",
            {"attention": {"name": "sasa", "dwc": "stem"}},
            "stem 'folded_sps' has no such option; did you mean 'sps'",
        ),
        (
            "ma_gesture_3",
            {"attention": {"name": "sasa", "dwc": "mlp"}},
            r"asks for \{'dwc': True\} of the mlp, which this body has not.*Known: attention, ne",
        ),
        ("spikformer", {"attention": {"name": "sasa", "dwc": "mpl"}}, "did you mean 'mlp'"),
    ],
)
def test_what_a_part_cannot_do_for_the_attention_is_refused(name: str, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)


def test_another_number_of_steps_is_refused_where_parameters_depend_on_it():
    model = create_model("ma_gesture_3", channels=(4, 4, 4), hidden=(4,), T=6)
    with pytest.raises(ValueError, match="got 5 time steps, expected 6"):
        model(torch.zeros(5, 1, 2, 32, 32))


def test_a_branch_of_another_shape_is_refused():
    class Narrow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((3, 4), keepdim=True)

    model = create_model("spikformer", dim=16, depth=1, heads=2, image_size=8, T=2)
    model.blocks[0].attention = Narrow()
    with pytest.raises(ValueError, match=r"from Narrow, expected the shape of what it is added to"):
        model(torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("x", [torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [[1.0]]])
def test_input_of_another_type_is_refused(x: object):
    model = create_model("spikformer", dim=16, depth=1, heads=2, image_size=8, T=2)
    with pytest.raises(ValueError, match=r"got input of .*, expected a tensor of floating point"):
        model(x)
