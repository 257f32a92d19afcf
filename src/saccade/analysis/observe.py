"""Keep what a few samples do inside a model, for pictures: attention, rasters, responses."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saccade.attention import SpikingAttention
from saccade.nn import Neuron, Projection, on_spikes
from saccade.nn.folded import Folded

Arrays = dict[str, np.ndarray]


@torch.no_grad()
def observe(
    model: nn.Module, x: Tensor, *, neurons: int = 96, layers: int = 4, responses: int = 10
) -> Arrays:
    """Run `x` once and keep arrays for plots, batch first.

    Args:
        model: any model with neurons; it runs in the mode that it is in.
        x: pictures [B C H W] or frames [T B C H W].
        neurons: how many neurons of a layer a raster shows, at most.
        layers: how many layers have a raster; evenly spaced in depth.
        responses: how many layers have a response map; likewise.

    Returns:
        attention_<i> [B T h N N] with attention_<i>_path, raster_<i> [B T n] and
        response_<i> [B H W] likewise, and grid (H, W) of the first attention map.
    """
    trains: dict[str, list[Tensor]] = defaultdict(list)
    inputs: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        return lambda module, args: inputs.__setitem__(path, args[0].detach())

    mixers = {p: m for p, m in model.named_modules() if isinstance(m, SpikingAttention)}
    hooks = [m.register_forward_pre_hook(keep(p)) for p, m in mixers.items()]
    for path, module in model.named_modules():
        if isinstance(module, Neuron):
            hooks.append(on_spikes(module, trains[path].append))
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    spikes = {path: torch.cat(parts) for path, parts in trains.items() if parts}
    # neurons inside an attention may have heads and tokens for axes; projections have the grid
    maps = {f"{p}.neuron" for p, m in model.named_modules() if isinstance(m, Projection | Folded)}
    arrays = _maps(mixers, inputs)
    return arrays | _rasters(spikes, neurons, layers) | _responses(spikes, maps, responses)


def _maps(mixers: dict[str, SpikingAttention], inputs: dict[str, Tensor]) -> Arrays:
    arrays: Arrays = {}
    for path, x in inputs.items():
        scores = mixers[path].scores(x)
        if scores is None:
            continue
        i = len(arrays) // 2
        arrays[f"attention_{i}"] = _batch_first(scores).float().numpy()
        arrays[f"attention_{i}_path"] = np.array(path)
    if arrays:
        first = inputs[str(arrays["attention_0_path"])]
        arrays["grid"] = np.array(first.shape[-2:], dtype=np.int64)
    return arrays


def _rasters(spikes: dict[str, Tensor], neurons: int, layers: int) -> Arrays:
    arrays: Arrays = {}
    for i, path in enumerate(_spaced(list(spikes), layers)):
        trains = _batch_first(spikes[path]).flatten(2)
        pick = torch.linspace(0, trains.shape[-1] - 1, min(neurons, trains.shape[-1])).long()
        arrays[f"raster_{i}"] = trains[..., pick].to(torch.uint8).numpy()
        arrays[f"raster_{i}_path"] = np.array(path)
    return arrays


def _responses(spikes: dict[str, Tensor], maps: set[str], count: int) -> Arrays:
    arrays: Arrays = {}
    planar = [path for path in spikes if path in maps]
    for i, path in enumerate(_spaced(planar, count)):
        arrays[f"response_{i}"] = _batch_first(spikes[path]).mean((1, 2)).float().numpy()
        arrays[f"response_{i}_path"] = np.array(path)
    return arrays


def _batch_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1).cpu()


def _spaced(names: list[str], count: int) -> Iterable[str]:
    """At most `count` of the names, evenly spaced, the first and the last among them."""
    if len(names) <= count:
        return names
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]
