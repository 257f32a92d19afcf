"""Writes the files of a run that never happened, in the format that training leaves behind."""

import json
from pathlib import Path
from typing import Any

import numpy as np

LAYERS = (
    "stem.stages.0.neuron",
    "stem.stages.1.neuron",
    *(
        f"blocks.{b}.{part}"
        for b in range(2)
        for part in (
            "attention.q.neuron",
            "attention.k.neuron",
            "attention.v.neuron",
            "attention.neuron",
            "mlp.0.neuron",
            "mlp.1.neuron",
        )
    ),
)


def metrics(**changes: Any) -> dict[str, Any]:
    """A full metrics.json; its energies follow from its counts."""
    rng = np.random.default_rng(1)
    layers = [_layer(path, i, rng) for i, path in enumerate(LAYERS)]
    sops, macs = (sum(layer[key] for layer in layers) for key in ("sops", "macs"))
    return {
        "recipe": "digits",
        "model": "spikformer",
        "dataset": "digits",
        "about": "Handwritten digits of 8 x 8 pixels, read by a Spikformer of two blocks.",
        "test_accuracy": 0.9861,
        "test_loss": 0.0731,
        "test_images": 360,
        "train_images": 1437,
        "train_seconds": 80.2,
        "images_per_second": 712.4,
        "epochs": 30,
        "seed": 7,
        "parameters": 123456,
        "T": 4,
        "firing_rates": {path: 0.1 + 0.02 * i for i, path in enumerate(LAYERS)},
        "sops": sops,
        "macs": macs,
        "energy_mj": sum(layer["energy_mj"] for layer in layers),
        "paper_rule": {
            "name": "Spikformer App. C.2",
            "sops": 0.8 * sops,
            "macs": macs,
            "energy_mj": (0.8 * sops * 0.9 + macs * 4.6) * 1e-9,
        },
        "energy_constants": {"ac_pj": 0.9, "mac_pj": 4.6, "note": "45 nm, Horowitz 2014"},
        "layers": layers,
        "versions": {"saccade": "0.1.0", "torch": "2.11.0", "python": "3.12.3"},
        "hardware": {"cpu": "a processor", "cores": 2, "gpu": None, "device": "cpu"},
        "paper": "arXiv:2209.15425",
        "citation": "@article{zhou2022spikformer,\n  title = {Spikformer},\n  year = {2022}\n}",
        **changes,
    }


def _layer(path: str, i: int, rng: np.random.Generator) -> dict[str, Any]:
    sops = 0.0 if i == 0 else float(rng.integers(8_000, 180_000))
    macs = 36_864.0 if i == 0 else 0.0
    mixes = path.endswith("attention.neuron")
    return {
        "path": path.removesuffix(".neuron") + ("" if mixes else ".conv"),
        "kind": "ssa_mix" if mixes else "conv",
        "sops": sops,
        "macs": macs,
        "energy_mj": (sops * 0.9 + macs * 4.6) * 1e-9,
        "paper_sops": 0.8 * sops,
        "paper_macs": macs,
        "input_rate": float(rng.uniform(0.05, 0.4)),
        "input_mean": float(rng.uniform(0.1, 0.6)),
    }


def log(epochs: int = 30, *, validation: bool = True) -> list[dict[str, float]]:
    """Epochs of a training that goes well."""
    lines = []
    for epoch in range(1, epochs + 1):
        fall = float(np.exp(-epoch / 6))
        line = {
            "epoch": epoch,
            "epochs": epochs,
            "step": 23 * epoch,
            "loss": 0.05 + 2.2 * fall,
            "accuracy": 0.995 - 0.8 * fall,
            "lr": 0.5e-3 * (1 + np.cos(np.pi * epoch / epochs)),
            "images_per_second": 700.0,
            "seconds": 2.0,
        }
        if validation:
            line |= {
                "validation_loss": 0.09 + 2.1 * fall + 0.03 * np.sin(epoch),
                "validation_accuracy": 0.984 - 0.8 * fall + 0.006 * np.sin(epoch),
            }
        lines.append(line)
    return lines


def observations(
    *,
    classes: list[str] | None = None,
    channels: int = 1,
    image: tuple[int, int] = (8, 8),
    grid: tuple[int, int] = (4, 4),
    T: int = 4,
    heads: int = 4,
    samples: int = 12,
    watched: int = 4,
) -> dict[str, Any]:
    """All arrays of observations.npz."""
    rng = np.random.default_rng(0)
    names = classes or [str(k) for k in range(10)]
    K, S, (H, W) = len(names), samples, grid
    labels = np.arange(S) % K
    beliefs = rng.normal(0, 1, (S, K))
    beliefs[np.arange(S), labels] += np.where(np.arange(S) < 2, 0.0, 5.0)
    probabilities = np.exp(beliefs) / np.exp(beliefs).sum(1, keepdims=True)
    confusion = np.diag(rng.integers(30, 38, K))
    for i, j in rng.integers(0, K, (6, 2)):
        confusion[i, j] += int(i != j)
    y, x = np.mgrid[: image[0], : image[1]]
    rings = [
        128 + 127 * np.sin(np.hypot(y - image[0] / 2, x - image[1] / 2) * (0.5 + s / 9) + c)
        for s in range(S)
        for c in range(channels)
    ]
    rates = np.clip(rng.uniform(0.04, 0.45, (len(LAYERS), T)).cumsum(1) / (1 + np.arange(T)), 0, 1)
    rates[4], rates[9] = 0.004, 0.93
    arrays: dict[str, Any] = {
        "classes": np.array(names),
        "confusion": confusion.astype(np.int64),
        "sample_images": np.stack(rings).reshape(S, channels, *image).astype(np.uint8),
        "sample_labels": labels.astype(np.int64),
        "sample_probabilities": probabilities.astype(np.float32),
        "neurons": np.array(LAYERS),
        "rates": rates,
        "steps_accuracy": (0.986 - 0.2 * np.exp(-np.arange(T))).astype(np.float32),
        "grid": np.array(grid),
    }
    for i in range(2):
        scores = rng.poisson(rng.gamma(1, 2, (watched, T, heads, 1, H * W)), None)
        arrays[f"attention_{i}"] = np.repeat(scores, H * W, -2).astype(np.float32)
        arrays[f"attention_{i}"] += rng.poisson(1, arrays[f"attention_{i}"].shape)
        arrays[f"attention_{i}_path"] = np.array(f"blocks.{i}.attention")
    for i, path in enumerate(LAYERS):
        arrays[f"raster_{i}"] = (rng.random((watched, T, 96)) < rates[i][:, None]).astype(np.uint8)
        arrays[f"raster_{i}_path"] = np.array(path)
        arrays[f"response_{i}"] = rng.random((watched, H, W)).astype(np.float32)
        arrays[f"response_{i}_path"] = np.array(path)
    return arrays


def make_run(folder: Path, *, numbers: dict[str, Any] | None = None, **seen: Any) -> Path:
    """A complete run folder; `numbers` replaces metrics, `seen` goes to `observations`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(numbers or metrics()))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log()))
    (folder / "recipe.yaml").write_text("model: spikformer\nepochs: 30\nlr: 1.0e-3\n")
    np.savez_compressed(folder / "observations.npz", **observations(**seen))
    return folder
