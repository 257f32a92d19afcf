"""One run under way: what the loop works on, and who is told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule

from saccade.models import SpikingModel
from saccade.train.average import MovingAverage
from saccade.train.batches import Batches, Source
from saccade.train.checkpoint import Position, State
from saccade.train.recipe import Recipe
from saccade.train.tasks import Task


@runtime_checkable
class Progress(Protocol):
    """Who is told how training goes."""

    def step(self, position: Position, steps: int, loss: float) -> None:
        """One step was taken."""

    def epoch(self, line: dict[str, Any]) -> None:
        """One epoch ended; `line` is what the log keeps."""

    def test(self, shown: int, of: int) -> None:
        """So many pictures of the test set were shown."""


@dataclass(kw_only=True)
class Session:
    """One run under way: what the loop works on. With many devices, each process has its own.

    Args:
        model: without what Fabric puts around it.
        wrapped: the model as Fabric runs it; every gradient comes from here.
        eager: why the steps of this run cannot be recorded as a CUDA graph; "" where they can.
    """

    recipe: Recipe
    run: Path
    fabric: Fabric
    model: SpikingModel
    wrapped: _FabricModule
    optimizer: torch.optim.Optimizer
    task: Task
    batches: Batches
    validation: Source | None
    progress: Progress
    eager: str = ""
    average: MovingAverage | None = None
    data: dict[str, Any] = field(default_factory=dict)
    position: Position = field(default_factory=Position)
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """How many there will be."""
        return self.batches.steps

    @property
    def judged(self) -> SpikingModel:
        """What is validated, tested and loaded: the averaged weights, if there are any."""
        return self.average.model if self.average else self.model

    @property
    def state(self) -> State:
        """What a checkpoint keeps, the position aside."""
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        average = self.average.model if self.average else None
        return State(model=self.model, optimizer=self.optimizer, average=average, scaler=scaler)

    @property
    def alone(self) -> bool:
        """Whether there is one device."""
        return self.fabric.world_size == 1
