"""Progress for people: a live bar in a terminal, a line an epoch elsewhere."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from saccade.train.checkpoint import Position


class Live:
    """Shows training and testing on a rich console.

    Use it as a context, so that the bar is taken away however the run ends.
    """

    def __init__(self, console: Console, title: str) -> None:
        self.console, self.title = console, title
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task(title, total=None, status="")

    def __enter__(self) -> "Live":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def step(self, position: Position, steps: int, loss: float) -> None:
        """Move the bar."""
        rate = position.seen / max(position.epoch_seconds, 1e-9)
        status = f"epoch {position.epoch + 1}  loss {loss:.3f}  {rate:,.0f} img/s"
        self.bar.update(self.task, completed=position.step, total=steps, status=status)

    def test(self, shown: int, of: int) -> None:
        """Move the bar of the test."""
        self.bar.update(self.task, completed=shown, total=of, status=f"{shown} of {of} tested")

    def epoch(self, line: dict[str, Any]) -> None:
        """One line an epoch."""
        held = line.get("validation_accuracy")
        text = (
            f"epoch {line['epoch']:>3}/{line['epochs']}  loss {line['loss']:.4f}  "
            f"train {line['accuracy']:6.2%}"
            + (f"  validation {held:6.2%}" if held is not None else "")
            + f"  lr {line['lr']:.2e}  {line['images_per_second']:,.0f} img/s"
            + f"  {bottleneck(line['data_wait'])}"
        )
        self.console.print(text, highlight=False, soft_wrap=True)


def bottleneck(data_wait: float) -> str:
    """Whether data or the model sets the pace.

    Args:
        data_wait: share of the time that was spent waiting for data; it is read ahead, so a
            wait worth naming means that reading does not keep up.
    """
    slower = "data" if data_wait > 0.1 else "model"
    return f"{slower} is the bottleneck ({data_wait:.0%} waiting for data)"
