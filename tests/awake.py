"""A network in which nothing fires passes almost any test; tests use awake ones."""

import torch
from torch import nn

from saccade.attention._contract import LEAST as LEAST
from saccade.attention._contract import MOST as MOST
from saccade.attention._contract import M, awake, firing_rates, spikes, untaught

__all__ = ["LEAST", "MOST", "awake", "firing_rates", "settled", "spikes", "untaught"]


def settled(module: M, x: torch.Tensor) -> M:
    """Take batch-norm statistics from an input, so that deep layers stay awake on it too."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:
        m.momentum = 1.0
    with torch.no_grad():
        module.train()(x)
    for m in norms:
        m.momentum = 0.1
    return module.eval()
