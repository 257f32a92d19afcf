"""What is learned: a task turns (model, batch) into a loss; it may own a teacher or a decoder."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from saccade._registry import Registry

TASK: Registry[type["Task"]] = Registry("task")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Pictures [B C H W] (or frames [T B C H W]), normalised, and labels [B]."""

    x: Tensor
    y: Tensor


class Task(ABC):
    """Abstract. A subclass is final."""

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """A dict with "loss" (0-d) and whatever else is worth logging."""


@TASK.add("classify")
class Classify(Task):
    """Cross-entropy of the logits averaged over the steps.

    Args:
        label_smoothing: share of the target spread evenly over the classes.
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"got label_smoothing={label_smoothing}, expected a share from 0 up to 1"
            )
        self.label_smoothing = label_smoothing

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Keys "loss" and "correct" (how many of the batch)."""
        logits = model(batch.x)
        loss = cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)
        return {"loss": loss, "correct": (logits.argmax(-1) == batch.y).sum()}


def make_task(part: dict[str, Any]) -> Task:
    """The task that a recipe names."""
    task: Task = TASK.build(part)
    return task


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Logits of each step [T B K], in evaluation mode."""
    model.eval()
    steps: Tensor = model.forward_steps(x)  # type: ignore[operator]
    return steps
