"""Charts as SVG that takes its colours and its font from the page around it.

Figures are drawn in stand-in colours, which are then exchanged for CSS variables: one drawing
serves the light and the dark page. Figure sizes are given in px of the page.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

Array = NDArray[Any]

INK, MUTED, RULE, CARD = "#010203", "#010204", "#010205", "#01020a"
BLUE, ORANGE, GREEN, RED = "#010206", "#010207", "#010208", "#010209"
_CSS = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    CARD: "var(--card)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    RED: "var(--red)",
}
_OKABE_ITO_BLUE, _OKABE_ITO_VERMILLION = (0, 114, 178), (213, 94, 0)
_PX = 1 / 72  # an SVG of matplotlib counts 72 units to the inch
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, selectable, in the font of the page
    "svg.hashsalt": "saccade",  # same run, same bytes
    "text.parse_math": False,  # a class may be called "$"
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.titlesize": 13,
    "axes.labelsize": 12,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": RULE,
    "legend.frameon": False,
    "legend.fontsize": 11.5,
}


@dataclass(frozen=True)
class Line:
    """One curve of a line chart."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = BLUE


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # measured in matplotlib's font, shown in the reader's, which may well have the glyph
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _figure(width: int, height: int) -> Figure:
    return Figure(figsize=(width * _PX, height * _PX), layout="constrained")


