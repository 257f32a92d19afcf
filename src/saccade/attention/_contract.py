"""What every attention promises, whatever it computes; checked on one that fires.

A network in which nothing fires passes almost any check, so norms are drawn until currents straddle
the threshold, and the first promise is that neurons fire.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from saccade._registry import keywords
from saccade.attention._base import ATTENTION, Site, SpikingAttention, create_attention, install
from saccade.nn import Neuron, make_neuron, on_spikes
from saccade.nn.streaming import Streaming
from saccade.ops import reference_only

M = TypeVar("M", bound=nn.Module)
LEAST, MOST = 0.02, 0.98
"""Firing rates between which every neuron of a tested network lies."""
SITE = Site(dim=16, heads=4, T=3, grid=(4, 5))  # no two axes alike
GOLDEN = ("official", "independent reference", "reconstruction")


def awake(module: M, seed: int = 2) -> M:
    """Draw batch-norm parameters and statistics so that currents straddle the threshold."""
    g = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None
            assert m.running_var is not None
            m.weight.data.uniform_(3, 6, generator=g)
            m.bias.data.uniform_(0.5, 2.0, generator=g)
            m.running_mean.normal_(0, 0.1, generator=g)
            m.running_var.uniform_(0.5, 1.5, generator=g)
        elif isinstance(m, nn.Conv1d) and m.bias is not None:  # no norm stands behind it
            m.bias.data.uniform_(0.4, 1.2, generator=g)
        elif isinstance(m, SpikingAttention) and m.kind == "gate":  # no dead ReLU, half open
            for p in m.parameters():
                p.data.abs_()
    return module


def firing_rates(module: nn.Module, run: Callable[[], Any]) -> dict[str, float]:
    """Mean firing rate of every neuron while `run` runs, by module path."""
    trains: dict[str, list[Tensor]] = {}
    hooks = [
        on_spikes(m, trains.setdefault(n, []).append)
        for n, m in module.named_modules()
        if isinstance(m, Neuron)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return {n: torch.cat(parts).mean().item() for n, parts in trains.items() if parts}


def spikes(*shape: int, seed: int = 1) -> Tensor:
    """Random 0/1 in float64."""
    g = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=g).round().double()


def untaught(module: nn.Module) -> list[str]:
    """Parameters without a gradient; that of a bias before a batch's own norm is 0."""
    grads = {name: p.grad for name, p in module.named_parameters()}
    dead = [name for name, g in grads.items() if g is None or not g.any()]
    return [name for name in dead if grads[name] is None or not name.endswith("conv.bias")]


@dataclass
class Subject:
    """An awake mechanism in float64, so that rounding flips no threshold, and its input.

    Spikes for a mixer, a current for a gate.
    """

    name: str
    options: dict[str, Any]

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.x = spikes(SITE.T, 2, SITE.dim, *SITE.grid)
        self.gate = ATTENTION[self.name].kind == "gate"
        if self.gate:
            g = torch.Generator().manual_seed(1)
            self.x = torch.randn(self.x.shape, generator=g).double() * 1.5 + 0.5
        self.attention = awake(self.another()).double().eval()

    def another(self) -> SpikingAttention:
        """The same mechanism, not awake."""
        return create_attention(
            self.name, dim=SITE.dim, heads=SITE.heads, T=SITE.T, grid=SITE.grid, **self.options
        )

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x)
        return y


Promise = Callable[[Subject], str]
PROMISES: dict[str, Promise] = {}
"""By what is promised; each says what is wrong, or nothing."""


def promise(text: str) -> Callable[[Promise], Promise]:
    """Decorator: put a check among the promises."""

    def add(check: Promise) -> Promise:
        PROMISES[text] = check
        return check

    return add


def check_attention(name: str, **options: Any) -> dict[str, str]:
    """Whether an attention keeps what every attention promises.

    Args:
        name: registered, by this library or by `ATTENTION.add` of your own.
        options: of the mechanism.

    Returns:
        by promise what is wrong; "" where it is kept.

    Raises:
        ValueError: for an unknown name or option.
    """
    known = keywords(ATTENTION[name])
    if any(option not in known for option in options):
        install(SITE, {"name": name, **options})  # raises, and names the nearest
    return {text: _broken(check, name, options) for text, check in PROMISES.items()}


def _broken(check: Promise, name: str, options: dict[str, Any]) -> str:
    try:
        return check(Subject(name, options))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@promise("neurons fire between 2 % and 98 % of the time")  # else those below prove little
def _fires(s: Subject) -> str:
    if s.gate:  # it has none of its own: the neuron that it feeds
        neuron = make_neuron("ma_lif")
        fed = nn.ModuleDict({"gate": s.attention, "neuron": neuron})
        rates = firing_rates(fed, lambda: neuron(s(s.x), gate=s.attention.at_membrane()))
    else:
        rates = firing_rates(s.attention, lambda: s(s.x))
    odd = {path: f"{r:.0%}" for path, r in rates.items() if not LEAST < r < MOST}
    return f"firing rates {odd}" if odd else "" if rates else "no neuron fired or was asked"


