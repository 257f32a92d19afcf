"""A trained model at work: test it again, or ask it about pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from saccade.data import load_data, normalise, read_image, unit
from saccade.models import SpikingModel
from saccade.train.checkpoint import load_model
from saccade.train.devices import check_device
from saccade.train.evaluate import evaluate
from saccade.train.outcome import hardware, versions
from saccade.train.streamed import source_of
from saccade.train.tasks import predict
from saccade.transform import fuse


def open_run(run: Path) -> tuple[SpikingModel, dict[str, Any]]:
    """Model and data description of a run's folder or of a weights file.

    Raises:
        ValueError: where there is none, or no data is described beside the weights.
    """
    model, data = load_model(run)
    if not data:
        raise ValueError(
            f"{run} holds a converted model, which knows no data set; load it with saccade.load "
            "and give it normalised input yourself"
        )
    return model, data


def evaluate_run(
    run: Path,
    *,
    data_root: str | None = None,
    device: str = "auto",
    products: str | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Accuracy, firing rates, operations and energy on the test set of the run's data.

    Args:
        run: folder of a run, or its weights.
        data_root: where data sets lie; see `saccade.data.data_root`.
        device: "auto", "cpu", "cuda" or "mps".
        products: of `saccade.transform.fuse`; adds "fused", the same of the fused model, and how
            many "answers_changed".
        tell: is told how many pictures were shown, and of how many; twice with `products`.

    Raises:
        ValueError: for a run, data or products that cannot be used.
    """
    model, described = open_run(run)
    data = load_data(described["part"], data_root)
    expected = (model.config.num_classes, model.config.in_channels, model.config.size)
    if (found := (data.num_classes, data.channels, data.image_size)) != expected:
        raise ValueError(
            f"got data {data.name!r} with (classes, channels, size) {found}, expected {expected} "
            "as the model was trained on"
        )
    precision = described.get("precision", "32-true")
    fabric = Fabric(accelerator=check_device(device), devices=1, precision=precision)
    model.to(fabric.device).eval()
    fused = None if products is None else fuse(model, products)
    source = source_of(data.test, data, fabric.device, None)
    result = evaluate(model, source, fabric=fabric, tell=tell)
    measured = {"dataset": data.name, "test_images": len(data.test)} | _measured(result)
    if fused is not None:
        again = evaluate(fused, source, tell=tell)
        changed = int((again["answers"] != result["answers"]).sum())
        measured["fused"] = {"products": products, "answers_changed": changed} | _measured(again)
    return measured | {"versions": versions(), "hardware": hardware(fabric.device)}


def _measured(result: dict[str, Any]) -> dict[str, Any]:
    seen = result["recording"]
    return {
        "test_accuracy": result["accuracy"],
        "test_loss": result["loss"],
        "firing_rates": seen.mean_rates(),
        **seen.totals(),
    }


def in_words(result: dict[str, Any]) -> list[str]:
    """Lines, with rich's markup, for what `evaluate_run` found."""
    lines: list[str] = []
    for found in (result, result["fused"]) if "fused" in result else (result,):
        if "products" in found:
            changed = f"{found['answers_changed']} of {result['test_images']} answers"
            lines.append(f"{found['products']} products change {changed}")
        rates = found["firing_rates"].values()
        right, rate = f"[bold]{found['test_accuracy']:.2%}[/]", sum(rates) / len(rates)
        lines += [
            f"test accuracy {right} of {result['test_images']}",
            f"energy {found['energy_mj'] * 1e3:.3g} µJ an image, mean firing rate {rate:.1%}",
        ]
        if missed := found["uncounted"]:
            lines.append(f"not counted in it: {', '.join(missed)}, products in plain torch")
    return lines


def predict_files(
    run: Path, images: Sequence[str | Path], *, top: int = 3, invert: bool = False
) -> list[dict[str, Any]]:
    """The most likely classes of picture files.

    Args:
        run: folder of a run, or its weights.
        images: picture files of any size; they are resized to what the model takes.
        top: how many classes to name.
        invert: swap black and white first.

    Returns:
        for each file, {"file", "top": [(class, probability), ...]}.
    """
    model, data = open_run(run)
    c = model.config
    centre = data["part"].get("crop") is not None
    raw = [read_image(p, image_size=c.size, channels=c.in_channels, centre=centre) for p in images]
    pixels = torch.from_numpy(np.stack(raw))
    # files have 255 for white, whatever the data set has
    x = normalise(unit(255 - pixels if invert else pixels, 255.0), data["mean"], data["std"])
    probabilities = predict(model, x).mean(0).softmax(-1)
    best = probabilities.topk(min(max(top, 1), c.num_classes))
    return [
        {
            "file": str(path),
            "top": [
                (data["classes"][k], p)
                for p, k in zip(values.tolist(), indices.tolist(), strict=True)
            ],
        }
        for path, values, indices in zip(images, best.values, best.indices, strict=True)
    ]
