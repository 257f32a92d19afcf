"""Catalogues: names, options, and the nearest valid choice."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade._registry import Registry, keywords, nearest, split_part


class Base:
    def __init__(self, *, size: int = 1) -> None:
        self.size = size


class Child(Base):
    def __init__(self, place: str, *, depth: int = 2, **rest: int) -> None:
        super().__init__(**rest)
        self.place, self.depth = place, depth


def catalogue() -> Registry[type[Base]]:
    registry: Registry[type[Base]] = Registry("thing")
    registry.add("child")(Child)
    registry.add("base")(Base)
    return registry


def test_builds_with_options_of_parents_too():
    child = catalogue().build({"name": "child", "depth": 5, "size": 7}, "here")
    assert (child.place, child.depth, child.size) == ("here", 5, 7)
    assert list(keywords(Child)) == ["depth", "size"]
    assert list(keywords(Base)) == ["size"]


def test_fixed_options_win():
    assert catalogue().build({"name": "base", "size": 3}, size=4).size == 4


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("chid", "unknown thing 'chid'; did you mean 'child'"),
        ({"name": "child", "dept": 1}, "no option 'dept'; did you mean 'depth'"),
        (3, "got 3, expected a name or a mapping"),
        ({"depth": 1}, "expected a name or a mapping with a 'name'"),
    ],
)
def test_what_is_unknown_is_answered_with_the_nearest(part: object, message: str):
    with pytest.raises(ValueError, match=message):
        catalogue().build(part, "here")


class Typed:
    def __init__(
        self,
        *,
        n: int | None = 1,
        x: float = 0.5,
        on: bool = True,
        of: Any = 0,
        pools: Sequence[bool] = (),
    ) -> None:
        self.options = n, x, on, of, pools


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("n", "3", "expected int or None"),
        ("n", 0.5, "expected int or None"),
        ("n", True, "expected int or None"),
        ("x", "1e-3", "expected float"),
        ("x", None, "expected float"),
        ("on", 1, "expected bool"),
    ],
)
def test_an_option_of_another_type_is_refused(option: str, value: object, expected: str):
    things: Registry[type[Typed]] = Registry("thing")
    things.add("typed")(Typed)
    with pytest.raises(ValueError, match=rf"thing 'typed': got {option}={value!r}, {expected}"):
        things.build({"name": "typed", option: value})


def test_numbers_of_numpy_and_what_declares_no_scalar_are_taken():
    things: Registry[type[Typed]] = Registry("thing")
    things.add("typed")(Typed)
    part = {"name": "typed", "n": np.int64(3), "x": 2, "of": "anything", "pools": (True,)}
    assert things.build(part).options == (3, 2, True, "anything", (True,))
    assert things.build({"name": "typed", "n": None, "x": np.float32(2)}).options[:2] == (None, 2)


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="already registered"):
        catalogue().add("base")(Base)


@given(st.text(max_size=20), st.lists(st.text(min_size=1, max_size=8), max_size=5, unique=True))
def test_all_known_are_named_and_the_nearest_is_one_of_them(word: str, known: list[str]):
    answer = nearest(word, known)
    if not known:
        assert answer == "there is none"
        return
    assert answer.endswith(f"Known: {', '.join(known)}")
    asked = answer.startswith("did you mean ")
    assert asked <= any(answer.startswith(f"did you mean {k!r}? ") for k in known)


def test_what_is_near_is_asked_for_and_what_is_not_is_not():
    names = ["paper", "optim", "task"]
    assert nearest("optm", names) == "did you mean 'optim'? Known: paper, optim, task"
    assert nearest("zzz", names) == "Known: paper, optim, task"


def test_parts_are_names_or_mappings():
    assert split_part("ssa") == ("ssa", {})
    assert split_part({"name": "ssa", "scale": 1}) == ("ssa", {"scale": 1})
