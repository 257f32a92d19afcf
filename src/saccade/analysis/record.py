"""Count what a model does while it runs: spikes by layer and step, additions, multiplications.

Our rule. A layer whose input is integers (spikes, or a residual stream of summed spikes) adds:
an input n counts n additions for each weight that it meets, zero padding counted as nothing. A
layer whose input is real-valued multiplies: its dense multiply-accumulates, once where every
step shows the same picture. An attention product counts what its Op declares. A product in plain
torch, outside of layers and ops, is in no count: `Recording.uncounted` names it.

The paper's rule (Spikformer, arXiv:2209.15425, App. C.2), kept beside it: a layer takes
rate * T * FLOPs additions, where rate is the share of non-zero inputs; the first convolution
takes FLOPs multiply-accumulates, whatever T. For the attention product, the rate is the mean
over its spike inputs [our reading; the paper does not say].
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.overrides import TorchFunctionMode

from saccade.analysis.energy import HOROWITZ_45NM, Energy
from saccade.nn import Neuron, on_spikes
from saccade.nn.folded import Folded
from saccade.ops import Op, listening, within

Layer = nn.Conv1d | nn.Conv2d | nn.Linear | Folded
PRODUCTS = {
    "__matmul__", "__rmatmul__", "addbmm", "addmm", "baddbmm", "bilinear", "bmm", "conv1d",
    "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "einsum", "inner", "linear",
    "matmul", "mm", "mv", "scaled_dot_product_attention", "tensordot",
}  # fmt: skip
"""Functions of torch that multiply and add."""


@dataclass
class LayerCount:
    """Operations of one layer, summed over the images seen."""

    kind: str
    sops: float = 0.0
    macs: float = 0.0
    paper_sops: float = 0.0
    paper_macs: float = 0.0
    inputs: float = 0.0
    nonzero: float = 0.0
    total: float = 0.0


@dataclass
class Recording:
    """What `record` has seen so far."""

    images: int = 0
    layers: dict[str, LayerCount] = field(default_factory=dict)
    spikes: dict[str, Tensor] = field(default_factory=dict)
    slots: dict[str, Tensor] = field(default_factory=dict)
    """Neurons times samples of each layer at each step: where it could have fired."""
    uncounted: set[str] = field(default_factory=set)
    """Products that no count holds, as "matmul in blocks.0.attention"."""

    def add(self, other: "Recording") -> None:
        """Count what was seen elsewhere, of the same model, as if it had been seen here."""
        self.images += other.images
        self.uncounted |= other.uncounted
        for path, count in other.layers.items():
            mine = self.layers.setdefault(path, LayerCount(count.kind))
            for column in (
                "sops",
                "macs",
                "paper_sops",
                "paper_macs",
                "inputs",
                "nonzero",
                "total",
            ):
                setattr(mine, column, getattr(mine, column) + getattr(count, column))
        for ours, theirs in ((self.spikes, other.spikes), (self.slots, other.slots)):
            for path, steps in theirs.items():
                ours[path] = _joined(ours[path], steps) if path in ours else steps

    def rates(self) -> dict[str, list[float]]:
        """Mean firing rate of each neuron layer at each step, by module path."""
        return {path: (s / self.slots[path]).tolist() for path, s in self.spikes.items()}

    def mean_rates(self) -> dict[str, float]:
        """Mean firing rate of each neuron layer over all steps."""
        return {path: sum(r) / len(r) for path, r in self.rates().items()}

    def table(self, energy: Energy = HOROWITZ_45NM) -> list[dict[str, Any]]:
        """One row a layer, per image, in the order of the first run; energies in mJ."""
        n = max(1, self.images)
        return [
            {
                "path": path,
                "kind": c.kind,
                "sops": c.sops / n,
                "macs": c.macs / n,
                "energy_mj": energy.millijoules(c.sops / n, c.macs / n),
                "paper_sops": c.paper_sops / n,
                "paper_macs": c.paper_macs / n,
                "input_rate": c.nonzero / max(1.0, c.total),
                "input_mean": c.inputs / max(1.0, c.total),
            }
            for path, c in self.layers.items()
        ]

    def totals(self, energy: Energy = HOROWITZ_45NM) -> dict[str, Any]:
        """Additions, multiply-accumulates and mJ per image, by our rule and by the paper's."""
        rows = self.table(energy)

        def total(column: str) -> float:
            return float(sum(row[column] for row in rows))

        sops, macs = total("paper_sops"), total("paper_macs")
        paper = {"name": "Spikformer, App. C.2", "sops": sops, "macs": macs}
        return {
            "sops": total("sops"),
            "macs": total("macs"),
            "energy_mj": energy.millijoules(total("sops"), total("macs")),
            "uncounted": sorted(self.uncounted),
            "paper_rule": paper | {"energy_mj": energy.millijoules(sops, macs)},
            "energy_constants": {
                "ac_pj": energy.ac_pj,
                "mac_pj": energy.mac_pj,
                "note": energy.note,
            },
        }


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Inside this block every call of `model` is counted; the model computes as ever.

    The model takes pictures [B C H W] or frames [T B C H W] as its first argument. Calls that fail
    are not counted. Of a stream every step is a call: an image is then one step of one sample.
    """
    watch = _Watch(model)
    try:
        with listening(watch.op), _Products(watch.product):
            yield watch.seen
    finally:
        for hook in watch.hooks:
            hook.remove()


class _Products(TorchFunctionMode):
    """Inside this block `hear(name)` hears of every product that Python asks torch for."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__()
        self.hear = hear

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (name := getattr(func, "__name__", "")) in PRODUCTS:
            self.hear(name)
        return func(*args, **(kwargs or {}))


