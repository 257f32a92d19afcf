"""A run that takes a fraction of a second, and how two runs are compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from saccade.data import Augment, ImageData, Images
from saccade.models import SpikingModel
from saccade.train import Recipe, apply, run
from saccade.train.batches import Batches
from saccade.train.devices import open_fabric
from saccade.train.recipe import Optim, dump_recipe
from saccade.train.session import Session
from saccade.train.tasks import Batch

MODEL: dict[str, Any] = {
    "name": "spikformer",
    "dim": 16,
    "depth": 1,
    "heads": 2,
    "T": 2,
    # low, so that an hour of training is not needed to wake the deep layers
    "neuron": {"name": "lif", "tau": 1.1, "v_threshold": 0.2},
    "attention": {"name": "ssa", "scale": 1.0},
}
TIMES = {"train_seconds", "images_per_second", "seconds", "data_wait"}
"""What two equal runs may differ in."""


def pictures(K: int = 3, N: int = 24, C: int = 1, H: int = 8, W: int = 8, seed: int = 0) -> Images:
    """Class k is brighter in its own rows; values 0..255."""
    rng = np.random.default_rng(seed)
    labels = np.arange(N, dtype=np.int64) % K
    images = rng.integers(0, 120, (N, C, H, W))
    for k in range(K):
        images[labels == k, :, k * H // K : (k + 1) * H // K] += 120
    return Images(images=images.astype(np.uint8), labels=labels)


def tiny_data(K: int = 3, N: int = 24, C: int = 1, H: int = 8, W: int = 8) -> ImageData:
    return ImageData(
        name="tiny",
        classes=tuple(f"class {k}" for k in range(K)),
        train=pictures(K, N, C, H, W),
        test=pictures(K, max(K, 12), C, H, W, seed=1),
        white=255.0,
        mean=(0.4,) * C,
        std=(0.3,) * C,
        source=None,
    )


def tiny_recipe(**changes: Any) -> Recipe:
    """Three epochs of three steps, with every source of chance switched on."""
    known: dict[str, Any] = {
        "name": "tiny",
        "model": MODEL,
        "data": {"name": "tiny"},
        "augment": Augment(shift=1, rotate=10),
        "optim": Optim(lr=1e-2),
        "epochs": 3,
        "batch_size": 8,
    }
    return Recipe(**known | changes)


def opened(
    folder: Path, recipe: Recipe, data: ImageData | None = None, model: SpikingModel | None = None
) -> Session:
    """A run of one device that has not begun."""
    data = data or tiny_data()
    model = model or run.build_model(recipe, data)
    fabric = open_fabric(device="cpu", precision=recipe.precision)
    return run._open(recipe, folder, data, model, fabric, run.Silent(), 0)


def in_float64(model: SpikingModel) -> SpikingModel:
    """Whatever Fabric does with the input: fully_shard has no float64 of its own."""
    model.register_forward_pre_hook(lambda module, args: (args[0].double(),))
    return model.double()


def batch_at(batches: Batches, step: int) -> Batch:
    """The batch of a step, in one piece."""
    (batch,) = batches.at(step)
    return batch


def use(monkeypatch: pytest.MonkeyPatch, data: ImageData) -> None:
    """Let every recipe train on `data`."""
    monkeypatch.setattr(run, "load_data", lambda part, root=None: data)
    monkeypatch.setattr(apply, "load_data", lambda part, root=None: data)


def tensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as f:
        return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as f:
        return json.loads(f.metadata()["saccade"])


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def log_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same_run(ours: Path, like: Path) -> None:
    """Everything that a run leaves behind is bit for bit the same, times and rates aside."""
    a, b = tensors(ours / "last.safetensors"), tensors(like / "last.safetensors")
    assert a.keys() == b.keys()
    # as bytes: torch.equal takes -0.0 for 0.0
    differing = [k for k in a if a[k].numpy().tobytes() != b[k].numpy().tobytes()]
    assert not differing, differing
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (ours, like)]
    assert without_times(metrics[0]) == without_times(metrics[1])
    assert without_times(log_rows(ours)) == without_times(log_rows(like))
    with np.load(ours / "observations.npz") as x, np.load(like / "observations.npz") as y:
        assert x.files == y.files
        assert [k for k in x.files if x[k].tobytes() != y[k].tobytes()] == []


def write_pictures(folder: Path, K: int = 3, N: int = 60, side: int = 8) -> Path:
    """`folder/<class>/<number>.png`, as the data set "folder" reads it."""
    from PIL import Image

    split = pictures(K, N, H=side, W=side)
    for n, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        (folder / f"class {label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(folder / f"class {label}" / f"{n}.png")
    return folder


def write_recipe(path: Path, pictures_at: Path, **changes: Any) -> Path:
    """A recipe file for a folder of pictures."""
    part = {"name": "folder", "path": str(pictures_at), "channels": 1}
    path.write_text(dump_recipe(tiny_recipe(data=part, **changes)))
    return path
