"""Batches as a function of the step: the same whether a run was interrupted or not."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saccade.data import Augment, ImageData, Images, Mix, augment, normalise, unit
from saccade.data.mix import mix
from saccade.train.randomness import generator_for
from saccade.train.tasks import Batch


@dataclass(frozen=True, kw_only=True)
class Pictures:
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

    def all(self, size: int) -> list[Batch]:
        """Every picture once, in order."""
        nothing = torch.Generator()
        return [self.pick(i, None, nothing) for i in torch.split(torch.arange(len(self)), size)]


class Batches:
    """Shuffled, augmented training batches; the incomplete one at the end of an epoch is left out.

    Args:
        pictures: the training split.
        size: pictures a batch; a set smaller than that is one batch.
        how: random changes.
        seed: of order and changes.
    """

    def __init__(self, pictures: Pictures, *, size: int, how: Augment, seed: int) -> None:
        self.pictures, self.how, self.seed = pictures, how, seed
        self.size = min(size, len(pictures))
        self._epoch, self._order = -1, torch.empty(0)

    def __len__(self) -> int:
        return len(self.pictures) // self.size

    def at(self, step: int) -> Batch:
        """The batch of a step, counted from the start of the run."""
        epoch, place = divmod(step, len(self))
        if epoch != self._epoch:
            order = generator_for(self.seed, "order", epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.pictures), generator=order)
        index = self._order[place * self.size : (place + 1) * self.size]
        return self.pictures.pick(index, self.how, generator_for(self.seed, "augment", step))


def mixed(batch: Batch, how: Mix, K: int, generator: torch.Generator) -> Batch:
    """The batch with its pictures and labels blended; K classes."""
    hard = torch.nn.functional.one_hot(batch.y, K).to(batch.x.dtype)
    x, soft = mix(batch.x, hard, how, generator)
    return batch if soft is hard else replace(batch, x=x, soft=soft)
