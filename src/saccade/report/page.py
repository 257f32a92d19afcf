"""Collects the sections of a run and writes them as one HTML file."""

import json
import os
import shlex
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from saccade.report import sections, watched
from saccade.report.energy import energy
from saccade.report.run import Run, read_run


def write_report(run: Path) -> Path:
    """Read the folder of a finished run, write <run>/report.html, and return its path.

    The page is one file that loads nothing from elsewhere. It appears whole or not at all; an
    older one is replaced.
    """
    folder = Path(run)
    text = render(read_run(folder))
    path = folder / "report.html"
    unfinished = folder / f".report.html.{os.getpid()}"
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def render(run: Run) -> str:
    """The page of a run as HTML text."""
    return _template().render(
        run=run,
        hero=sections.hero(run),
        pictures=sections.pictures(run),
        curves=sections.curves(run),
        samples=sections.samples(run),
        confusion=sections.confusion(run),
        rates=sections.rates(run),
        energy=energy(run),
        attention=watched.attention(run),
        rasters=watched.rasters(run),
        responses=watched.responses(run),
        metrics=json.dumps(run.metrics, indent=2, ensure_ascii=False),
        command=_command(run),
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["breakable"] = _breakable
    return environment.from_string(template_text())


def template_text() -> str:
    """The page without its contents, with its colours."""
    return files("saccade.report").joinpath("page.html").read_text(encoding="utf-8")


def _breakable(path: str) -> Markup:
    """A module path that may be broken after its dots."""
    return Markup(".<wbr>").join(escape(part) for part in path.split("."))


def _command(run: Run) -> str:
    seed: Any = run.metrics.get("seed")
    option = f" --seed {seed}" if isinstance(seed, int) else ""
    return f"saccade train {shlex.quote(run.name + '/recipe.yaml')}{option}"
