"""Batches that are made while the device works on the ones before."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from saccade.train.tasks import Batch

DEPTH = 2
"""Batches that lie ready, so that one that takes long does not make the device wait."""
Make = Callable[[int], list[Batch]]


@dataclass(frozen=True)
class _Made:
    """A batch, and what says on its stream that it is there; None where there are no streams."""

    pieces: list[Batch]
    there: torch.cuda.Event | None = None


class Ahead:
    """Makes batches in a thread, on a GPU's stream of its own, before they are asked for.

    A batch is a function of the step, so nobody can tell but by the clock.

    Args:
        make: the batch of a step.
        steps: how many there are.
        device: where batches lie.
    """

    def __init__(self, make: Make, steps: int, device: torch.device) -> None:
        self.make, self.steps, self.device = make, steps, device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            # in front of the work of steps: its kernels are small, and the next step waits for them
            self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ready: deque[tuple[int, Future[_Made]]] = deque()

    def at(self, step: int) -> list[Batch]:
        """The batch of a step; what making it raised is raised here."""
        if self._ready and self._ready[0][0] != step:
            self._drop()
        self._ask(step)
        made = self._ready.popleft()[1].result()
        self._ask(step + 1)
        if self._stream is not None and made.there is not None:
            now = torch.cuda.current_stream(self.device)
            now.wait_event(made.there)
            for tensor in _tensors(made.pieces):
                tensor.record_stream(
                    now
                )  # its memory is not to be written before this work is done
        return made.pieces

    def _ask(self, step: int) -> None:
        first = self._ready[-1][0] + 1 if self._ready else step
        for n in range(first, min(step + DEPTH, self.steps)):
            self._ready.append((n, self._thread.submit(self._work, n)))

    def _work(self, step: int) -> _Made:
        if self._stream is None:
            return _Made(self.make(step))
        with torch.cuda.stream(self._stream):  # its device too, which each thread has for itself
            pieces = self.make(step)
            there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            there.record()
        return _Made(pieces, there)

    def _drop(self) -> None:
        """Forget what is ready; what is being made comes to its end before the next is begun."""
        for _, future in self._ready:
            future.cancel()
        self._ready.clear()

    def close(self) -> None:
        """Make no more; returns when nothing is being made."""
        self._drop()
        self._thread.shutdown(cancel_futures=True)


def _tensors(pieces: list[Batch]) -> Iterator[Tensor]:
    for piece in pieces:
        yield from (t for t in (piece.x, piece.y, piece.soft) if t is not None)


@contextmanager
def ahead(make: Make, steps: int, device: torch.device) -> Iterator[Make]:
    """The same function, read ahead where there is a GPU to keep busy.

    On a CPU the model works on the cores that would make the batches.
    """
    if device.type != "cuda":
        yield make
        return
    made = Ahead(make, steps, device)
    try:
        yield made.at
    finally:
        made.close()
