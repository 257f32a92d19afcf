"""Which variant of every op ran in a model, at which module, and why the earlier ones did not."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any, Protocol, runtime_checkable

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from saccade.ops import Op, listening, within

NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")
"""The number of a repeated block in a module path."""


@runtime_checkable
class Fusing(Protocol):
    """A module whose parts run as one op where they can, such as `saccade.nn.Projection`."""

    def apart(self) -> str | None:
        """Why the parts run one by one, or None where they run fused."""


@dataclass(frozen=True)
class Call:
    """One call of an op.

    Args:
        path: of the module that called it.
        op: its name.
        within: names of the ops inside which it ran, outermost first.
        variant: the one that ran.
        refused: variant -> reason, of those that come before it.
    """

    path: str
    op: str
    within: tuple[str, ...]
    variant: str
    refused: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What one forward pass did; `print` it for a table.

    Args:
        model: name.
        shape: of the input.
        device: of the input.
        training: whether the model was in training mode.
        records: whether autograd recorded.
        autocast: its dtype, or None outside of autocast.
        calls: of ops, in the order in which they began.
        apart: module path -> why its parts ran one by one and not fused.
    """

    model: str
    shape: tuple[int, ...]
    device: str
    training: bool
    records: bool
    autocast: str | None
    calls: tuple[Call, ...]
    apart: dict[str, str]

    def rows(self) -> list[dict[str, Any]]:
        """Calls that differ in the numbers of their paths alone share a row."""
        groups: dict[tuple[Any, ...], list[str]] = {}
        for c in self.calls:
            alike = _unnumbered(c.path), c.op, c.within, c.variant, tuple(c.refused.items())
            groups.setdefault(alike, []).append(c.path)
        return [
            {
                "path": path,
                "calls": calls,
                "op": op,
                "within": list(inside),
                "variant": variant,
                "refused": dict(refused),
            }
            for (_, op, inside, variant, refused), paths in groups.items()
            for path, calls in _collapsed(paths)
        ]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with rows in place of calls."""
        return asdict(self) | {"shape": list(self.shape), "calls": self.rows()}

    def __str__(self) -> str:
        console = Console(file=StringIO(), width=150, color_system=None)
        console.print(self)
        assert isinstance(console.file, StringIO)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self._title())
        if not self.calls:
            yield Text("no op of saccade was called")
            return
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in ("module", "calls", "op", "ran", "refused before it"):
            table.add_column(column, justify="right" if column == "calls" else "left")
        for row in self.rows():
            refused = "; ".join(f"{name}: {why}" for name, why in row["refused"].items())
            op = "  " * len(row["within"]) + row["op"]
            words = row["path"], str(row["calls"]), op, row["variant"], refused
            table.add_row(*map(Text, words))
        yield table
        for why in dict.fromkeys(self.apart.values()):
            paths = [path for path, reason in self.apart.items() if reason == why]
            for path, _ in _collapsed(paths):
                yield Text(f"{path} ran its parts one by one: {why}")

    def _title(self) -> str:
        words = [
            f"{self.model}: one forward pass on {list(self.shape)}, {self.device}",
            f"{'training' if self.training else 'evaluation'} mode",
            "autograd records" if self.records else "autograd does not record",
            f"autocast {self.autocast}" if self.autocast else "no autocast",
        ]
        return ", ".join(words)


def explain(model: nn.Module, x: Tensor) -> Explanation:
    """Run `x` once and say which variant of each op ran, module by module.

    The pass runs in the mode that the model is in, under whatever `torch.no_grad`, autocast or
    `reference_only` is around. Afterwards buffers and random numbers are as before. Nothing is
    hooked to a module, because a module that is watched may run otherwise.

    Args:
        model: any model.
        x: its input.
    """
    watch = _Watch(model)
    device = x.device.type
    cast = torch.is_autocast_enabled(device)
    with _unchanged(model, device), watch.looking(), listening(watch.hear):
        model(x)
    return Explanation(
        model=getattr(model, "name", "") or type(model).__name__,
        shape=tuple(x.shape),
        device=device,
        training=model.training,
        records=torch.is_grad_enabled(),
        autocast=str(torch.get_autocast_dtype(device)).removeprefix("torch.") if cast else None,
        calls=tuple(watch.waiting.get(0, ())),
        apart=watch.apart,
    )


@contextmanager
def _unchanged(model: nn.Module, device: str) -> Iterator[None]:
    """Put buffers, such as running statistics, and random numbers back."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(enabled=device in ("cpu", "cuda")):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in kept:
                    buffer.copy_(before)


class _Watch:
    """Follows the module that runs, by hooks on all modules at once, and hears the ops."""

    def __init__(self, model: nn.Module) -> None:
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.stack: list[str] = []
        self.waiting: dict[int, list[Call]] = {}
        self.apart: dict[str, str] = {}

    @contextmanager
    def looking(self) -> Iterator[None]:
        hooks = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if (path := self.paths.get(id(module))) is None:
            return
        self.stack.append(path)
        if isinstance(module, Fusing) and (why := module.apart()) is not None:
            self.apart[path] = why

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        if id(module) in self.paths:
            self.stack.pop()

    def hear(self, op: Op, args: tuple[Any, ...], out: Any) -> None:
        verdicts = list(op.explain(*args).items())
        ran = next(i for i, (_, verdict) in enumerate(verdicts) if verdict == "runs")
        path = self.stack[-1] if self.stack else ""
        inside = tuple(outer.name for outer in within())
        call = Call(path, op.name, inside, verdicts[ran][0], dict(verdicts[:ran]))
        # an op is heard when it ends: those inside it have waited for it, to stand behind it
        depth = len(inside)
        self.waiting.setdefault(depth, []).extend([call, *self.waiting.pop(depth + 1, [])])


def _unnumbered(path: str) -> str:
    return NUMBER.sub("#", path)


def _collapsed(paths: list[str]) -> list[tuple[str, int]]:
    """Paths with ranges for their numbers, and how many calls each stands for."""
    groups: dict[str, list[tuple[int, ...]]] = {}
    for path in paths:
        groups.setdefault(_unnumbered(path), []).append(tuple(map(int, NUMBER.findall(path))))
    found = []
    for pattern, numbers in groups.items():
        columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
        whole = 1
        for column in columns:
            whole *= len(column)
        if whole == len(set(numbers)):
            found.append((_filled(pattern, map(_ranges, columns)), len(numbers)))
        else:
            each = dict.fromkeys(numbers)
            found += [(_filled(pattern, map(str, n)), numbers.count(n)) for n in each]
    return found


def _filled(pattern: str, numbers: Any) -> str:
    words = iter(numbers)
    return re.sub("#", lambda _: next(words), pattern)


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
