"""What came of a run: the one look at the test set, metrics and observations."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saccade.analysis import observe
from saccade.data import ImageData, normalise, unit
from saccade.models import SpikingModel, describe, rebuild, sources_of
from saccade.train.devices import whole
from saccade.train.evaluate import evaluate
from saccade.train.files import write_atomically, write_json
from saccade.train.session import Session
from saccade.train.streamed import source_of
from saccade.train.tasks import predict

METRICS, OBSERVATIONS = "metrics.json", "observations.npz"


def finish(session: Session, data: ImageData, workers: int | None = None) -> dict[str, Any]:
    """Test the trained model, once, and write what came of it."""
    s, device = session, session.fabric.device
    model = _gather_model(s)
    source = source_of(data.test, data, device, workers)
    result = evaluate(model, source, fabric=s.fabric, tell=s.progress.test)
    metrics = _metrics(s, data, result)
    if s.fabric.is_global_zero:
        chosen = _samples(result, data)
        pixels = data.test.read(chosen)
        x = normalise(unit(torch.from_numpy(pixels).to(device), data.white), data.mean, data.std)
        arrays = _observations(result, data, pixels, chosen)
        with s.fabric.autocast():
            shares = predict(model, x).float().mean(0).softmax(-1).cpu()
        arrays |= {"sample_probabilities": shares.numpy()} | observe(model, x[:4])
        _write_arrays(s.run / OBSERVATIONS, arrays)
        write_json(s.run / METRICS, metrics)
    return metrics


def _gather_model(s: Session) -> SpikingModel:
    """The model that is judged, whole on every device."""
    state = {name: whole(t) for name, t in s.judged.state_dict().items()}
    if all(whole(p) is p for p in s.judged.parameters()):
        return s.judged
    model = rebuild(describe(s.judged))
    model.load_state_dict(state)
    return model.to(s.fabric.device)


def _metrics(s: Session, data: ImageData, result: dict[str, Any]) -> dict[str, Any]:
    recipe, p, seen = s.recipe, s.position, result["recording"]
    sources = sources_of(s.model.name, s.model.config)
    return {
        "recipe": recipe.name,
        "about": recipe.about,
        "claim": recipe.claim,
        "model": s.model.name,
        "dataset": data.name,
        "test_accuracy": result["accuracy"],
        "test_loss": result["loss"],
        "test_images": len(data.test),
        "train_images": s.batches.order.count,
        "train_seconds": p.seconds,
        "images_per_second": p.images / max(p.seconds, 1e-9),
        "epochs": recipe.epochs,
        "weights": "averaged" if s.average else "last",
        "seed": recipe.seed,
        "parameters": sum(w.numel() for w in s.model.parameters()),
        "T": s.model.config.T,
        "firing_rates": seen.mean_rates(),
        **seen.totals(),
        "layers": seen.table(),
        "paper": recipe.paper or sources[0].id,
        "citation": "\n\n".join(source.bibtex() for source in sources),
        "versions": versions(),
        "hardware": hardware(s.fabric.device) | {"devices": s.fabric.world_size},
    }


def in_words(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The most important ones for a terminal, what they are beside what they come to."""
    rates = metrics["firing_rates"].values()
    silent = sum(rate == 0 for rate in rates)
    rows = {
        "test accuracy": f"[bold]{metrics['test_accuracy']:.2%}[/] of {metrics['test_images']}",
        "training": f"{metrics['train_seconds']:.1f} s, "
        f"{metrics['images_per_second']:,.0f} images/s",
        "energy": f"{metrics['energy_mj'] * 1e3:.3g} µJ an image "
        f"({metrics['sops']:,.0f} additions, {metrics['macs']:,.0f} multiply-accumulates)",
    }
    if silent:
        rows["silent"] = f"{silent} of {len(rates)} layers of neurons never fired in the test"
    if metrics["uncounted"]:
        rows["not counted"] = ", ".join(metrics["uncounted"]) + ": products in plain torch"
    return rows


def _samples(result: dict[str, Any], data: ImageData, most: int = 12) -> np.ndarray:
    """Indices of test pictures to show: mistakes first, then one of each class in turn."""
    labels, guess = result["labels"], result["answers"]
    wrong = np.flatnonzero(labels != guess)[: most // 2]
    right = np.flatnonzero(labels == guess)
    turn = [right[labels[right] == k] for k in range(data.num_classes)]
    order = [c[i] for i in range(most) for c in turn if i < len(c)]
    return np.array([*wrong, *order][:most], dtype=np.int64)


def _observations(
    result: dict[str, Any], data: ImageData, pixels: np.ndarray, chosen: np.ndarray
) -> dict[str, Any]:
    rates: Mapping[str, list[float]] = result["recording"].rates()
    return {
        "classes": np.array(data.classes),
        "confusion": result["confusion"],
        "steps_accuracy": result["steps_accuracy"],
        "sample_images": np.rint(pixels * (255 / data.white)).astype(np.uint8),
        "sample_labels": result["labels"][chosen],
        "neurons": np.array(list(rates)),
        "rates": np.array(list(rates.values())),
    }


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    buffer = BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomically(path, buffer.getvalue())


def versions() -> dict[str, str]:
    """Of everything that can change a number."""
    names = ("saccade", "torch", "numpy", "lightning-fabric")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def hardware(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "device": device.type,
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.platform(terse=True),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
