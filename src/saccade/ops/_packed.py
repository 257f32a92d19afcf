"""Spikes as bits: what a layer keeps of its input for the backward pass, at a sixteenth of bf16.

The kernel that fires writes the bits beside the spikes; a layer that takes those spikes asks for
them here. Only a tensor that is still the very one that was fired has bits: views, sums and
changed tensors have none, and are kept as they are.
"""

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_BITS: "WeakTensorKeyDictionary" = WeakTensorKeyDictionary()


def remember(spikes: Tensor, bits: Tensor) -> None:
    """`bits` [T B H W C/8] are those of `spikes` [T B C H W], lowest bit first."""
    if not torch.compiler.is_compiling():
        _BITS[spikes] = bits, spikes._version


def bits_of(spikes: Tensor) -> Tensor | None:
    """The bits of a tensor, if it has any."""
    if torch.compiler.is_compiling():
        return None
    if spikes not in _BITS:
        return None
    bits, version = _BITS[spikes]
    return bits if version == spikes._version else None
