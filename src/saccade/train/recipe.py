"""A recipe is one YAML file that says everything a run depends on; strict, with overrides."""

import re
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from saccade._registry import Part, nearest, split_part
from saccade.data import Augment, Mix
from saccade.models import TransformerConfig
from saccade.train.curriculum import Stage, check_stages
from saccade.train.plain_yaml import read_yaml, write_yaml

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Whose weights stay in float32, so that a trained model can be tested without them."""
_PARTS = ("model", "data", "task")
_FREE = (*((part,) for part in _PARTS), ("optim", "options"), ("optim", "schedule"))
"""Where names and options stand that only the part itself can check."""
_NAMED = ("attention", "neuron", "stem", "task", "schedule")
"""Parts that may be given by name alone, and then by an option in an override."""


@dataclass(frozen=True, kw_only=True)
class Optim:
    """How weights move.

    Args:
        name: see `saccade.train.optim.OPTIMIZER`.
        options: of that optimiser, such as {momentum: 0.9}.
        lr: peak learning rate.
        weight_decay: on what `decay` names.
        decay: "matrices" (biases, norms and single numbers have none) or "all".
        schedule: from peak to end; see `saccade.train.schedule.SCHEDULE`.
        warmup: share of all steps in which lr rises linearly from 0.
        final: lr at the end over its peak.
        clip: largest norm of the gradient; 0 leaves it alone.
    """

    name: str = "adamw"
    options: dict[str, Any] = field(default_factory=dict)
    lr: float = 1e-3
    weight_decay: float = 0.05
    decay: str = "matrices"
    schedule: Part = "cosine"
    warmup: float = 0.05
    final: float = 0.01
    clip: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.options, Mapping) or "name" in self.options:
            raise ValueError(f"got optim.options={self.options!r}, expected {{option: value}}")
        for where, given in (("options", self.options), ("schedule", self.schedule)):
            if isinstance(given, Mapping):
                _check_words(f"optim.{where}", given)
        try:
            split_part(self.schedule)
        except ValueError as error:
            raise ValueError(f"optim.schedule: {error}") from None
        if not self.lr > 0:
            raise ValueError(f"got optim.lr={self.lr}, expected a number above 0")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"got optim.warmup={self.warmup}, expected a share from 0 up to 1")
        for name in ("weight_decay", "final", "clip"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"got optim.{name}={getattr(self, name)}, expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class Average:
    """Weights averaged over the steps; they are what is validated, tested and loaded.

    After step n (from 1) the average moves by the share 1 - d_n towards the weights and the
    statistics of norms, with d_n = min(decay, n / (n + warmup)).

    Args:
        decay: d, the share of the average that stays; 0 keeps none, so that there is none.
        warmup: in steps; until about warmup / (1 - decay) the average is a shorter one, which
            has forgotten the first weights. 0 leaves that out.
    """

    decay: float = 0.0
    warmup: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"got average.decay={self.decay}, expected a share from 0 up to 1")
        if not self.warmup >= 0:
            raise ValueError(f"got average.warmup={self.warmup}, expected 0 or more steps")


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
        mix: blends of training pictures with each other, labels and all.
        task: name and options of what is learned.
        optim: how weights move.
        average: of the weights over the steps.
        curriculum: stages, each {until, T, size, sharpness}; see `saccade.train.curriculum.Stage`.
        epochs: passes over the training set.
        batch_size: pictures a step, over all devices together, whatever `accumulate` is.
        accumulate: pieces that a batch is cut into, one after the other, to save memory. The
            gradient is that of the whole batch, up to statistics of batch norm and dropout.
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
    mix: Mix = field(default_factory=Mix)
    task: dict[str, Any] = field(default_factory=lambda: {"name": "classify"})
    optim: Optim = field(default_factory=Optim)
    average: Average = field(default_factory=Average)
    curriculum: tuple[Stage, ...] = ()
    epochs: int = 10
    batch_size: int = 64
    accumulate: int = 1
    validation: float = 0.0
    precision: str = "32-true"
    seed: int = 0

    def __post_init__(self) -> None:
        for part in _PARTS:
            given = getattr(self, part)
            if not isinstance(given.get("name"), str):
                raise ValueError(f"the recipe's {part} has no name; expected {part}: {{name: ...}}")
            _check_words(part, given)
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"got {name}={getattr(self, name)}, expected 1 or more")
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"got accumulate={self.accumulate}, expected at most batch_size={self.batch_size}"
            )
        check_stages(self.curriculum)
        if not 0 <= self.validation < 1:
            raise ValueError(f"got validation={self.validation}, expected a share from 0 up to 1")
        if self.seed < 0:
            raise ValueError(f"got seed={self.seed}, expected 0 or more")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"unknown precision {self.precision!r}; {nearest(self.precision, [*PRECISIONS])}"
            )


def _check_words(part: str, given: Mapping[Any, Any]) -> None:
    if odd := [key for key in given if not isinstance(key, str)]:
        raise ValueError(f"got key {odd[0]!r} in {part}, expected the name of an option")


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
    for word in overrides:
        override(tree, word)
    _check_keys(tree, Recipe, where)
    free = _take_free(tree)
    for (*_, part), given in free.items():
        if part in _PARTS and not isinstance(given, dict):
            raise ValueError(f"{where}: got {part}={given!r}, expected {part}: {{name: ...}}")
    try:
        parser = _parser()
        blank: dict[str, Any] = {part: {} for (*above, part) in free if not above}
        values = vars(parser.instantiate(parser.parse_object(tree | blank)))
        optim = {key: given for (*above, key), given in free.items() if above}
        values |= {part: given for (*above, part), given in free.items() if not above}
        return Recipe(**values | {"optim": replace(values["optim"], **optim)})
    except (ArgumentError, TypeError) as error:
        raise ValueError(f"{where}: {_plain(str(error))}") from error


def dump_recipe(recipe: Recipe) -> str:
    """YAML that `parse_recipe` reads back to an equal recipe."""
    return write_yaml(asdict(recipe))


def _take_free(tree: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    """Take out what jsonargparse would bend: a quoted "007" among options is no number."""
    taken = {}
    for path in _FREE:
        node: Any = tree
        for name in path[:-1]:
            node = node.get(name, {})
        if path[-1] in node:
            taken[path] = node.pop(path[-1])
    return taken


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe, fail_untyped=False)
    return parser


def override(tree: dict[str, Any], word: str) -> None:
    """Set what "key.sub=value" says in a tree of options; the value is YAML.

    Raises:
        ValueError: for a word of another form, or a key below one that has no parts.
    """
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise ValueError(f"got {word!r}, expected key=value or key.sub=value")
    if not value.strip():
        raise ValueError(f"got {word!r} without a value; leave it out for the default")
    *path, last = key.split(".")
    node = tree
    for name in path:
        inner = node.get(name)
        if isinstance(inner, str) and name in _NAMED:
            inner = {"name": inner}
        node[name] = inner = {} if inner is None else inner
        if not isinstance(inner, dict):
            raise ValueError(f"got {word!r}, but {name!r} is {inner!r}, which has no parts")
        node = inner
    try:
        node[last] = read_yaml(value)
    except ValueError as error:
        raise ValueError(f"got {word!r}, whose value is {error}") from error


def _check_keys(tree: Mapping[str, Any], cls: type, where: str) -> None:
    known = {f.name: f.type for f in fields(cls)}
    for key, value in tree.items():
        if key not in known:
            deeper = [path for path in _leaves() if path.rpartition(".")[2] == key]
            said = f"did you mean {deeper[0]!r}?" if deeper else nearest(str(key), list(known))
            raise ValueError(f"{where}: unknown key {key!r}; {said}")
        kind = known[key]
        if value is None:
            raise ValueError(f"{where}: {key} has no value; leave it out for the default")
        if isinstance(kind, type) and is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}: got {key}={value!r}, expected a mapping of its keys")
            _check_keys(value, kind, f"{where}, {key}")
        elif key == "curriculum":
            if not isinstance(value, list) or not all(isinstance(v, Mapping) for v in value):
                raise ValueError(f"{where}: got {key}={value!r}, expected a list of stages")
            for stage in value:
                _check_keys(stage, Stage, f"{where}, {key}")


def _leaves() -> list[str]:
    """Keys within the keys of a recipe, as overrides name them."""
    parts = [(f.name, f.type) for f in fields(Recipe) if isinstance(f.type, type)]
    parts = [("model", TransformerConfig), *(p for p in parts if is_dataclass(p[1]))]
    return [f"{name}.{inner.name}" for name, part in parts for inner in fields(part)]


def _plain(message: str) -> str:
    """jsonargparse's message without its type markup."""
    return re.sub(r"<class '(?:builtins\.)?([\w.]+)'>", r"\1", message).replace("\n", " ")
