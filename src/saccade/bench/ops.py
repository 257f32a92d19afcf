"""Every variant of every op that does not refuse, beside its reference."""

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor

from saccade._registry import nearest
from saccade.bench.equality import differentiable, require_equal, results
from saccade.bench.result import Result, milliseconds, spread
from saccade.bench.settings import Settings, tuned
from saccade.bench.sizes import MAKE, SIZES, arguments
from saccade.bench.timing import Step, graphed, interleaved
from saccade.ops import OPS, Op

COPIED = 64 * 2**20
"""Bytes of the copy whose bandwidth the others are a share of."""


def bench_ops(pattern: str = "*", *, size: str = "small", settings: Settings) -> Result:
    """Time ops: their forward pass without autograd, and both passes together.

    Args:
        pattern: shell pattern of their names.
        size: one of `SIZES`.
        settings: where and how often.

    Raises:
        ValueError: for an unknown size, or a pattern that no op matches.
        Unequal: where a variant differs from its reference.
    """
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; {nearest(size, list(SIZES))}")
    ops = [op for name, op in OPS.items() if fnmatchcase(name, pattern)]
    if not ops:
        raise ValueError(f"no op matches {pattern!r}; {nearest(pattern, list(OPS))}")
    with tuned():
        fastest = copy_bandwidth(settings)
        rows = [row for op in ops for row in _rows(op, size, settings, fastest)]
    return Result(
        what=f"ops, {size}",
        conditions=settings.conditions() | {"copy_bytes_per_s": fastest, "size": vars(SIZES[size])},
        rows=rows,
        columns=COLUMNS,
        notes=tuple(_notes(ops, rows, fastest)),
    )


def _rows(op: Op, size: str, settings: Settings, fastest: float) -> list[dict[str, Any]]:
    args = arguments(op, size, settings.place, settings.dtype)
    rows: list[dict[str, Any]] = []
    for backward in (False, True) if op.learns else (False,):
        given = tuple(_leaf(a) if backward else a for a in args)
        with torch.set_grad_enabled(backward):
            verdicts = {name: refuses(*given) for name, (_, refuses) in op.variants.items()}
            steps = {}
            for name, why in ({"reference": None} | verdicts).items():
                if why is None:
                    require_equal(op, name, settings.place)
                    steps[name] = _step(op, name, given, backward, settings.graph)
            times = interleaved(steps, settings.place, n=settings.n)
        least = least_bytes(given, op.reference(*given), backward)
        shared = {"op": op.name, "pass": "both" if backward else "forward"}
        for name, timing in times.items():
            rows.append(
                shared
                | {"variant": name, "ratio": times["reference"].median / timing.median}
                | timing.as_dict()
                | {"least_bytes": least, "of_copy": least / timing.median / fastest}
            )
        refused = op.absent | {name: why for name, why in verdicts.items() if why is not None}
        rows += [shared | {"variant": name, "refused": why} for name, why in refused.items()]
    return rows


def _leaf(a: Any) -> Any:
    if isinstance(a, Tensor) and a.is_floating_point():
        return a.detach().requires_grad_()
    return a


def _notes(ops: list[Op], rows: list[dict[str, Any]], fastest: float) -> Iterator[str]:
    yield f"of copy: least bytes over time, as a share of a copy's {fastest / 1e9:.1f} GB/s here"
    for op in ops:
        if op.name not in MAKE:
            yield f"{op.name} has no sizes: timed on its example"
    for row in rows:
        if "refused" in row:
            yield f"{row['op']} {row['variant']} ({row['pass']}): not timed, {row['refused']}"


def _step(op: Op, name: str, args: tuple[Any, ...], backward: bool, graph: bool) -> Step:
    fn = op.reference if name == "reference" else op.variants[name][0]
    step: Step = partial(_differentiate, fn, args) if backward else partial(fn, *args)
    return graphed(step) if graph else step


def _differentiate(fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Gradients of the first result, as models use it, for every tensor argument."""
    out = results(fn(*args))[0]
    return torch.autograd.grad(out, differentiable(args), torch.ones_like(out), allow_unused=True)


def least_bytes(args: tuple[Any, ...], out: Any, backward: bool) -> int:
    """Memory traffic of any implementation: arguments read and the first result written once.

    With the backward pass, also the gradient of that result read and those of the arguments
    written; what an implementation keeps in between is not counted, because it may be bits.
    """
    given = [a for a in args if isinstance(a, Tensor)]
    once = sum(a.nbytes for a in given) + results(out)[0].nbytes
    again = sum(a.nbytes for a in given if a.requires_grad) + results(out)[0].nbytes
    return once + again if backward else once


def copy_bandwidth(settings: Settings) -> float:
    """Bytes a second, read and written, of a large copy on this device."""
    a = torch.zeros(COPIED // 4, device=settings.place)
    b = torch.empty_like(a)
    timing = interleaved({"copy": lambda: b.copy_(a)}, settings.place, n=max(5, settings.n))
    return 2 * a.nbytes / timing["copy"].median


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "op": lambda r: r["op"],
    "variant": lambda r: r["variant"],
    "pass": lambda r: r["pass"],
    "ms": lambda r: milliseconds(r["median_s"]),
    "quartiles": spread,
    "times faster": lambda r: f"{r['ratio']:.2f}",
    "MB": lambda r: f"{r['least_bytes'] / 1e6:.3g}",
    "of copy": lambda r: f"{r['of_copy']:.1%}",
}
