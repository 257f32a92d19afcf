"""A network in which nothing fires passes almost any test; tests use awake ones."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from saccade.attention import SpikingAttention
from saccade.nn import Neuron, on_spikes

M = TypeVar("M", bound=nn.Module)
LEAST, MOST = 0.02, 0.98
"""Firing rates between which every neuron of a tested network lies."""


def awake(module: M, seed: int = 2) -> M:
    """Draw batch-norm parameters and statistics so that currents straddle the threshold."""
    g = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight.data.uniform_(3, 6, generator=g)
            m.bias.data.uniform_(0.5, 2.0, generator=g)
            m.running_mean.normal_(0, 0.1, generator=g)
            m.running_var.uniform_(0.5, 1.5, generator=g)
        elif isinstance(m, nn.Conv1d):  # a convolution of spikes without a norm behind it
            m.bias.data.uniform_(0.4, 1.2, generator=g)
        elif isinstance(m, SpikingAttention) and m.kind == "gate":  # no dead ReLU, half open
            for p in m.parameters():
                p.data.abs_()
    return module


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


def firing_rates(module: nn.Module, run: Callable[[], Any]) -> dict[str, float]:
    """Mean firing rate of every neuron while `run` runs, by module path."""
    trains: dict[str, list[torch.Tensor]] = {}
    hooks = [
        on_spikes(m, trains.setdefault(n, []).append)
        for n, m in module.named_modules()
        if isinstance(m, Neuron)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return {n: torch.cat(parts).mean().item() for n, parts in trains.items()}


def spikes(*shape: int, seed: int = 1) -> torch.Tensor:
    """Random 0/1 in float64."""
    g = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=g).round().double()


def untaught(module: nn.Module) -> list[str]:
    """Parameters without a gradient; that of a bias before a batch's own norm is 0."""
    grads = {name: p.grad for name, p in module.named_parameters()}
    dead = [name for name, g in grads.items() if g is None or not g.any()]
    return [name for name in dead if grads[name] is None or not name.endswith("conv.bias")]
