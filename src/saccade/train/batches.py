"""Batches as a function of the step: the same whether a run was interrupted or not.

A batch is that of the whole run. It is cut into pieces, which are taken one after the other, and
every piece is shared by all processes; so no piece depends on how many processes there are.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.functional import one_hot

from saccade.data import Augment, ImageData, Images, Mix, augment, moved, normalise, unit
from saccade.data.mix import mix
from saccade.train.devices import Share
from saccade.train.randomness import generator_for
from saccade.train.tasks import Batch


class Source(ABC):
    """Abstract: a split at work, in memory or on disk; one process's part of it."""

    data: ImageData

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
        index = moved(index, self.images.device)
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


def cut(size: int, share: Share, pieces: int = 1) -> list[slice]:
    """A process's part of each piece of a batch, as places in the whole; none is empty.

    Raises:
        ValueError: where a piece would have fewer pictures than there are processes.
    """
    if size < share.world * pieces:
        raise ValueError(
            f"got batches of {size} for {share.world} devices and accumulate={pieces}, expected "
            f"{share.world * pieces} pictures or more: in each piece one for each device"
        )
    places = []
    for start, stop in pairwise(size * n // pieces for n in range(pieces + 1)):
        mine = share.of(stop - start)
        places.append(slice(start + mine.start, start + mine.stop))
    return places


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a split is shown while a model is trained.

    Args:
        size: pictures a batch, over all processes and pieces.
        how: random changes of each picture.
        mix: blends of the pictures of a batch.
        epochs: how often the split is shown, of which `mix.until` is a share.
        seed: of order, changes and blends.
        share: this process's, of every piece.
        pieces: that a batch is cut into.
    """

    size: int
    how: Augment = field(default_factory=Augment)
    mix: Mix = field(default_factory=Mix)
    epochs: int = 1
    seed: int = 0
    share: Share = field(default_factory=Share)
    pieces: int = 1


class Batches(ABC):
    """Abstract: a process's part of shuffled, augmented, mixed training batches.

    Args:
        source: the training split.
        plan: how it is shown.

    Raises:
        ValueError: see `cut`.
    """

    def __init__(self, source: Source, plan: Plan) -> None:
        self.order = Order(count=len(source), size=plan.size, seed=plan.seed)
        self.plan, self.size, self.K = plan, self.order.size, source.data.num_classes
        self.places = cut(self.size, plan.share, plan.pieces)

    def __len__(self) -> int:
        return len(self.order)

    @property
    def steps(self) -> int:
        """How many there are in all epochs."""
        return self.plan.epochs * len(self)

    @abstractmethod
    def at(self, step: int) -> list[Batch]:
        """This process's part of each piece of the batch of a step, from the start of the run."""

    def _mixed(self, batch: Batch, step: int) -> Batch:
        how = self.plan.mix
        if not (how.mixup or how.cutmix) or step >= round(how.until * self.steps):
            return batch
        hard = one_hot(batch.y, self.K).to(batch.x.dtype)
        x, soft = mix(batch.x, hard, how, generator_for(self.plan.seed, "mix", step))
        return batch if soft is hard else replace(batch, x=x, soft=soft)


class Resident(Batches):
    """Batches of pictures that live on the device."""

    def __init__(self, pictures: Pictures, plan: Plan) -> None:
        super().__init__(pictures, plan)
        self.pictures = pictures

    def at(self, step: int) -> list[Batch]:
        """See `Batches`."""
        chance = generator_for(self.plan.seed, "augment", step)
        whole = self.pictures.pick(self.order.at(step), self.plan.how, chance)
        # changed and mixed before it is shared, so that it is no matter who shares it
        whole = self._mixed(whole, step)
        return [whole.part(place) for place in self.places]
