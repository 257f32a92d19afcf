"""A whole split, shown once: each device takes its share of the batches, and sums are of all."""

from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain, islice
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.functional import cross_entropy

from saccade.analysis import record
from saccade.models import SpikingModel
from saccade.ops import rehearse
from saccade.train.batches import Source
from saccade.train.devices import Share, gathered, share_of, summed
from saccade.train.tasks import Batch, predict

_BATCH = 256


def evaluate(
    model: SpikingModel,
    source: Source,
    *,
    fabric: Fabric | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Accuracy, loss, confusion and everything that `record` counts, over a whole split.

    Args:
        model: whole, not spread over devices.
        source: the split.
        fabric: whose devices share the work; every process must call this.
        tell: is told after each batch how far in the split it stood, and how long the split is.

    Returns:
        the same on every device: "accuracy", "loss", "confusion" [K K] (row: class, column:
        answer), "answers" and "labels" [N], "steps_accuracy" [T] (of the mean up to each step),
        "recording".
    """
    share = share_of(fabric) if fabric else Share()
    T, N, K = model.config.T, len(source), model.config.num_classes
    # a column a picture, 0 where another device shows it: label, answer, loss, steps
    table = torch.zeros(3 + T, N, dtype=torch.float64)
    batches = source.all(_BATCH, share)
    opening = list(islice(batches, 1))
    for _, batch in opening:
        _rehearse(model, batch, fabric)
    with record(model) as seen, torch.no_grad():
        for place, batch in chain(opening, batches):
            with fabric.autocast() if fabric else nullcontext():
                steps = predict(model, batch.x).float().cpu()
            table[:, place] = _columns(steps, batch.y.cpu())
            if tell:
                tell(place.stop, N)
    if fabric and share.world > 1:
        table = summed(fabric, table)
        first, *others = gathered(fabric, seen)
        for other in others:
            first.add(other)
        seen = first
    labels, answers = table[:2].long()
    return {
        "accuracy": float((answers == labels).double().mean()),
        "loss": float(table[2].mean()),
        "confusion": torch.bincount(labels * K + answers, minlength=K * K).reshape(K, K).numpy(),
        "answers": answers.numpy(),
        "labels": labels.numpy(),
        "steps_accuracy": table[3:].mean(-1).numpy(),
        "recording": seen,
    }


def _rehearse(model: SpikingModel, batch: Batch, fabric: Fabric | None) -> None:
    """Have the kernels compiled that such batches take; what is counted is thrown away."""
    with record(model), fabric.autocast() if fabric else nullcontext():
        rehearse(lambda: predict(model, batch.x), model, batch.x.device)


def _columns(steps: Tensor, y: Tensor) -> Tensor:
    """Label, answer, loss and whether each step's mean so far is right, of logits [T B K]."""
    mean = steps.mean(0)
    loss = cross_entropy(mean, y, reduction="none")
    heard = steps.cumsum(0).argmax(-1) == y
    return torch.cat([torch.stack([y, mean.argmax(-1), loss]), heard]).double()
