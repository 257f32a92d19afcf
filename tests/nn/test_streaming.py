"""One step at a time equals the whole sequence at once, and nothing is carried elsewhere."""

import pytest
import torch
from torch import nn

import saccade
from saccade.analysis import record
from saccade.models import MODELS, ConvConfig, TransformerConfig
from saccade.transform import fuse
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


def test_a_step_of_another_shape_is_refused():
    model, frames = make("spikformer")
    stream = saccade.streaming(model)
    with pytest.raises(ValueError, match=r"got a step of shape \[3, 32, 32\], expected \[B, 3, 32"):
        stream.step(frames[0, 0])
    with pytest.raises(ValueError, match="the frames of one step"):
        stream.step(frames)
    with pytest.raises(ValueError, match="got a Linear, expected a whole model"):
        saccade.streaming(nn.Linear(2, 2))


def test_training_mode_is_noticed_at_every_step():
    model, frames = make("spikformer")
    stream = saccade.streaming(model)
    stream.step(frames[0])
    model.train()
    with pytest.raises(ValueError, match="training mode"):
        stream.step(frames[1])


def test_behind_a_step_that_broke_off_a_stream_has_to_begin_anew():
    model, frames = make("spikformer")
    stream = saccade.streaming(model)
    first = stream.step(frames[0])

    def fail(module: nn.Module, args: object) -> None:
        raise KeyboardInterrupt

    hook = model.head.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        stream.step(frames[1])
    hook.remove()
    with pytest.raises(ValueError, match=r"broke off half way, expected restart\(\)"):
        stream.step(frames[1])
    stream.restart()
    assert torch.equal(stream.step(frames[0]), first)


@pytest.mark.parametrize("fused", [False, True])
def test_who_listens_hears_each_step_once(fused: bool):
    model, frames = make("tim_2_256_dvs")
    model, frames = model.float(), frames.float()
    model = fuse(model, "float32") if fused else model
    with torch.no_grad(), record(model) as whole:
        model(frames)
    stream = saccade.streaming(model)
    with record(model) as stepped:
        for x_t in frames:
            stream.step(x_t)
    assert stepped.images == len(frames) * whole.images
    heard = stepped.mean_rates()
    rates = {p: r for p, r in whole.mean_rates().items() if ".query." not in p}
    for path, rate in rates.items():  # TIM's own are silent at first, which a stream does not show
        assert heard[path] == pytest.approx(rate, rel=1e-6), path
    assert max(heard.values()) > 0.02
