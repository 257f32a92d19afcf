"""MS-ResNet and Att-Res-SNN against the sizes that were counted from the official constructors."""

from pathlib import Path
from typing import Any

import pytest
import torch

from saccade.attention import Site
from saccade.models import MODELS, create_model
from saccade.models.resnet import ResidualBlock
from tests.awake import LEAST, MOST, awake, firing_rates

COUNTS = {
    "ms_resnet_18": (11_693_736, 0),
    "ms_resnet_34": (21_801_896, 0),
    "ms_resnet_104": (77_350_504, 0),
    "att_res_snn_18": (11_867_960, 174_224),
    "att_res_snn_34": (22_116_552, 314_656),
    "att_res_snn_104": (78_369_598, 1_085_334),
}
SMALL: dict[str, Any] = {"depths": (1, 1), "widths": (6, 8), "image_size": (16, 24)}


def block(**options: Any) -> tuple[ResidualBlock, torch.Tensor]:
    """An awake block, and currents for it."""
    torch.manual_seed(0)
    site = Site(dim=8, heads=1, T=3, grid=(4, 6), neuron="mem_update")
    x = torch.randn(3, 2, 8, 4, 6, generator=torch.Generator().manual_seed(1)).double()
    options = {"attention": "csa"} | options
    return awake(ResidualBlock(8, site, **options)).double().eval(), x


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_the_official_codes(name: str):
    with torch.device("meta"):
        model = create_model(name)
    gates = sum(p.numel() for n, p in model.named_parameters() if ".gate." in n)
    assert (sum(p.numel() for p in model.parameters()), gates) == COUNTS[name]


