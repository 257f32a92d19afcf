"""Training steps and inference of a model, on the fast paths and on the references."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from saccade._registry import nearest
from saccade.analysis import Explanation, explain
from saccade.bench.equality import require_equal
from saccade.bench.memory import peak
from saccade.bench.result import Result
from saccade.bench.settings import Settings, tuned
from saccade.bench.timing import Step, graphed, interleaved
from saccade.models import SpikingModel, create_model, describe
from saccade.nn import Neuron, on_spikes
from saccade.ops import OPS, reference_only, rehearse
from saccade.transform import fuse

PATHS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "fast": nullcontext,
    "reference": reference_only,
}
"""fast: whatever variants the ops choose; reference: none of them."""
KINDS = ("train", "infer")


@dataclass(frozen=True)
class Case:
    """A model on a device with a batch of random pictures."""

    what: str
    model: SpikingModel
    x: Tensor
    y: Tensor
    optimizer: torch.optim.Optimizer
    settings: Settings
    rate: float | None = None
    """Mean firing rate of the neurons, where it was measured."""

    def forward(self) -> Tensor:
        """Logits, under autocast where the precision is a short one."""
        with torch.autocast(self.x.device.type, self.settings.dtype, enabled=self.settings.casts):
            logits: Tensor = self.model(self.x)
        return logits

    def step(self) -> None:
        """A step of AdamW on cross-entropy, or a forward pass without autograd."""
        if self.what == "infer":
            with torch.no_grad():
                self.forward()
            return
        self.optimizer.zero_grad(set_to_none=True)
        loss: Any = cross_entropy(self.forward().float(), self.y)
        loss.backward()
        self.optimizer.step()

    def rehearse(self) -> None:
        """Have the kernels of a step compiled, as `saccade train` does; see `saccade.ops`."""
        train = self.what == "train"

        def run() -> None:
            with torch.set_grad_enabled(train):
                logits = self.forward()
            if train:
                cross_entropy(logits.float(), self.y).backward()  # type: ignore[no-untyped-call]

        rehearse(run, self.model, self.x.device)
        self.model.zero_grad(set_to_none=True)

    def held(self) -> list[Tensor]:
        """Tensors that lie in memory between steps: weights, statistics, optimiser, batch."""
        kept = [v for s in self.optimizer.state.values() for v in s.values()]
        tensors = [v for v in kept if isinstance(v, Tensor)]
        return [self.x, self.y, *self.model.parameters(), *self.model.buffers(), *tensors]


def bench_model(
    what: str,
    name: str,
    options: Mapping[str, Any],
    *,
    batch: int = 32,
    paths: Sequence[str] = tuple(PATHS),
    settings: Settings,
    profile: bool = False,
) -> Result:
    """Images a second, peak memory and first step of a model; its paths take turns in one run.

    Args:
        what: train or infer.
        name: of the model.
        options: of `saccade.create_model`, such as image_size or T.
        batch: B.
        paths: of `PATHS`.
        settings: where and how often.
        profile: whether torch's profiler watches three more steps of the first path.

    Raises:
        ValueError: for an unknown kind, path, model or option, or a batch below 1.
        Unequal: where a variant that the model runs differs from its reference.
    """
    for word, known in ((what, KINDS), *((path, tuple(PATHS)) for path in paths)):
        if word not in known:
            raise ValueError(f"unknown {word!r}; {nearest(word, list(known))}")
    if batch < 1 or not paths:
        raise ValueError(f"got batch={batch} and {len(paths)} paths, expected 1 or more of each")
    with tuned():
        case = make_case(what, name, options, batch, settings)
        first = {path: _first_step(case, path) for path in dict.fromkeys(paths)}
        seen = _checked(case)
        rows = _measure(case, first)
        spent = _profile(_on(paths[0], case.step)) if profile else ""
    return Result(
        what=f"{what} {name}, batch {batch}",
        conditions=settings.conditions()
        | {
            "batch": batch,
            "model": describe(case.model),
            "paths": seen.as_dict(),
            "firing_rate": case.rate,
        },
        rows=rows,
        columns=COLUMNS,
        notes=_notes(seen, case.rate),
        profile=spent,
    )


def make_case(
    what: str, name: str, options: Mapping[str, Any], batch: int, settings: Settings
) -> Case:
    """Weights and batch are those of seed 0; a model that infers knows the batch's statistics."""
    torch.manual_seed(0)
    model = create_model(name, **options).to(settings.place).train(what == "train")
    if settings.place.type == "cuda" and len(model.frame) == 3:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(batch, *model.frame, device=settings.place)
    rate = settle(model, x) if what == "infer" else None
    if settings.products is not None:
        model = fuse(model, settings.products)
    y = torch.randint(model.config.num_classes, (batch,), device=settings.place)
    cuda = settings.place.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True, capturable=cuda)
    return Case(what, model, x, y, optimizer, settings, rate)


