"""Spiking neurons: currents [T *dims] in, spikes [T *dims] out, at rest on every call.

Equations (v starts at v_reset, or 0 with a soft reset):
    LIF-1  h_t = v_{t-1} + (x_t - (v_{t-1} - v_reset)) / tau     decay_input
           h_t = v_{t-1} - (v_{t-1} - v_reset) / tau + x_t       otherwise
    LIF-2  s_t = 1[h_t >= v_threshold]
    LIF-3  v_t = h_t (1 - s_t) + v_reset s_t                     hard reset
           v_t = h_t - v_threshold s_t                           soft reset, v_reset None
IF is LIF without the leak; PLIF learns 1/tau = sigmoid(w).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saccade._golden import GOLDEN, Arrays, Config, Golden
from saccade._registry import Part, Registry, split_part
from saccade._sources import Equation, Source
from saccade.ops import Fire, lif

NEURON: Registry[type["Neuron"]] = Registry("neuron")
Gate = Callable[[Tensor], Tensor]

PLIF_SOURCE = Source(
    key="fang2021incorporating",
    title="Incorporating Learnable Membrane Time Constant to Enhance Learning of Spiking Neural "
    "Networks",
    authors="Fang, Wei and Yu, Zhaofei and Chen, Yanqi and Masquelier, Timothee and Huang, "
    "Tiejun and Tian, Yonghong",
    venue="ICCV",
    year=2021,
    id="arXiv:2007.05785",
)
EQUATIONS = (
    Equation(
        name="LIF-1",
        text="h_t = v_{t-1} + (x_t - (v_{t-1} - v_reset)) / tau",
        source=PLIF_SOURCE,
        where="section and printed number not verified",
        code="saccade.ops.lif",
    ),
    Equation(
        name="LIF-2",
        text="s_t = 1[h_t >= v_threshold]",
        source=PLIF_SOURCE,
        where="section and printed number not verified",
        code="saccade.ops.lif",
    ),
    Equation(
        name="LIF-3",
        text="v_t = h_t (1 - s_t) + v_reset s_t",
        source=PLIF_SOURCE,
        where="section and printed number not verified",
        code="saccade.ops.lif",
    ),
)


class Neuron(nn.Module, ABC):
    """Abstract. A subclass is final and says how the membrane charges.

    Args:
        v_threshold: fires where the charged membrane reaches it.
        v_reset: where a spike sets the membrane; None subtracts v_threshold instead.
        v_rest: where the membrane starts and what it leaks to; None is v_reset.
        strict: whether a membrane that only equals v_threshold stays silent.
        detach_reset: whether the backward pass takes the spike in the reset as a constant.
        detach_membrane: whether it takes the membrane of the step before as one.
        surrogate, alpha: the derivative of the spike; see `saccade.ops.surrogate`.

    Raises:
        ValueError: for constants with which it could not work.
    """

    about: ClassVar[str]

    def __init__(
        self,
        *,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        detach_reset: bool = True,
        detach_membrane: bool = False,
        surrogate: str = "sigmoid",
        alpha: float | None = None,
        v_rest: float | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__()
        self.fire = Fire(
            v_threshold=v_threshold,
            v_reset=v_reset,
            detach_reset=detach_reset,
            detach_membrane=detach_membrane,
            surrogate=surrogate,
            alpha=alpha,
            v_rest=v_rest,
            strict=strict,
        )

    @abstractmethod
    def charge(self) -> tuple[float | Tensor, float | Tensor]:
        """Decay and gain of h_t = decay v_{t-1} + gain x_t + (1 - decay) v_rest."""

    def forward(
        self,
        x: Float[Tensor, "T *dims"],
        v0: Float[Tensor, "*dims"] | None = None,
        *,
        with_membrane: bool = False,
        gate: Gate | None = None,
    ) -> Float[Tensor, "T *dims"] | tuple[Float[Tensor, "T *dims"], Float[Tensor, "*dims"]]:
        """Spikes of the input current `x`, and the last membrane where it is asked for.

        Args:
            x: input current.
            v0: membrane before the first step; None starts at rest.
            with_membrane: return (spikes, membrane after the last step).
            gate: maps the charged membrane h_t of each step before it fires and resets.
        """
        if gate is None:
            s, v = lif(x, v0, *self.charge(), self.fire)
        else:
            s, v = self._step_by_step(x, v0, gate)
        return (s, v) if with_membrane else s

    def _step_by_step(self, x: Tensor, v0: Tensor | None, gate: Gate) -> tuple[Tensor, Tensor]:
        (decay, gain), rest = self.charge(), self.fire.rest
        fire = replace(self.fire, v_rest=0.0)  # the gated membrane neither leaks nor charges again
        wide = torch.promote_types(x.dtype, torch.float32)  # as in `lif`: no step rounds a membrane
        v, spikes = torch.full_like(x[0], rest, dtype=wide) if v0 is None else v0, []
        for x_t in x:
            v = v.detach() if fire.detach_membrane else v
            h = gate(decay * v + gain * x_t + (1 - decay) * rest)
            s, v = lif(h[None], None, 0.0, 1.0, fire)
            spikes.append(s[0].to(x.dtype))
        return torch.stack(spikes), v

    def scan(
        self,
        x: Float[Tensor, "T *dims"],
        v0: Float[Tensor, "*dims"] | None = None,
        *,
        gate: Gate | None = None,
    ) -> tuple[Float[Tensor, "T *dims"], Float[Tensor, "*dims"]]:
        """Spikes and the last membrane, so that a sequence may go on; no hook hears of it."""
        s, v = self.forward(x, v0, with_membrane=True, gate=gate)
        return s, v

    def unfusable(self) -> str | None:
        """Why no operation may fire in this neuron's place, or None where one may."""
        if type(self).forward is not Neuron.forward:
            return f"{type(self).__name__} has a forward of its own"
        return f"the neuron {WATCHED}" if is_watched(self) else None

    def extra_repr(self) -> str:
        """Constants, for printing."""
        return f"v_threshold={self.fire.v_threshold}, v_reset={self.fire.v_reset}"


