"""The learning rate as a function of the step: warm-up, then a named way down."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from saccade._registry import Registry
from saccade.train.recipe import Optim

SCHEDULE: Registry[Callable[..., float]] = Registry("schedule")
"""Name -> function of the share 0..1 of the way down that is done: 1 at the peak, 0 at the end."""


@SCHEDULE.add("constant")
def _constant(done: float) -> float:
    """Stay at the peak; `final` has no say."""
    return 1.0


@SCHEDULE.add("linear")
def _linear(done: float) -> float:
    """A straight line."""
    return 1 - done


@SCHEDULE.add("cosine")
def _cosine(done: float) -> float:
    """Half a cosine (SGDR without restarts, arXiv:1608.03983, Eq. 5)."""
    return (1 + math.cos(math.pi * done)) / 2


@SCHEDULE.add("trapezoid")
def _trapezoid(done: float, *, cooldown: float = 0.2) -> float:
    """Stay at the peak, then a straight line over the last `cooldown` share (arXiv:2405.18392)."""
    if not 0 < cooldown <= 1:
        raise ValueError(f"got cooldown={cooldown}, expected a share above 0 and up to 1")
    return min(1.0, (1 - done) / cooldown)


def rate_share(optim: Optim, step: int, steps: int) -> float:
    """The learning rate over its peak: linear warm-up from 0, then the schedule down to `final`.

    Args:
        optim: the recipe's part.
        step: how many steps have been taken.
        steps: how many there will be.

    Raises:
        ValueError: for an unknown schedule, or an option that it does not take.
    """
    warm = int(optim.warmup * steps)
    done = max(0, step - warm) / max(1, steps - warm)
    left: float = SCHEDULE.build(optim.schedule, done)
    return (step + 1) / warm if step < warm else optim.final + (1 - optim.final) * left


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """The rate `optim.lr` at a step; see `rate_share`."""
    return optim.lr * rate_share(optim, step, steps)


def set_rates(optimizer: torch.optim.Optimizer, share: float | Tensor) -> None:
    """Give every group its own peak (see `make_optimizer`) times the share.

    Where a group holds a tensor for its rate, that is filled; see
    `saccade.train.optim.make_recordable`.
    """
    for group in optimizer.param_groups:
        rate = group["peak_lr"] * share
        if isinstance(group["lr"], Tensor):
            group["lr"].copy_(torch.as_tensor(rate))
        else:
            group["lr"] = rate