@torch.no_grad()
def settle(model: SpikingModel, x: Tensor) -> float:
    """Take the statistics of all norms from a batch; the mean firing rate with them.

    With those that it was made with, an untrained model is silent, and what skips silent inputs
    would look faster than it is.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    before = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(x)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    rates: list[float] = []
    neurons = (m for m in model.modules() if isinstance(m, Neuron))
    hooks = [on_spikes(m, lambda s: rates.append(float(s.float().mean()))) for m in neurons]
    model.eval()(x)
    for hook in hooks:
        hook.remove()
    return sum(rates) / len(rates)


def _first_step(case: Case, path: str) -> float:
    """Seconds of the first step in this process: kernels are compiled and algorithms chosen.

    A model that infers has been settled before, which loads libraries and compiles some kernels.
    Taken before the variants are compared with their references, which would compile them.
    """
    began = time.perf_counter()
    if path == "fast":
        case.rehearse()
    _on(path, case.step)()
    if case.settings.place.type == "cuda":
        torch.cuda.synchronize(case.settings.place)
    return time.perf_counter() - began


def _checked(case: Case) -> Explanation:
    """What the model runs, every variant of which has been compared with its reference."""
    with (
        torch.set_grad_enabled(case.what == "train"),
        torch.autocast(case.x.device.type, case.settings.dtype, enabled=case.settings.casts),
    ):
        seen = explain(case.model, case.x)
    for op, variant in sorted({(call.op, call.variant) for call in seen.calls}):
        require_equal(OPS[op], variant, case.settings.place)
    return seen


def _measure(case: Case, first: Mapping[str, float]) -> list[dict[str, Any]]:
    device, steps = case.settings.place, {}
    rows: dict[str, dict[str, Any]] = {}
    for path, seconds in first.items():
        step = _on(path, case.step)
        rows[path] = {"path": path, "first_step_s": seconds}
        case.optimizer.zero_grad(set_to_none=True)
        held = case.held()
        resting = sum(t.nbytes for t in held)
        rows[path]["peak_bytes"] = resting + peak(_freeing(step, case.optimizer), device, held)
        rows[path]["resting_bytes"] = resting
        steps[path] = graphed(step) if case.settings.graph else step
    for path, timing in interleaved(steps, device, n=case.settings.n).items():
        rates = [len(case.x) / s for s in (timing.median, *timing.quartiles())]
        names = ("images_per_s", "images_per_s_q3", "images_per_s_q1")
        rows[path] |= timing.as_dict() | dict(zip(names, rates, strict=True))
    slowest = rows["reference"]["median_s"] if "reference" in rows else None
    for row in rows.values():
        row["ratio"] = slowest and slowest / row["median_s"]
    return list(rows.values())


def _profile(step: Step) -> str:
    """torch's table of the operations in which three steps spent their time."""
    with torch.profiler.profile() as watched:
        for _ in range(3):
            step()
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    table: str = watched.key_averages().table(sort_by=key, row_limit=32, max_name_column_width=70)
    return table


def _freeing(step: Step, optimizer: torch.optim.Optimizer) -> Step:
    """The step, and no gradient left behind it: what is held before it is what `held` lists."""

    def run() -> None:
        step()
        optimizer.zero_grad(set_to_none=True)

    return run


def _on(path: str, step: Step) -> Step:
    def run() -> None:
        with PATHS[path]():
            step()

    return run


def _notes(seen: Explanation, rate: float | None) -> tuple[str, ...]:
    """Which variants the fast path is made of, in a line, and how often neurons fire."""
    ran = dict.fromkeys(f"{c.op} {c.variant}" for c in seen.calls)
    apart = f"; {len(seen.apart)} modules run their parts one by one" if seen.apart else ""
    fires = () if rate is None else (f"neurons fire {rate:.1%} on average",)
    return (f"fast: {', '.join(ran)}{apart}", *fires)


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "path": lambda r: r["path"],
    "images/s": lambda r: f"{r['images_per_s']:,.1f}",
    "quartiles": lambda r: f"{r['images_per_s_q1']:,.1f} to {r['images_per_s_q3']:,.1f}",
    "times faster": lambda r: f"{r['ratio']:.2f}" if r["ratio"] else "",
    "peak MiB": lambda r: f"{r['peak_bytes'] / 2**20:,.1f}",
    "first step s": lambda r: f"{r['first_step_s']:.2f}",
}
