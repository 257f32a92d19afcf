"""Batch norm over the joined batch of several processes, for norms that run by themselves."""

from jaxtyping import Float
from torch import Tensor, nn

from saccade.ops import Join
from saccade.ops.norm_lif.joined import keep, normalise


class JoinedNorm(nn.BatchNorm2d):
    """Batch norm whose training statistics are those of all processes; evaluation is as ever.

    A norm becomes one for a while by having its class changed; see `saccade.train.synchronised`.
    """

    join: Join

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalise; every process must call it as often as the others."""
        if not self.training:
            return super().forward(x)
        weight = x.new_ones(self.num_features) if self.weight is None else self.weight
        bias = x.new_zeros(self.num_features) if self.bias is None else self.bias
        y, *seen = normalise(x, weight, bias, self.eps, self.join)
        if self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            share = self.momentum
            if share is None:  # the plain average over all batches
                share = 1.0 / float(self.num_batches_tracked)
            keep(self.running_mean, self.running_var, share, *seen)
        return y
