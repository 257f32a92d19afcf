"""Batch norm, the LIF recurrence and a max-pool of its spikes, one after the other as printed."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import batch_norm, max_pool2d

from saccade.ops.lif.reference import Fire
from saccade.ops.lif.reference import scan as lif_scan
from saccade.ops.norm_lif.joined import Join, keep, normalise

Lif = Callable[..., tuple[Tensor, Tensor]]


@dataclass(kw_only=True)  # not frozen: torch.compile of torch 2.11 cannot make frozen ones
class Norm:
    """What a batch norm of C channels knows.

    Args:
        weight, bias: [C], learned.
        running_mean, running_var: [C]; moved towards the batch's statistics while `training`,
            used in their place otherwise.
        training: whether the batch's own statistics normalise it.
        momentum: share of the batch in the running statistics.
        eps: added to the variance.
        offset: [C], a constant that is added to the currents first: the bias of the layer
            before. Of a batch's own statistics nothing is left of it but the running mean.
        join: makes a batch's own statistics those of several processes; None for one process.
    """

    weight: Float[Tensor, " C"]
    bias: Float[Tensor, " C"]
    running_mean: Float[Tensor, " C"]
    running_var: Float[Tensor, " C"]
    training: bool
    momentum: float = 0.1
    eps: float = 1e-5
    offset: Float[Tensor, " C"] | None = None
    join: Join | None = None

    def __call__(self, frames: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        """Normalise; moves the running statistics while training."""
        n = self
        if n.offset is not None:
            frames = frames + n.offset[:, None, None]
        if frames.shape[0] == 1:  # torch 2.13 mixes up the places of its gradient, channels last
            frames = frames.contiguous()
        if n.training and n.join is not None:
            y, *seen = normalise(frames, n.weight, n.bias, n.eps, n.join)
            keep(n.running_mean, n.running_var, n.momentum, *seen)
            return y
        return batch_norm(
            frames, n.running_mean, n.running_var, n.weight, n.bias, n.training, n.momentum, n.eps
        )


def scan(
    y: Float[Tensor, "t B C H W"],
    norm: Norm,
    decay: float | Tensor,
    gain: float | Tensor,
    fire: Fire,
    steps: int,
    pools: bool,
    onto: Tensor | None = None,
    lif: Lif = lif_scan,
) -> Float[Tensor, "T B C h w"]:
    """Spikes of a normalised current, at rest before the first step.

    Args:
        y: current before the norm; one step (t = 1) stands for `steps` equal ones.
        norm: its statistics are those of all T * B * H * W samples of a channel.
        decay, gain, fire: as for `saccade.ops.lif`.
        steps: T.
        pools: whether a 3x3 max-pool of stride 2 and padding 1 follows; of equal spikes the
            first in reading order takes the gradient, as in torch.
        onto: what the spikes are added to, such as a residual stream, of their shape; None
            leaves them.
        lif: the recurrence.

    Raises:
        ValueError: for an `onto` of another shape.
    """
    frames = y.expand(steps, *y.shape[1:]).flatten(0, 1)
    x = norm(frames)
    s, _ = lif(x.view(steps, -1, *x.shape[1:]), None, decay, gain, fire)
    if pools:
        pooled = max_pool2d(s.flatten(0, 1), 3, 2, 1)
        s = pooled.view(steps, -1, *pooled.shape[1:])
    return summed(s, onto)


def summed(s: Tensor, onto: Tensor | None, whose: str = "the neuron") -> Tensor:
    """onto + s; s where there is nothing to add it to.

    Raises:
        ValueError: where they are not of one shape: their sum would be a broadcast.
    """
    if onto is None:
        return s
    if s.shape != onto.shape:
        raise ValueError(
            f"got {list(s.shape)} from {whose}, expected the shape of what it is added to, "
            f"{list(onto.shape)}"
        )
    return onto + s
