"""Runs over the registry of models: build at a small size, forward, backward, save, load."""

from typing import Any

import pytest
import torch

from saccade.attention import list_attention
from saccade.models import MODELS, create_model, list_models
from tests.awake import LEAST, MOST, awake, firing_rates

NAMES = MODELS.list()
ATTENTIONS = list_attention()


def make(name: str, **options: Any) -> tuple[Any, torch.Tensor]:
    """The named model, shrunk but for its parts, awake, and its input."""
    torch.manual_seed(0)
    small = {"dim": 32, "depth": 2, "heads": 4, "image_size": (32, 48), "num_classes": 5, "T": 3}
    model = awake(create_model(name, **small | options)).double().eval()
    g = torch.Generator().manual_seed(1)
    return model, torch.randn(2, *model.frame, generator=g).double()


@pytest.mark.parametrize("name", NAMES)
def test_named_size_builds_on_no_memory(name: str):
    with torch.device("meta"):
        model = create_model(name)
    assert model.config == MODELS[name].config


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_any_attention_runs_awake_in_any_body_and_learns(name: str, attention: str):
    model, x = make(name, attention=attention)
    rates = firing_rates(model, lambda: model(x))
    assert all(LEAST < r < MOST for r in rates.values()), rates
    assert model(x).shape == (2, 5)
    model.train()(x).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", NAMES)
def test_frames_bring_their_own_number_of_steps(name: str):
    model, x = make(name)
    frames = torch.stack([x, x * 0.5, -x, x, x])
    steps = model.forward_steps(frames)
    assert steps.shape == (5, 2, 5)
    torch.testing.assert_close(model(frames), steps.mean(0))


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_shown_for_the_models_steps(name: str):
    model, x = make(name)
    assert torch.equal(model(x), model(x.expand(3, *x.shape)))


@pytest.mark.parametrize("name", NAMES)
def test_every_call_starts_at_rest_and_samples_do_not_mix(name: str):
    model, x = make(name)
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-12, atol=1e-12)
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", NAMES)
def test_steps_do_not_see_the_future(name: str):
    model, x = make(name)
    frames = torch.stack([x, -x, x])
    later = torch.stack([x, -x, -x])
    assert torch.equal(model.forward_steps(frames)[:2], model.forward_steps(later)[:2])


@pytest.mark.parametrize("name", NAMES)
def test_cites_its_paper_and_says_what_it_is(name: str):
    assert MODELS[name].source.id.startswith(("arXiv:", "doi:"))
    assert MODELS[name].about


def test_the_list_takes_a_pattern():
    assert "spikformer_8_512" in list_models("spik*")
    assert list_models("resnet*") == [n for n in NAMES if n.startswith("resnet")]
