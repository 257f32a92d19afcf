"""Stages: which one a step is in, and that the model is trained as it says."""

from pathlib import Path

import pytest
import torch

from saccade.models import create_model
from saccade.ops import Fire
from saccade.train import train
from saccade.train.curriculum import AS_BUILT, Sharpness, Stage, stage_at, try_stages
from saccade.train.loop import fit
from saccade.train.recipe import parse_recipe
from saccade.train.run import build_model
from saccade.train.tasks import Batch
from saccade.train.tasks.classify import Classify
from tests.train.tiny import MODEL, opened, tiny_data, tiny_recipe, use

SIZED = (Stage(until=0.5, T=1, size=4),)
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


def test_a_run_leaves_the_model_as_sharp_as_it_was_built(tmp_path: Path):
    data, recipe = tiny_data(), tiny_recipe(curriculum=(Stage(until=1.0, sharpness=0.5),))
    model = build_model(recipe, data)
    fit(opened(tmp_path, recipe, data, model))
    assert {m.fire.alpha for m in model.modules() if isinstance(getattr(m, "fire", 0), Fire)} == {
        None
    }


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
        ValueError, match=r"curriculum asks for T=1 and size 32, which model 'ma_gesture_3'"
    ):
        opened(tmp_path / "run", recipe, data, model)


def test_the_size_of_a_stage_keeps_the_aspect():
    assert Stage(until=1.0, size=24).resized((3, 32, 32)) == (24, 24)
    assert Stage(until=1.0, size=16).resized((3, 48, 32)) == (24, 16)
    assert Stage(until=1.0).resized((3, 48, 32)) is None


def test_pictures_are_smaller_in_a_stage_that_says_so(tmp_path: Path, monkeypatch):
    shown = []

    class Watching(Classify):
        def __call__(self, model, batch: Batch):
            shown.append(tuple(batch.shown.shape))
            return super().__call__(model, batch)

    use(monkeypatch, tiny_data(H=8, W=16))
    monkeypatch.setattr("saccade.train.run.make_task", lambda part: Watching())
    train(tiny_recipe(curriculum=SIZED), tmp_path)
    assert shown == [(1, 8, 1, 4, 8)] * 4 + [(8, 1, 8, 16)] * 5  # 4.5 is rounded to 4


def test_a_picture_is_resized_by_averaging():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    small = Batch(x=x.expand(1, 1, 4, 4), y=torch.zeros(1), size=(2, 2)).shown
    # antialiased: symmetric weights 3/8, 3/8, 1/8 over the nearest three, cut at the border
    one = torch.tensor([3 / 7, 3 / 7, 1 / 7, 0])
    weights = torch.stack([one, one.flip(0)])
    torch.testing.assert_close(small[0, 0], weights @ x[0, 0] @ weights.T)


def test_another_size_without_being_asked_for_is_still_refused():
    model = build_model(tiny_recipe(), tiny_data())
    with pytest.raises(ValueError, match="another size or number of channels is another model"):
        model(torch.rand(2, 1, 4, 4))
    with pytest.raises(ValueError, match="another size or number of channels"):
        model(torch.rand(2, 3, 4, 4), any_size=True)
    assert model(torch.rand(2, 1, 4, 12), any_size=True).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "options", "size", "message"),
    [
        ("spikformer", {"dim": 16, "depth": 1, "heads": 2}, 6, "expected multiples of 4"),
        ("ma_gesture_3", {}, 16, "cannot be trained with"),
        ("tim_2_256_shd", {}, 8, "it takes series, which have no height and width"),
    ],
)
def test_a_size_that_a_model_cannot_take_is_refused(name: str, options, size: int, message: str):
    model = create_model(name, **options)
    with pytest.raises(ValueError, match=message):
        try_stages(model, [Stage(until=0.5, size=size)])


def test_a_model_that_answers_otherwise_at_another_size_is_refused(monkeypatch):
    """Though the network that it would be trained from is silent behind its first layers."""
    model = build_model(tiny_recipe(model=MODEL | {"neuron": "lif"}), tiny_data())
    attention = type(model.blocks[0].attention)
    forward = attention.forward

    def by_grid(self, x, onto=None):
        s = forward(self, x) * self.site.grid[0]  # a constant of the size that it was built for
        return s if onto is None else onto + s

    monkeypatch.setattr(attention, "forward", by_grid)
    try_stages(model, STAGES)
    with pytest.raises(ValueError, match="answers otherwise than a model built for that size"):
        try_stages(model, SIZED)


def test_trying_keeps_statistics_and_mode():
    model = build_model(tiny_recipe(), tiny_data()).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    try_stages(model, (*STAGES, *SIZED))
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
        ("[{until: 0.5, size: -4}]", r"got size=-4 in curriculum"),
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
