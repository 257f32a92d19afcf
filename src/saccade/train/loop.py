"""The training loop. It names no task, model or data set, and keeps no random state."""

import json
import math
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor

from saccade.train.batches import Source
from saccade.train.checkpoint import Position, save_run
from saccade.train.devices import share_of, summed, whole
from saccade.train.diagnose import Diverged, diagnose
from saccade.train.files import write_atomically
from saccade.train.flight import Flight, Tally, flying
from saccade.train.launch import Lost
from saccade.train.memory import TooLarge, too_large
from saccade.train.schedule import learning_rate
from saccade.train.session import Session
from saccade.train.synchronised import synchronised
from saccade.train.tasks import Batch, predict

LOG = "log.jsonl"
SAVE_SECONDS = 60.0
"""A checkpoint is at most this much work old."""
SAVE_SHARE = 0.005
"""Of the time, what checkpoints at the ends of epochs may take; so short epochs share one."""
_GONE = re.compile(r"gloo|nccl|Connection (closed|reset)", re.IGNORECASE)


class Interrupted(Exception):  # noqa: N818  (nothing went wrong)
    """A person or the system asked the run to stop; its state is saved."""


def fit(session: Session) -> None:
    """Train from the session's position to the end.

    Raises:
        Diverged: where loss or weights stop being finite; the last good checkpoint stays.
        Interrupted: on Ctrl-C or SIGTERM; the state is saved first.
        TooLarge: where a batch does not fit into the memory of the device.
        Lost: where another process of the run is gone.
    """
    s = session
    with ExitStack() as stack:
        stop = stack.enter_context(_signals())
        if not s.alone:
            stack.enter_context(synchronised(s.model))
            stack.enter_context(_losing(s))
        flight = stack.enter_context(flying(s))
        saved, cost = time.perf_counter(), 0.0
        while s.position.step < s.steps:
            age = time.perf_counter() - saved
            due = age > SAVE_SECONDS or (flight.ends_next and age * SAVE_SHARE >= cost)
            tallies = _go(s, flight, bool(stop), due)
            if not (flight.at_end or _stops(s, stop, tallies) or any(t.due for t in tallies)):
                continue
            with _clock(s.position):
                last = flight.land()
            tallies += _heard(s, last)
            stopping = _stops(s, stop, tallies)
            if flight.at_end:
                _end_epoch(s)
            if stopping or s.position.step == s.steps or any(t.due for t in tallies):
                began = time.perf_counter()
                _save(s, tallies[-1])
                saved = time.perf_counter()
                cost = saved - began
            if stopping and s.position.step < s.steps:
                raise Interrupted


def _go(s: Session, flight: Flight, stop: bool, due: bool) -> list[Tally]:
    """Launch a step; what is heard of those before it, and of itself where nothing is late."""
    with _clock(s.position):
        unfit = flight.launch(stop, due)
        tallies = flight.land(flight.late) if unfit is None else []
    if unfit is not None:
        flight.forget()
        raise _does_not_fit(s, unfit)
    return _heard(s, tallies)


def _stops(s: Session, stop: list[int], tallies: list[Tally]) -> bool:
    """Many devices stop after the step in whose tally all of them have heard of it."""
    return bool(stop) if s.alone else any(tally.stop for tally in tallies)


def _heard(s: Session, tallies: list[Tally]) -> list[Tally]:
    """Put steps that have landed on record."""
    p = s.position
    for tally in tallies:
        if not math.isfinite(tally.loss):
            raise _diverged(s, f"the loss became {tally.loss}", tally.pieces)
        if tally.bad:
            raise _diverged(s, "the gradient stopped being finite", tally.pieces)
        p.step += 1
        p.loss_sum += tally.loss * tally.seen
        p.correct, p.seen = p.correct + tally.correct, p.seen + tally.seen
        s.progress.step(p, s.steps, tally.loss)
    return tallies


@contextmanager
def _clock(position: Position) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    position.seconds += seconds
    position.epoch_seconds += seconds


def _does_not_fit(s: Session, batch: Batch) -> TooLarge:
    if any(isinstance(p, DTensor) for p in s.model.parameters()):
        return TooLarge(
            f"a batch of {len(batch.y)} pictures does not fit into the memory of the device; "
            f"accumulate={2 * s.recipe.accumulate} halves what is taken at once and leaves "
            "batch_size as it is"
        )
    with s.fabric.autocast():
        size, world = s.batches.size, s.fabric.world_size
        return too_large(s.model, s.task, batch, size=size, world=world)


