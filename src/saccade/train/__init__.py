"""Recipes and the loop that runs them; models, data and tasks are known by name only."""

from saccade.train.checkpoint import load_model as load_model
from saccade.train.checkpoint import save_weights as save_weights
from saccade.train.diagnose import Diverged as Diverged
from saccade.train.loop import Interrupted as Interrupted
from saccade.train.recipe import Recipe as Recipe
from saccade.train.recipe import find_recipe as find_recipe
from saccade.train.recipe import list_recipes as list_recipes
from saccade.train.recipe import load_recipe as load_recipe
from saccade.train.run import train as train
