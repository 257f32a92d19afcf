"""A recipe is one YAML file that says everything a run depends on; strict, with overrides."""

import re
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from saccade._registry import nearest
from saccade.data import Augment
from saccade.train.plain_yaml import read_yaml, write_yaml

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Whose weights stay in float32, so that a trained model can be tested without them."""
_PARTS = ("model", "data", "task")


@dataclass(frozen=True, kw_only=True)
class Optim:
    """How weights move.

    Args:
        name: see `saccade.train.optim.OPTIMIZER`.
        lr: peak learning rate.
        weight_decay: on matrices and kernels; biases and norms have none.
        warmup: share of all steps in which lr rises linearly from 0.
        final: lr at the end over its peak; cosine in between.
        clip: largest norm of the gradient; 0 leaves it alone.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    final: float = 0.01
    clip: float = 0.0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"got optim.lr={self.lr}, expected a number above 0")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"got optim.warmup={self.warmup}, expected a share from 0 up to 1")
        for name in ("weight_decay", "final", "clip"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"got optim.{name}={getattr(self, name)}, expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a run depends on.

    Args:
        name: of the recipe; its file's, unless it says otherwise.
        about: one sentence for people.
        paper: "arXiv:..." or "doi:..." of the source, if any.
        claim: what somebody reports, or this project measured, for this recipe.
        model: name and options of a model, as for `saccade.create_model`; the number of
            classes, channels and the image size come from the data.
        data: name and options of a data set, as for `saccade.data.load_data`.
        augment: random changes of the training pictures.
        task: name and options of what is learned.
        optim: how weights move.
        epochs: passes over the training set.
        batch_size: pictures a step, over all devices together.
        validation: share of the training set held out, measured after every epoch.
        precision: "32-true", or of Lightning Fabric's "bf16-mixed" and "16-mixed".
        seed: of everything random.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    name: str = ""
    about: str = ""
    paper: str = ""
    claim: str = ""
    augment: Augment = field(default_factory=Augment)
    task: dict[str, Any] = field(default_factory=lambda: {"name": "classify"})
    optim: Optim = field(default_factory=Optim)
    epochs: int = 10
    batch_size: int = 64
    validation: float = 0.0
    precision: str = "32-true"
    seed: int = 0

    def __post_init__(self) -> None:
        for part in _PARTS:
            given = getattr(self, part)
            if not isinstance(given.get("name"), str):
                raise ValueError(f"the recipe's {part} has no name; expected {part}: {{name: ...}}")
            if odd := [key for key in given if not isinstance(key, str)]:
                raise ValueError(f"got key {odd[0]!r} in {part}, expected the name of an option")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"got {name}={getattr(self, name)}, expected 1 or more")
        if not 0 <= self.validation < 1:
            raise ValueError(f"got validation={self.validation}, expected a share from 0 up to 1")
        if self.seed < 0:
            raise ValueError(f"got seed={self.seed}, expected 0 or more")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"unknown precision {self.precision!r}; {nearest(self.precision, [*PRECISIONS])}"
            )


def list_recipes() -> dict[str, Path]:
    """The recipes that come with the library, by name."""
    folder = Path(str(files("saccade") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe: one of ours by name, a YAML file, or the folder of a run.

    Raises:
        ValueError: where there is none, naming the nearest.
    """
    known = list_recipes()
    if name in known:
        return known[name]
    path = Path(name).expanduser()
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.is_file():
        return path
    raise ValueError(
        f"no recipe {name!r}: it is neither a YAML file nor the folder of a run; "
        f"{nearest(name, list(known))}"
    )


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe strictly.

    Args:
        path: YAML file.
        overrides: "key.sub=value" each, as on the command line.

    Raises:
        ValueError: for broken YAML, an unknown key (the nearest is named), or a wrong type.
    """
    recipe = parse_recipe(path.read_text(encoding="utf-8"), overrides, where=str(path))
    return recipe if recipe.name else replace(recipe, name=path.stem)


def parse_recipe(text: str, overrides: Sequence[str] = (), *, where: str = "recipe") -> Recipe:
    """As `load_recipe`, from the text itself; `where` names it in errors."""
    try:
        tree = read_yaml(text)
    except ValueError as error:
        raise ValueError(f"{where} is {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{where}: got {type(tree).__name__}, expected a mapping of recipe keys")
    for override in overrides:
        _override(tree, override)
    _check_keys(tree, Recipe, where)
    # jsonargparse would read a quoted "007" among the options of a part as a number
    parts = {part: tree.pop(part) for part in _PARTS if part in tree}
    for part, given in parts.items():
        if not isinstance(given, dict):
            raise ValueError(f"{where}: got {part}={given!r}, expected {part}: {{name: ...}}")
    try:
        parser = _parser()
        values = vars(parser.instantiate(parser.parse_object(tree | {part: {} for part in parts})))
        return Recipe(**values | parts)
    except (ArgumentError, TypeError) as error:
        raise ValueError(f"{where}: {_plain(str(error))}") from error


def dump_recipe(recipe: Recipe) -> str:
    """YAML that `parse_recipe` reads back to an equal recipe."""
    return write_yaml(asdict(recipe))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe, fail_untyped=False)
    return parser


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ValueError(f"got {override!r}, expected key=value or key.sub=value")
    *path, last = key.split(".")
    node = tree
    for name in path:
        inner = node.get(name)
        if isinstance(inner, str) and name in ("attention", "neuron", "stem", "task"):
            inner = {"name": inner}
        node[name] = inner = {} if inner is None else inner
        if not isinstance(inner, dict):
            raise ValueError(f"got {override!r}, but {name!r} is {inner!r}, which has no parts")
        node = inner
    try:
        node[last] = read_yaml(value)
    except ValueError as error:
        raise ValueError(f"got {override!r}, whose value is {error}") from error


def _check_keys(tree: Mapping[str, Any], cls: type, where: str) -> None:
    known = {f.name: f.type for f in fields(cls)}
    for key, value in tree.items():
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}; {nearest(str(key), list(known))}")
        kind = known[key]
        if value is None:
            raise ValueError(f"{where}: {key} has no value; leave it out for the default")
        if isinstance(kind, type) and is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}: got {key}={value!r}, expected a mapping of its keys")
            _check_keys(value, kind, f"{where}, {key}")


def _plain(message: str) -> str:
    """jsonargparse's message without its type markup."""
    return re.sub(r"<class '(?:builtins\.)?([\w.]+)'>", r"\1", message).replace("\n", " ")
