"""Shape annotations are checked while the tests run, and only then.

Plain types are left to mypy: tests hand wrong ones over on purpose.
"""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """A type checker for jaxtyping's import hook that looks at tensors alone."""
    shapes = {n: a for n, a in function.__annotations__.items() if "jaxtyping." in repr(a)}
    function.__annotations__ = shapes
    checked: Callable[..., Any] = _check(function)
    return checked
