"""Time and memory of a model against one of its sizes, and whether they grow in proportion."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saccade._registry import nearest
from saccade.attention import Site, SpikingAttention
from saccade.bench.models import COLUMNS, PATHS, bench_model
from saccade.bench.result import Result
from saccade.bench.settings import Settings
from saccade.models import create_model

AXES = ("T", "tokens", "batch", "depth")
LINEAR = 0.1
"""How far from 1 the exponent of something that grows in proportion may lie."""


def bench_scale(
    what: str,
    name: str,
    options: Mapping[str, Any],
    *,
    axis: str,
    values: Sequence[int],
    batch: int = 32,
    paths: Sequence[str] = tuple(PATHS),
    settings: Settings,
) -> Result:
    """`bench_model` at each value of one size, and the exponents of time and memory.

    Args:
        axis: T, tokens (of the attention, by the size of the picture), batch or depth.
        values: at least two.
        what, name, options, batch, paths, settings: as for `bench_model`.

    Raises:
        ValueError: for an unknown axis, fewer than two values, or tokens that no picture has.
    """
    if axis not in AXES:
        raise ValueError(f"unknown scale {axis!r}; {nearest(axis, list(AXES))}")
    if len(set(values)) < 2:
        raise ValueError(f"got {axis}={list(values)}, expected two different numbers or more")
    rows: list[dict[str, Any]] = []
    conditions: dict[str, Any] = {}
    for value in values:
        changed, size = dict(options), batch
        if axis == "batch":
            size = value
        elif axis == "tokens":
            changed["image_size"] = image_size(name, options, value)
        else:
            changed[axis] = value
        result = bench_model(what, name, changed, batch=size, paths=paths, settings=settings)
        rows += [{axis: value} | row for row in result.rows]
        conditions = conditions or result.conditions
    columns = {axis: lambda row: str(row[axis])} | COLUMNS
    notes = tuple(_verdicts(rows, axis))
    title = f"{what} {name} over {axis}"
    conditions = conditions | {"scale": axis}
    return Result(what=title, conditions=conditions, rows=rows, columns=columns, notes=notes)


def image_size(name: str, options: Mapping[str, Any], tokens: int) -> tuple[int, int]:
    """(H, W) of the picture at which the attention has so many tokens; its sides keep their ratio.

    Raises:
        ValueError: where there is no such picture, or no attention with tokens.
    """
    model = create_model(name, **options)
    sites = [m.site for m in model.modules() if isinstance(m, SpikingAttention)]
    sites = [site for site in sites if isinstance(site, Site)]
    if not sites:
        raise ValueError(f"{name!r} has no attention, so tokens are no size of it")
    (h, w), (H, W) = sites[0].grid, model.config.size
    factor = math.isqrt(tokens * h // w)
    rows, columns = factor, tokens // max(1, factor)
    if rows * columns != tokens or rows * w != columns * h:
        raise ValueError(
            f"got tokens={tokens}, expected {h}*{w} times the square of a ratio, "
            f"such as {4 * h * w}"
        )
    return H * rows // h, W * columns // w


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope b of log(value) = a + b log(size), by least squares: 1 is proportional."""
    x, y = [math.log(s) for s in sizes], [math.log(v) for v in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def _verdicts(rows: list[dict[str, Any]], axis: str) -> list[str]:
    found = []
    for path in dict.fromkeys(row["path"] for row in rows):
        mine = [row for row in rows if row["path"] == path]
        sizes = [row[axis] for row in mine]
        words = []
        for title, values in (
            ("time", [row["median_s"] for row in mine]),
            ("memory of a step", [row["peak_bytes"] - row["resting_bytes"] for row in mine]),
        ):
            b = exponent(sizes, values)
            side = "" if abs(b - 1) <= LINEAR else "below " if b < 1 else "above "
            words.append(f"{title} grows as {axis}^{b:.2f} ({side}linear)")
        found.append(f"{path}: {', '.join(words)}")
    return found


def draw(result: Result, path: Path) -> None:
    """Time and memory against the scale, on logarithmic axes, as a picture file.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('the plot needs matplotlib: pip install "saccade[report]"') from error

    axis = result.conditions["scale"]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for plot, (title, scale, key) in zip(
        figure.subplots(1, 2),
        (("ms a step", 1e3, "median_s"), ("peak MiB", 2**-20, "peak_bytes")),
        strict=True,
    ):
        for name in dict.fromkeys(row["path"] for row in result.rows):
            mine = [row for row in result.rows if row["path"] == name]
            plot.plot(
                [row[axis] for row in mine], [row[key] * scale for row in mine], "o-", label=name
            )
        plot.set(xlabel=axis, ylabel=title, xscale="log", yscale="log")
        plot.set_xticks(sorted({row[axis] for row in result.rows}))
        plot.xaxis.set_major_formatter("{x:g}")
        plot.minorticks_off()
        plot.legend()
    figure.suptitle(result.what)
    figure.savefig(path)
