"""Steps recorded once and replayed: one launch in the place of a thousand."""

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor
from torch.nn.functional import one_hot

from saccade.data import moved
from saccade.ops import rehearse
from saccade.train.curriculum import Sharpness
from saccade.train.recipe import Recipe
from saccade.train.step import Step, Told, add_gradients
from saccade.train.tasks import Batch, Task

WARM = 3
"""Steps of a kind that run before one is recorded: libraries choose their algorithms in them, and
the optimiser makes its state."""
log = logging.getLogger("saccade")
Run = Callable[[], None]


class Recorder(Protocol):
    """How a device records what a function gives it to do."""

    def warm(self, run: Run) -> None:
        """Run it where it will be recorded."""

    def record(self, run: Run) -> Run:
        """What does the same again, on the same memory; nothing is done yet."""


class CudaGraphs:
    """Records on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm(self, run: Run) -> None:
        """See `Recorder`."""
        now = torch.cuda.current_stream(self.side.device)
        self.side.wait_stream(now)
        with torch.cuda.stream(self.side):
            run()
        now.wait_stream(self.side)

    def record(self, run: Run) -> Run:
        """See `Recorder`. Other threads go on meanwhile: they make the batches that follow."""
        gc.collect()
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(self.side),  # left also where the recording fails
            torch.cuda.graph(graph, stream=self.side, capture_error_mode="thread_local"),
        ):
            run()
        return graph.replay


class Recorded:
    """Takes steps as `Step` does, by replaying one of the same kind that was recorded.

    A kind is what Python decides on: shapes, T, size, sharpness of surrogates. The first steps of a
    kind run one operation after the other and count as any other step, so that there is nothing to
    undo behind them. All steps read the same memory, into which pictures and numbers are copied.

    Args:
        step: the definition of a step.
        recorder: of the device.
        sharpness: of the model's surrogates.
        soft: whether targets are shares of the classes in every step, mixed or not.
    """

    def __init__(self, step: Step, recorder: Recorder, sharpness: Sharpness, soft: bool) -> None:
        self.step, self.sharpness, self.soft = step, sharpness, soft
        self.recorder: Recorder | None = recorder
        self.K, device = step.s.batches.K, step.s.fabric.device
        self.numbers = torch.zeros(5, dtype=torch.float64, device=device)
        self.said = torch.zeros(6, dtype=torch.float64, device=device)
        self.forget()

    def forget(self) -> None:
        """Let go of what was recorded, and of its memory."""
        if self.said.is_cuda:  # it may be under way
            torch.cuda.synchronize(self.said.device)
        self.kind: object = None
        self.pieces: list[Batch] = []
        self.replay: Run | None = None
        self.taken = 0
        self.step.forget()

    def __call__(self, pieces: Sequence[Batch], told: Told) -> Tensor:
        """See `Step`; what is returned is written over by the next step."""
        pieces = [self._with_shares(piece) for piece in pieces]
        kind = self.sharpness.factor, *((p.T, p.size, p.x.shape) for p in pieces)
        if kind != self.kind:
            self.forget()
            self.kind = kind
            self.pieces = [_same(piece, torch.empty_like) for piece in pieces]
        self._fill(pieces, told)
        if not self.taken:
            self._rehearse()
        if self.recorder is None:
            self._run()
        elif self.taken < WARM:
            self.recorder.warm(self._run)
        else:
            self._replay()
        self.taken += 1
        return self.said

    def _with_shares(self, piece: Batch) -> Batch:
        """With shares of the classes, if the recipe mixes, so that one recording serves."""
        if not self.soft or piece.soft is not None:
            return piece
        return replace(piece, soft=one_hot(piece.y, self.K).to(piece.x.dtype))

    def _fill(self, pieces: Sequence[Batch], told: Told) -> None:
        for ours, given in zip(self.pieces, pieces, strict=True):
            ours.x.copy_(given.x)
            ours.y.copy_(given.y)
            if ours.soft is not None and given.soft is not None:
                ours.soft.copy_(given.soft)
        numbers = torch.tensor([told.share, told.n, *told.mine], dtype=torch.float64)
        self.numbers.copy_(moved(numbers, self.numbers.device))

    def _rehearse(self) -> None:
        """Have the kernels of such steps compiled; model and chance stay as they are."""
        s = self.step.s
        if not s.alone or s.fabric.device.type != "cuda":
            return
        with torch.random.fork_rng([s.fabric.device]):
            rehearse(lambda: add_gradients(s, self.pieces), s.model, s.fabric.device)
        self.step.forget()

    def _run(self) -> None:
        share, n = self.numbers[0], self.numbers[1]
        told = Told(share=share, n=n, mine=self.numbers[2:])
        self.said.copy_(self.step(self.pieces, told))

    def _replay(self) -> None:
        """Replay, and record first where this kind was not; what cannot be recorded is run."""
        assert self.recorder is not None
        if self.replay is None:
            try:
                self.replay = self.recorder.record(self._run)
            except RuntimeError as error:
                if _out_of_memory(error):
                    raise torch.OutOfMemoryError(str(error)) from None
                announce(f"recording it failed: {str(error).splitlines()[0]}")
                self.recorder = None
        if self.replay is None:
            self._run()
        else:
            self.replay()


def refusal(fabric: Fabric, recipe: Recipe, task: Task) -> str:
    """Why the steps of a run cannot be recorded as a CUDA graph; "" where they can."""
    if fabric.device.type != "cuda":
        return f"the device is {fabric.device.type}, not cuda"
    if isinstance(fabric.strategy, ModelParallelStrategy):
        return "strategy fsdp fetches weights from other devices while it runs"
    if recipe.precision == "16-mixed":
        return "the scaler of 16-mixed decides on the CPU whether a step is taken"
    if not task.repeats:
        return f"task {recipe.task['name']!r} does not do the same in every step"
    return ""


def announce(why: str) -> None:
    """Say that steps are not replayed."""
    log.info("each step runs one operation at a time, not as one CUDA graph: %s", why)


def _same(piece: Batch, like: Callable[[Tensor], Tensor]) -> Batch:
    soft = None if piece.soft is None else like(piece.soft)
    return replace(piece, x=like(piece.x), y=like(piece.y), soft=soft)


def _out_of_memory(error: BaseException | None) -> bool:
    """Also where the end of a recording that it broke was raised on top of it."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__context__
    return error is not None
