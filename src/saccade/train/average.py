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
    def follow(self, model: SpikingModel, n: int | Tensor) -> None:
        """Move towards the weights and buffers that step n (from 1) left; counters are copied.

        Where both are spread over devices, each moves what it holds. A tensor for n is read by the
        device when its turn comes.
        """
        average, now = (
            {name: local(t) for name, t in m.state_dict().items()} for m in (self.model, model)
        )
        real = [name for name, t in average.items() if t.is_floating_point()]
        ours, theirs = ([t[name] for name in real] for t in (average, now))
        if isinstance(n, Tensor):
            share = 1 - (n / (n + self.how.warmup)).clamp(max=self.how.decay)
            apart = torch._foreach_sub(theirs, ours)
            torch._foreach_mul_(apart, share.to(ours[0].dtype))
            torch._foreach_add_(ours, apart)
        else:
            torch._foreach_lerp_(ours, theirs, 1 - self.decay_at(n))
        counters = sorted(average.keys() - set(real))
        if counters:
            torch._foreach_copy_([average[c] for c in counters], [now[c] for c in counters])
