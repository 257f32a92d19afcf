"""What to say where a batch does not fit into the memory of a device."""

import gc
import math

import torch
from torch import nn

from saccade.train.synchronised import alone
from saccade.train.tasks import Batch, Task


class TooLarge(RuntimeError):  # noqa: N818  (what is, not what failed)
    """A batch does not fit into the memory of a device."""


def too_large(model: nn.Module, task: Task, batch: Batch, *, size: int, world: int = 1) -> TooLarge:
    """The error to raise, once steps with smaller parts of the batch have been tried.

    Nothing that refers to the failed step may be alive, or its memory is not free.

    Args:
        model: not spread over devices.
        task: gives the loss.
        batch: this device's part of the piece that was too large.
        size: of the whole batch, over all devices and pieces.
        world: number of devices.
    """
    count = len(batch.y)
    with alone(model):
        fits = largest(model, task, batch)
    if not fits:
        return TooLarge(
            f"a batch of {count} pictures does not fit into the memory of the device, nor does one "
            "picture; expected a smaller model or picture, or another precision, such as "
            "bf16-mixed"
        )
    pieces = math.ceil(math.ceil(size / world) / fits)
    return TooLarge(
        f"a batch of {count} pictures does not fit into the memory of the device; the largest "
        f"tried that does is {fits}. accumulate={pieces} takes it in {pieces} pieces and leaves "
        f"batch_size={size} as it is (batch norm then sees the pictures of a piece)"
    )


def largest(model: nn.Module, task: Task, batch: Batch) -> int:
    """The most pictures, halving from the batch, whose forward and backward pass fits; or 0."""
    count = len(batch.y) // 2
    while count and not _fits(model, task, batch, count):
        count //= 2
    return count


def _fits(model: nn.Module, task: Task, batch: Batch, count: int) -> bool:
    learned = [p for p in model.parameters() if p.requires_grad]
    for p in learned:
        p.grad = None
    _free()
    try:
        loss = task(model, batch.part(slice(count)))["loss"]
        # not backward(), which would wake what waits at the parameters to talk to other devices
        torch.autograd.grad(loss, learned, allow_unused=True)
    except torch.OutOfMemoryError:
        return False
    return True


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
