"""An operation has one reference and any number of faster variants that must equal it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

Fn = Callable[..., Any]
Refusal = Callable[..., str | None]
"""Takes the arguments of a call; says why a variant cannot run them, or None where it can."""

Listener = Callable[["Op", tuple[Any, ...], Any], None]
_REFERENCE_ONLY: ContextVar[bool] = ContextVar("reference_only", default=False)
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)
_WITHIN: ContextVar[tuple["Op", ...]] = ContextVar("within", default=())
OPS: dict[str, "Op"] = {}


@dataclass
class Op:
    """Callable that runs the first registered variant that does not refuse the arguments.

    Args:
        name: unique; recordings and reports use it.
        reference: the printed equation; the law for every variant.
        example: makes small arguments; tests, benchmarks and docs all draw on it.
        additions: of a call's arguments and result, the synaptic additions that it took: an
            integer input n counts n. None where the op moves no spikes through synapses.
        dense: of a call's arguments, its multiply-accumulates were every input real-valued.
        learns: whether its variants have gradients; False for what only inference uses.
    """

    name: str
    reference: Fn
    example: Callable[[], tuple[Any, ...]]
    additions: Callable[[tuple[Any, ...], Any], float] | None = None
    dense: Callable[[tuple[Any, ...]], float] | None = None
    learns: bool = True
    variants: dict[str, tuple[Fn, Refusal]] = field(default_factory=dict)
    slower: dict[str, Refusal] = field(default_factory=dict)
    tolerances: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name in OPS:
            raise ValueError(f"op {self.name!r} is already registered")
        OPS[self.name] = self

    def fast(
        self,
        name: str,
        *,
        refuses: Refusal,
        slower: Refusal | None = None,
        tolerance: float = 0.0,
    ) -> Callable[[Fn], Fn]:
        """Register a variant, tried in order of registration.

        Args:
            name: of the variant.
            refuses: see `Refusal`.
            slower: of what it can run, says why the variants behind it are faster there.
            tolerance: the largest |variant - reference| / max(1, |reference|) on the example; 0,
                as for whatever sums spikes, means bit-equal values. Variants of real-valued ops
                that sum in another order, such as an FFT, declare what they keep.
        """

        def add(fn: Fn) -> Fn:
            self.variants[name], self.tolerances[name] = (fn, refuses), tolerance
            if slower is not None:
                self.slower[name] = slower
            return fn

        return add

    def lacks(self, name: str, why: str) -> None:
        """Say why a variant is not even registered here, such as a package that is missing."""
        self.absent[name] = why

    def explain(self, *args: Any) -> dict[str, str]:
        """What a call with these arguments would do: variant -> "runs", or why it does not."""
        verdicts = dict(self.absent)
        runs = "reference" if _REFERENCE_ONLY.get() else ""
        for name in self.variants:
            why = "inside reference_only()" if runs == "reference" else self._passes(name, args)
            if why is None and runs:
                why = f"{runs!r} comes first"
            runs = runs or (name if why is None else "")
            verdicts[name] = why or "runs"
        verdicts["reference"] = f"{runs!r} stands in" if runs not in ("", "reference") else "runs"
        return verdicts

    def choose(self, *args: Any) -> str:
        """Name of the variant that a call with these arguments would run."""
        if torch.compiler.is_compiling() or not _REFERENCE_ONLY.get():
            for name in self.variants:
                if self._passes(name, args) is None:
                    return name
        return "reference"

    def _passes(self, name: str, args: tuple[Any, ...]) -> str | None:
        """Why a variant leaves a call to those behind it."""
        why = self.variants[name][1](*args)
        slower = self.slower.get(name)
        return slower(*args) if why is None and slower is not None else why

    def __call__(self, *args: Any) -> Any:
        name = self.choose(*args)
        fn = self.reference if name == "reference" else self.variants[name][0]
        # torch.compile cannot trace context variables: what it compiled is heard by nobody
        if torch.compiler.is_compiling() or (listener := _LISTENER.get()) is None:
            return fn(*args)
        token = _WITHIN.set((*_WITHIN.get(), self))
        try:
            out = fn(*args)
        finally:
            _WITHIN.reset(token)
        listener(self, args, out)
        return out


@contextmanager
def reference_only() -> Iterator[None]:
    """Inside this block every op runs its reference."""
    token = _REFERENCE_ONLY.set(True)
    try:
        yield
    finally:
        _REFERENCE_ONLY.reset(token)


def within() -> tuple[Op, ...]:
    """The ops whose calls are under way, outermost first; known only while somebody listens."""
    return _WITHIN.get()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Inside this block `listener(op, args, result)` hears of every call of every op."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)
