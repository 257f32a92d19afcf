"""Catalogues of named parts: what a recipe or `create_model` may ask for."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, Union, get_args, get_origin

T = TypeVar("T")
R = TypeVar("R")

SCALARS: dict[Any, type] = {bool: bool, int: Integral, float: Real, NoneType: NoneType}
"""Types of options that are checked, and what values of them are; who takes text knows which."""

Part = str | Mapping[str, Any]
"""A part by name, or by name and options: ``"ssa"`` or ``{"name": "ssa", "scale": 0.25}``."""


def nearest(word: str, known: list[str]) -> str:
    """How an error names the valid choices: the nearest one first, then all of them."""
    if not known:
        return "there is none"
    by_case = {name.lower(): name for name in known}
    close = get_close_matches(str(word).lower(), list(by_case), n=1, cutoff=0.4)
    asked = f"did you mean {by_case[close[0]]!r}? " if close else ""
    return f"{asked}Known: {', '.join(known)}"


def one_of(option: str, value: str, known: Iterable[str]) -> str:
    """`value`, if it is among the known ones.

    Raises:
        ValueError: naming the nearest.
    """
    names = list(known)
    if value not in names:
        raise ValueError(f"got {option}={value!r}; {nearest(str(value), names)}")
    return value


def split_part(part: Part) -> tuple[str, dict[str, Any]]:
    """Name and options of a part.

    Raises:
        ValueError: where the part is neither a name nor a mapping with a ``name``.
    """
    if isinstance(part, str):
        return part, {}
    if isinstance(part, Mapping) and isinstance(part.get("name"), str):
        return part["name"], {k: v for k, v in part.items() if k != "name"}
    raise ValueError(f"got {part!r}, expected a name or a mapping with a 'name'")


class Registry(Generic[T]):
    """Named things of one kind; an unknown name or option is answered with the nearest."""

    def __init__(self, kind: str, hint: str = "") -> None:
        self.kind, self.hint = kind, hint
        self._entries: dict[str, T] = {}

    def add(self, name: str) -> Callable[[R], R]:
        """Decorator: make a class or function reachable under a name."""

        def register(entry: R) -> R:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is already registered")
            self._entries[name] = entry  # type: ignore[assignment]
            return entry

        return register

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            known = nearest(name, self.list())
            raise ValueError(f"unknown {self.kind} {name!r}; {known}{self.hint}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.list())

    def list(self, pattern: str = "*") -> list[str]:
        """Registered names that match a shell pattern, sorted."""
        return sorted(n for n in self._entries if fnmatchcase(n, pattern))

    def build(self, part: Part, /, *args: Any, **fixed: Any) -> Any:
        """Call the named entry with positional arguments, `fixed` ones and the part's options.

        A fixed option wins over one of the part of the same name.

        Raises:
            ValueError: for an unknown name, an option that the entry does not take, or one of
                another type than it declares, where that is a number or a truth value.
        """
        name, options = split_part(part)
        entry: Any = self[name]
        known = keywords(entry)
        for option, value in options.items():
            if option not in known:
                raise ValueError(
                    f"{self.kind} {name!r} has no option {option!r}; {nearest(option, [*known])}"
                )
            if (expected := _other_type(value, known[option])) is not None:
                raise ValueError(
                    f"{self.kind} {name!r}: got {option}={value!r}, expected {expected}"
                )
        return entry(*args, **{**options, **fixed})


def _other_type(value: object, declared: Any) -> str | None:
    """What a value should have been, in words; None where it is that, or nobody can say."""
    either = get_origin(declared) in (Union, UnionType)
    kinds = get_args(declared) if either else (declared,)
    if not all(isinstance(kind, type) and kind in SCALARS for kind in kinds):
        return None
    truth = isinstance(value, bool)  # an integer to Python, and to nobody else
    if any(isinstance(value, SCALARS[kind]) and truth == (kind is bool) for kind in kinds):
        return None
    return " or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds)


def keywords(entry: Callable[..., Any]) -> dict[str, Any]:
    """Types of a callable's keyword-only options; a class's `**options` go to its parents."""
    functions: list[Any] = [entry]
    if isinstance(entry, type):
        functions = [vars(c)["__init__"] for c in entry.__mro__ if "__init__" in vars(c)]
    names: dict[str, Any] = {}
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        names = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY} | names
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return dict(sorted(names.items()))