def _end_epoch(s: Session) -> None:
    p = s.position
    _settle(s)
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
        "data_wait": p.epoch_waited / p.epoch_seconds,
    }
    if s.validation is not None:
        line |= _validate(s, s.validation)
    p.loss_sum, p.correct, p.seen, p.epoch_seconds, p.epoch_waited = 0.0, 0, 0, 0.0, 0.0
    s.log.append(line)
    if s.fabric.is_global_zero:
        # before the checkpoint: a resumed run drops lines that are ahead of its state
        write_atomically(s.run / LOG, "".join(json.dumps(row) + "\n" for row in s.log))
    s.progress.epoch(line)


def _settle(s: Session) -> None:
    """Let the clock see what the device still has to do."""
    if s.fabric.device.type == "cuda":
        with _clock(s.position):
            torch.cuda.synchronize(s.fabric.device)


def _validate(s: Session, source: Source) -> dict[str, float]:
    """Each device takes its share of the batches; the sums are of all."""
    sums = torch.zeros(3, dtype=torch.float64)
    for counts, batch in _even(s, source):
        with s.fabric.autocast():
            steps = predict(s.judged, batch.x)
        if counts:
            logits = steps.to(torch.promote_types(steps.dtype, torch.float32)).mean(0)
            loss = nn.functional.cross_entropy(logits, batch.y, reduction="sum")
            correct = (logits.argmax(-1) == batch.y).sum()
            sums += torch.tensor([float(loss), int(correct), len(batch.y)])
    loss, correct, n = (sums if s.alone else summed(s.fabric, sums)).tolist()
    return {"validation_loss": loss / n, "validation_accuracy": correct / n}


def _even(s: Session, source: Source) -> Iterator[tuple[bool, Batch]]:
    """Equally many batches on every device, and whether one counts.

    A model that is spread over devices runs on all of them at once; so a device whose share is
    a batch less shows one again.
    """
    size, share = max(1, s.recipe.batch_size // s.fabric.world_size), share_of(s.fabric)
    most = math.ceil(math.ceil(len(source) / size) / share.world)
    shown = 0
    for _, batch in source.all(size, share):
        shown += 1
        yield True, batch
    for _ in range(shown, most):
        yield False, next(source.all(size, replace(share, rank=0)))[1]


def _save(s: Session, last: Tally) -> None:
    # buffers too: a running variance may overflow while every weight is still finite
    if not all(whole(t).isfinite().all() for t in s.model.state_dict().values()):
        raise _diverged(s, "weights or statistics stopped being finite", last.pieces)
    devices, write = s.fabric.world_size, s.fabric.is_global_zero
    save_run(s.run, s.state, s.position, s.data, devices=devices, write=write)


def _diverged(s: Session, what: str, pieces: list[Batch]) -> Diverged:
    good = s.run / "last.safetensors"
    s.model.train()  # as in a step; where steps are replayed it is as it was left
    layers = diagnose(s.model, pieces[0].shown)
    kept = f"the last good checkpoint is kept: {good}" if good.exists() else "nothing was saved yet"
    where = f"step {s.position.step} (epoch {s.position.step // len(s.batches) + 1})"
    return Diverged(
        f"{what} at {where}. Layers: {layers}. {kept}. A lower optim.lr "
        f"(now {s.recipe.optim.lr:g}), optim.clip=1 or a longer optim.warmup often helps"
    )


@contextmanager
def _losing(s: Session) -> Iterator[None]:
    """Put into words what gloo and NCCL say when another process is gone."""
    try:
        yield
    except RuntimeError as error:
        known = type(error) is RuntimeError and _GONE.search(str(error))
        if not known and not isinstance(error, distributed.DistError):
            raise
        kept = (
            "go on with --resume" if (s.run / "last.safetensors").exists() else "nothing is saved"
        )
        raise Lost(
            f"another process of this run is gone, after step {s.position.step}; {kept} "
            f"({str(error).splitlines()[0].partition('. ')[0]})"
        ) from error


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
