"""Steps that were given to the device, and what is heard of them, if need be a step late."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saccade.train.ahead import Make, ahead
from saccade.train.capture import CudaGraphs, Recorded, announce
from saccade.train.curriculum import Sharpness, stage_at
from saccade.train.devices import tuned
from saccade.train.optim import make_recordable
from saccade.train.randomness import seed_for
from saccade.train.schedule import rate_share
from saccade.train.session import Session
from saccade.train.step import Step, Told
from saccade.train.tasks import Batch


@dataclass(frozen=True, kw_only=True)
class Tally:
    """One step, over all devices.

    Args:
        pieces: what this process saw.
        stop, due: whether some process was asked to stop, or wants to save.
    """

    pieces: list[Batch]
    loss: float
    correct: int
    seen: int
    bad: bool
    stop: bool
    due: bool


@dataclass(frozen=True)
class _Launched:
    pieces: list[Batch]
    numbers: Callable[[], list[float]]

    def land(self) -> Tally:
        loss, right, bad, seen, stop, due = self.numbers()
        return Tally(
            pieces=self.pieces,
            loss=loss / seen,
            correct=int(right),
            seen=int(seen),
            bad=bad > 0,
            stop=stop > 0,
            due=due > 0,
        )


class Flight:
    """Launches steps in order, and lands them in order.

    Args:
        session: whose position is that of the last step that landed.
        make: the batch of a step.
        take: what takes a step.
        sharpness: of the session's model.
    """

    def __init__(
        self, session: Session, make: Make, take: Step | Recorded, sharpness: Sharpness
    ) -> None:
        self.s, self.sharpness, self.next = session, sharpness, session.position.step
        self.make, self.take = make, take
        self.late = _late(session)
        self._up: deque[_Launched] = deque()

    @property
    def at_end(self) -> bool:
        """Whether the last step that was launched ends an epoch."""
        return self.next % len(self.s.batches) == 0

    @property
    def ends_next(self) -> bool:
        """Whether the next one will."""
        return (self.next + 1) % len(self.s.batches) == 0

    def launch(self, stop: bool, due: bool) -> Batch | None:
        """Give the device its next step; a piece of the batch where that did not fit."""
        s, step = self.s, self.next
        began = time.perf_counter()
        pieces = staged(s, self.make(step), step)
        s.position.epoch_waited += time.perf_counter() - began
        self.sharpness.set(stage_at(s.recipe.curriculum, step, s.steps).sharpness)
        # what a model draws, such as dropout, is apart on each device
        torch.manual_seed(seed_for(s.recipe.seed, _purpose(s), step))
        seen = sum(len(piece.y) for piece in pieces)
        told = Told(
            share=rate_share(s.recipe.optim, step, s.steps),
            n=step + 1,
            mine=torch.tensor([seen, stop, due], dtype=torch.float64),
        )
        try:
            said = self.take(pieces, told)
        except torch.OutOfMemoryError:
            return pieces[0]
        self._up.append(_Launched(pieces, fetched(said)))
        self.next += 1
        return None

    def forget(self) -> None:
        """Let go of all that refers to a step."""
        self._up.clear()
        self.take.forget()

    def land(self, leave: int = 0) -> list[Tally]:
        """What is heard of all steps but the last few; waits for them."""
        return [self._up.popleft().land() for _ in range(len(self._up) - leave)]


def staged(s: Session, pieces: Sequence[Batch], step: int) -> list[Batch]:
    """This process's part of the step's batch, as the curriculum has it shown."""
    stage = stage_at(s.recipe.curriculum, step, s.steps)
    T, size = stage.T or None, stage.resized(s.model.frame)
    return [replace(piece, T=T, size=size) for piece in pieces]


def fetched(tensor: Tensor) -> Callable[[], list[float]]:
    """A tensor's numbers as they are now; only who asks for them waits for the device."""
    if tensor.device.type != "cuda":
        numbers: list[float] = tensor.tolist()
        return lambda: numbers
    here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    here.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    arrived.record()

    def read() -> list[float]:
        arrived.synchronize()
        return here.tolist()

    return read


def _purpose(s: Session) -> str:
    return "step" if s.fabric.is_global_zero else f"step on {s.fabric.global_rank}"


@contextmanager
def flying(session: Session) -> Iterator[Flight]:
    """A flight, and the model as sharp as it was built behind it."""
    s, sharpness = session, Sharpness(session.model)
    with ExitStack() as stack:
        stack.callback(sharpness.set, 1.0)
        if s.fabric.device.type == "cuda":
            stack.enter_context(tuned())
        make = stack.enter_context(ahead(s.batches.at, s.steps, s.fabric.device))
        step = Step(s)
        if s.eager:
            announce(s.eager)
            yield Flight(s, make, step, sharpness)
        else:
            make_recordable(s.optimizer, s.fabric.device)
            mix = s.recipe.mix
            soft = bool(mix.mixup or mix.cutmix)
            recorded = Recorded(step, CudaGraphs(s.fabric.device), sharpness, soft)
            yield Flight(s, make, recorded, sharpness)


def _late(s: Session) -> int:
    """How many steps may be under way unheard: enough for a GPU to have work all the time."""
    return 1 if s.fabric.device.type == "cuda" else 0
