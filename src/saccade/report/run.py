"""Reads the folder of a finished run and checks it, so that every later step can trust it."""

import json
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# letters are sizes that must agree between the arrays of one file; y x are the pixels of an image
_SHAPES: dict[str, tuple[str, ...]] = {
    "classes": ("K",),
    "confusion": ("K", "K"),
    "sample_images": ("S", "C", "y", "x"),
    "sample_labels": ("S",),
    "sample_probabilities": ("S", "K"),
    "neurons": ("L",),
    "rates": ("L", "T"),
    "steps_accuracy": ("T",),
    "grid": ("2",),
}
# sizes of a layer are its own: layers of one model may differ in steps, heads and grid
_LAYER_SHAPES: dict[str, tuple[str, ...]] = {
    "attention": ("S'", "T", "h", "N", "N"),
    "raster": ("S'", "T", "n"),
    "response": ("S'", "H", "W"),
}
_TEXTS = ("classes", "neurons")


@dataclass(frozen=True)
class Layer:
    """What was seen at one module: its path and an array whose first axis is the sample."""

    path: str
    values: Array


@dataclass(frozen=True)
class Observations:
    """The arrays of observations.npz by name (any may be absent) and the layers of each kind."""

    arrays: Mapping[str, Array]
    attention: tuple[Layer, ...] = ()
    rasters: tuple[Layer, ...] = ()
    responses: tuple[Layer, ...] = ()

    def get(self, name: str) -> Array | None:
        """The array of that name, or None where the run did not keep it."""
        return self.arrays.get(name)

    def class_name(self, k: int) -> str:
        """Name of class k; its number where the run names no classes."""
        classes = self.get("classes")
        return str(k) if classes is None else str(classes[k])


@dataclass(frozen=True)
class Run:
    """A finished run as its files tell it."""

    name: str
    metrics: Mapping[str, Any]
    log: tuple[Mapping[str, Any], ...]
    recipe: str | None
    observations: Observations


def read_run(folder: Path) -> Run:
    """Read and check the files of a run; only metrics.json is indispensable."""
    recipe = folder / "recipe.yaml"
    return Run(
        name=folder.resolve().name,
        metrics=_read_metrics(folder),
        log=_read_log(folder / "log.jsonl"),
        recipe=_read_text(recipe) if recipe.is_file() else None,
        observations=_read_observations(folder / "observations.npz"),
    )


def number(value: Any) -> float | None:
    """The value as a finite float; None for anything else (absent, null, NaN, text)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"got {path} that is not UTF-8 ({error}); expected a text file") from error


def _read_metrics(folder: Path) -> Mapping[str, Any]:
    path = folder / "metrics.json"
    if not path.is_file():
        raise ValueError(
            f"got {folder} without metrics.json; expected the folder of a finished run"
        )
    try:
        metrics = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"got {path} that is not JSON ({error}); expected one object") from error
    if not isinstance(metrics, dict):
        raise ValueError(f"got {path} holding a {type(metrics).__name__}; expected one object")
    if not isinstance(metrics.get("recipe"), str):
        raise ValueError(f"got {path} without the text 'recipe'; expected the name of the recipe")
    accuracy = number(metrics.get("test_accuracy"))
    if accuracy is None or not 0 <= accuracy <= 1:
        raise ValueError(
            f"got {path} with test_accuracy {metrics.get('test_accuracy')!r}; "
            "expected a number from 0 to 1"
        )
    _check_parts(path, metrics)
    return metrics


def _check_parts(path: Path, metrics: Mapping[str, Any]) -> None:
    for key in ("firing_rates", "paper_rule", "energy_constants", "versions", "hardware"):
        if not isinstance(metrics.get(key) or {}, dict):
            raise ValueError(f"got {path} with {key} {metrics[key]!r}; expected an object")
    if not isinstance(metrics.get("uncounted") or [], list):
        raise ValueError(f"got {path} with uncounted {metrics['uncounted']!r}; expected a list")
    layers = metrics.get("layers") or []
    if not isinstance(layers, list) or not all(
        isinstance(layer, dict) and isinstance(layer.get("path"), str) for layer in layers
    ):
        raise ValueError(f"got {path} with other layers; expected objects that have a 'path'")


def _read_log(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The epochs in order; a last line cut off in the middle (a run that was killed) is dropped."""
    if not path.is_file():
        return ()
    lines = [line for line in _read_text(path).splitlines() if line.strip()]
    epochs = []
    for i, line in enumerate(lines, start=1):
        try:
            epoch = json.loads(line)
        except json.JSONDecodeError as error:
            if i == len(lines):
                break
            raise ValueError(
                f"got {path} whose line {i} is not JSON ({error}); expected one object per line"
            ) from error
        if not isinstance(epoch, dict):
            raise ValueError(f"got {path} whose line {i} is {line!r}; expected an object")
        epochs.append(epoch)
    return tuple(epochs)


