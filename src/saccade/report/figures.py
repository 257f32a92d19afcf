"""The charts and tables of a report as files of their own, for a paper."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saccade.report.page import render, template_text
from saccade.report.run import Run, read_run

_FONT = "Arial, 'Liberation Sans', sans-serif"
_SPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def write_figures(run: Path, folder: Path) -> list[Path]:
    """Write each chart of a run's report as SVG, on white, and its numbers as CSV.

    Args:
        run: folder of a finished run.
        folder: is made where it is not there; files of the same names are replaced.

    Returns:
        the files: loss.svg, accuracy.svg, confusion.svg, rates.svg, energy.svg and so on, for what
        the run has kept; curves.csv (an epoch a row), layers.csv (operations and energy an image, a
        layer a row), rates.csv (firing rates, a layer a row, a step a column), confusion.csv (a
        true class a row).

    Raises:
        ValueError: for a folder that holds no finished run.
    """
    found = read_run(Path(run))
    texts = {f"{name}.svg": svg for name, svg in _charts(render(found))}
    texts |= {f"{name}.csv": _csv(rows) for name, rows in _tables(found) if rows}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")
    return [folder / name for name in texts]


def _charts(page: str) -> Iterable[tuple[str, str]]:
    """Name and text of each chart of a page, in the colours that it has on white."""
    (light,) = re.findall(r":root \{ (--page.*?)\}", template_text(), re.S)[:1]
    colours = dict(re.findall(r"(--\w+): (#\w+);", light))
    for svg in re.findall(r'<svg class="chart".*?</svg>', page, re.S):
        named = re.search(r'\bid="([\w-]+)-figure_1"', svg)
        assert named is not None
        for name, colour in colours.items():
            svg = svg.replace(f"var({name})", colour)
        svg = svg.replace("currentColor", colours["--ink"])
        width, height = re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0]
        size = f'width="{width}" height="{height}" font-family="{_FONT}"'
        yield named[1], re.sub(r'<svg class="chart"', f"<svg {_SPACES} {size}", svg, count=1) + "\n"


def _tables(run: Run) -> Iterable[tuple[str, list[Mapping[str, Any]]]]:
    seen = run.observations
    yield "curves", list(run.log)
    yield "layers", list(run.metrics.get("layers") or [])
    rates, neurons = seen.get("rates"), seen.get("neurons")
    if rates is not None and neurons is not None:
        yield "rates", [_row("path", str(n), r) for n, r in zip(neurons, rates, strict=True)]
    if (counts := seen.get("confusion")) is not None:
        names = [seen.class_name(k) for k in range(len(counts))]
        rows = zip(names, counts, strict=True)
        yield "confusion", [_row("class", n, row, names) for n, row in rows]


def _row(
    key: str, name: str, values: Sequence[Any], columns: Sequence[str] | None = None
) -> dict[str, Any]:
    columns = [f"t={t}" for t in range(1, len(values) + 1)] if columns is None else columns
    return {key: name} | {c: v.item() for c, v in zip(columns, values, strict=True)}


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """With a column for each key of any row."""
    text = io.StringIO()
    keys = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(text, list(keys), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
