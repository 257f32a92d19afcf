"""The contract: a task turns (model, batch) into a loss; it may own a teacher or a decoder."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from saccade._registry import Part, Registry
from saccade.models import SpikingModel

TASK: Registry[type["Task"]] = Registry("task")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Pictures [B C H W] (or frames [T B C H W]), normalised, and what they show.

    Args:
        x: the pictures.
        y: labels [B].
        soft: shares of the classes [B K], where pictures were mixed.
        T: steps that the model is shown the pictures for; None leaves that to the model.
        size: (H, W) that they are resized to for it; None leaves them as they are.
    """

    x: Tensor
    y: Tensor
    soft: Tensor | None = None
    T: int | None = None
    size: tuple[int, int] | None = None

    @property
    def target(self) -> Tensor:
        """What cross-entropy takes: shares of the classes, or labels."""
        return self.y if self.soft is None else self.soft

    @property
    def shown(self) -> Tensor:
        """What the model under training sees: pictures, or frames where T is said."""
        x = self.x
        if self.size is not None:
            x = interpolate(x, self.size, mode="bilinear", antialias=True)
        return x if self.T is None else x.expand(self.T, *x.shape)

    def show(self, model: nn.Module, *, per_step: bool = False) -> Tensor:
        """The model's logits [B K], or [T B K] where `per_step`."""
        options = {"per_step": per_step, "any_size": self.size is not None}
        logits: Tensor = model(self.shown, **{k: v for k, v in options.items() if v})
        return logits

    def part(self, which: slice) -> "Batch":
        """Some of the pictures, with all that belongs to them."""
        soft = None if self.soft is None else self.soft[which]
        return replace(self, x=self.x[..., which, :, :, :], y=self.y[which], soft=soft)


class Task(ABC):
    """Abstract. A subclass is final."""

    repeats: bool = True
    """Whether every call does the same operations to tensors of the same shapes, so that one call
    can be recorded and replayed. False for a task that counts its calls, draws from Python's
    chance or decides on a number that it takes from a tensor."""

    def prepare(self, model: SpikingModel) -> None:  # noqa: B027  (most have nothing to do)
        """Called once, with the model on its device, before anything is written.

        Raises:
            ValueError: where the task cannot be learned by this model.
        """

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """A dict with "loss" (0-d, a mean over the batch) and whatever else is worth logging."""


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless the value lies from 0 up to 1."""
    if not 0 <= value < 1:
        raise ValueError(f"got {name}={value}, expected a share from 0 up to 1")


def count_correct(logits: Tensor, batch: Batch) -> Tensor:
    """How many pictures of the batch get their label; of mixed ones, the first picture's."""
    return (logits.argmax(-1) == batch.y).sum()


def make_task(part: Part) -> Task:
    """The task that a recipe names."""
    task: Task = TASK.build(part)
    return task


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Logits of each step [T B K], in evaluation mode."""
    model.eval()
    steps: Tensor = model.forward_steps(x)  # type: ignore[operator]
    return steps
