"""Stages: which one a step is in, and that the model is trained as it says."""

from pathlib import Path

import pytest
import torch

from saccade.models import create_model
from saccade.ops import Fire
from saccade.train import train
from saccade.train.curriculum import AS_BUILT, Sharpness, Stage, stage_at, try_stages
from saccade.train.recipe import parse_recipe
from saccade.train.run import Silent, _open, build_model
from saccade.train.tasks import Batch
from saccade.train.tasks.classify import Classify
from tests.train.tiny import MODEL, tiny_data, tiny_recipe, use

STAGES = (Stage(until=0.4, T=1), Stage(until=0.7, T=3, sharpness=0.5))


def test_the_stage_of_each_step_by_hand():
    at = [stage_at(STAGES, n, 10) for n in range(10)]
    assert at == [STAGES[0]] * 4 + [STAGES[1]] * 3 + [AS_BUILT] * 3
    assert stage_at((), 0, 10) == AS_BUILT
    assert stage_at((Stage(until=1.0, T=2),), 9, 10).T == 2
    assert stage_at((Stage(until=0.01, T=2),), 0, 10) == AS_BUILT  # shorter than half a step


class Spying(Classify):
    def __init__(self, seen) -> None:
        super().__init__()
        self.seen = seen

    def __call__(self, model, batch: Batch):
        alphas = {
            m.fire.sharpness for m in model.modules() if isinstance(getattr(m, "fire", 0), Fire)
        }
        self.seen.append((batch.shown.shape[:-4], alphas))
        return super().__call__(model, batch)


def test_each_step_is_trained_as_its_stage_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    use(monkeypatch, tiny_data())
    monkeypatch.setattr("saccade.train.run.make_task", lambda part: Spying(seen))
    metrics = train(tiny_recipe(curriculum=STAGES), tmp_path)
    assert metrics["T"] == 2
    one, three, own = ((1,), {4.0}), ((3,), {2.0}), ((), {4.0})
    assert seen == [one] * 4 + [three] * 2 + [own] * 3  # 9 steps: 3.6 and 6.3 are rounded


def test_sharpness_scales_what_the_model_was_built_with_and_comes_back():
    neuron = {"name": "lif", "alpha": 3.0}
    model = build_model(tiny_recipe(model=MODEL | {"neuron": neuron}), tiny_data())
    built = {
        path: m.fire for path, m in model.named_modules() if isinstance(getattr(m, "fire", 0), Fire)
    }
    assert len(built) > 5
    sharpness = Sharpness(model)
    for factor in (0.5, 2.0, 0.25):
        sharpness.set(factor)
        assert {model.get_submodule(path).fire.alpha for path in built} == {3.0 * factor}
    sharpness.set(1.0)
    assert {path: model.get_submodule(path).fire for path in built} == built


def test_sharpness_changes_gradients_and_no_output():
    model = build_model(tiny_recipe(), tiny_data()).eval()
    x, seen = torch.rand(2, 1, 8, 8), []
    for factor in (1.0, 0.5):
        Sharpness(model).set(factor)
        model.zero_grad()
        out = model(x)
        out.square().sum().backward()
        seen.append((out.detach(), model.stem.stages[0].conv.weight.grad.clone()))
    assert torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[0][1], seen[1][1])


def test_a_model_whose_parameters_depend_on_t_is_refused_before_anything_is_written(
    tmp_path: Path,
):
    data, recipe = (
        tiny_data(H=32, W=32),
        tiny_recipe(model={"name": "ma_gesture_3", "T": 4}, curriculum=STAGES),
    )
    model = create_model("ma_gesture_3", T=4, num_classes=3, in_channels=1, image_size=32)
    with pytest.raises(
        ValueError, match="curriculum asks for T=.*which this model cannot be shown"
    ):
        _open(recipe, tmp_path / "run", data, model, "cpu", Silent())


def test_trying_keeps_statistics_and_mode():
    model = build_model(tiny_recipe(), tiny_data()).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    try_stages(model, STAGES)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{until: 0.5, T: 1}, {until: 0.5}]", r"until \[0.5, 0.5\], expected rising shares"),
        ("[{until: 0.5}, {until: 0.2}]", r"until \[0.5, 0.2\], expected rising shares"),
        ("[{until: 0}]", r"got until=0.0 in curriculum, expected a share above 0"),
        ("[{until: 1.5}]", r"got until=1.5 in curriculum"),
        ("[{until: 0.5, T: -1}]", r"got T=-1 in curriculum"),
        ("[{until: 0.5, sharpness: 0}]", r"got sharpness=0(.0)? in curriculum"),
        ("[{until: 0.5, t: 1}]", r"curriculum: unknown key 't'; did you mean 'T'\?"),
        ("[{T: 1}]", r"until"),
        ("{until: 0.5}", r"got curriculum=\{'until': 0.5\}, expected a list of stages"),
        ("[3]", r"expected a list of stages"),
        ("[{until: half}]", r"until"),
    ],
)
def test_a_curriculum_that_is_wrong_is_refused(text: str, message: str):
    base = "model: {name: spikformer}\ndata: {name: digits}\n"
    with pytest.raises(ValueError, match=message):
        parse_recipe(f"{base}curriculum: {text}\n")
