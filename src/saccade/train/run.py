"""One run from recipe to metrics: its folder, and all that training needs."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from saccade.data import ImageData, Split, load_data, stratified_split
from saccade.models import SpikingModel, create_model
from saccade.train.average import MovingAverage
from saccade.train.batches import Batches, Plan, Source
from saccade.train.capture import refusal
from saccade.train.checkpoint import WEIGHTS, Position, read_run
from saccade.train.curriculum import try_stages
from saccade.train.devices import (
    close_fabric,
    first_alone,
    open_fabric,
    place_model,
    share_of,
    spread_model,
    wrap_model,
)
from saccade.train.files import write_atomically
from saccade.train.loop import LOG, fit
from saccade.train.optim import make_optimizer
from saccade.train.outcome import finish
from saccade.train.randomness import seed_for
from saccade.train.recipe import Recipe, dump_recipe, parse_recipe
from saccade.train.schedule import rate_share
from saccade.train.session import Progress, Session
from saccade.train.streamed import batches_of, source_of
from saccade.train.tasks import make_task

RECIPE = "recipe.yaml"
log = logging.getLogger("saccade")


class Silent:
    """Progress that nobody watches."""

    def step(self, position: Position, steps: int, loss: float) -> None:
        """Nothing."""

    def epoch(self, line: dict[str, Any]) -> None:
        """Nothing."""

    def test(self, shown: int, of: int) -> None:
        """Nothing."""


def train(
    recipe: Recipe,
    run: Path,
    *,
    device: str = "auto",
    devices: int | None = None,
    nodes: int | None = None,
    strategy: str = "auto",
    workers: int | None = None,
    data_root: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a recipe in a folder, test it once, write metrics and observations.

    On many devices every process calls this, and the first one writes; see
    `saccade.train.launch.launch`.

    Args:
        recipe: what to run.
        run: folder; it must not hold a run already unless `resume`.
        device: "auto", "cpu", "cuda" or "mps".
        devices, nodes, strategy: see `saccade.train.devices.open_fabric`.
        workers: processes that read data which is not kept in memory; None for a good number.
        data_root: where data sets lie; see `saccade.data.data_root`.
        resume: go on from the last checkpoint, if there is one.
        progress: who is told.

    Returns:
        the metrics, as in metrics.json.

    Raises:
        ValueError: for a recipe, data or folder that cannot be used.
        Diverged, Interrupted, TooLarge, Lost: see `saccade.train.loop.fit`.
    """
    fabric = open_fabric(
        device=device,
        precision=recipe.precision,
        devices=devices,
        nodes=nodes,
        strategy=strategy,
    )
    run = Path(fabric.broadcast(str(run)))
    data = _load(fabric, recipe, data_root)
    model = build_model(recipe, data)
    first_alone(fabric, lambda: _check_folder(run, recipe, resume=resume))
    told = progress if progress and fabric.is_global_zero else Silent()
    session = _open(recipe, run, data, model, fabric, told, workers)
    if fabric.is_global_zero:
        _begin_folder(run, recipe)
    try:
        fit(session)
    except Exception:
        if fabric.is_global_zero and {path.name for path in run.iterdir()} == {RECIPE}:
            shutil.rmtree(run)  # nothing came of it: the recipe may be mended and try again
        raise
    metrics = finish(session, data, workers)
    close_fabric(fabric)
    return metrics


def _load(fabric: Fabric, recipe: Recipe, data_root: str | Path | None) -> ImageData:
    """The data, which the first process alone may have to download."""

    def load() -> ImageData:
        with _naming("data", recipe.data):
            return load_data(recipe.data, data_root)

    if fabric.world_size == 1:
        return load()
    found: list[ImageData] = []
    first_alone(fabric, lambda: found.append(load()))
    return found[0] if found else load()


def _begin_folder(run: Path, recipe: Recipe) -> None:
    """Last before training: a recipe that cannot run leaves no folder behind."""
    run.mkdir(parents=True, exist_ok=True)
    if not (run / RECIPE).exists():
        write_atomically(run / RECIPE, dump_recipe(recipe))
    for half in run.glob(".*.tmp"):  # of a process that was killed while it wrote
        half.unlink()


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
    fabric: Fabric,
    progress: Progress,
    workers: int | None,
) -> Session:
    with _naming("task", recipe.task):
        task = make_task(recipe.task)
    average = MovingAverage(model, recipe.average) if recipe.average.decay else None
    judged = average.model if average else None
    if not (saved := read_run(run)) and (run / RECIPE).exists():
        log.warning("%s holds no checkpoint: the run begins anew", run)
    if saved:
        saved.restore_weights(model, judged)
        _compare_devices(fabric, saved.header.devices)
    try_stages(model, recipe.curriculum)  # before its kernels lie as a GPU wants them
    place_model(fabric, model)
    task.prepare(model)
    batches, validation = _load_onto(fabric, recipe, data, workers)
    # fsdp puts other parameters in their places, which optimiser and average have to know
    wrapped = wrap_model(fabric, model)
    if judged:
        place_model(fabric, judged)
        spread_model(fabric, judged)
    eager = refusal(fabric, recipe, task)
    with _naming("optim", asdict(recipe.optim)):
        optimizer = make_optimizer(model, recipe.optim, recorded=not eager)
        rate_share(recipe.optim, 0, 1)
    session = Session(
        recipe=recipe,
        run=run,
        fabric=fabric,
        model=model,
        wrapped=wrapped,
        optimizer=optimizer,
        task=task,
        batches=batches,
        validation=validation,
        progress=progress,
        eager=eager,
        average=average,
        data=_describe(recipe, data),
    )
    if saved:
        saved.restore_rest(session.state)
        session.position = saved.position
    session.log = _read_log(run / LOG, session.position.step)
    return session


def _load_onto(
    fabric: Fabric, recipe: Recipe, data: ImageData, workers: int | None
) -> tuple[Batches, Source | None]:
    """What is trained on, and what is held out."""
    keep, held = _hold_out(data, recipe)
    training = source_of(keep, data, fabric.device, workers)
    if recipe.batch_size > len(training) and fabric.is_global_zero:
        log.warning(
            "batch_size=%d is more than the %d pictures that are trained on: each step takes all",
            *(recipe.batch_size, len(training)),
        )
    plan = Plan(
        size=recipe.batch_size,
        how=recipe.augment,
        mix=recipe.mix,
        epochs=recipe.epochs,
        seed=recipe.seed,
        share=share_of(fabric),
        pieces=recipe.accumulate,
    )
    validation = source_of(held, data, fabric.device, workers) if held else None
    return batches_of(training, plan), validation


def _compare_devices(fabric: Fabric, before: int) -> None:
    if before != fabric.world_size and fabric.is_global_zero:
        log.info(
            "the run goes on with %d devices instead of %d: every batch is the same, but sums are "
            "rounded otherwise",
            *(fabric.world_size, before),
        )


def _hold_out(data: ImageData, recipe: Recipe) -> tuple[Split, Split | None]:
    """Training and validation split; the latter is the same for every seed."""
    if not recipe.validation:
        return data.train, None
    keep, held = stratified_split(data.train.labels, test_fraction=recipe.validation, seed=0)
    return data.train.take(keep), data.train.take(held)


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