def _read_observations(path: Path) -> Observations:
    if not path.is_file():
        return Observations({})
    try:
        with path.open("rb") as file:  # numpy leaves a path open that it fails to read
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                raise ValueError("it holds one array")
            arrays = {name: content[name] for name in content.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"got {path} that cannot be read ({error}); expected an .npz file without pickles"
        ) from error
    sizes = {"2": 2}
    known = {name: arrays[name] for name in _SHAPES if name in arrays}
    for name, array in known.items():
        _check(path, name, array, _SHAPES[name], sizes)
    _check_samples(path, known, sizes)
    kinds = {kind: _layers(path, kind, arrays) for kind in _LAYER_SHAPES}
    if "grid" in known:
        for layer in kinds["attention"]:
            token_grid(known["grid"], layer)
    return Observations(known, kinds["attention"], kinds["raster"], kinds["response"])


def _check(
    path: Path, name: str, array: Array, shape: tuple[str, ...], sizes: dict[str, int]
) -> None:
    """Compare with the expected shape; a letter met for the first time is bound in `sizes`."""
    kinds = "U" if name in _TEXTS else "iufb"
    fits = array.dtype.kind in kinds and array.ndim == len(shape)
    fits = fits and all(
        sizes.setdefault(d, n) == n for d, n in zip(shape, array.shape, strict=True)
    )
    if not fits:
        known = ", ".join(f"{d} = {sizes[d]}" for d in dict.fromkeys(shape) if d in sizes)
        raise ValueError(
            f"got {path} with {name} {array.dtype}{list(array.shape)}; expected "
            f"{'text' if kinds == 'U' else 'numbers'} of shape [{', '.join(shape)}]"
            + (f" where {known}" if known else "")
        )


def _check_samples(path: Path, arrays: Mapping[str, Array], sizes: Mapping[str, int]) -> None:
    images, labels = arrays.get("sample_images"), arrays.get("sample_labels")
    if images is not None and (images.dtype != np.uint8 or images.shape[1] not in (1, 3)):
        raise ValueError(
            f"got {path} with sample_images {images.dtype}{list(images.shape)}; "
            "expected uint8 [S, C, H, W] with C 1 or 3"
        )
    K = sizes.get("K")
    if labels is not None and K is not None and ((labels < 0) | (labels >= K)).any():
        raise ValueError(f"got {path} with a sample label outside 0..{K - 1}; expected a class")


def _layers(path: Path, kind: str, arrays: Mapping[str, Array]) -> tuple[Layer, ...]:
    found = [re.fullmatch(rf"{kind}_(\d+)", name) for name in arrays]
    layers = []
    for i in sorted(int(match.group(1)) for match in found if match):
        name = f"{kind}_{i}"
        _check(path, name, arrays[name], _LAYER_SHAPES[kind], {})
        layers.append(Layer(str(arrays.get(f"{name}_path", name)), arrays[name]))
    return tuple(layers)


def token_grid(grid: Array, layer: Layer) -> tuple[int, int]:
    """Rows and columns of an attention layer's tokens: `grid`, or a finer or coarser one like it.

    Models with stages attend on several grids of one aspect.
    """
    N, (H, W) = layer.values.shape[-1], (int(n) for n in grid)
    scale = math.sqrt(N / max(H * W, 1))
    rows, columns = round(H * scale), round(W * scale)
    if rows * columns != N:
        raise ValueError(
            f"got {N} tokens at {layer.path!r}; expected {H * W} = {H} x {W} as grid says, "
            "or a grid of the same aspect"
        )
    return rows, columns
