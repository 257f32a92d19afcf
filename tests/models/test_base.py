"""The front door: options, and errors that name the valid choice."""

import pytest
import torch

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
