"""Catalogues of named parts: what a recipe or `create_model` may ask for."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

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
            ValueError: for an unknown name, or an option that the entry does not take.
        """
        name, options = split_part(part)
        entry: Any = self[name]
        known = keywords(entry)
        for option in options:
            if option not in known:
                raise ValueError(
                    f"{self.kind} {name!r} has no option {option!r}; {nearest(option, known)}"
                )
        return entry(*args, **{**options, **fixed})


def keywords(entry: Callable[..., Any]) -> list[str]:
    """Names of the keyword-only options of a callable; a class's `**options` go to its parents."""
    functions: list[Any] = [entry]
    if isinstance(entry, type):
        functions = [vars(c)["__init__"] for c in entry.__mro__ if "__init__" in vars(c)]
    names: set[str] = set()
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        names |= {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return sorted(names)
