"""One self-contained HTML page from the files of a finished run.

Works from files alone (recipe.yaml, log.jsonl, metrics.json, observations.npz): no model is built
and nothing is measured here.
"""

try:
    import jinja2 as _jinja2  # noqa: F401
    import matplotlib as _matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        f"saccade.report draws with matplotlib and jinja2, and {error.name} is missing; "
        'install both with: pip install "saccade[report]"'
    ) from error

from saccade.report.figures import write_figures
from saccade.report.page import write_report

__all__ = ["write_figures", "write_report"]
