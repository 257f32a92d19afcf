"""One run from recipe to metrics: folder, training, the one look at the test set, metrics."""

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from saccade.analysis import observe, record
from saccade.data import ImageData, Images, load_data, stratified_split
from saccade.models import MODELS, SpikingModel, create_model
from saccade.train.average import MovingAverage
from saccade.train.batches import Batches, Pictures
from saccade.train.checkpoint import WEIGHTS, Position, restore_run
from saccade.train.curriculum import try_stages
from saccade.train.files import write_atomically, write_json
from saccade.train.loop import LOG, Progress, Session, fit
from saccade.train.optim import make_optimizer
from saccade.train.randomness import seed_for
from saccade.train.recipe import Recipe, dump_recipe, parse_recipe
from saccade.train.schedule import rate_share
from saccade.train.tasks import make_task, predict

RECIPE, METRICS, OBSERVATIONS = "recipe.yaml", "metrics.json", "observations.npz"
_EVAL_BATCH = 256


class Silent:
    """Progress that nobody watches."""

    def step(self, position: Position, steps: int, loss: float) -> None:
        """Nothing."""

    def epoch(self, line: dict[str, Any]) -> None:
        """Nothing."""


def train(
    recipe: Recipe,
    run: Path,
    *,
    device: str = "auto",
    data_root: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a recipe in a folder, test it once, write metrics and observations.

    Args:
        recipe: what to run.
        run: folder; it must not hold a run already unless `resume`.
        device: "auto", "cpu", "cuda" or "mps".
        data_root: where data sets lie; see `saccade.data.data_root`.
        resume: go on from the last checkpoint, if there is one.
        progress: who is told.

    Returns:
        the metrics, as in metrics.json.

    Raises:
        ValueError: for a recipe, data or folder that cannot be used.
        Diverged, Interrupted: see `saccade.train.loop.fit`.
    """
    with _naming("data", recipe.data):
        data = load_data(recipe.data, data_root)
    model = build_model(recipe, data)
    _check_folder(run, recipe, resume=resume)
    session = _open(recipe, run, data, model, device, progress or Silent())
    # last: a recipe that cannot run leaves no folder behind
    run.mkdir(parents=True, exist_ok=True)
    if not (run / RECIPE).exists():
        write_atomically(run / RECIPE, dump_recipe(recipe))
    for half in run.glob(".*.tmp"):  # of a process that was killed while it wrote
        half.unlink()
    fit(session)
    return finish(session, data)


def build_model(recipe: Recipe, data: ImageData) -> SpikingModel:
    """The recipe's model for the recipe's data, with weights drawn from its seed.

    Raises:
        ValueError: where the recipe fixes a size that the data does not have.
    """
    options = {k: v for k, v in recipe.model.items() if k != "name"}
    fixed: dict[str, Any] = {
        "num_classes": data.num_classes,
        "in_channels": data.channels,
        "image_size": data.image_size,
    }
    for field, value in fixed.items():
        given = options.pop(field, value)
        if field == "image_size":
            given = (given, given) if isinstance(given, int) else tuple(given)
        if given != value:
            raise ValueError(
                f"got model.{field}={given}, but data set {data.name!r} has {value}; leave the "
                "field out and it follows the data"
            )
    torch.manual_seed(seed_for(recipe.seed, "init"))
    with _naming("model", recipe.model):
        return create_model(recipe.model["name"], **options, **fixed)


@contextmanager
def _naming(part: str, given: dict[str, Any]) -> Iterator[None]:
    """Say which part of the recipe holds a value of a type that nothing can be done with."""
    try:
        yield
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"the recipe's {part} has a value of a wrong type: {given} ({error})"
        ) from error


def _check_folder(run: Path, recipe: Recipe, *, resume: bool) -> None:
    """Make sure that the folder is free, or holds this very run where it is to go on."""
    stored = run / RECIPE
    if not resume and (held := [p for p in (stored, run / WEIGHTS) if p.exists()]):
        raise ValueError(
            f"{run} already holds a run ({held[0].name}); go on with it (--resume) or choose "
            "another --out"
        )
    if stored.exists():
        before = asdict(parse_recipe(stored.read_text(encoding="utf-8"), where=str(stored)))
        changed = [key for key, value in asdict(recipe).items() if before[key] != value]
        if changed:
            raise ValueError(
                f"{run} was started with another {', '.join(changed)}; a resumed run keeps its "
                f"recipe. Go on with `saccade train {run} --resume`, or choose another --out"
            )


def _open(
    recipe: Recipe,
    run: Path,
    data: ImageData,
    model: SpikingModel,
    device: str,
    progress: Progress,
) -> Session:
    fabric = Fabric(accelerator=device, devices=1, precision=recipe.precision)  # type: ignore[arg-type]
    model.to(fabric.device)
    with _naming("optim", asdict(recipe.optim)):
        optimizer = make_optimizer(model, recipe.optim)
        rate_share(recipe.optim, 0, 1)
    with _naming("task", recipe.task):
        task = make_task(recipe.task)
        task.prepare(model)
    try_stages(model, recipe.curriculum)
    average = MovingAverage(model, recipe.average) if recipe.average.decay else None
    saved = restore_run(run, model, optimizer, average.model if average else None)
    training, validation = _hold_out(data, recipe)
    pictures = Pictures.of(training, data, fabric.device)
    batches = Batches(pictures, size=recipe.batch_size, how=recipe.augment, seed=recipe.seed)
    return Session(
        recipe=recipe,
        run=run,
        fabric=fabric,
        model=model,
        optimizer=optimizer,
        task=task,
        batches=batches,
        validation=Pictures.of(validation, data, fabric.device) if validation else None,
        progress=progress,
        average=average,
        data=_describe(recipe, data),
        position=saved or Position(),
        log=_read_log(run / LOG, saved.step if saved else 0),
    )


def _hold_out(data: ImageData, recipe: Recipe) -> tuple[Images, Images | None]:
    """Training and validation split; the latter is the same for every seed."""
    if not recipe.validation:
        return data.train, None
    keep, held = stratified_split(data.train.labels, test_fraction=recipe.validation, seed=0)
    images, labels = data.train.images, data.train.labels
    return (
        Images(images=images[keep], labels=labels[keep]),
        Images(images=images[held], labels=labels[held]),
    )


def _describe(recipe: Recipe, data: ImageData) -> dict[str, Any]:
    """What a prediction or a later test needs to know, stored beside the weights."""
    return {
        "part": recipe.data,
        "classes": list(data.classes),
        "white": data.white,
        "mean": list(data.mean),
        "std": list(data.std),
        "precision": recipe.precision,
    }


def _read_log(path: Path, step: int) -> list[dict[str, Any]]:
    """Lines up to the state that the run goes on from."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["step"] <= step]


def finish(session: Session, data: ImageData) -> dict[str, Any]:
    """Test the trained model, once, and write what came of it."""
    s = session
    test = Pictures.of(data.test, data, s.fabric.device)
    result = evaluate(s.judged, test, fabric=s.fabric)
    metrics = _metrics(s, data, result)
    chosen = _samples(result, data)
    first = test.pick(torch.from_numpy(chosen[:4]), None, torch.Generator())
    arrays = _observations(result, data, chosen) | observe(s.judged, first.x)
    _write_arrays(s.run / OBSERVATIONS, arrays)
    write_json(s.run / METRICS, metrics)
    return metrics


def evaluate(
    model: SpikingModel, pictures: Pictures, *, fabric: Fabric | None = None
) -> dict[str, Any]:
    """Accuracy, loss, confusion and everything that `record` counts, over a whole split."""
    steps, labels = [], []
    with record(model) as seen, torch.no_grad():
        for batch in pictures.all(_EVAL_BATCH):
            with fabric.autocast() if fabric else torch.no_grad():
                steps.append(predict(model, batch.x).float().cpu())
            labels.append(batch.y.cpu())
    logits, y = torch.cat(steps, 1), torch.cat(labels)
    mean = logits.mean(0)
    guess = mean.argmax(-1)
    K = logits.shape[-1]
    confusion = torch.bincount(y * K + guess, minlength=K * K).reshape(K, K)
    heard = logits.cumsum(0).argmax(-1)
    return {
        "accuracy": float((guess == y).double().mean()),
        "loss": float(torch.nn.functional.cross_entropy(mean, y)),
        "confusion": confusion.numpy(),
        "probabilities": mean.softmax(-1).numpy(),
        "labels": y.numpy(),
        "steps_accuracy": (heard == y).double().mean(-1).numpy(),
        "recording": seen,
    }


def _metrics(s: Session, data: ImageData, result: dict[str, Any]) -> dict[str, Any]:
    recipe, p, seen = s.recipe, s.position, result["recording"]
    entry = MODELS[s.model.name]
    return {
        "recipe": recipe.name,
        "about": recipe.about,
        "claim": recipe.claim,
        "model": s.model.name,
        "dataset": data.name,
        "test_accuracy": result["accuracy"],
        "test_loss": result["loss"],
        "test_images": len(data.test),
        "train_images": len(s.batches.pictures),
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
        "paper": recipe.paper or entry.source.id,
        "citation": entry.source.bibtex(),
        "versions": versions(),
        "hardware": hardware(s.fabric.device),
    }


def _samples(result: dict[str, Any], data: ImageData, most: int = 12) -> np.ndarray:
    """Indices of test pictures to show: mistakes first, then one of each class in turn."""
    labels, guess = result["labels"], result["probabilities"].argmax(-1)
    wrong = np.flatnonzero(labels != guess)[: most // 2]
    right = np.flatnonzero(labels == guess)
    turn = [right[labels[right] == k] for k in range(data.num_classes)]
    order = [c[i] for i in range(most) for c in turn if i < len(c)]
    return np.array([*wrong, *order][:most], dtype=np.int64)


def _observations(result: dict[str, Any], data: ImageData, chosen: np.ndarray) -> dict[str, Any]:
    rates: Mapping[str, list[float]] = result["recording"].rates()
    shown = np.rint(data.test.images[chosen] * (255 / data.white)).astype(np.uint8)
    return {
        "classes": np.array(data.classes),
        "confusion": result["confusion"],
        "steps_accuracy": result["steps_accuracy"],
        "sample_images": shown,
        "sample_labels": result["labels"][chosen],
        "sample_probabilities": result["probabilities"][chosen],
        "neurons": np.array(list(rates)),
        "rates": np.array(list(rates.values())),
    }


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    from io import BytesIO

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
