"""The sections that show single samples: attention maps, spike rasters, responses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.report import plots, quantities
from saccade.report.pixels import heat, unit
from saccade.report.run import Layer, Run, token_grid

Section = dict[str, Any]
# about 1 MB of page: room for all heads and steps of 64 tokens, for a few of 196
_MATRIX_PIXELS = 400_000


def attention(run: Run) -> Section | None:
    """How much each token is listened to, over the image; and one layer's full matrices."""
    layers = run.observations.attention
    if not layers:
        return None
    grid = run.observations.get("grid")
    panels = [
        {"sample": s, "layers": [_listened(layer, s, grid) for layer in _having(layers, s)]}
        for s in range(max(len(layer.values) for layer in layers))
    ]
    steps = max(layer.values.shape[1] for layer in layers)
    return {"panels": panels, "steps": steps, "matrices": _matrices(layers)}


def _having(layers: Sequence[Layer], s: int) -> list[Layer]:
    return [layer for layer in layers if s < len(layer.values)]


def _listened(layer: Layer, s: int, grid: NDArray[Any] | None) -> Section:
    """Sum over the query tokens (rows), mean over heads; one scale for all steps of the layer."""
    scores = layer.values[s].astype(np.float64).sum(-2).mean(1)
    T, N = scores.shape
    if grid is None:
        side = round(N**0.5)
        H, W = (side, side) if side * side == N else (1, N)
    else:
        H, W = token_grid(grid, layer)
    maps = unit(scores).reshape(T, H, W)
    return {
        "path": layer.path,
        "aspect": f"{W} / {H}",
        "maps": [heat(m, overlay=True) for m in maps],
        "top": quantities.digits(float(np.nan_to_num(scores).max(initial=0))),
    }


def _matrices(layers: Sequence[Layer]) -> Section | None:
    """All steps and as many heads as fit of the last layer, for the first sample.

    The page opens on the step and head that listen most: many hear nothing.
    """
    layer = next((x for x in reversed(layers) if len(x.values)), None)
    if layer is None or not layer.values[0].size:
        return None
    scores = layer.values[0]
    T, h, N, _ = scores.shape
    room = max(1, _MATRIX_PIXELS // (N * N))
    steps = min(T, room)
    heads = max(1, min(h, room // steps))
    drawn = np.nan_to_num(scores[:steps, :heads])
    shown = unit(drawn)
    t, head = (int(i) for i in np.unravel_index(drawn.sum((-2, -1)).argmax(), (steps, heads)))
    return {
        "path": layer.path,
        "N": N,
        "first": {"t": t, "head": head},
        "steps": steps,
        "heads": heads,
        "all_heads": h,
        "frames": [
            {"t": t, "head": i, "address": heat(shown[t, i])}
            for t in range(steps)
            for i in range(heads)
        ],
        "bottom": quantities.digits(float(drawn.min(initial=0))),
        "top": quantities.digits(float(drawn.max(initial=0))),
    }


def rasters(run: Run) -> Section | None:
    """Which neuron fires at which step."""
    layers = [layer for layer in run.observations.rasters if layer.values.size]
    if not layers:
        return None
    panels = []
    for s in range(max(len(layer.values) for layer in layers)):
        drawn = []
        for layer in _having(layers, s):
            spikes = layer.values[s] > 0
            rate, (T, n) = quantities.percent(float(spikes.mean())), spikes.shape
            alt = f"{layer.path}: {n} neurons, {T} steps, {rate} of the dots are spikes"
            drawn.append(
                {
                    "path": layer.path,
                    "chart": plots.raster_chart(spikes, alt=alt),
                    "rate": rate,
                    "n": n,
                }
            )
        panels.append({"sample": s, "layers": drawn})
    return {"panels": panels}


def responses(run: Run) -> Section | None:
    """Where on the grid a layer fires, averaged over steps and channels."""
    layers = [layer for layer in run.observations.responses if layer.values.size]
    if not layers:
        return None
    panels = []
    for s in range(max(len(layer.values) for layer in layers)):
        drawn = []
        for layer in _having(layers, s):
            values = layer.values[s]
            H, W = values.shape
            drawn.append(
                {
                    "path": layer.path,
                    "map": heat(unit(values)),
                    "aspect": f"{W} / {H}",
                    "size": f"{H} x {W}",
                    "top": quantities.digits(float(np.nan_to_num(values).max(initial=0))),
                }
            )
        panels.append({"sample": s, "layers": drawn})
    return {"panels": panels}