def _svg(figure: Figure, *, name: str, alt: str) -> Markup:
    """The figure as an <svg> element; `name` keeps its ids apart from those of other figures."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<style .*?</style>", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: (?:(\d+) )?([\d.]+)px [^;\"]*", r"font-size: \2px", text)
    for stand_in, css in _CSS.items():
        text = text.replace(stand_in, css)
    width, height = (round(inches / _PX) for inches in figure.get_size_inches())
    head = (
        f'<svg class="chart" role="img" aria-label="{escape(alt)}" '
        f'viewBox="0 0 {width} {height}" style="max-width: {width}px">'
    )
    return Markup(head + re.sub(r"\n\s*", "\n", text[text.index(">") + 1 :]))


def line_chart(
    lines: Sequence[Line],
    *,
    name: str,
    alt: str,
    title: str,
    xlabel: str = "epoch",
    percent: bool = False,
    size: tuple[int, int] = (362, 250),
) -> Markup:
    """Curves over epochs or steps; `percent` says that the values are fractions."""
    with _style():
        figure = _figure(*size)
        axes = figure.add_subplot()
        for line in lines:
            marker = "o" if len(line.x) <= 12 else None
            axes.plot(
                line.x, line.y, color=line.colour, label=line.label, marker=marker, markersize=4
            )
        axes.set_title(title, loc="left")
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        short = PercentFormatter(1, symbol=" %") if percent else FuncFormatter(_plain)
        axes.yaxis.set_major_formatter(short)
        axes.grid(axis="y", linewidth=0.7)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        if len(lines) > 1:
            axes.legend()
        return _svg(figure, name=name, alt=alt)


def _plain(value: float, _position: int | None) -> str:
    return f"{value:g}"


def confusion_chart(confusion: Array, classes: Sequence[str], *, alt: str) -> Markup:
    """Rows are true classes; blue is right, orange is wrong, depth is the share of the row."""
    K = len(classes)
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    low = 0.25 if K <= 20 else 0.6  # a rare mistake must show in a small cell too
    colours = np.zeros((K, K, 4))
    colours[..., :3] = np.array(_OKABE_ITO_VERMILLION) / 255
    colours[np.eye(K, dtype=bool), :3] = np.array(_OKABE_ITO_BLUE) / 255
    colours[..., 3] = np.where(confusion > 0, low + (1 - low) * np.sqrt(share), 0)
    labels = [_short(name, 16) for name in classes]
    margin = 7 * max(map(len, labels), default=1)
    with _style():
        side = min(max(42 * K, 240), 540)
        figure = _figure(side + margin + 50, side + (margin if K > 5 else 20) + 50)
        axes = figure.add_subplot()
        axes.imshow(colours, interpolation="none")
        every = max(1, -(-K // 40))
        upright = any(len(label) > 3 for label in labels)
        axes.set_xticks(range(0, K, every), labels[::every], rotation=90 if upright else 0)
        axes.set_yticks(range(0, K, every), labels[::every])
        axes.tick_params(length=0, labelsize=12 if K <= 20 else 9)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.spines[:].set_visible(True)
        if K <= 20:
            _cell_texts(axes, confusion, colours[..., 3] > 0.55)
        return _svg(figure, name="confusion", alt=alt)


def _cell_texts(axes: Axes, counts: Array, dark: Array) -> None:
    for i, j in np.argwhere(counts > 0):
        colour = "white" if dark[i, j] else INK
        axes.text(j, i, f"{counts[i, j]}", color=colour, ha="center", va="center", fontsize=11)


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def rate_chart(rates: Array, layers: Sequence[str], steps: Sequence[str], *, alt: str) -> Markup:
    """Firing rates [L, T] in percent, first layer on top."""
    L, T = rates.shape
    cell = 64 if T <= 6 else 26 if T <= 20 else 14
    labels = [_short(path, 48) for path in layers]
    width = 7 * max(map(len, labels), default=1) + cell * T + 30
    with _style():
        figure = _figure(width, 24 * L + 50)
        axes = figure.add_subplot()
        top = max(float(np.nan_to_num(rates).max(initial=0)), 1e-9)
        axes.imshow(rates, cmap="viridis", vmin=0, vmax=top, aspect="auto", interpolation="none")
        axes.set_yticks(range(L), labels)
        axes.set_xticks(range(T), steps)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xticks(np.arange(0.5, T - 1), minor=True)
        axes.set_yticks(np.arange(0.5, L - 1), minor=True)
        axes.tick_params(which="minor", length=0)
        if T <= 20:
            for (i, t), rate in np.ndenumerate(rates):
                bright = rate > 0.6 * top
                text = f"{100 * rate:.1f}" if cell > 40 else f"{100 * rate:.0f}"
                axes.text(
                    t,
                    i,
                    text,
                    color="black" if bright else "white",
                    ha="center",
                    va="center",
                    fontsize=11,
                )
        return _svg(figure, name="rates", alt=alt)


def energy_chart(
    layers: Sequence[str],
    additions: Sequence[float],
    products: Sequence[float],
    paper: Sequence[float] | None,
    *,
    unit: str,
    alt: str,
) -> Markup:
    """Energy per layer, split by operation; a diamond marks what the paper's rule gives."""
    labels = [_short(path, 40) for path in layers]
    y = np.arange(len(layers))
    with _style():
        figure = _figure(590, 22 * len(layers) + 90)
        axes = figure.add_subplot()
        axes.barh(y, additions, color=BLUE, height=0.68, label="additions")
        if any(products):
            axes.barh(
                y,
                products,
                left=additions,
                color=ORANGE,
                height=0.68,
                label="multiply-accumulates",
            )
        if paper is not None:
            axes.plot(
                paper,
                y,
                "D",
                markersize=5,
                color=INK,
                markerfacecolor=CARD,
                label="by the paper's rule",
                linestyle="none",
            )
        axes.set_yticks(y, labels)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"energy per image ({unit})")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        axes.grid(axis="x", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        handles = [*axes.containers, *axes.lines]  # bars first
        figure.legend(handles=handles, loc="outside upper left", ncols=3)
        return _svg(figure, name="energy", alt=alt)


def raster_chart(spikes: Array, *, alt: str) -> Markup:
    """Spikes [T, n] as dots, time to the right; one path, so that thousands of dots stay small."""
    T, n = spikes.shape
    step, row = max(4, min(18, 108 // T)), 3 if n <= 64 else 2
    dots = "".join(f"M{step * t + step // 2} {row * i + row}h0" for t, i in np.argwhere(spikes))
    width, height = step * T, row * (n + 1)
    rules = "".join(f"M{step * t} 0v{height}" for t in range(T + 1))
    return Markup(
        f'<svg class="raster" role="img" aria-label="{escape(alt)}" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}"><path class="rules" d="{rules}"/>'
        f'<path class="dots" stroke-width="{row + 0.4}" d="{dots}"/></svg>'
    )
