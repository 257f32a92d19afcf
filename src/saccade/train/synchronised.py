"""Batch norm over the joined batch of all processes; models know nothing of it.

It works wherever `torch.distributed` does, on a CPU too. The arithmetic is that of
`saccade.ops.norm_lif.joined`, or of a kernel that joins its own sums.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed, nn

from saccade.nn import JoinedNorm


@contextmanager
def synchronised(model: nn.Module) -> Iterator[None]:
    """Inside this block every `BatchNorm2d` of the model takes the statistics of all processes.

    The modules stay what and where they are, hooks and parameters included; only their class is
    another for a while.
    """
    with _as(model, nn.BatchNorm2d, JoinedNorm) as norms:
        for norm in norms:
            norm.join = distributed.all_reduce  # type: ignore[assignment]
        try:
            yield
        finally:
            for norm in norms:
                del norm.join


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """Inside this block no norm waits for another process."""
    with _as(model, JoinedNorm, nn.BatchNorm2d):
        yield


@contextmanager
def _as(
    model: nn.Module, before: type[nn.Module], inside: type[nn.Module]
) -> Iterator[list[nn.Module]]:
    norms = [m for m in model.modules() if type(m) is before]
    for norm in norms:
        norm.__class__ = inside
    try:
        yield norms
    finally:
        for norm in norms:
            norm.__class__ = before
