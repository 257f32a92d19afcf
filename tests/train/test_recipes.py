"""Every recipe that ships is built and takes its first steps, on pictures of the right size."""

import pytest
import torch

from saccade.analysis import record
from saccade.data import DATA, ImageData
from saccade.train import list_recipes, load_recipe
from saccade.train.loop import fit
from saccade.train.run import build_model
from tests.train.tiny import log_rows, opened, tiny_data

SHAPES = {"digits": (1, 8, 8), "fashion_mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
"""[C H W] of the data that the recipes name."""

by_recipe = pytest.mark.parametrize("name", sorted(list_recipes()))


def stand_in(name: str) -> ImageData:
    C, H, W = SHAPES[name]
    return tiny_data(K=10, N=20, C=C, H=H, W=W)


@by_recipe
def test_a_shipped_recipe_says_what_it_is_for_and_whose_it_is(name: str):
    recipe = load_recipe(list_recipes()[name])
    assert recipe.name == name
    assert recipe.about.endswith(".")
    assert recipe.paper.startswith("arXiv:")
    assert recipe.data["name"] in DATA


@by_recipe
def test_a_shipped_recipe_trains(name: str, tmp_path):
    overrides = ["batch_size=4", "epochs=1", "model.T=1", "validation=0.5"]
    recipe = load_recipe(list_recipes()[name], overrides)
    data = stand_in(recipe.data["name"])
    model = build_model(recipe, data)
    assert (model.config.num_classes, model.config.size) == (10, data.image_size)
    session = opened(tmp_path, recipe, data, model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fit(session)
    (row,) = log_rows(tmp_path)
    assert row["step"] == session.steps == 2
    after = model.state_dict()
    assert all(v.isfinite().all() for v in after.values())
    # the first stage always hears something, however silent an untrained network is behind it
    assert not torch.equal(before["stem.stages.0.conv.weight"], after["stem.stages.0.conv.weight"])
    with record(model) as seen, torch.no_grad():
        model(torch.randn(2, *data.train.images.shape[1:]) * 3)
    assert next(iter(seen.mean_rates().values())) > 0


def test_the_override_that_the_help_advertises_reaches_the_attention():
    recipe = load_recipe(list_recipes()["digits"], ["model.attention.scale=0.3"])
    model = build_model(recipe, stand_in("digits"))
    assert model.blocks[0].attention.scale == 0.3
    plain = build_model(load_recipe(list_recipes()["digits"]), stand_in("digits"))
    assert plain.blocks[0].attention.scale != 0.3
    assert type(model.blocks[0].attention) is type(plain.blocks[0].attention)
