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


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One family.

    `build` makes our module from the file's config and arrays. `inward` and `outward` translate
    between the official layout and ours. `neurons` maps the official names of spiking layers
    (entries ``mid/<name>``) to our module paths, `mid_outward` lays their spikes out as the
    file does. `extras` computes the entries that only this family has.
    """

    build: Callable[[Config, Arrays], nn.Module]
    keys: KeyMap = field(default_factory=KeyMap)
    inward: Callable[[Tensor, Config], Tensor] = _identity
    outward: Callable[[Tensor, Config], Tensor] = _identity
    neurons: KeyMap = field(default_factory=KeyMap)
    mid_outward: Callable[[Tensor, Config, str], Tensor] | None = None
    extras: Callable[[nn.Module, Arrays, Config], dict[str, Tensor]] = _nothing


GOLDEN: Registry[Golden] = Registry("golden family")