class _Watch:
    """Hooks on every module; keeps the path of the module that runs."""

    def __init__(self, model: nn.Module) -> None:
        self.seen, self.call = Recording(), Recording()  # the latter of the call under way
        self.stack: list[str] = []
        self.batch, self.fired = 1, False
        self.trains: dict[str, list[Tensor]] = {}
        self.sizes: dict[str, int] = {}
        self.layers = {path for path, m in model.named_modules() if isinstance(m, Layer)}
        self.hooks: list[Any] = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for path, module in model.named_modules():
            self.hooks.append(module.register_forward_pre_hook(self._enter(path)))
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                self.hooks.append(module.register_forward_hook(self._layer(path)))
            if isinstance(module, Folded):  # before its neuron fires
                hear = self._layer(path)
                self.hooks.append(
                    module.register_forward_pre_hook(lambda m, args, h=hear: h(m, args, None))
                )
            if isinstance(module, Neuron):
                self.hooks.append(on_spikes(module, self._neuron(path)))
            self.hooks.append(module.register_forward_hook(self._leave, always_call=True))
        self.hooks.append(model.register_forward_hook(self._end))

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        frame = getattr(module, "frame", (0, 0, 0))  # pictures, unless the model says otherwise
        x = args[0] if args else kwargs["x"]
        self.batch, self.fired = x.shape[-len(frame) - 1], False
        self.call = Recording(images=self.batch)
        for of_call in (self.trains, self.sizes, self.stack):
            of_call.clear()

    def _end(self, module: nn.Module, args: Any, out: Any) -> None:
        """Count the call; a neuron that joined late was silent before."""
        steps = max((sum(map(len, parts)) for parts in self.trains.values()), default=0)
        for path, parts in self.trains.items():
            train = torch.cat(parts)
            self.call.spikes[path] = torch.cat([train.new_zeros(steps - len(train)), train])
            self.call.slots[path] = train.new_full((steps,), self.sizes[path])
        self.seen.add(self.call)

    def _enter(self, path: str) -> Any:
        return lambda module, args: self.stack.append(path)

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self.stack.pop()

    def _neuron(self, path: str) -> Callable[[Tensor], None]:
        def hear(spikes: Tensor) -> None:
            self.fired = True
            self.sizes.setdefault(path, spikes[0].numel())
            train = _sum(spikes, tuple(range(1, spikes.dim())), most=1).cpu()
            self.trains.setdefault(path, []).append(train)

        return hear

    def _layer(self, path: str) -> Any:
        def hook(module: Layer, args: Any, out: Tensor | None) -> None:
            linear = isinstance(module, nn.Linear)
            x = args[0].detach()
            if isinstance(module, nn.Conv1d):
                x = x.unsqueeze(-2)  # a row of pixels
            x = x.flatten(0, -2 if linear else -4)
            given = _look(x)
            count = self._count(path, "linear" if linear else "conv", given)
            dense = float(_outputs(module, x, out)) * module.weight[0].numel()
            once = dense * self.batch / len(x)
            if given.integer:
                count.sops += _additions(module, given.sizes)
            else:
                count.macs += once if self._repeats(x) else dense
            if self.fired:
                count.paper_sops += dense * given.share
            else:
                count.paper_macs += once

        return hook

    def op(self, op: Op, args: tuple[Any, ...], out: Any) -> None:
        """An Op ran: count its synaptic additions, if it has any."""
        if op.additions is None or op.dense is None:
            return
        spikes = [_look(a.detach()) for a in args if isinstance(a, Tensor)]
        path = self.stack[-1] if self.stack else ""
        count = self._count(f"{path} ({op.name})", op.name, *spikes)
        count.sops += op.additions(args, out)
        count.paper_sops += op.dense(args) * sum(given.share for given in spikes) / len(spikes)

    def product(self, name: str) -> None:
        """A function of torch multiplied: note it, unless a layer or an Op answers for it."""
        if self.stack and self.stack[-1] not in self.layers and not within():
            self.call.uncounted.add(f"{name.strip('_')} in {self.stack[-1] or 'the model'}")

    def _count(self, path: str, kind: str, *inputs: "_Given") -> LayerCount:
        count = self.call.layers.setdefault(path, LayerCount(kind))
        for given in inputs:
            count.inputs += given.sum
            count.nonzero += given.nonzero
            count.total += given.count
        return count

    def _repeats(self, x: Tensor) -> bool:
        """Whether frames [T*B ...] are the same at every step."""
        steps = x.reshape(-1, self.batch, *x.shape[1:])
        return len(steps) > 1 and bool((steps == steps[:1]).all())