@NEURON.add("if")
class IF(Neuron):
    """Integrate-and-fire: h_t = v_{t-1} + x_t."""

    about = "integrate-and-fire, no leak"

    def charge(self) -> tuple[float, float]:
        """Nothing leaks."""
        return 1.0, 1.0


@NEURON.add("lif")
class LIF(Neuron):
    """Leaky integrate-and-fire, Eq. LIF-1.

    Args:
        tau: membrane time constant, in steps.
        decay_input: whether the input is divided by tau as the membrane is.
        constants: those of `Neuron`.

    Raises:
        ValueError: for tau < 1, which would turn the membrane's sign at every step.
    """

    about = "leaky integrate-and-fire"

    def __init__(
        self,
        *,
        tau: float = 2.0,
        decay_input: bool = True,
        **constants: Any,
    ) -> None:
        super().__init__(**constants)
        self.tau, self.decay_input = _time_constant("tau", tau, at_least=1.0), decay_input

    def charge(self) -> tuple[float, float]:
        """Both are constants."""
        return 1 - 1 / self.tau, 1 / self.tau if self.decay_input else 1.0

    def extra_repr(self) -> str:
        """Constants, for printing."""
        return f"tau={self.tau}, {super().extra_repr()}"


@NEURON.add("plif")
class PLIF(Neuron):
    """Leaky integrate-and-fire that learns its time constant, 1/tau = sigmoid(w).

    Source: Fang et al., ICCV 2021, arXiv:2007.05785. One w for the whole layer.

    Args:
        init_tau: time constant at the start, in steps.
        decay_input: whether the input is divided by tau as the membrane is.
        constants: those of `Neuron`.

    Raises:
        ValueError: for init_tau <= 1, which no w reaches.
    """

    about = "leaky integrate-and-fire with a learned time constant"

    def __init__(
        self,
        *,
        init_tau: float = 2.0,
        decay_input: bool = True,
        **constants: Any,
    ) -> None:
        super().__init__(**constants)
        tau = _time_constant("init_tau", init_tau, at_least=math.nextafter(1, 2))
        self.w = nn.Parameter(torch.tensor(-math.log(tau - 1)))
        self.decay_input = decay_input

    def charge(self) -> tuple[Tensor, float | Tensor]:
        """Both follow w."""
        rate = self.w.sigmoid()
        return 1 - rate, rate if self.decay_input else 1.0


WATCHED = "has a hook, or another forward in its place"


def is_watched(module: nn.Module) -> bool:
    """Whether a call of this module is heard, or replaced, by somebody outside of it."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks) or "forward" in vars(module)


def on_spikes(neuron: Neuron, hear: Callable[[Tensor], None]) -> RemovableHandle:
    """Let `hear` have the spikes [T' *dims] of every call; one run may take several calls."""

    def hook(module: nn.Module, args: Any, out: Any) -> None:
        hear((out[0] if isinstance(out, tuple) else out).detach())

    return neuron.register_forward_hook(hook)


def _time_constant(name: str, tau: float, *, at_least: float) -> float:
    if not tau >= at_least:
        raise ValueError(f"got {name}={tau}, expected {at_least:g} steps or more")
    return tau


def make_neuron(part: Part, **fixed: Any) -> Neuron:
    """A neuron by name or by name and options; `fixed` options win over the part's."""
    name, options = split_part(part)
    neuron: Neuron = NEURON.build({"name": name, **options}, **fixed)
    return neuron


def _golden_lif(config: Config, arrays: Arrays) -> Neuron:
    """spikingjelly 0.0.0.0.12 MultiStepLIFNode, from its constructor arguments."""
    ctor = dict(config["ctor"])
    name, _, alpha = str(ctor.get("surrogate", "Sigmoid(alpha=4.0)")).partition("(alpha=")
    return LIF(
        tau=ctor.get("tau", 2.0),
        decay_input=ctor.get("decay_input", True),
        v_threshold=ctor.get("v_threshold", 1.0),
        v_reset=ctor.get("v_reset", 0.0),
        detach_reset=ctor.get("detach_reset", False),
        surrogate=name.lower(),
        alpha=float(alpha.rstrip(")")) if alpha else None,
    )


def _golden_membranes(module: nn.Module, arrays: Arrays, config: Config) -> dict[str, Tensor]:
    """Membranes after each reset, and the gradient of their weighted sum."""
    assert isinstance(module, Neuron)
    x = arrays["input"].clone().requires_grad_()
    v, membranes = None, []
    for x_t in x:
        v = module.scan(x_t[None], v)[1]
        membranes.append(v)
    v_seq = torch.stack(membranes)
    (grad,) = torch.autograd.grad((v_seq * arrays["proj_v"]).sum(), x)
    return {"v_seq": v_seq.detach(), "grad_input_v": grad}


GOLDEN.add("spikformer_lif")(Golden(build=_golden_lif, extras=_golden_membranes))
