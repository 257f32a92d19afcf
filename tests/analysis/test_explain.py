"""What ran, said without changing what is watched."""

import json

import pytest
import torch

import saccade
from saccade.analysis import explain as from_analysis
from saccade.ops import reference_only

OPTIONS = {"dim": 32, "depth": 3, "heads": 4, "T": 2, "image_size": 16, "num_classes": 3}


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return saccade.create_model("spikformer_4_384", **OPTIONS).double()  # left to torch everywhere


X = torch.rand(2, 3, 16, 16, dtype=torch.float64)


def test_every_call_is_named_with_its_variant_and_the_refusals_before_it(model):
    seen = saccade.explain(model.eval(), X)
    assert saccade.explain is from_analysis
    calls = {(c.path, c.op, c.within): c for c in seen.calls}
    conv = calls["blocks.1.mlp.fc2", "conv", ("conv_lif",)]
    assert conv.variant == "reference"
    assert "cuda" in conv.refused["packed"]
    assert calls["blocks.0.attention", "ssa", ("linear_ssa",)].variant == "composed"
    mix = calls["blocks.0.attention", "ssa_mix", ("linear_ssa", "ssa")]
    assert (mix.variant, mix.refused) == ("reassociated", {})
    layer = ("conv_lif",)
    lif = calls["blocks.0.attention.out", "lif", (*layer, "norm_lif")]
    assert lif.variant == "analytic"
    assert list(lif.refused) == ["triton", "numba"]
    order = [(c.op, c.within) for c in seen.calls if c.path == "blocks.0.attention.out"]
    assert order == [
        ("conv_lif", ()), ("conv", layer), ("norm_lif", layer), ("lif", (*layer, "norm_lif")),
    ]  # fmt: skip
    order = [(c.op, c.within) for c in seen.calls if c.path == "blocks.0.attention"]
    whole, linear = ("linear_ssa",), ("linear_ssa", "linear_lif")
    assert order[:3] == [("linear_ssa", ()), ("linear_lif", whole), ("convs", linear)]
    assert order[3:6] == [("conv", (*linear, "convs"))] * 3
    assert order[6:8] == [("norm_lif", linear), ("lif", (*linear, "norm_lif"))]
    assert seen.apart == {}


def test_nothing_of_the_model_changes_and_no_random_number_is_used(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    saccade.explain(model.train(), X)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training
    assert not any(p.grad is not None for p in model.parameters())


def test_parts_that_somebody_watches_run_one_by_one_and_it_says_so(model):
    model.blocks[1].mlp.fc1.norm.register_forward_hook(lambda *args: None)
    model.blocks[2].attention.fire.register_forward_hook(lambda *args: None)
    seen = saccade.explain(model, X)
    assert seen.apart.keys() == {"blocks.1.mlp.fc1", "blocks.2.attention"}
    assert "norm has a hook" in seen.apart["blocks.1.mlp.fc1"]
    paths = {c.path: c.op for c in seen.calls}
    assert paths["blocks.1.mlp.fc1.neuron"] == "lif"
    assert ("blocks.1.mlp.fc1", "conv") not in {(c.path, c.op) for c in seen.calls}
    text = str(seen)
    assert "blocks.1.mlp.fc1" in text
    assert "one by one" in text


def test_the_mode_that_it_ran_in_is_said(model):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        seen = saccade.explain(model.eval(), X)
    assert (seen.training, seen.records, seen.autocast) == (False, False, "bfloat16")
    text = str(seen)
    assert "one forward pass" in text
    assert "autocast bfloat16" in text
    assert "evaluation mode" in text
    assert "training mode" in str(saccade.explain(model.train(), X))
    with reference_only():
        calls = saccade.explain(model, X).calls
    assert {c.variant for c in calls} == {"reference"}
    assert all("inside reference_only()" in c.refused.values() for c in calls if c.refused)


def test_blocks_that_run_alike_share_a_row(model):
    seen = saccade.explain(model.eval(), X)
    text = str(seen)
    assert "blocks.0-2.attention.out" in text
    assert "blocks.1.attention.out" not in text
    rows = seen.rows()
    assert sum(row["calls"] for row in rows) == len(seen.calls)
    (row,) = [r for r in rows if r["path"] == "blocks.0-2.attention.out" and r["op"] == "lif"]
    assert row["calls"] == 3
    json.dumps(seen.as_dict())


def test_a_block_that_runs_otherwise_has_a_row_of_its_own(model):
    model.blocks[1].attention.q.norm.register_forward_hook(lambda *args: None)
    text = str(saccade.explain(model.eval(), X))
    assert "blocks.0,2.attention " in text
    assert "blocks.1.attention.q.neuron" in text


def test_an_input_that_the_model_refuses_leaves_no_hook_behind(model):
    with pytest.raises(ValueError, match="got input of shape"):
        saccade.explain(model, X[:, :2])
    heard = []
    torch.nn.modules.module._global_forward_hooks and heard.append("hook")
    torch.nn.modules.module._global_forward_pre_hooks and heard.append("hook")
    assert heard == []


def test_a_model_without_ops_says_that_there_are_none():
    seen = saccade.explain(torch.nn.Linear(2, 2), torch.ones(1, 2))
    assert seen.calls == ()
    assert "no op" in str(seen)