def test_arithmetic_of_the_gates_of_18_layers():
    # CSA in 8 blocks: CA has two C x C/8 matrices, SA one 3x3 kernel on two maps
    by_hand = sum(2 * (2 * C * (C // 8) + 18) for C in (64, 128, 256, 512))
    assert by_hand == COUNTS["att_res_snn_18"][1]


@pytest.mark.parametrize("layers", [18, 34, 104])
def test_both_placements_have_the_same_parameters(layers: int):
    with torch.device("meta"):
        first = create_model(f"att_res_snn_{layers}").state_dict()
        second = create_model(f"att_res_snn_{layers}_after_add").state_dict()
    assert list(first) == list(second)


@pytest.mark.parametrize("layers", [18, 34, 104])
def test_an_official_checkpoint_has_our_names_and_shapes(layers: int, golden: Path):
    lines = (golden / "keys" / f"keys_attres_resnet{layers}.txt").read_text().splitlines()
    official = {}
    with torch.device("meta"):
        for line in lines:
            if not line.startswith("#"):
                key, shape = line.split("\t")
                sizes = [int(n) for n in shape.strip("[]").split(",") if n.strip()]
                official[key] = torch.empty(sizes)
        ours = create_model(f"att_res_snn_{layers}").state_dict()
    keys = MODELS[f"att_res_snn_{layers}"].keys
    assert keys is not None
    assert set(keys.load(official, ours)) == set(ours)


@pytest.mark.parametrize("placement", ["branch", "after_add"])
def test_the_gate_stands_where_the_equation_puts_it(placement: str):
    made, x = block(placement=placement)
    rates = firing_rates(made, lambda: made(x))
    assert all(LEAST < r < MOST for r in rates.values()), rates
    branch = made.layer2(made.neuron2(made.layer1(made.neuron1(x))))
    want = made.gate(branch) + x if placement == "branch" else made.gate(branch + x)
    assert torch.equal(made(x), want)


def test_a_new_ms_resnet_block_is_the_identity():
    site = Site(dim=8, heads=1, T=3, grid=(4, 6), neuron="mem_update")
    made = ResidualBlock(8, site, branch_scale=0.0)
    x = torch.randn(3, 2, 8, 4, 6)
    assert torch.equal(made(x), x)


def test_initial_scales_are_the_official_ones():
    att = create_model("att_res_snn_18", **SMALL)
    ms = create_model("ms_resnet_18", **SMALL)
    for model, last in ((att, 0.1), (ms, 0.0)):
        first = model.stages[0][0]
        assert first.layer1.norm.weight.unique().tolist() == [0.5]
        assert first.shortcut.norm.weight.unique().tolist() == [0.5]
        assert first.layer2.norm.weight.unique().tolist() == pytest.approx([last])


def test_the_stem_halves_the_grid_and_every_stage_again():
    with torch.device("meta"):
        model = create_model("att_res_snn_18")
        sizes = []
        for stage in (model.stem, *model.stages):
            stage.register_forward_hook(lambda m, a, y: sizes.append(y.shape[-1]))
        model(torch.empty(1, 3, 224, 224))
    assert sizes == [112, 56, 28, 14, 7]


def test_dropout_has_one_mask_for_all_steps():
    model = create_model("att_res_snn_18", **SMALL, dropout=0.5, T=3).train()
    torch.manual_seed(0)
    dropped = model.dropout(torch.ones(3, 2, 8, 1, 1))
    assert torch.equal(dropped[0], dropped[2])
    assert set(dropped.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 30}, r"multiples of 8.*nearest is \(32, 32\)"),
        ({"widths": (4,)}, "got 1 widths for 2 depths"),
        ({"stem": "conv3"}, "got stem='conv3'; did you mean 'conv7'"),
        ({"shortcut": "avg"}, "unknown shortcut 'avg'; did you mean 'avgpool'"),
        ({"placement": "after"}, "got placement='after'"),
        (
            {"attention": {"name": "csa", "stats": "per_step", "location": "membrane"}},
            "an addition follows the gate and no neuron, expected 'current'",
        ),
        ({"attention": {"name": "csa", "ratio_c": 7}}, "ratio_c=7 for C=6"),
    ],
)
def test_bad_options_name_the_valid_choice(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        create_model("att_res_snn_18", **SMALL | options)


@torch.no_grad()
@pytest.mark.parametrize("placement", ["branch", "after_add"])
def test_the_papers_block_is_equation_15_or_16(placement: str):
    # Y = A(F(X)) + X or A(F(X) + X), with A = g_s after g_c of each step
    paper = {"name": "csa", "preset": "paper"}
    made, x = block(placement=placement, attention=paper)
    branch = made.layer2(made.neuron2(made.layer1(made.neuron1(x))))
    current = branch if placement == "branch" else branch + x
    gated = []
    for u in current:  # the gates know one step at a time
        v = made.gate.c(u[None])[0] * u
        gated.append(made.gate.s(v[None])[0] * v)
    want = torch.stack(gated) + (x if placement == "branch" else 0)
    torch.testing.assert_close(made(x), want, rtol=1e-12, atol=1e-12)
    assert (torch.stack(gated) < 0).any()  # no ReLU


def test_the_papers_gates_of_18_layers_have_its_ratio_and_kernel():
    with torch.device("meta"):
        model = create_model("att_res_snn_18", attention={"preset": "paper"})
    gates = sum(p.numel() for n, p in model.named_parameters() if ".gate." in n)
    assert gates == sum(2 * (2 * C * (C // 16) + 2 * 49) for C in (64, 128, 256, 512))


def test_dropout_takes_whole_channels():
    model = create_model("att_res_snn_18", **SMALL, dropout=0.5, T=3).double().train()
    heard: list[torch.Tensor] = []
    model.head.register_forward_pre_hook(lambda m, args: heard.append(args[0]))
    model.neuron.register_forward_hook(lambda m, args, s: torch.ones_like(s))
    torch.manual_seed(0)
    model(torch.rand(2, 3, 16, 24).double())
    assert set(heard[0].mean((-2, -1)).unique().tolist()) == {0.0, 2.0}
