"""Why a run diverged: the first layer that is not finite, and those that are silent or full."""

from typing import Any

import torch
from torch import Tensor, nn

from saccade.nn import Neuron
from saccade.train.devices import whole

SILENT, SATURATED = 0.001, 0.999
"""Firing rates below and above which a layer passes nothing on."""


class Diverged(RuntimeError):  # noqa: N818  (what happened, not whose fault it is)
    """Training stopped because the loss or the weights are no longer finite."""


@torch.no_grad()
def diagnose(model: nn.Module, x: Tensor) -> str:
    """Run `x` once more and name the layers to look at.

    Args:
        model: as it was when the loss stopped being finite.
        x: the batch that showed it.
    """
    found: dict[str, list[str]] = {"not finite": [], "silent": [], "saturated": []}
    for name, p in model.named_parameters():
        if not whole(p).isfinite().all():
            found["not finite"].append(f"{name} (weights)")
    for name, b in model.named_buffers():
        if not b.isfinite().all():
            found["not finite"].append(f"{name} (statistics)")

    def look(path: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            out = out[0] if isinstance(out, tuple) else out
            if isinstance(out, Tensor) and not out.isfinite().all():
                found["not finite"].append(path)
            elif isinstance(module, Neuron):
                rate = out.mean().item()
                if rate < SILENT:
                    found["silent"].append(path)
                elif rate > SATURATED:
                    found["saturated"].append(path)

        return hook

    leaves = [(p, m) for p, m in model.named_modules() if p and not list(m.children())]
    neurons = [(p, m) for p, m in model.named_modules() if isinstance(m, Neuron)]
    hooks = [m.register_forward_hook(look(p)) for p, m in dict(leaves + neurons).items()]
    try:
        model(x, any_size=True)
    finally:
        for hook in hooks:
            hook.remove()
    if not x.isfinite().all():
        return "the input itself is not finite"
    named = [f"{what}: {_some(paths)}" for what, paths in found.items() if paths]
    return "; ".join(named) or "every layer is finite and fires: the loss itself overflowed"


def _some(paths: list[str], most: int = 4) -> str:
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more