def _joined(a: Tensor, b: Tensor) -> Tensor:
    """The sum of two sequences, the shorter one followed by nothing."""
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    joined = longer.clone()
    joined[: len(shorter)] += shorter
    return joined


def _outputs(module: Layer, x: Tensor, out: Tensor | None) -> int:
    """How many numbers a layer sums up; of a folded one, which pools them, by its sizes."""
    if isinstance(module, Folded):
        places = (-(-n // s) for n, s in zip(x.shape[-2:], module.stride, strict=True))
        return len(x) * module.out_channels * math.prod(places)
    assert out is not None
    return out.numel()


@dataclass(frozen=True)
class _Given:
    """What a tensor adds up to."""

    sum: float
    nonzero: float
    count: int
    integer: bool
    sizes: Tensor
    """Sum of |x| at each place of its last two axes, or of its last one where it has but two."""

    @property
    def share(self) -> float:
        """Of numbers that are not 0."""
        return self.nonzero / self.count


def _sum(x: Tensor, axes: tuple[int, ...], *, most: float) -> Tensor:
    """Sum over axes in float64; of integers up to `most` added in float32, where it is exact."""
    fits = most * math.prod(x.shape[axis] for axis in axes) < 1 << 24
    return x.sum(axes, dtype=torch.float32 if fits else torch.float64).double()


def _look(x: Tensor) -> _Given:
    """Exact of integers. Spikes, of which there are most, are read in few passes: a CPU takes
    longer to count them than to compute with them."""
    if x.device.type == "cpu" and x.dtype != torch.float64:
        x = x.float()  # short types are slow there; on a GPU the copy would only take memory
    low, high = (bound.item() for bound in x.aminmax())
    integer = bool((x == x.round()).all())
    axes = tuple(range(max(1, x.dim() - 2)))
    most = max(-low, high) if integer else math.inf
    sizes = _sum(x if low >= 0 else x.abs(), axes, most=most)
    total = float(sizes.sum() if low >= 0 else x.sum(dtype=torch.float64))
    spikes = integer and low >= 0 and high <= 1
    nonzero = total if spikes else float(x.count_nonzero())
    return _Given(sum=total, nonzero=nonzero, count=x.numel(), integer=integer, sizes=sizes)


def _additions(module: Layer, sizes: Tensor) -> float:
    """Sum over inputs of |n| times the number of weights that meet it."""
    if isinstance(module, nn.Linear):
        return float(sizes.sum()) * module.out_features
    # weights are alike for this count, so what a pixel meets depends on its place alone
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    padding = module.padding
    if isinstance(module, nn.Conv1d):
        kernel, stride, dilation = (1, *kernel), (1, *stride), (1, *dilation)
        padding = padding if isinstance(padding, str) else (0, *padding)
    taps = _taps(tuple(sizes.shape), kernel, stride, padding, dilation)
    met: Tensor = (sizes * taps.to(sizes.device)).sum()
    return float(met) * module.out_channels / module.groups


@cache
def _taps(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
) -> Tensor:
    """For each pixel of a grid [H W], how many places of the kernel it meets; fewer at borders."""
    with torch.inference_mode(False), torch.enable_grad():
        one = torch.ones(1, 1, *kernel, dtype=torch.float64)
        there = torch.zeros(1, 1, *shape, dtype=torch.float64, requires_grad=True)
        met = conv2d(there, one, None, stride, padding, dilation)
        (taps,) = torch.autograd.grad(met.sum(), there)
    return taps[0, 0]
