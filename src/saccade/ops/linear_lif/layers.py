"""A linear map, its norm and its neuron as arguments of an op, which lie flat one after another."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from saccade.ops.lif.reference import Fire
from saccade.ops.norm_lif import Norm


class Layer(NamedTuple):
    """One layer.

    Args:
        weight: [D C 1 1].
        norm: of D channels.
        decay, gain, fire: as for `saccade.ops.lif`.
    """

    weight: Tensor
    norm: Norm
    decay: float | Tensor
    gain: float | Tensor
    fire: Fire


def apart(layers: Sequence[Any]) -> list[Layer]:
    """Layers of flat arguments."""
    size = len(Layer._fields)
    return [Layer(*layers[n : n + size]) for n in range(0, len(layers), size)]
