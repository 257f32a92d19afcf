"""docs/training.md names every key and part that there is, and its example is a recipe."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from saccade._registry import keywords
from saccade.data import Augment, Mix
from saccade.data.randaugment import OPERATION, RandAugment
from saccade.train.curriculum import Stage, stage_at
from saccade.train.optim import DECAY, OPTIMIZER
from saccade.train.recipe import PRECISIONS, Average, Optim, Recipe, parse_recipe
from saccade.train.schedule import SCHEDULE
from saccade.train.tasks import TASK
from tests.train.tiny import opened, tiny_data

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
WORDS = {
    word for code in re.findall(r"`([^`\n]+)`", PAGE) for word in re.findall(r"\w[\w-]*", code)
}
CLASSES = (Optim, Average, Augment, RandAugment, Mix, Stage)
DESCRIBED_ELSEWHERE = {"model", "data", "name", "about", "paper", "claim"}


@pytest.mark.parametrize("cls", [*CLASSES, Recipe], ids=lambda cls: cls.__name__)
def test_every_key_is_named(cls: type):
    assert {f.name for f in fields(cls)} - WORDS - DESCRIBED_ELSEWHERE == set()


@pytest.mark.parametrize(
    "registry", [TASK, OPTIMIZER, SCHEDULE, OPERATION], ids=lambda registry: registry.kind
)
def test_every_part_and_option_is_named(registry):
    assert set(registry) - WORDS == set()
    assert {o for name in registry for o in keywords(registry[name])} - WORDS == set()


def test_every_choice_is_named():
    assert ({*DECAY} | {*PRECISIONS}) - WORDS <= {"32-true", "matrices"}
    assert "| matrices |" in PAGE
    assert "| 32-true |" in PAGE


def test_the_example_is_a_recipe_that_can_be_trained(tmp_path: Path):
    (example,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)
    recipe, data = parse_recipe(example), tiny_data(K=10, N=40)
    session = opened(tmp_path, recipe, data)
    assert session.average is not None
    assert stage_at(recipe.curriculum, 0, session.steps).T == 1
