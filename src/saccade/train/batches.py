"""Batches as a function of the step: the same whether a run was interrupted or not.

A batch is that of the whole run, however many processes share it; each works on its part.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from saccade.data import Augment, ImageData, Images, augment, normalise, unit
from saccade.train.devices import Share
from saccade.train.randomness import generator_for
from saccade.train.tasks import Batch


class Source(ABC):
    """Abstract: a split at work, in memory or on disk; one process's part of it."""

    @abstractmethod
    def __len__(self) -> int:
        """Pictures of all processes."""

    @abstractmethod
    def all(self, size: int, share: Share) -> Iterator[tuple[slice, Batch]]:
        """Every picture once, in order, as a test sees it, and where in the split it stands.

        Args:
            size: most pictures a batch.
            share: this process takes a batch of every `world`.
        """


@dataclass(frozen=True, kw_only=True)
class Pictures(Source):
    """A split on a device, kept as the bytes that it came as."""

    images: Tensor
    labels: Tensor
    data: ImageData

    @classmethod
    def of(cls, split: Images, data: ImageData, device: torch.device) -> "Pictures":
        """Move a split to a device."""
        images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
        return cls(images=images.to(device), labels=labels.to(device), data=data)

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, index: Tensor, how: Augment | None, generator: torch.Generator) -> Batch:
        """The pictures of an index [B], augmented and normalised."""
        index = index.to(self.images.device)
        x = unit(self.images[index], self.data.white)
        if how is not None:
            x = augment(x, how, generator)
        return Batch(x=normalise(x, self.data.mean, self.data.std), y=self.labels[index])

    def all(self, size: int, share: Share) -> Iterator[tuple[slice, Batch]]:
        """See `Source`."""
        for place in parts(len(self), size, share):
            index = torch.arange(place.start, place.stop)
            yield place, self.pick(index, None, torch.Generator())


def parts(count: int, size: int, share: Share) -> list[slice]:
    """The batches of a split that a process takes; the last of all may be smaller."""
    starts = range(0, count, size)[share.rank :: share.world]
    return [slice(start, min(start + size, count)) for start in starts]


@dataclass(kw_only=True)
class Order:
    """Which pictures each step shows: every epoch another order.

    Args:
        count: pictures of the split.
        size: pictures a batch; the incomplete batch at the end of an epoch is left out, and a
            split smaller than a batch is one batch.
        seed: of the orders.
    """

    count: int
    size: int
    seed: int

    def __post_init__(self) -> None:
        self.size = min(self.size, self.count)
        self._epoch, self._order = -1, torch.empty(0)

    def __len__(self) -> int:
        return self.count // self.size

    def at(self, step: int) -> Int64[Tensor, " B"]:
        """The numbers of the pictures of a step, counted from the start of the run."""
        epoch, place = divmod(step, len(self))
        if epoch != self._epoch:
            order = generator_for(self.seed, "order", epoch)
            self._epoch, self._order = epoch, torch.randperm(self.count, generator=order)
        return self._order[place * self.size : (place + 1) * self.size]


class Batches(ABC):
    """Abstract: a process's part of shuffled, augmented training batches.

    Args:
        order: which pictures each step shows.
        share: of every batch.

    Raises:
        ValueError: where there are more processes than pictures in a batch.
    """

    def __init__(self, order: Order, share: Share) -> None:
        if order.size < share.world:
            raise ValueError(
                f"got batches of {order.size} for {share.world} devices, expected batch_size, the "
                "pictures of all devices together, to be at least as many"
            )
        self.order, self.share, self.size = order, share, order.size

    def __len__(self) -> int:
        return len(self.order)

    @abstractmethod
    def at(self, step: int) -> Batch:
        """This process's part of the batch of a step."""


class Resident(Batches):
    """Batches of pictures that live on the device.

    Args:
        pictures: the training split.
        size: pictures a batch, over all processes.
        how: random changes.
        seed: of order and changes.
        share: this process's.
    """

    def __init__(
        self, pictures: Pictures, *, size: int, how: Augment, seed: int, share: Share | None = None
    ) -> None:
        order = Order(count=len(pictures), size=size, seed=seed)
        super().__init__(order, share or Share())
        self.pictures, self.how, self.seed = pictures, how, seed

    def at(self, step: int) -> Batch:
        """This process's part of the batch of a step."""
        chance = generator_for(self.seed, "augment", step)
        batch = self.pictures.pick(self.order.at(step), self.how, chance)
        # changes are drawn for the whole batch, so that they are no matter of who shares it
        mine = self.share.of(self.size)
        return Batch(x=batch.x[mine], y=batch.y[mine])
