"""The training loop. It names no task, model or data set, and keeps no random state."""

import json
import math
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from saccade.models import SpikingModel
from saccade.train.average import MovingAverage
from saccade.train.batches import Batches, Source
from saccade.train.checkpoint import Position, State, save_run
from saccade.train.curriculum import Sharpness, Stage, stage_at
from saccade.train.devices import share_of, summed, whole
from saccade.train.diagnose import Diverged, diagnose
from saccade.train.files import write_atomically
from saccade.train.launch import Lost
from saccade.train.memory import TooLarge, too_large
from saccade.train.randomness import seed_for
from saccade.train.recipe import Recipe
from saccade.train.schedule import learning_rate, rate_share, set_rates
from saccade.train.synchronised import synchronised
from saccade.train.tasks import Batch, Task, predict

LOG = "log.jsonl"
SAVE_SECONDS = 60.0
"""A checkpoint is at most this much work old; one is also written after every epoch."""
_GONE = re.compile(r"gloo|nccl|Connection (closed|reset)", re.IGNORECASE)


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
    """One run under way: what the loop works on. With many devices, each process has its own.

    Args:
        model: without what Fabric puts around it.
        wrapped: the model as Fabric runs it; every gradient comes from here.
    """

    recipe: Recipe
    run: Path
    fabric: Fabric
    model: SpikingModel
    wrapped: _FabricModule
    optimizer: torch.optim.Optimizer
    task: Task
    batches: Batches
    validation: Source | None
    progress: Progress
    average: MovingAverage | None = None
    data: dict[str, Any] = field(default_factory=dict)
    position: Position = field(default_factory=Position)
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """How many there will be."""
        return self.batches.steps

    @property
    def judged(self) -> SpikingModel:
        """What is validated, tested and loaded: the averaged weights, if there are any."""
        return self.average.model if self.average else self.model

    @property
    def stage(self) -> Stage:
        """What the curriculum asks for at this step."""
        return stage_at(self.recipe.curriculum, self.position.step, self.steps)

    @property
    def state(self) -> State:
        """What a checkpoint keeps, the position aside."""
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        average = self.average.model if self.average else None
        return State(model=self.model, optimizer=self.optimizer, average=average, scaler=scaler)

    @property
    def alone(self) -> bool:
        """Whether there is one device."""
        return self.fabric.world_size == 1


@dataclass(kw_only=True)
class Tally:
    """One step, over all devices."""

    loss: float
    correct: int
    seen: int
    bad: bool
    stop: bool
    due: bool


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
        optimizer = s.fabric.setup_optimizers(s.optimizer)
        saved, sharpness = time.perf_counter(), Sharpness(s.model)
        stack.callback(sharpness.set, 1.0)
        while s.position.step < s.steps:
            sharpness.set(s.stage.sharpness)
            tally = _step(s, optimizer, stop, time.perf_counter() - saved > SAVE_SECONDS)
            s.progress.step(s.position, s.steps, tally.loss)
            # many devices stop after the step in whose tally all of them have heard of it
            stopping = bool(stop) if s.alone else tally.stop
            at_end = s.position.step % len(s.batches) == 0
            if at_end:
                _end_epoch(s)
            if at_end or stopping or tally.due:
                _save(s)
                saved = time.perf_counter()
            if stopping and s.position.step < s.steps:
                raise Interrupted


def _step(s: Session, optimizer: Any, stop: list[int], due: bool) -> Tally:
    began = time.perf_counter()
    step = s.position.step
    pieces = _pieces(s)
    s.position.epoch_waited += time.perf_counter() - began
    # what a model draws, such as dropout, is apart on each device
    torch.manual_seed(seed_for(s.recipe.seed, _purpose(s), step))
    set_rates(optimizer, rate_share(s.recipe.optim, step, s.steps))
    optimizer.zero_grad()
    tally = _backward(s, pieces, bool(stop), due)
    if tally is None:
        raise _does_not_fit(s, pieces[0])
    if not math.isfinite(tally.loss):
        raise _diverged(s, f"the loss became {tally.loss}", pieces)
    if tally.bad:
        raise _diverged(s, "the gradient stopped being finite", pieces)
    if clip := s.recipe.optim.clip:
        s.fabric.clip_gradients(s.wrapped, optimizer, max_norm=clip, error_if_nonfinite=False)
    optimizer.step()
    if s.average:
        s.average.follow(s.model, step + 1)
    p = s.position
    p.loss_sum += tally.loss * tally.seen
    p.correct, p.seen = p.correct + tally.correct, p.seen + tally.seen
    _advance(p, time.perf_counter() - began)
    return tally


