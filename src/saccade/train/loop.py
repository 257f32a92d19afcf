"""The training loop. It names no task, model or data set, and keeps no random state."""

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from saccade.models import SpikingModel
from saccade.train.average import MovingAverage
from saccade.train.batches import Batches, Pictures, mixed
from saccade.train.checkpoint import Position, save_run
from saccade.train.curriculum import Sharpness, Stage, stage_at
from saccade.train.diagnose import Diverged, diagnose
from saccade.train.files import write_atomically
from saccade.train.randomness import generator_for, seed_for
from saccade.train.recipe import Recipe
from saccade.train.schedule import learning_rate, rate_share, set_rates
from saccade.train.tasks import Batch, Task, predict

LOG = "log.jsonl"
SAVE_SECONDS = 60.0
"""A checkpoint is at most this much work old; one is also written after every epoch."""


@runtime_checkable
class Progress(Protocol):
    """Who is told how training goes."""

    def step(self, position: Position, steps: int, loss: float) -> None:
        """One step was taken."""

    def epoch(self, line: dict[str, Any]) -> None:
        """One epoch ended; `line` is what the log keeps."""


class Interrupted(Exception):  # noqa: N818  (nothing went wrong)
    """A person or the system asked the run to stop; its state is saved."""


@dataclass(kw_only=True)
class Session:
    """One run under way: what the loop works on."""

    recipe: Recipe
    run: Path
    fabric: Fabric
    model: SpikingModel
    optimizer: torch.optim.Optimizer
    task: Task
    batches: Batches
    validation: Pictures | None
    progress: Progress
    average: MovingAverage | None = None
    data: dict[str, Any] = field(default_factory=dict)
    position: Position = field(default_factory=Position)
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """How many there will be."""
        return self.recipe.epochs * len(self.batches)

    @property
    def judged(self) -> SpikingModel:
        """What is validated, tested and loaded: the averaged weights, if there are any."""
        return self.average.model if self.average else self.model

    @property
    def stage(self) -> Stage:
        """What the curriculum asks for at this step."""
        return stage_at(self.recipe.curriculum, self.position.step, self.steps)


def fit(session: Session) -> None:
    """Train from the session's position to the end.

    Raises:
        Diverged: where loss or weights stop being finite; the last good checkpoint stays.
        Interrupted: on Ctrl-C or SIGTERM; the state is saved first.
    """
    s = session
    wrapped, optimizer = s.fabric.setup(s.model, s.optimizer)
    saved, sharpness = time.perf_counter(), Sharpness(s.model)
    with _signals() as stop:
        while s.position.step < s.steps:
            began = time.perf_counter()
            sharpness.set(s.stage.sharpness)
            loss = _step(s, wrapped, optimizer)
            _advance(s.position, time.perf_counter() - began)
            s.progress.step(s.position, s.steps, loss)
            at_end = s.position.step % len(s.batches) == 0
            if at_end:
                _end_epoch(s)
            if at_end or stop or time.perf_counter() - saved > SAVE_SECONDS:
                _save(s)
                saved = time.perf_counter()
            if stop and s.position.step < s.steps:
                raise Interrupted
    sharpness.set(1.0)


def _step(s: Session, model: nn.Module, optimizer: Any) -> float:
    step, optim = s.position.step, s.recipe.optim
    batch = _batch(s)
    torch.manual_seed(seed_for(s.recipe.seed, "step", step))
    set_rates(optimizer, rate_share(optim, step, s.steps))
    model.train()
    optimizer.zero_grad()
    loss, correct = _gradients(s, model, batch)
    # float16 overflows now and then, and its scaler leaves those steps out
    if s.recipe.precision != "16-mixed" and not _gradient_norm(s.model).isfinite():
        raise _diverged(s, "the gradient stopped being finite", batch)
    if optim.clip:
        s.fabric.clip_gradients(model, optimizer, max_norm=optim.clip, error_if_nonfinite=False)
    optimizer.step()
    if s.average:
        s.average.follow(s.model, step + 1)
    s.position.loss_sum += loss * len(batch.y)
    s.position.correct += correct
    s.position.seen += len(batch.y)
    return loss


