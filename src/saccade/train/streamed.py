"""Splits that are read from disk while the model works, by worker processes.

A picture depends on (seed, epoch, number) alone, so it is no matter how many workers read, which
process of a run shows it, or where a run was interrupted.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from multiprocessing import forkserver
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from saccade.data import Augment, ImageData, Images, Split, Stream, augment, normalise, unit
from saccade.train.batches import Batches, Order, Pictures, Plan, Resident, Source, parts
from saccade.train.devices import Share
from saccade.train.randomness import generator_for, seed_for
from saccade.train.tasks import Batch

_AHEAD = 4
"""Batches that every worker prepares in advance."""
Place = tuple[int, int]
"""Epoch, or -1 for a test; and number of a picture."""


@dataclass(frozen=True, kw_only=True)
class Streamed(Source):
    """A split on disk, for a device.

    Args:
        split: what to read.
        data: whose split it is.
        device: where batches go.
        workers: processes that decode; 0 decodes in this one. See `default_workers`.
    """

    split: Stream
    data: ImageData
    device: torch.device
    workers: int

    def __len__(self) -> int:
        return len(self.split)

    def all(self, size: int, share: Share) -> Iterator[tuple[slice, Batch]]:
        """See `Source`."""
        places = parts(len(self), size, share)
        wanted = [[(-1, n) for n in range(p.start, p.stop)] for p in places]
        yield from zip(places, self.batches(_Reader(split=self.split), wanted), strict=True)

    def batches(self, reader: "_Reader", wanted: Any) -> Iterator[Batch]:
        """Batches of places, in their order.

        Raises:
            ValueError: naming the picture that could not be read.
        """
        loader = DataLoader(
            reader,
            batch_sampler=wanted,
            collate_fn=_stack,
            num_workers=self.workers,
            prefetch_factor=_AHEAD if self.workers else None,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context=_start_method() if self.workers else None,
            worker_init_fn=_undisturbed,
            generator=torch.Generator(),
        )
        for pixels, labels, error in loader:
            if error:
                raise ValueError(error)
            x = unit(pixels.to(self.device, non_blocking=True), self.data.white)
            x = normalise(x, self.data.mean, self.data.std)
            yield Batch(x=x, y=labels.to(self.device, non_blocking=True))


class FromDisk(Batches):
    """Batches that are read ahead of the steps that ask for them; see `Batches`.

    The workers change each picture with its own chance. Blends are drawn for a whole batch, but
    the partners of this process's pictures are among them.
    """

    def __init__(self, pictures: Streamed, plan: Plan) -> None:
        super().__init__(pictures, plan)
        self.pictures = pictures
        self.reader = _Reader(split=pictures.split, how=plan.how, seed=plan.seed)
        if pictures.workers:
            _start_method()  # now, because batches may be asked for from another thread
        self._next = -1
        self._stream: Iterator[Batch] = iter(())

    def at(self, step: int) -> list[Batch]:
        """See `Batches`; another step than the next one starts anew."""
        if step != self._next:
            wanted = _Wanted(replace(self.order), self.places, step)
            self._stream = self.pictures.batches(self.reader, wanted)
        self._next = step + 1
        mine = self._mixed(next(self._stream), step)
        ends = accumulate((place.stop - place.start for place in self.places), initial=0)
        return [mine.part(slice(start, stop)) for start, stop in pairwise(ends)]


@dataclass
class _Wanted:
    """The places of a process's part of every batch from a step on, without an end."""

    order: Order
    places: list[slice]
    step: int

    def __iter__(self) -> Iterator[list[Place]]:
        step = self.step
        while True:
            numbers = self.order.at(step)
            epoch = step // len(self.order)
            yield [(epoch, int(n)) for place in self.places for n in numbers[place]]
            step += 1


@dataclass(frozen=True, kw_only=True)
class _Reader(Dataset[Any]):
    """What a worker does with a place."""

    split: Stream
    how: Augment | None = None
    seed: int = 0

    def __getitem__(self, place: Place) -> tuple[Tensor, int, str]:
        """Pixels uint8 [C H W], label, and what went wrong."""
        epoch, n = place
        label = int(self.split.labels[n])
        try:
            return self._read(epoch, n), label, ""
        except (ValueError, OSError) as error:  # raised in a worker, it would lose its words
            return torch.zeros(self.split.shape, dtype=torch.uint8), label, str(error)

    def _read(self, epoch: int, n: int) -> Tensor:
        if self.how is None:
            return torch.from_numpy(self.split.one(n))
        count = epoch * len(self.split) + n
        chance = np.random.default_rng(seed_for(self.seed, "crop", count))
        pixels = torch.from_numpy(self.split.one(n, chance))
        if self.how == Augment():
            return pixels
        x = augment(unit(pixels[None], 255.0), self.how, generator_for(self.seed, "change", count))
        return x[0].mul(255).round().clamp(0, 255).to(torch.uint8)


def _start_method() -> str:
    """Never by forking this process: a worker would inherit its threads and their locks.

    Workers are forked from a process that has imported this module and does nothing else. Ctrl-C
    reaches every process of a terminal; it and its workers do not hear it, from their very
    start, and end when the run does.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    multiprocessing.set_forkserver_preload([__name__])
    if threading.current_thread() is not threading.main_thread():  # signals are not ours
        return "forkserver"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
    return "forkserver"


def _undisturbed(worker: int) -> None:
    """As above, where workers are not forked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stack(samples: Sequence[tuple[Tensor, int, str]]) -> tuple[Tensor, Tensor, str]:
    """A batch, and the first thing that went wrong in it."""
    pixels, labels, errors = zip(*samples, strict=True)
    return torch.stack(pixels), torch.tensor(labels), next(filter(None, errors), "")


def source_of(split: Split, data: ImageData, device: torch.device, workers: int | None) -> Source:
    """A split at work: on the device where it is in memory already, else read as it is needed."""
    if isinstance(split, Images):
        return Pictures.of(split, data, device)
    assert isinstance(split, Stream)
    count = default_workers() if workers is None else workers
    return Streamed(split=split, data=data, device=device, workers=count)


def batches_of(source: Source, plan: Plan) -> Batches:
    """Training batches of a split at work."""
    if isinstance(source, Pictures):
        return Resident(source, plan)
    assert isinstance(source, Streamed)
    return FromDisk(source, plan)


def default_workers() -> int:
    """A worker for each core that a process of this machine has, but one; at most 8."""
    cores = os.cpu_count() or 1
    return max(1, min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))
