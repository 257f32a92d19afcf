"""Losses by hand and by loops; teachers that do not fit are refused."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from saccade.data import Mix
from saccade.models import create_model
from saccade.train import load_model, save_weights, train
from saccade.train.recipe import Optim
from saccade.train.run import build_model
from saccade.train.tasks import TASK, Batch, make_task
from tests.awake import awake
from tests.train.tiny import MODEL, log_rows, tiny_data, tiny_recipe, use

LOGITS = torch.tensor([[[0.0, 0.0], [2.0, 0.0]], [[1.0, 3.0], [0.0, 1.0]]])
"""[T B K] = 2, 2, 2."""


class Fixed(nn.Module):
    """Says what it was told, as a spiking model does."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor, *, per_step: bool = False) -> Tensor:
        return self.logits if per_step else self.logits.mean(0)


def batch(**changes) -> Batch:
    return Batch(**{"x": torch.zeros(2, 1, 8, 8), "y": torch.tensor([1, 0])} | changes)


def lse(*z: float) -> float:
    return math.log(sum(math.exp(v) for v in z))


def test_tet_by_hand():
    """CE of each step and picture is lse - z_y; the logits are 1, 1, 1, 1 / 0, 4, 1, 0 from 1."""
    each = [lse(0, 0) - 0, lse(2, 0) - 2, lse(1, 3) - 3, lse(0, 1) - 0]
    pull = (1 + 1 + 1 + 1 + 0 + 4 + 1 + 0) / 8
    got = make_task({"name": "tet", "weight": 0.25})(Fixed(LOGITS), batch())
    assert float(got["loss"]) == pytest.approx(0.75 * sum(each) / 4 + 0.25 * pull)
    assert got["correct"] == 2  # means: 0.5, 1.5 and 1, 0.5
    other = make_task({"name": "tet", "weight": 1, "level": 0})(Fixed(LOGITS), batch())
    assert float(other["loss"]) == pytest.approx((4 + 1 + 9 + 1) / 8)


def test_tet_of_one_step_and_no_pull_is_classify():
    one = Fixed(LOGITS[:1])
    for options in ({}, {"label_smoothing": 0.2}):
        tet = make_task({"name": "tet", "weight": 0, **options})(one, batch())
        plain = make_task({"name": "classify", **options})(one, batch())
        torch.testing.assert_close(tet["loss"], plain["loss"])


@pytest.mark.parametrize("part", [{"name": "classify"}, {"name": "tet", "weight": 0}])
def test_soft_targets_are_a_mean_over_classes(part):
    soft = torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    got = float(make_task(part)(Fixed(LOGITS), batch(soft=soft))["loss"])
    steps = LOGITS if part["name"] == "tet" else LOGITS.mean(0, keepdim=True)
    expected = 0.0
    for t in range(len(steps)):
        for b in range(2):
            z = steps[t, b].tolist()
            expected += sum(float(soft[b, k]) * (lse(*z) - z[k]) for k in range(2))
    assert got == pytest.approx(expected / (2 * len(steps)))
    hard = make_task(part)(Fixed(LOGITS), batch(soft=torch.eye(2)[batch().y]))["loss"]
    torch.testing.assert_close(hard, make_task(part)(Fixed(LOGITS), batch())["loss"])


def teacher(folder: Path, **changes) -> Path:
    torch.manual_seed(3)
    options = {k: v for k, v in MODEL.items() if k != "name"}
    sizes = {"num_classes": 2, "in_channels": 1, "image_size": 8}
    model = awake(create_model("spikformer", **options | sizes | changes))
    save_weights(folder / "last.safetensors", model, {"precision": "32-true"})
    return folder


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("file", [True, False])
def test_soft_distillation_by_loops(tmp_path: Path, pictures: Tensor, file: bool):
    run = teacher(tmp_path)
    path = str(run / "last.safetensors" if file else run)
    task = make_task({"name": "distill", "teacher": path, "temperature": 2.0, "alpha": 0.3})
    with torch.no_grad():
        z_t = load_model(run / "last.safetensors")[0](pictures)
    assert z_t.std() > 0.01
    z_s, expected = LOGITS.mean(0), 0.0
    for b in range(2):
        p, q = (z_t[b] / 2).exp(), (z_s[b] / 2).exp()
        p, q = p / p.sum(), q / q.sum()
        expected += 0.3 * 4 * sum(float(p[k] * (p[k] / q[k]).log()) for k in range(2)) / 2
        expected += 0.7 * (lse(*z_s[b].tolist()) - float(z_s[b, batch().y[b]])) / 2
    got = task(Fixed(LOGITS), batch(x=pictures))
    assert float(got["loss"]) == pytest.approx(expected, rel=1e-5)
    assert got["correct"] == 2


