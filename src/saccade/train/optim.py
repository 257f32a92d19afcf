"""Parameter groups, optimisers and the schedule; the schedule is a function of the step."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from saccade._registry import Registry
from saccade.train.recipe import Optim

OPTIMIZER: Registry[Callable[..., torch.optim.Optimizer]] = Registry("optimizer")


@OPTIMIZER.add("adamw")
def _adamw(groups: Iterable[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=lr)


@OPTIMIZER.add("sgd")
def _sgd(groups: Iterable[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)


def make_optimizer(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """The optimiser of a recipe; parameters of one axis or none are never decayed."""
    learned = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learned if p.dim() > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in learned if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return OPTIMIZER[optim.name](groups, lr=optim.lr)


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """Linear warm-up from 0, then half a cosine down to `optim.final` of the peak.

    Args:
        optim: the recipe's part.
        step: how many steps have been taken.
        steps: how many there will be.
    """
    warm = int(optim.warmup * steps)
    if step < warm:
        return optim.lr * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return optim.lr * (optim.final + (1 - optim.final) * (1 + math.cos(math.pi * done)) / 2)
