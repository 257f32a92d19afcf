"""A recipe says what it means or is refused."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from saccade.data import Augment, Mix
from saccade.data.randaugment import OPERATION, RandAugment
from saccade.train import Recipe, find_recipe, list_recipes, load_recipe
from saccade.train.curriculum import Stage
from saccade.train.plain_yaml import read_yaml, write_yaml
from saccade.train.recipe import PRECISIONS, Average, Optim, dump_recipe, parse_recipe

TEXT = "model: {name: spikformer, attention: ssa}\ndata: {name: digits}\n"


def test_what_is_left_out_has_its_default():
    recipe = parse_recipe(TEXT)
    assert recipe == Recipe(
        model={"name": "spikformer", "attention": "ssa"}, data={"name": "digits"}
    )
    assert (recipe.epochs, recipe.task, recipe.optim) == (10, {"name": "classify"}, Optim())


def test_overrides_reach_any_depth_and_keep_what_stands_beside():
    changed = parse_recipe(
        TEXT + "optim: {lr: 1.0}\n",
        ["optim.warmup=0.1", "epochs=3", "model.dim=32", "augment={flip: true}", "about='a: b'"],
    )
    assert (changed.optim.lr, changed.optim.warmup, changed.epochs) == (1.0, 0.1, 3)
    assert changed.model == {"name": "spikformer", "attention": "ssa", "dim": 32}
    assert (changed.augment, changed.about) == (Augment(flip=True), "a: b")


def test_the_parts_of_training_are_reached_from_the_command_line():
    words = ["optim.options.momentum=0.8", "optim.schedule.cooldown=0.3", "average.decay=0.99"]
    words += ["curriculum=[{until: 0.5, T: 1}]", "mix.mixup=1", "augment.randaugment.layers=2"]
    changed = parse_recipe(TEXT + "optim: {name: sgd, schedule: trapezoid}\n", words)
    assert changed.optim.options == {"momentum": 0.8}
    assert changed.optim.schedule == {"name": "trapezoid", "cooldown": 0.3}
    assert (changed.average, changed.curriculum) == (
        Average(decay=0.99),
        (Stage(until=0.5, T=1),),
    )
    assert (changed.mix, changed.augment.randaugment.layers) == (Mix(mixup=1), 2)


def test_an_option_of_a_part_that_was_given_by_name_keeps_the_name():
    changed = parse_recipe(TEXT, ["model.attention.scale=0.25", "model.neuron.tau=1.5"])
    assert changed.model["attention"] == {"name": "ssa", "scale": 0.25}
    assert changed.model["neuron"] == {"tau": 1.5}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-3", 0.001), ("5.0e-4", 0.0005), ("1E3", 1000.0), ("-.5", -0.5), ("1_0.0", 10.0)),
        *(("2026-01-01", "2026-01-01"), ("1.2.3", "1.2.3"), ("'1e3'", "1e3"), ("e3", "e3")),
        *(("yes", True), ("null", None), ("[1, 2]", [1, 2]), ("-.inf", float("-inf"))),
    ],
)
def test_a_word_is_a_number_only_where_a_person_means_one(text: str, value: Any):
    got = read_yaml(text)
    assert (got, type(got)) == (value, type(value))
    assert read_yaml(write_yaml(value)) == value


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("epoch: 3", r"unknown key 'epoch'; did you mean 'epochs'\?"),
        ("optim: {lrr: 3}", r"optim: unknown key 'lrr'; did you mean 'lr'\?"),
        ("augment: {shft: 3}", r"augment: unknown key 'shft'; did you mean 'shift'\?"),
        ("1: 3", r"unknown key 1"),
        ("optim: 3", r"got optim=3, expected a mapping"),
        ("optim:", r"optim has no value"),
        ("about: null", r"about has no value"),
        ("task: {label_smoothing: 0.1}", r"the recipe's task has no name"),
        ("task: {name: 3}", r"the recipe's task has no name"),
        ("task: {name: classify, 1: 2}", r"got key 1 in task"),
        ("task: &a {name: classify, b: *a}", r"found alias 'a', which a recipe may not use"),
        ("epochs: many", r'"epochs".*Expected a int. Got value: many'),
        ("epochs: 2.5", r'"epochs".*Expected a int. Got value: 2.5'),
        ("epochs: true", r'"epochs".*Expected a int. Got value: True'),
        ("epochs: 0", r"got epochs=0, expected 1 or more"),
        ("batch_size: -1", r"got batch_size=-1, expected 1 or more"),
        ("validation: 1.0", r"got validation=1.0, expected a share"),
        ("seed: -1", r"got seed=-1, expected 0 or more"),
        ("precision: bf16-mixd", r"unknown precision.*did you mean 'bf16-mixed'"),
        ("name: 3", r'"name".*Expected a str. Got value: 3'),
        ("optim: {lr: fast}", r'"optim.lr".*Expected a float. Got value: fast'),
        ("optim: {lr: 0}", r"got optim.lr=0.0, expected a number above 0"),
        ("optim: {lr: .nan}", r"got optim.lr=nan, expected a number above 0"),
        ("optim: {warmup: 1}", r"got optim.warmup=1.0, expected a share"),
        ("optim: {clip: -1}", r"got optim.clip=-1.0, expected 0 or more"),
        ("optim: {final: .nan}", r"got optim.final=nan, expected 0 or more"),
        ("optim: {options: 3}", r"got optim.options=3, expected {option: value}"),
        ("optim: {options: {name: sgd}}", r"got optim.options={'name': 'sgd'}, expected"),
        ("optim: {options: {1: 2}}", r"got key 1 in optim.options"),
        ("optim: {schedule: 3}", r"optim.schedule: got 3, expected a name or a mapping"),
        ("optim: {schedule: {cooldown: 1}}", r"optim.schedule: got .* with a 'name'"),
        ("optim: {schedule: {name: linear, 1: 2}}", r"got key 1 in optim.schedule"),
        ("optim: {schedule: null}", r"schedule has no value"),
        ("accumulate: 0", r"got accumulate=0, expected 1 or more"),
        ("batch_size: 4\naccumulate: 5", r"got accumulate=5, expected at most batch_size=4"),
        ("average: {decay: 1}", r"got average.decay=1.0, expected a share"),
        ("average: {dcay: 0.9}", r"average: unknown key 'dcay'; did you mean 'decay'\?"),
        ("mix: {mixup: -1}", r"got mix.mixup=-1(.0)?, expected 0 or more"),
        ("mix: {mix_up: 1}", r"mix: unknown key 'mix_up'; did you mean 'mixup'\?"),
        ("augment: {erase: 2}", r"got erase=2(.0)?, expected 0 to 1"),
        ("augment: {randaugment: {layer: 2}}", r"augment, randaugment: unknown key 'layer'"),
        ("augment: {randaugment: {operations: [equalise]}}", r"did you mean 'equalize'\?"),
        ("augment: {randaugment: {operations: equalize}}", r"operations.*Expected"),
        ("augment: {shift: 0.5}", r'"augment.shift".*Expected a int'),
        ("augment: {scale: 1}", r"got scale=1.0, expected 0 or more and below 1"),
        ("epochs: 3\nepochs: 4", r"not valid YAML: found key 'epochs' a second time"),
        ("optim: {lr: 1, lr: 2}", r"not valid YAML: found key 'lr' a second time"),
        ("epochs: [", r"not valid YAML"),
        ("epochs: !!python/object/apply:os.getcwd []", r"not valid YAML"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_and_says_where(more: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_recipe(TEXT + more + "\n")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", r"got 'epochs', expected key=value"),
        ("=3", r"got '=3', expected key=value"),
        ("epochs=[", r"got 'epochs=\[', whose value is not valid YAML"),
        ("epochs=", r"got 'epochs=' without a value; leave it out"),
        ("model.attention= ", r"got 'model.attention= ' without a value"),
        ("lr=3", r"unknown key 'lr'; did you mean 'optim.lr'\?"),
        ("attention=ssa", r"unknown key 'attention'; did you mean 'model.attention'\?"),
        ("T=2", r"unknown key 'T'; did you mean 'model.T'\?"),
        ("zzzzz=2", r"unknown key 'zzzzz'; Known: "),
        ("optim.lrr=3", r"unknown key 'lrr'; did you mean 'lr'"),
        ("optm.lr=3", r"unknown key 'optm'; did you mean 'optim'"),
        ("model.name.size=3", r"'name' is 'spikformer', which has no parts"),
        ("model=spikformer", r"got model='spikformer', expected model: {name"),
        ("..=1", r"unknown key ''"),
    ],
)
def test_an_override_that_is_wrong_is_refused_and_says_where(override: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_recipe(TEXT, [override])


@pytest.mark.parametrize("text", ["", "- 1", "3", "\x00", "{" * 3000, "a: b: c"])
def test_text_that_is_no_recipe_is_refused_by_name(text: str):
    with pytest.raises(ValueError, match=r"^my\.yaml"):
        parse_recipe(text, where="my.yaml")


@settings(deadline=None, max_examples=150)
@given(st.text() | st.text(alphabet="{}[]:,-&*!?|>'\"%@` \n#abc1.e~<="), st.text(max_size=20))
def test_whatever_the_text_only_a_value_error_comes_out(text: str, override: str):
    for overrides in ([], [override], [f"model.{override}"], [f"epochs={override}"]):
        try:
            parse_recipe(TEXT + text, overrides)
        except ValueError:
            continue


names = st.text(min_size=1, max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=9)
scalars |= st.floats(allow_nan=False) | st.from_regex(
    r"[-+]?[0-9.]{1,4}e[-+]?[0-9]", fullmatch=True
)
values = st.recursive(
    scalars,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(names, v, max_size=3),
    max_leaves=6,
)
options = st.dictionaries(names.filter(lambda name: name != "name"), values, max_size=3)
parts = st.builds(lambda name, more: more | {"name": name}, names, options)
shares = st.floats(0, 1, exclude_max=True)
recipes = st.builds(
    Recipe,
    model=parts,
    data=parts,
    task=parts,
    **dict.fromkeys(("name", "about", "paper", "claim"), st.text(max_size=20)),
    augment=st.builds(
        Augment,
        shift=st.integers(0, 9),
        flip=st.booleans(),
        rotate=st.floats(0, 180) | st.integers(0, 180),
        scale=shares,
        cutout=st.integers(0, 9),
        erase=shares,
        randaugment=st.builds(
            RandAugment,
            layers=st.integers(0, 9),
            magnitude=st.floats(0, 10) | st.integers(0, 10),
            operations=st.lists(st.sampled_from(OPERATION.list()), max_size=3).map(tuple),
        ),
    ),
    mix=st.builds(Mix, mixup=st.floats(0, 9) | st.integers(0, 9), cutmix=shares, until=shares),
    average=st.builds(Average, decay=shares, warmup=st.floats(0, 1e300)),
    curriculum=st.lists(st.floats(0.01, 1), max_size=3, unique=True).map(
        lambda ends: tuple(Stage(until=end, T=3, sharpness=0.5) for end in sorted(ends))
    ),
    optim=st.builds(
        Optim,
        name=names,
        options=options,
        schedule=names | parts,
        decay=names,
        lr=st.floats(1e-300, 1e300),
        warmup=shares,
        **dict.fromkeys(("weight_decay", "final", "clip"), st.floats(0, 1e300)),
    ),
    epochs=st.integers(1),
    batch_size=st.integers(1),
    validation=shares,
    precision=st.sampled_from(PRECISIONS),
    seed=st.integers(0),
)


@settings(deadline=None, max_examples=50, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(recipes)
def test_a_recipe_that_is_written_and_read_is_the_same(recipe: Recipe):
    back = parse_recipe(dump_recipe(recipe))
    assert asdict(back) == asdict(recipe)
    # to the type: 1 is not 1.0, and not True
    for get in (lambda r: (r.model, r.data, r.task), lambda r: (r.optim.options, r.optim.schedule)):
        assert repr(get(back)) == repr(get(recipe))


def test_a_recipe_is_found_by_name_by_file_and_by_run(tmp_path: Path):
    assert find_recipe("digits") == list_recipes()["digits"]
    file = tmp_path / "mine.yaml"
    file.write_text(TEXT)
    assert find_recipe(str(file)) == file
    assert load_recipe(file).name == "mine"
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(dump_recipe(replace(load_recipe(file), name="theirs")))
    assert load_recipe(find_recipe(str(run))).name == "theirs"
    for unknown in ("digts", str(tmp_path), str(tmp_path / "nothing.yaml")):
        with pytest.raises(ValueError, match=r"no recipe .*Known: cifar10, cifar10_fast"):
            find_recipe(unknown)