def test_hard_distillation_takes_the_teachers_decision_for_a_label(
    tmp_path: Path, pictures: Tensor
):
    task = make_task({"name": "distill_hard", "teacher": str(teacher(tmp_path)), "alpha": 0.25})
    with torch.no_grad():
        said = load_model(tmp_path / "last.safetensors")[0](pictures).argmax(-1)
    z = LOGITS.mean(0)
    rows = [(lse(*z[b].tolist()) - z[b]) for b in range(2)]
    expected = sum(0.75 * rows[b][batch().y[b]] + 0.25 * rows[b][said[b]] for b in range(2)) / 2
    assert float(task(Fixed(LOGITS), batch(x=pictures))["loss"]) == pytest.approx(float(expected))


def test_a_teacher_is_frozen_and_sees_every_picture_for_its_own_steps(
    tmp_path: Path, pictures: Tensor
):
    torch.manual_seed(0)
    student = awake(
        create_model(
            "spikformer", dim=16, depth=1, heads=2, num_classes=2, in_channels=1, image_size=8
        )
    )
    task = make_task({"name": "distill", "teacher": str(teacher(tmp_path))})
    task.prepare(student)
    before = {k: v.clone() for k, v in task.teacher.state_dict().items()}
    task(student, batch(x=pictures, T=1))["loss"].backward()
    assert all(p.grad is None for p in task.teacher.parameters())
    assert any(p.grad is not None for p in student.parameters())
    assert not task.teacher.training
    assert all(torch.equal(v, before[k]) for k, v in task.teacher.state_dict().items())
    with torch.no_grad():
        assert torch.equal(task.ask(pictures), task.teacher(pictures))


@pytest.mark.parametrize("name", ["distill", "distill_hard"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_classes": 4},
            r"has \(classes, channels, size\) \(4, 1, \(8, 8\)\), expected \(3, 1",
        ),
        ({"in_channels": 3}, r"\(2, 3, \(8, 8\)\), expected"),
        ({"image_size": 16}, r"\(2, 1, \(16, 16\)\), expected"),
    ],
)
def test_a_teacher_of_another_size_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, changes, message: str
):
    use(monkeypatch, tiny_data())
    part = {"name": name, "teacher": str(teacher(tmp_path, **changes))}
    with pytest.raises(ValueError, match=message) as error:
        train(tiny_recipe(task=part), tmp_path / "run")
    assert f"teacher {tmp_path}" in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_student_learns_from_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
):
    use(monkeypatch, tiny_data())
    options = {"precision": precision, "optim": Optim(name="muon", lr=1e-2), "accumulate": 2}
    train(tiny_recipe(**options), tmp_path / "teacher")
    for name in ("distill", "distill_hard"):
        part = {"name": name, "teacher": str(tmp_path / "teacher"), "alpha": 0.9}
        train(tiny_recipe(task=part, seed=5, mix=Mix(cutmix=1.0), **options), tmp_path / name)
        rows = log_rows(tmp_path / name)
        assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize("name", TASK.list())
def test_every_task_refuses_shares_that_are_none(tmp_path: Path, name: str):
    extra = {"teacher": str(teacher(tmp_path))} if name.startswith("distill") else {}
    for option, value in {"label_smoothing": 1, "alpha": 1.5, "weight": -0.1}.items():
        with pytest.raises(ValueError, match=f"got {option}={value}|has no option '{option}'"):
            make_task({"name": name, option: value, **extra})


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"name": "distill"}, "got no teacher, expected the folder of a run"),
        ({"name": "distill_hard", "teacher": "nowhere"}, "no checkpoint at nowhere"),
        ({"name": "distill", "teacher": "x", "temperature": 0}, "got temperature=0, expected"),
    ],
)
def test_a_teacher_that_is_not_there_is_named(part, message: str):
    with pytest.raises(ValueError, match=message):
        make_task(part)


def test_a_part_of_a_batch_keeps_all_that_belongs_to_its_pictures():
    whole = Batch(
        x=torch.arange(7.0).reshape(7, 1, 1, 1), y=torch.arange(7), soft=torch.eye(7), T=3
    )
    part = whole.part(slice(2, 5))
    assert part.x.flatten().tolist() == part.y.tolist() == [2, 3, 4]
    assert torch.equal(part.soft, torch.eye(7)[2:5])
    assert part.T == 3
    frames = Batch(x=torch.rand(4, 3, 1, 8, 8), y=torch.arange(3))
    assert torch.equal(frames.part(slice(1, 3)).x, frames.x[:, 1:])


def test_what_is_shown_for_t_steps_is_what_the_model_makes_of_a_picture_itself():
    data = tiny_data()
    model = build_model(tiny_recipe(), data).eval()
    x = torch.rand(2, 1, 8, 8)
    own, said = (model.forward_steps(batch(x=x, T=T).shown) for T in (None, model.config.T))
    assert torch.equal(own, said)
    assert model.forward_steps(batch(x=x, T=5).shown).shape[0] == 5
