"""Runs over the registry of models: build at a small size, forward, backward, save, load."""

import json
from typing import Any

import pytest
import torch

from saccade._registry import Part
from saccade.attention import SpikingAttention
from saccade.models import (
    MODELS,
    TransformerConfig,
    create_model,
    describe,
    list_models,
    rebuild,
    resolve,
)
from tests.awake import LEAST, MOST, awake, firing_rates, settled
from tests.models.small import fitting, small

NAMES = MODELS.list()
DISTINCT = {repr(resolve(name, small(name))): name for name in reversed(NAMES)}
"""Names whose shrunk models differ: some published models differ in size alone."""
READINGS: list[tuple[str, dict[str, str]]] = [
    (body, {"name": "sasa", "dwc": place})
    for body in ("saformer_4_384", "spikformer_4_384")
    for place in ("parallel", "mlp", "stem", "none")
] + [
    (body, {"name": gate, "preset": "paper"})
    for body in ("ma_gesture_3", "att_res_snn_18", "att_res_snn_18_after_add")
    for gate in ("ta", "ca", "sa", "tca", "tsa", "csa", "tcsa")
]
"""Options of an attention that reach into the body around it."""
PAIRS = [
    *((n, attention) for n in DISTINCT.values() for attention in fitting(MODELS[n].config)),
    *(pytest.param(n, part, id=f"{n}-{'-'.join(part.values())}") for n, part in READINGS),
]


def make(name: str, **options: Any) -> tuple[Any, torch.Tensor]:
    """The named model, shrunk but for its parts, awake, and its input."""
    torch.manual_seed(0)
    model = awake(create_model(name, **small(name) | options)).double().eval()
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, *model.frame, generator=g).double()
    return model if isinstance(model.config, TransformerConfig) else settled(model, x), x


def free(name: str) -> dict[str, Any]:
    """A mechanism whose parameters do not depend on T, where the model's own do."""
    gated = "ssa" not in fitting(MODELS[name].config)
    return {"attention": "csa"} if gated else {}


def is_causal(model: torch.nn.Module) -> bool:
    return all(m.causal for m in model.modules() if isinstance(m, SpikingAttention))


@pytest.mark.parametrize("name", NAMES)
def test_named_size_builds_on_no_memory(name: str):
    with torch.device("meta"):
        model = create_model(name)
    assert model.config == MODELS[name].config


@pytest.mark.parametrize(("name", "attention"), PAIRS)
def test_any_attention_runs_awake_in_any_body_and_learns(name: str, attention: Part):
    model, x = make(name, attention=attention)
    rates = firing_rates(model, lambda: model(x))
    assert all(LEAST < r < MOST for r in rates.values()), rates
    assert model(x).shape == (2, 5)
    model.train()(x).square().sum().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # a bias before batch norm has no effect, so its gradient is rounding noise, or 0
    norms = [n for n, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    normed = {f"{n.removesuffix('norm')}conv.bias" for n in norms}
    assert set(dead) <= normed


@pytest.mark.parametrize("name", NAMES)
def test_frames_bring_their_own_number_of_steps(name: str):
    model, x = make(name, **free(name))
    frames = torch.stack([x, x * 0.5, -x, x, x])
    steps = model.forward_steps(frames)
    assert steps.shape == (5, 2, 5)
    torch.testing.assert_close(model(frames), steps.mean(0))


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_shown_for_the_models_steps(name: str):
    model, x = make(name)
    assert torch.equal(model(x), model(x.expand(model.config.T, *x.shape)))


@pytest.mark.parametrize("name", NAMES)
def test_every_call_starts_at_rest_and_samples_do_not_mix(name: str):
    model, x = make(name)
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-12, atol=1e-12)
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(("name", "attention"), PAIRS)
def test_steps_see_the_future_only_where_the_mechanism_says_so(name: str, attention: Part):
    model, x = make(name, attention=attention)
    frames = torch.stack([x, -x] * model.config.T)[: model.config.T]
    later = torch.cat([frames[:-1], -frames[-1:]])
    steps, others = model.forward_steps(frames), model.forward_steps(later)
    assert torch.equal(steps[:-1], others[:-1]) or not is_causal(model)


@pytest.mark.parametrize(("name", "attention"), PAIRS)
def test_a_description_and_its_weights_are_the_whole_model(name: str, attention: Part):
    model, x = make(name, attention=attention)
    again = rebuild(json.loads(json.dumps(describe(model)))).double().eval()
    again.load_state_dict(model.state_dict())
    assert json.dumps(describe(again)) == json.dumps(describe(model))
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_is_made_of(name: str):
    with torch.device("meta"):
        lines = create_model(name, **small(name)).structure()
    assert all(lines.values())


@pytest.mark.parametrize("name", NAMES)
def test_cites_its_paper_and_says_what_it_is(name: str):
    assert MODELS[name].source.id.startswith(("arXiv:", "doi:"))
    assert MODELS[name].about


def test_the_list_takes_a_pattern():
    assert "spikformer_8_512" in list_models("spik*")
    assert list_models("resnet*") == [n for n in NAMES if n.startswith("resnet")]
