"""Seconds of calls that take turns, so that what else the machine does falls on all of them."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Step = Callable[[], Any]
SHORTEST = 1e-3
"""Seconds that one sample on a CPU takes at least; a shorter call is repeated within it."""


@dataclass(frozen=True)
class Timing:
    """Seconds of each sample of one call."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """In seconds."""
        return statistics.median(self.seconds)

    def quartiles(self) -> tuple[float, float]:
        """First and third, in seconds; of one sample, that sample."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    def as_dict(self) -> dict[str, float]:
        """For JSON, in seconds."""
        first, third = self.quartiles()
        return {
            "n": len(self.seconds),
            "median_s": self.median,
            "q1_s": first,
            "q3_s": third,
            "min_s": min(self.seconds),
            "max_s": max(self.seconds),
        }


def interleaved(
    steps: Mapping[str, Step], device: torch.device, *, n: int, warmup: int = 2
) -> dict[str, Timing]:
    """Time every step n times, in rounds in which each has a turn, forth and back.

    On CUDA by events on the stream, elsewhere by the clock.

    Args:
        steps: by name; each does the same work at every call.
        device: where they compute.
        n: samples of each.
        warmup: calls before the first sample.
    """
    for step in steps.values():
        for _ in range(warmup):
            step()
    sample = _by_events if device.type == "cuda" else _by_clock(steps)
    taken: dict[str, list[Callable[[], float]]] = {name: [] for name in steps}
    for i in range(n):
        for name in list(steps) if i % 2 == 0 else reversed(list(steps)):
            taken[name].append(sample(steps[name]))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return {name: Timing(tuple(read() for read in reads)) for name, reads in taken.items()}


def _by_events(step: Step) -> Callable[[], float]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    step()
    end.record()
    return lambda: start.elapsed_time(end) / 1000


def _by_clock(steps: Mapping[str, Step]) -> Callable[[Step], Callable[[], float]]:
    repeats = {}
    for step in steps.values():
        began = time.perf_counter()
        step()
        repeats[step] = max(1, math.ceil(SHORTEST / (time.perf_counter() - began)))

    def sample(step: Step) -> Callable[[], float]:
        began = time.perf_counter()
        for _ in range(repeats[step]):
            step()
        seconds = (time.perf_counter() - began) / repeats[step]
        return lambda: seconds

    return sample


def graphed(step: Step) -> Step:
    """The step as one CUDA graph, whose replay takes no Python; it runs three times before."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
