"""The lines of a run's log, told to other programs as well: TensorBoard, Weights & Biases.

An adapter is opened with the first line, so that a run that never begins leaves nothing behind.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from saccade._registry import Registry
from saccade.train.checkpoint import Position
from saccade.train.recipe import Recipe
from saccade.train.session import Progress

Tell = Callable[[dict[str, Any]], None]
Adapter = Callable[[Path, Recipe], tuple[Tell, Callable[[], None]]]
LOGS: Registry[Adapter] = Registry("log")
"""Name -> function of run and recipe, which returns how to tell a line and how to end."""
_NEEDS = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


@LOGS.add("tensorboard")
def _tensorboard(run: Path, recipe: Recipe) -> tuple[Tell, Callable[[], None]]:
    writer = import_module(_NEEDS["tensorboard"]).SummaryWriter(str(run / "tensorboard"))

    def tell(line: dict[str, Any]) -> None:
        for name, value in numbers(line).items():
            writer.add_scalar(name, value, line["step"])
        writer.flush()

    return tell, writer.close


@LOGS.add("wandb")
def _wandb(run: Path, recipe: Recipe) -> tuple[Tell, Callable[[], None]]:
    name = run.absolute().name
    # an id of this folder, so that a resumed run goes on in the same curve
    own = f"{name}-{zlib.crc32(str(run.absolute()).encode()):08x}"
    session = import_module(_NEEDS["wandb"]).init(
        project="saccade",
        dir=str(run),
        id=own,
        name=name,
        resume="allow",
        config=asdict(recipe),
    )

    def tell(line: dict[str, Any]) -> None:
        session.log(numbers(line), step=line["step"])

    return tell, session.finish


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """What can be drawn over the steps."""
    return {
        name: float(value)
        for name, value in line.items()
        if isinstance(value, int | float) and name not in ("step", "epochs")
    }


class Told:
    """Progress that also goes to other programs."""

    def __init__(self, progress: Progress, names: Sequence[str], run: Path, recipe: Recipe) -> None:
        self.progress, self.names, self.run, self.recipe = progress, names, run, recipe
        self.open: list[tuple[Tell, Callable[[], None]]] = []

    def step(self, position: Position, steps: int, loss: float) -> None:
        """For the first alone."""
        self.progress.step(position, steps, loss)

    def test(self, shown: int, of: int) -> None:
        """For the first alone."""
        self.progress.test(shown, of)

    def epoch(self, line: dict[str, Any]) -> None:
        """For all of them."""
        self.progress.epoch(line)
        if not self.open:
            self.open = [LOGS[name](self.run, self.recipe) for name in self.names]
        for tell, _ in self.open:
            tell(line)


@contextmanager
def told(progress: Progress, names: Sequence[str], run: Path, recipe: Recipe) -> Iterator[Told]:
    """Progress that is also told to the logs of these names; see `check_logs`."""
    several = Told(progress, names, run, recipe)
    try:
        yield several
    finally:
        for _, end in several.open:
            end()


def check_logs(given: str | None) -> list[str]:
    """The logs of "name,name", each of them known and installed.

    Raises:
        ValueError: for an unknown name; the nearest is named.
        ImportError: where its library is missing.
    """
    names = [name.strip() for name in given.split(",")] if given else []
    for name in names:
        LOGS[name]  # refuses an unknown name
        try:
            import_module(_NEEDS[name])
        except ImportError as error:
            raise ImportError(f"--log {name} needs {name}: pip install saccade[log]") from error
    return names
