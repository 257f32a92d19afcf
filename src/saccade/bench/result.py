"""What a benchmark found: conditions and rows, as a table and as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from saccade.train.files import write_json

WIDTH = 110


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run of `saccade bench`.

    Args:
        what: ops, train or infer.
        conditions: hardware, versions and settings.
        rows: what was measured, in seconds and bytes; or what was "refused", and why.
        columns: title -> format of a row, for the table.
        notes: sentences below the table.
        profile: torch's own table of where the time went, if it was asked for.
    """

    what: str
    conditions: dict[str, Any]
    rows: list[dict[str, Any]]
    columns: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    profile: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "what": self.what,
            "conditions": self.conditions,
            "rows": self.rows,
            "notes": list(self.notes),
            "profile": self.profile,
        }

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.as_dict())

    def __str__(self) -> str:
        console = Console(file=StringIO(), width=WIDTH, color_system=None)
        console.print(self)
        assert isinstance(console.file, StringIO)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        c, hardware = self.conditions, self.conditions["hardware"]
        place = hardware.get("gpu") or f"{hardware['cpu']}, {hardware['threads']} threads"
        words = self.what, place, c["precision"], f"n={c['n']}", f"torch {c['versions']['torch']}"
        yield Text("; ".join(words))
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for i, title in enumerate(self.columns):
            table.add_column(title, justify="left" if i < 2 else "right", no_wrap=True)
        for row in self.rows:
            if "refused" not in row:
                table.add_row(*(Text(show(row)) for show in self.columns.values()))
        yield table
        for note in (*self.notes, *filter(None, [self.profile])):
            yield Text(note)


def milliseconds(seconds: float) -> str:
    """Three digits."""
    return f"{seconds * 1e3:,.3g}"


def spread(row: Mapping[str, Any]) -> str:
    """The quartiles, in ms."""
    return f"{milliseconds(row['q1_s'])} to {milliseconds(row['q3_s'])}"
