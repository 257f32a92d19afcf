"""What each section of the page says: plain values, finished charts, sentences.

A section whose files are absent is None; the page then says so in one line.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.report import plots, quantities
from saccade.report.pixels import picture
from saccade.report.run import Run, number

Section = dict[str, Any]
SILENT, SATURATED = 0.01, 0.90  # mean firing rates below or above which a layer says little


def hero(run: Run) -> Section:
    """Accuracy, the tiles beside it and the facts of the run."""
    m = run.metrics
    accuracy, n = float(m["test_accuracy"]), number(m.get("test_images"))
    interval = quantities.wilson(accuracy, int(n)) if n else None
    tiles = [
        ("energy per image", quantities.energy(number(m.get("energy_mj"))), "estimated"),
        ("synaptic additions", quantities.count(number(m.get("sops"))), "per image (SOPs)"),
        ("parameters", quantities.count(number(m.get("parameters"))), ""),
        ("training time", quantities.duration(number(m.get("train_seconds"))), _epochs(m)),
        ("training speed", quantities.count(number(m.get("images_per_second"))), "images/s"),
        ("time steps", _plain(m.get("T")), "T, per image"),
        ("test loss", _digits(m.get("test_loss")), ""),
        ("seed", _plain(m.get("seed")), ""),
    ]
    return {
        "accuracy": quantities.percent(accuracy),
        "fraction": accuracy,
        "right": f"{round(accuracy * n):,} of {int(n):,} test images" if n else None,
        "interval": " to ".join(quantities.percent(x) for x in interval) if interval else None,
        "about": m.get("about"),
        "tiles": [tile for tile in tiles if tile[1] != quantities.NONE],
        "facts": _facts(m),
        "paper": paper_link(m.get("paper")),
    }


def _plain(value: Any) -> str:
    return quantities.NONE if value is None else str(value)


def _digits(value: Any) -> str:
    found = number(value)
    return quantities.NONE if found is None else quantities.digits(found)


def _epochs(metrics: Mapping[str, Any]) -> str:
    epochs = metrics.get("epochs")
    return "" if epochs is None else f"{epochs} epochs"


def _facts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    hardware, versions = metrics.get("hardware") or {}, metrics.get("versions") or {}
    device = hardware.get("gpu") or hardware.get("cpu")
    if device and hardware.get("cores") and not hardware.get("gpu"):
        device = f"{device}, {hardware['cores']} cores"
    train = number(metrics.get("train_images"))
    facts = [
        ("model", metrics.get("model")),
        ("dataset", metrics.get("dataset")),
        ("training images", f"{int(train):,}" if train else None),
        ("hardware", device),
        ("device", hardware.get("device")),
        ("software", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return [(name, str(value)) for name, value in facts if value]


def paper_link(paper: Any) -> tuple[str, str | None] | None:
    """The paper as named by the run, and its address where the name is an arXiv id or a DOI."""
    if not isinstance(paper, str) or not paper:
        return None
    if match := re.fullmatch(r"arXiv:(\d{4}\.\d{4,5}(v\d+)?)", paper):
        return paper, f"https://arxiv.org/abs/{match.group(1)}"
    if match := re.fullmatch(r"doi:(10\.\d+/[\w.()/:;-]+)", paper):
        return paper, f"https://doi.org/{match.group(1)}"
    return paper, None


def curves(run: Run) -> Section | None:
    """Loss and accuracy over the epochs, the learning rate on a small chart."""
    lines = {
        key: plots.Line(label, *_series(run.log, key), colour)
        for key, label, colour in (
            ("loss", "training", plots.BLUE),
            ("validation_loss", "validation", plots.ORANGE),
            ("accuracy", "training", plots.BLUE),
            ("validation_accuracy", "validation", plots.ORANGE),
            ("lr", "learning rate", plots.GREEN),
        )
    }
    charts = []
    for name, keys, size in (
        ("loss", ("loss", "validation_loss"), (362, 250)),
        ("accuracy", ("accuracy", "validation_accuracy"), (362, 250)),
        ("learning rate", ("lr",), (217, 160)),
    ):
        drawn = [lines[key] for key in keys if lines[key].x]
        if drawn:
            ends = "; ".join(
                f"{x.label} from {quantities.digits(x.y[0])} to {quantities.digits(x.y[-1])}"
                for x in drawn
            )
            chart = plots.line_chart(
                drawn,
                name=name.replace(" ", "-"),
                alt=f"{name} over the epochs: {ends}",
                title=name,
                percent=name == "accuracy",
                size=size,
            )
            charts.append((name, chart))
    return {"charts": charts} if charts else None


def _series(log: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    points = [
        (number(epoch.get("epoch", i)), number(epoch.get(key))) for i, epoch in enumerate(log, 1)
    ]
    kept = [(x, y) for x, y in points if x is not None and y is not None]
    return [x for x, _ in kept], [y for _, y in kept]


def samples(run: Run, *, top: int = 4) -> Section | None:
    """Each sample image with its classes and the likeliest `top` of them."""
    seen = run.observations
    images, labels = seen.get("sample_images"), seen.get("sample_labels")
    probabilities = seen.get("sample_probabilities")
    if images is None or labels is None or probabilities is None or not len(images):
        return None
    cards = []
    for s, (label, p) in enumerate(zip(labels.tolist(), probabilities, strict=True)):
        order = np.argsort(-p, kind="stable")[:top].tolist()
        shown = order if label in order else [*order[:-1], label]
        cards.append(
            {
                "index": s,
                "true": seen.class_name(label),
                "predicted": seen.class_name(order[0]),
                "right": order[0] == label,
                "bars": [
                    {
                        "name": seen.class_name(k),
                        "percent": round(100 * float(np.nan_to_num(p[k])), 1),
                        "true": k == label,
                    }
                    for k in shown
                ],
            }
        )
    return {"cards": cards, "wrong": sum(not card["right"] for card in cards)}


def pictures(run: Run) -> list[Section]:
    """The sample images, each held once by the page and shown in several places."""
    images, labels = run.observations.get("sample_images"), run.observations.get("sample_labels")
    if images is None:
        return []
    names = [run.observations.class_name(k) for k in labels.tolist()] if labels is not None else []
    return [
        {
            "address": picture(image),
            "aspect": f"{image.shape[2]} / {image.shape[1]}",
            "name": names[s] if names else f"sample {s + 1}",
        }
        for s, image in enumerate(images)
    ]


def confusion(run: Run, *, worst: int = 5) -> Section | None:
    """The confusion matrix, and its largest mistakes in words."""
    seen = run.observations
    counts = seen.get("confusion")
    if counts is None or not counts.size:
        return None
    counts = counts.astype(np.int64)
    wrong = counts * (1 - np.eye(len(counts), dtype=np.int64))
    pairs = sorted(np.argwhere(wrong > 0).tolist(), key=lambda ij: -wrong[ij[0], ij[1]])
    total, errors = int(counts.sum()), int(wrong.sum())
    words = [
        {
            "n": int(wrong[i, j]),
            "of": int(counts[i].sum()),
            "true": seen.class_name(i),
            "predicted": seen.class_name(j),
            "share": quantities.percent(wrong[i, j] / counts[i].sum(), 0),
        }
        for i, j in pairs[:worst]
    ]
    names = [seen.class_name(k) for k in range(len(counts))]
    alt = f"confusion matrix of {len(counts)} classes: {errors} of {total} images are wrong"
    chart = plots.confusion_chart(counts, names, alt=alt)
    return {"chart": chart, "worst": words, "errors": errors, "total": total, "K": len(counts)}


def rates(run: Run) -> Section | None:
    """Firing rate of each neuron layer at each step; silent and saturated layers by name."""
    seen = run.observations
    values, neurons = seen.get("rates"), seen.get("neurons")
    if values is not None and values.size:
        L, T = values.shape
        names = [f"layer {i}" for i in range(L)] if neurons is None else neurons.tolist()
        steps = [f"t = {t}" if T <= 6 else str(t) for t in range(1, T + 1)]
    else:
        means = run.metrics.get("firing_rates") or {}
        means = {path: number(rate) for path, rate in means.items() if number(rate) is not None}
        if not means:
            return None
        names, values, steps = list(means), np.array(list(means.values()))[:, None], ["mean"]
    mean = values.astype(np.float64).mean(1)
    named = list(zip(names, mean.tolist(), strict=True))
    return {
        "chart": plots.rate_chart(
            values, names, steps, alt=f"firing rates of {len(names)} layers, {_span(mean)}"
        ),
        "span": _span(mean),
        "silent": [(name, quantities.percent(rate, 2)) for name, rate in named if rate < SILENT],
        "saturated": [(name, quantities.percent(r)) for name, r in named if r > SATURATED],
        "steps": steps_accuracy(run),
    }


def _span(values: NDArray[Any]) -> str:
    return f"from {quantities.percent(values.min())} to {quantities.percent(values.max())}"


def steps_accuracy(run: Run) -> Section | None:
    """Test accuracy when only the first t steps are averaged."""
    array = run.observations.get("steps_accuracy")
    if array is None or len(array) < 2:
        return None
    T, values = len(array), array.astype(float).tolist()
    line = plots.Line("accuracy", [float(t) for t in range(1, T + 1)], values)
    chart = plots.line_chart(
        [line],
        name="steps",
        alt="test accuracy by number of steps: "
        + ", ".join(f"{quantities.percent(v)} after {t}" for t, v in enumerate(values, 1)),
        title="test accuracy after t steps",
        xlabel="steps averaged",
        percent=True,
        size=(360, 240),
    )
    first, last = quantities.percent(values[0]), quantities.percent(values[-1])
    return {"chart": chart, "first": first, "last": last, "T": T}
