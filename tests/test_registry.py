"""Catalogues: names, options, and the nearest valid choice."""

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
    assert keywords(Child) == ["depth", "size"]
    assert keywords(Base) == ["size"]


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
