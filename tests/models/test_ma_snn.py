"""MA-SNN's event nets against the sizes that were counted from the official constructors."""

from pathlib import Path

import pytest
import torch

from saccade.models import MODELS, create_model

GATES = ("none", "ta", "ca", "sa", "tca", "tsa", "csa", "tcsa")
COUNTS = {
    "ma_gesture_3": "2324065 2331265 2333281 2324119 2340481 2331319 2333335 2340535",
    "ma_gait_5": "2100767 2101215 2188063 2100857 2188511 2101305 2188153 2188601",
    "ma_cifar10dvs_5": "2097918 2100718 2185214 2098008 2188014 2100808 2185304 2188104",
}
LISTED = {
    "ma_gesture_3": "masnn_dvsgestures",
    "ma_gait_5": "masnn_dvsgait",
    "ma_cifar10dvs_5": "masnn_cifar10dvs",
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_the_official_codes_for_every_gate(name: str):
    with torch.device("meta"):
        models = [create_model(name, attention=gate) for gate in GATES]
    found = [sum(p.numel() for p in model.parameters()) for model in models]
    assert found == [int(count) for count in COUNTS[name].split()]


def test_arithmetic_of_the_smallest_difference():
    # SA has one 3x3 kernel on two maps in each convolution and none in the FC layers
    assert 2_324_119 - 2_324_065 == 3 * 2 * 3 * 3
    # TA: T=60, hidden 60 // 5 = 12, two matrices, three convolutions and two FC layers
    assert 2_331_265 - 2_324_065 == 5 * 2 * 60 * 12


@pytest.mark.parametrize("name", LISTED)
def test_an_official_checkpoint_has_our_names_and_shapes(name: str, golden: Path):
    lines = (golden / "keys" / f"keys_{LISTED[name]}_TCSA.txt").read_text().splitlines()
    official = {}
    for line in lines:
        if not line.startswith("#"):
            key, shape = line.split("\t")
            official[key] = torch.empty([int(n) for n in shape.strip("[]").split(",") if n.strip()])
    keys = MODELS[name].keys
    assert keys is not None
    with torch.device("meta"):
        ours = create_model(name).state_dict()
    assert set(keys.load(official, ours)) == set(ours)


def test_the_papers_net_has_the_papers_neurons():
    with torch.device("meta"):
        model = create_model("ma_paper_5", T=1, attention={"name": "csa"})
        seen = []
        for layer in model.layers:
            layer.neuron.register_forward_hook(lambda m, a, s: seen.append(s[0, 0].numel()))
        model(torch.empty(1, 2, 128, 128))
    assert sum(seen) == 2_793_472  # 128 channels on 128^2, 64^2, 32^2, 16^2, 8^2


def test_fully_connected_layers_are_gated_over_time_alone():
    with torch.device("meta"):
        tcsa = create_model("ma_gesture_3")
        csa = create_model("ma_gesture_3", attention="csa")
    assert [type(layer.gate).__name__ for layer in tcsa.fc] == ["TA", "TA"]
    assert [type(layer.gate).__name__ for layer in csa.fc] == ["NoGate", "NoGate"]


def test_the_paper_preset_works_in_the_repositorys_net():
    paper = {"name": "tcsa", "preset": "paper"}
    model = create_model(
        "ma_gesture_3", attention=paper, neuron={"name": "ma_lif", "reset": "paper"}, T=5
    )
    gate = model.layers[1].gate
    assert gate.at_membrane() is not None
    assert gate.c.mlp.down.weight.shape == (128 // 16, 128)
    assert gate.s.conv.kernel_size == (7, 7)
    assert gate.post_relu is False
    assert model(torch.rand(1, 2, 32, 32)).shape == (1, 11)
