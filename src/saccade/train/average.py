"""An exponential moving average of the weights, beside the model that is trained."""

from copy import deepcopy

import torch
from torch import Tensor

from saccade.models import SpikingModel
from saccade.train.devices import local
from saccade.train.recipe import Average


class MovingAverage:
    """A second model that follows the first; see `saccade.train.recipe.Average`.

    Source: Polyak and Juditsky, SIAM J. Control Optim. 30 (1992), for averaging; the exponential
    form with a warm-up of the decay is common practice.

    Args:
        model: the one that is trained; the average starts at its weights.
        how: decay and warm-up.
    """

    def __init__(self, model: SpikingModel, how: Average) -> None:
        self.model, self.how = deepcopy(model).eval().requires_grad_(False), how

    def decay_at(self, n: int) -> float:
        """d_n, after step n (from 1)."""
        return min(self.how.decay, n / (n + self.how.warmup))

    @torch.no_grad()
    def follow(self, model: SpikingModel, n: int) -> None:
        """Move towards the weights and buffers that step n (from 1) left; counters are copied.

        Where both are spread over devices, each moves what it holds.
        """
        average, now = (
            {name: local(t) for name, t in m.state_dict().items()} for m in (self.model, model)
        )
        real = [name for name, t in average.items() if t.is_floating_point()]
        ours: list[Tensor] = [average[name] for name in real]
        torch._foreach_lerp_(ours, [now[name] for name in real], 1 - self.decay_at(n))
        for name in average.keys() - set(real):
            average[name].copy_(now[name])
