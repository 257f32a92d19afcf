"""How a family of golden files (outputs of official code) is rebuilt with our modules.

Each mechanism or model file declares the families that it answers for; `saccade.verify` knows
no family by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from saccade._keymap import KeyMap
from saccade._registry import Registry

Config = Mapping[str, Any]
Arrays = Mapping[str, Tensor]


def _identity(x: Tensor, config: Config) -> Tensor:
    return x


def _nothing(module: nn.Module, arrays: Arrays, config: Config) -> dict[str, Tensor]:
    return {}


def _call(module: nn.Module, x: Tensor, config: Config) -> Tensor:
    y: Tensor = module(x)
    return y


def _one_input(grad: Tensor) -> dict[str, Tensor]:
    return {"grad_input": grad}


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One family.

    `build` makes our module from the file's config and arrays. `inward` and `outward` translate
    between the official layout and ours. `neurons` maps the official names of spiking layers
    (entries ``mid/<name>``) to our module paths, `mid_outward` lays their spikes out as the
    file does. `extras` computes the entries that only this family has. `call` runs the module on
    the inward input, where that is more than one argument; `input_grads` names the gradient, or
    the parts of the gradient, of the input. `backward` is False where the family records no
    gradients, and so no `proj`.
    """

    build: Callable[[Config, Arrays], nn.Module]
    keys: KeyMap = field(default_factory=KeyMap)
    inward: Callable[[Tensor, Config], Tensor] = _identity
    outward: Callable[[Tensor, Config], Tensor] = _identity
    neurons: KeyMap = field(default_factory=KeyMap)
    mid_outward: Callable[[Tensor, Config, str], Tensor] | None = None
    extras: Callable[[nn.Module, Arrays, Config], dict[str, Tensor]] = _nothing
    call: Callable[[nn.Module, Tensor, Config], Tensor] = _call
    input_grads: Callable[[Tensor], dict[str, Tensor]] = _one_input
    backward: bool = True


GOLDEN: Registry[Golden] = Registry("golden family")
