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
