"""The schedule by hand, and what is decayed."""

import math

import pytest
import torch

from saccade.models import create_model
from saccade.train.optim import OPTIMIZER, make_optimizer
from saccade.train.recipe import Optim
from saccade.train.schedule import learning_rate


def test_the_rate_rises_in_equal_parts_and_falls_along_half_a_cosine():
    optim = Optim(lr=0.8, warmup=0.4, final=0.25)
    got = [learning_rate(optim, step, 10) for step in range(10)]
    # 4 steps up; then 0.8 (0.25 + 0.75 (1 + cos(pi n / 6)) / 2), n = 0 .. 5
    fall = [0.8, 0.8 * (0.625 + 0.375 * math.sqrt(0.75)), 0.65, 0.5, 0.35]
    fall += [0.8 * (0.625 - 0.375 * math.sqrt(0.75))]
    assert got == pytest.approx([0.2, 0.4, 0.6, 0.8, *fall], rel=1e-12)


def test_the_end_points_are_the_peak_and_its_last_share():
    optim = Optim(lr=2.0, warmup=0.0, final=0.1)
    assert learning_rate(optim, 0, 100) == 2.0
    assert learning_rate(optim, 50, 100) == pytest.approx(1.1)
    assert learning_rate(optim, 100, 100) == pytest.approx(0.2)
    assert learning_rate(Optim(lr=2.0, warmup=0.5), 0, 1) == 2.0


def test_a_constant_rate_is_one_whose_end_is_its_peak():
    optim = Optim(lr=0.3, warmup=0.0, final=1.0)
    assert {learning_rate(optim, step, 7) for step in range(7)} == {0.3}


@pytest.mark.parametrize("name", sorted({*OPTIMIZER} - {"muon"}))
def test_biases_and_norms_are_never_decayed(name: str):
    model = create_model("spikformer", dim=16, depth=1, heads=2, image_size=8)
    optimizer = make_optimizer(model, Optim(name=name, weight_decay=0.3))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decay) == len(list(model.parameters()))
    for key, p in model.named_parameters():
        expected = 0.3 if key.endswith((".conv.weight", ".linear.weight")) else 0.0
        assert decay[id(p)] == expected, key


def test_what_is_frozen_is_not_given_to_the_optimizer():
    model = torch.nn.Linear(2, 3)
    model.weight.requires_grad_(False)
    groups = make_optimizer(model, Optim()).param_groups
    assert [p for g in groups for p in g["params"]] == [model.bias]


def test_an_unknown_optimizer_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown optimizer 'sdg'; did you mean 'sgd'\?"):
        make_optimizer(torch.nn.Linear(2, 3), Optim(name="sdg"))


@pytest.mark.parametrize("name", sorted({*OPTIMIZER} - {"muon"}))
def test_all_may_be_decayed(name: str):
    model = create_model("spikformer", dim=16, depth=1, heads=2, image_size=8)
    groups = make_optimizer(model, Optim(name=name, weight_decay=0.3, decay="all")).param_groups
    decayed = [p for g in groups for p in g["params"] if g["weight_decay"] == 0.3]
    assert len(decayed) == len(list(model.parameters()))


@pytest.mark.parametrize("name", OPTIMIZER.list())
def test_an_optimizer_lowers_a_loss(name: str):
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
    optimizer = make_optimizer(model, Optim(name=name, lr=0.01, weight_decay=0.0))
    x, losses = torch.eye(4), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - x.flip(0)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"decay": "matrixes"}, r"unknown optim.decay 'matrixes'; did you mean 'matrices'\?"),
        ({"options": {"momentum": 0.5}}, r"optimizer 'adamw' has no option 'momentum'"),
        ({"options": {"lr": 0.5}}, r"no option 'lr'"),
        ({"options": {"beta1": 1}}, r"got optim.options.beta1=1, expected a share from 0 up to 1"),
        ({"options": {"eps": 0}}, r"got optim.options.eps=0, expected a number above 0"),
        ({"name": "sgd", "options": {"momentum": -1}}, r"got optim.options.momentum=-1"),
        ({"name": "lamb", "options": {"max_trust": 0}}, r"got optim.options.max_trust=0"),
        ({"name": "muon", "options": {"matrix_lr": 0}}, r"got optim.options.matrix_lr=0"),
        ({"name": "muon", "options": {"iterations": 0}}, r"got optim.options.iterations=0"),
    ],
)
def test_an_option_that_is_wrong_is_refused(optim, message: str):
    with pytest.raises(ValueError, match=message):
        make_optimizer(torch.nn.Linear(2, 3), Optim(**optim))
