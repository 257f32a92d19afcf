"""One step at a time equals the whole sequence at once, and nothing is carried elsewhere."""

import pytest
import torch
from torch import nn

import saccade
from saccade.models import MODELS, ConvConfig, TransformerConfig
from tests.awake import awake, settled
from tests.models.small import small


def make(name: str, **options) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    sizes = small(name)
    if isinstance(MODELS[name].config, TransformerConfig):
        sizes |= {"depth": 1, "image_size": 32}
    else:  # their own gates weigh a step by later ones
        sizes |= {"attention": "none"}
    if isinstance(MODELS[name].config, ConvConfig):  # a threshold of 1 is high for random weights
        sizes |= {"fc_norm": True}
    model = awake(saccade.create_model(name, **sizes | options)).double().eval()
    frames = torch.randn(4, 2, *model.frame, generator=torch.Generator().manual_seed(1)).double()
    settle = not isinstance(model.config, TransformerConfig)
    return settled(model, frames) if settle else model, frames


@pytest.mark.parametrize("name", MODELS.list())
@pytest.mark.parametrize("neuron", ["lif", "plif", {"name": "if", "v_reset": None}])
def test_steps_equal_the_whole_sequence(name: str, neuron: object):
    model, frames = make(name, neuron=neuron)
    stream = saccade.streaming(model)
    with torch.no_grad():
        whole = model.forward_steps(frames)
    assert whole.std() > 0
    for x_t, expected in zip(frames, whole, strict=True):
        torch.testing.assert_close(stream.step(x_t), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(model.forward_steps(frames), whole)
    assert not any("forward" in vars(m) for m in model.modules())


def test_gates_at_the_membrane_run_step_by_step():
    gate = {"name": "csa", "preset": "paper"}
    model, frames = make("ma_paper_5", attention=gate, neuron={"name": "ma_lif", "drift": 0.05})
    stream = saccade.streaming(model)
    whole = model.forward_steps(frames).detach()
    assert whole.std() > 0
    for x_t, expected in zip(frames, whole, strict=True):
        torch.testing.assert_close(stream.step(x_t), expected, rtol=1e-12, atol=1e-12)


def test_streams_of_one_model_keep_apart_and_can_restart():
    model, frames = make("tim_2_256_dvs")
    one, two = saccade.streaming(model), saccade.streaming(model)
    first = [one.step(x_t) for x_t in frames[:2]]
    two.step(-frames[0])
    third = one.step(frames[2])
    one.restart()
    again = [one.step(x_t) for x_t in frames[:3]]
    assert all(torch.equal(a, b) for a, b in zip([*first, third], again, strict=True))


def test_another_batch_and_training_mode_are_refused():
    model, frames = make("spikformer")
    stream = saccade.streaming(model)
    stream.step(frames[0])
    with pytest.raises(ValueError, match="got a batch of 1, expected 2"):
        stream.step(frames[1, :1])
    with pytest.raises(ValueError, match="training mode"):
        saccade.streaming(model.train())


def test_what_needs_the_future_is_refused_with_the_reason():
    class Peeks(nn.Module):
        causal = False

    model, _ = make("spikformer")
    model.blocks[0].attention.peek = Peeks()
    with pytest.raises(ValueError, match=r"attention\.peek \(Peeks\) weighs later steps"):
        saccade.streaming(model)