def _batch(s: Session) -> Batch:
    """The batch of this step, mixed, and for as many steps as the curriculum says."""
    step, how = s.position.step, s.recipe.mix
    batch = s.batches.at(step)
    if (how.mixup or how.cutmix) and step < round(how.until * s.steps):
        generator = generator_for(s.recipe.seed, "mix", step)
        batch = mixed(batch, how, s.model.config.num_classes, generator)
    return replace(batch, T=s.stage.T or None, size=s.stage.resized(s.model.frame))


def _gradients(s: Session, model: nn.Module, batch: Batch) -> tuple[float, int]:
    """Add up the gradient of the mean loss, part by part; that loss, and how many were right."""
    loss, correct = 0.0, 0
    for part in batch.split(s.recipe.accumulate):
        result = s.task(model, part)
        share = len(part.y) / len(batch.y)
        loss += float(result["loss"].detach()) * share
        correct += int(result.get("correct", 0))
        if not math.isfinite(loss):
            raise _diverged(s, f"the loss became {loss}", part)
        s.fabric.backward(result["loss"] * share if share < 1 else result["loss"])
    return loss, correct


def _gradient_norm(model: nn.Module) -> Tensor:
    return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def _advance(position: Position, seconds: float) -> None:
    position.step += 1
    position.seconds += seconds
    position.epoch_seconds += seconds


def _end_epoch(s: Session) -> None:
    p = s.position
    p.epoch += 1
    p.images += p.seen
    line = {
        "epoch": p.epoch,
        "epochs": s.recipe.epochs,
        "step": p.step,
        "loss": p.loss_sum / p.seen,
        "accuracy": p.correct / p.seen,
        "lr": learning_rate(s.recipe.optim, p.step - 1, s.steps),
        "seconds": p.epoch_seconds,
        "images_per_second": p.seen / p.epoch_seconds,
    }
    if s.validation is not None:
        line |= _validate(s, s.validation)
    p.loss_sum, p.correct, p.seen, p.epoch_seconds = 0.0, 0, 0, 0.0
    s.log.append(line)
    # before the checkpoint: a resumed run drops lines that are ahead of its state
    write_atomically(s.run / LOG, "".join(json.dumps(row) + "\n" for row in s.log))
    s.progress.epoch(line)


def _validate(s: Session, pictures: Pictures) -> dict[str, float]:
    loss = correct = 0.0
    for batch in pictures.all(s.recipe.batch_size):
        with s.fabric.autocast():
            logits = predict(s.judged, batch.x).mean(0)
        loss += float(nn.functional.cross_entropy(logits, batch.y, reduction="sum"))
        correct += int((logits.argmax(-1) == batch.y).sum())
    n = len(pictures)
    return {"validation_loss": loss / n, "validation_accuracy": correct / n}


def _save(s: Session) -> None:
    # buffers too: a running variance may overflow while every weight is still finite
    if not all(t.isfinite().all() for t in s.model.state_dict().values()):
        last = s.batches.at(s.position.step - 1)
        raise _diverged(s, "weights or statistics stopped being finite", last)
    average = s.average.model if s.average else None
    save_run(s.run, s.model, s.optimizer, s.position, s.data, average)


def _diverged(s: Session, what: str, batch: Batch) -> Diverged:
    good = s.run / "last.safetensors"
    kept = f"the last good checkpoint is kept: {good}" if good.exists() else "nothing was saved yet"
    where = f"step {s.position.step} (epoch {s.position.step // len(s.batches) + 1})"
    return Diverged(
        f"{what} at {where}. Layers: {diagnose(s.model, batch.shown)}. {kept}. A lower optim.lr "
        f"(now {s.recipe.optim.lr:g}), optim.clip=1 or a longer optim.warmup often helps"
    )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that fills when somebody asks to stop; a second Ctrl-C stops at once."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        before = {}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
