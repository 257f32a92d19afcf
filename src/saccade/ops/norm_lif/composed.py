"""torch's batch norm and max-pool around whatever variant of the LIF recurrence runs."""

from dataclasses import replace

import torch
from torch import Tensor

from saccade.ops.lif import lif
from saccade.ops.lif.reference import Fire
from saccade.ops.norm_lif import reference
from saccade.ops.norm_lif.reference import Norm


def scan(
    y: Tensor,
    norm: Norm,
    decay: float | Tensor,
    gain: float | Tensor,
    fire: Fire,
    steps: int,
    pools: bool,
    onto: Tensor | None = None,
) -> Tensor:
    """See `reference.scan`; the offset costs no pass over the currents."""
    if norm.offset is None:
        return reference.scan(y, norm, decay, gain, fire, steps, pools, onto, lif)
    if not norm.training:
        a = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        moved = replace(norm, bias=norm.bias + norm.offset * a, offset=None)
        return reference.scan(y, moved, decay, gain, fire, steps, pools, onto, lif)
    # the batch's mean takes the offset away: its gradient is 0, and only the running mean keeps it
    mean = norm.running_mean - norm.offset.detach()
    moved = replace(norm, running_mean=mean, bias=norm.bias + 0 * norm.offset, offset=None)
    s = reference.scan(y, moved, decay, gain, fire, steps, pools, onto, lif)
    norm.running_mean.copy_(mean + norm.offset.detach())
    return s
