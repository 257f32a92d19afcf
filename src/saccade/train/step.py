"""One step of training: the only definition of it, whether it is recorded as a graph or not.

Nothing in it waits for the device or asks it for a number. A step whose loss or gradient is not
finite takes zeros for its gradient, so that the weights are still finite when that is read.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from saccade.data import moved
from saccade.train.devices import joins_by_itself
from saccade.train.gradients import Gradients
from saccade.train.schedule import set_rates
from saccade.train.session import Session
from saccade.train.tasks import Batch


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a step is told beside its pictures; a graph reads tensors in the place of numbers.

    Args:
        share: learning rates over their peaks.
        n: which step it is, from 1.
        mine: what this process adds to the sums: pictures, whether to stop, whether to save [3].
    """

    share: float | Tensor
    n: int | Tensor
    mine: Tensor


class Step:
    """Forward, backward, update and average; what all devices say of it."""

    def __init__(self, session: Session) -> None:
        self.s, self.gradients = session, Gradients(session.model)
        self.optimizer: Any = session.fabric.setup_optimizers(session.optimizer)
        # float16 overflows now and then, and its scaler leaves those steps out
        self.scaled = session.recipe.precision == "16-mixed"

    def forget(self) -> None:
        """Let go of what the last step left."""
        self.gradients.clear()

    def __call__(self, pieces: Sequence[Batch], told: Told) -> Tensor:
        """Sums over all devices [6]: loss, right ones, bad gradients, then `told.mine`."""
        s = self.s
        set_rates(s.optimizer, told.share)
        self.gradients.clear()
        sums = add_gradients(s, pieces)
        bad = self._make_safe(sums[0])
        self.optimizer.step()
        if s.average:
            s.average.follow(s.model, told.n)
        mine = moved(told.mine.to(sums.dtype), sums.device)
        said = torch.cat([sums, bad.to(sums)[None], mine])
        if not s.alone:
            distributed.all_reduce(said)
        return said

    def _make_safe(self, loss: Tensor) -> Tensor:
        """Join, clip and, where one number is not finite, empty the gradient; whether that was."""
        s, clip = self.s, self.s.recipe.optim.clip
        held = self.gradients.gather()
        if not (s.alone or joins_by_itself(s.wrapped)):
            for flat in held:
                distributed.all_reduce(flat)
        if self.scaled:
            if clip:
                s.fabric.clip_gradients(
                    s.wrapped, self.optimizer, max_norm=clip, error_if_nonfinite=False
                )
            return torch.zeros((), device=loss.device)
        norm = self.gradients.norm()
        bad = ~norm.isfinite()
        for tensor in held:
            if clip:
                tensor.mul_((clip / (norm + 1e-6)).clamp(max=1.0).to(tensor.dtype))
            tensor.masked_fill_(bad | ~loss.isfinite(), 0)
        return bad


def add_gradients(s: Session, pieces: Sequence[Batch]) -> Tensor:
    """Add up the gradient of the mean loss; sums over this device's pictures: loss, right ones."""
    exact = torch.float32 if s.fabric.device.type == "mps" else torch.float64
    sums = torch.zeros(2, dtype=exact, device=s.fabric.device)
    # where gradients are averaged over devices, whose parts may differ by a picture
    world = s.fabric.world_size if joins_by_itself(s.wrapped) else 1
    s.wrapped.train()
    for n, piece in enumerate(pieces, 1):
        count = len(piece.y)
        with _apart(s, n < len(pieces)):
            result = s.task(s.wrapped, piece)
            s.fabric.backward(result["loss"] * (count * world / s.batches.size))
        right = result.get("correct", torch.zeros_like(sums[0]))
        sums += torch.stack([result["loss"].detach().to(sums) * count, right.to(sums)])
    return sums


def _apart(s: Session, enabled: bool) -> AbstractContextManager[Any]:
    """Inside this block no gradient waits for another device."""
    if s.alone or not joins_by_itself(s.wrapped):
        return nullcontext()
    return s.fabric.no_backward_sync(s.wrapped, enabled=enabled)