@promise("keeps shape and type")
def _keeps(s: Subject) -> str:
    y = s(s.x)
    if (y.shape, y.dtype) == (s.x.shape, s.x.dtype):
        return ""
    return f"got {list(y.shape)} {y.dtype}, expected {list(s.x.shape)} {s.x.dtype}"


@promise("carries nothing over between calls")
def _forgets(s: Subject) -> str:
    return "" if torch.equal(s(s.x), s(s.x)) else "the same input gave another output"


@promise("adds its spikes to a stream, where it says that it can")
def _adds(s: Subject) -> str:
    if not s.attention.adds_onto:
        return ""
    stream = torch.arange(float(s.x.numel()), dtype=s.x.dtype).reshape(s.x.shape).remainder(5)
    same = torch.equal(s.attention(s.x, stream), stream + s(s.x))
    return "" if same else "attention(x, stream) is not stream + attention(x)"


@promise("does not mix samples in evaluation mode")
def _keeps_apart(s: Subject) -> str:
    whole, alone = s(s.x)[:, :1], s(s.x[:, :1])
    # of real numbers, a matrix product of other rows rounds in another order
    same = torch.allclose(whole, alone, 1e-12, 1e-12) if s.gate else torch.equal(whole, alone)
    return "" if same else "a sample alone gave another output than in a batch"


@promise("is causal in time unless it says causal = False")
def _waits(s: Subject) -> str:
    later = torch.cat([s.x[:-1], 1 - s.x[-1:]])
    unchanged = torch.equal(s(later)[:-1], s(s.x)[:-1])
    heard = "another last step changed earlier ones; expected causal = False"
    return "" if unchanged or not s.attention.causal else heard


class _Alone(nn.Module):
    """An attention as a whole model, as far as a stream asks."""

    frame = (SITE.dim, *SITE.grid)

    def __init__(self, attention: SpikingAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward_steps(self, x: Tensor) -> Tensor:
        """All steps that there are."""
        y: Tensor = self.attention(x)
        return y


@promise("runs step by step as over all steps, if it is causal")
def _streams(s: Subject) -> str:
    if not s.attention.causal:
        return ""
    whole, stream = s(s.x), Streaming(_Alone(s.attention).eval())
    steps = torch.stack([stream.step(x_t) for x_t in s.x])
    told = "expected scan(x, state) of what mixes steps, or causal = False"
    same = torch.allclose(whole, steps, 1e-12, 1e-12)
    return "" if same else f"single steps gave another output; {told}"


@promise("hears its input")
def _hears(s: Subject) -> str:
    return "the opposite input gave the same output" if torch.equal(s(s.x), s(1 - s.x)) else ""


@promise("every parameter learns")
def _learns(s: Subject) -> str:
    s.x.requires_grad_()
    s.attention.train()(s.x).square().sum().backward()
    dead = untaught(s.attention) + ([] if s.x.grad is not None else ["the input"])
    return f"no gradient reaches {', '.join(dead)}" if dead else ""


@promise("fast paths give what the reference gives")
def _agrees(s: Subject) -> str:
    fast = s(s.x)
    with reference_only():
        return "" if torch.equal(s(s.x), fast) else "the reference gave another output"


@promise("saves and loads")
def _loads(s: Subject) -> str:
    other = s.another().double().eval()
    other.load_state_dict(s.attention.state_dict())
    return (
        "" if torch.equal(other(s.x), s(s.x)) else "with its weights another one answers otherwise"
    )


@promise("scores fit the tokens, where there are any")
def _scores(s: Subject) -> str:
    scores, expected = s.attention.scores(s.x), (SITE.T, 2, SITE.heads, SITE.tokens, SITE.tokens)
    if scores is None or scores.shape == expected:
        return ""
    return f"got {list(scores.shape)}, expected {list(expected)}"


@promise("says how many additions it takes")
def _counts(s: Subject) -> str:
    adds = s.attention.adds()
    return "" if adds > 0 or (adds == 0 and s.name == "none") else f"got adds()={adds}"


@promise("asks for no membrane where no neuron follows")
def _asks(s: Subject) -> str:
    site = replace(SITE, feeds_neuron=False)
    alone = install(site, {"name": s.name, **s.options})
    return "" if alone.at_membrane() is None else "at_membrane() gave a gate"


@promise("cites its paper and equations")
def _cites(s: Subject) -> str:
    cls = ATTENTION[s.name]
    if not cls.source.id.startswith(("arXiv:", "doi:")):
        return f"got source.id={cls.source.id!r}, expected arXiv:... or doi:..."
    if not cls.equations:
        return "it declares no equations"
    return "" if cls.golden in GOLDEN else f"got golden={cls.golden!r}, expected one of {GOLDEN}"