def _pieces(s: Session) -> list[Batch]:
    """This process's part of the step's batch, as the curriculum has it shown."""
    T, size = s.stage.T or None, s.stage.resized(s.model.frame)
    return [replace(piece, T=T, size=size) for piece in s.batches.at(s.position.step)]


def _purpose(s: Session) -> str:
    return "step" if s.fabric.is_global_zero else f"step on {s.fabric.global_rank}"


def _backward(s: Session, pieces: list[Batch], stop: bool, due: bool) -> Tally | None:
    """Gradients of a batch, and what all devices say of it; None where it does not fit."""
    try:
        sums = _gradients(s, pieces)
    except torch.OutOfMemoryError:
        return None
    # float16 overflows now and then, and its scaler leaves those steps out
    watched = s.recipe.precision != "16-mixed"
    norm = whole(_gradient_norm(s.model)) if watched else torch.zeros((), device=sums.device)
    # in one piece, so that the device is waited for once
    said = torch.cat([sums, (~norm.isfinite()).to(sums)[None]])
    mine = [float(sum(len(piece.y) for piece in pieces)), float(stop), float(due)]
    if s.alone:
        total = said.tolist() + mine
    else:
        total = summed(s.fabric, torch.cat([said, said.new_tensor(mine)])).tolist()
    loss, right, bad, seen, *asked = total
    return Tally(
        loss=loss / seen,
        correct=int(right),
        seen=int(seen),
        bad=bad > 0,
        stop=asked[0] > 0,
        due=asked[1] > 0,
    )


def _gradients(s: Session, pieces: list[Batch]) -> Tensor:
    """Add up the gradient of the mean loss; sums over this device's pictures: loss, right ones."""
    exact = torch.float32 if s.fabric.device.type == "mps" else torch.float64
    sums = torch.zeros(2, dtype=exact, device=s.fabric.device)
    s.wrapped.train()
    for n, piece in enumerate(pieces, 1):
        count = len(piece.y)
        with s.fabric.no_backward_sync(s.wrapped, enabled=n < len(pieces)):
            result = s.task(s.wrapped, piece)
            # gradients are averaged over devices, whose parts may differ by a picture
            s.fabric.backward(result["loss"] * (count * s.fabric.world_size / s.batches.size))
        right = torch.as_tensor(result.get("correct", 0))
        sums += torch.stack([result["loss"].detach().to(sums) * count, right.to(sums)])
    return sums


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


def _gradient_norm(model: nn.Module) -> Tensor:
    return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def _advance(position: Position, seconds: float) -> None:
    position.step += 1
    position.seconds += seconds
    position.epoch_seconds += seconds


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
        began = time.perf_counter()
        torch.cuda.synchronize(s.fabric.device)
        late = time.perf_counter() - began
        s.position.seconds += late
        s.position.epoch_seconds += late


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


def _save(s: Session) -> None:
    # buffers too: a running variance may overflow while every weight is still finite
    if not all(whole(t).isfinite().all() for t in s.model.state_dict().values()):
        last = s.batches.at(s.position.step - 1)
        raise _diverged(s, "weights or statistics stopped being finite", last)
    devices, write = s.fabric.world_size, s.fabric.is_global_zero
    save_run(s.run, s.state, s.position, s.data, devices=devices, write=write)


def _diverged(s: Session, what: str, pieces: list[Batch]) -> Diverged:
    good = s.run / "last.safetensors"
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
