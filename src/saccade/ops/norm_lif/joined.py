"""Batch norm whose statistics are those of the joined batch of several processes.

The statistics are sums (of ones, x and x^2), so one exchange forward and one backward make them
those of the joined batch. Sums travel in float64, where taking the squared mean off costs nothing
that float32 could show.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

Join = Callable[[Tensor], object]
"""Adds a tensor of sums up over all processes, in place."""
_AXES = (0, 2, 3)


def normalise(
    x: Float[Tensor, "N C H W"], weight: Tensor, bias: Tensor, eps: float, join: Join
) -> tuple[Float[Tensor, "N C H W"], Tensor, Tensor, Tensor]:
    """The frames, normalised; and count, mean and variance of the joined batch, in float64."""
    y, count, mean, var = _Normalise.apply(x, weight, bias, eps, join)  # type: ignore[no-untyped-call]
    return y, count, mean, var


@torch.no_grad()
def keep(
    running_mean: Tensor,
    running_var: Tensor,
    share: float,
    count: Tensor,
    mean: Tensor,
    var: Tensor,
) -> None:
    """Move running statistics; the variance that is kept is the unbiased one."""
    unbiased = var * (count / (count - 1).clamp(min=1))
    running_mean.lerp_(mean.to(running_mean), share)
    running_var.lerp_(unbiased.to(running_var), share)


class _Normalise(Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, with sums over all processes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, join: Join
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exact = x.to(_at_least_float32(x))
        local_var, local_mean = torch.var_mean(exact, _AXES, correction=0)
        n = torch.full((1,), x.numel() // x.shape[1], dtype=torch.float64, device=x.device)
        m, v = local_mean.double(), local_var.double()
        sums = torch.cat([n, n * m, n * (v + m * m)])
        join(sums)
        count, total, squares = sums[0], *sums[1:].chunk(2)
        mean = total / count
        var = (squares / count - mean * mean).clamp(min=0)
        inverse = (var + eps).rsqrt().to(exact)
        ctx.save_for_backward(x, weight, mean.to(exact), inverse, count)
        ctx.join = join
        scale = inverse * weight.to(exact)
        shift = bias.to(exact) - mean.to(exact) * scale
        y = torch.addcmul(_wide(shift), exact, _wide(scale)).to(x)
        ctx.mark_non_differentiable(count, mean, var)
        return y, count, mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        g = grads[0].to(mean)
        unit = (x.to(mean) - _wide(mean)) * _wide(inverse)
        sum_g, sum_gu = g.sum(_AXES), (g * unit).sum(_AXES)
        # the gradients of weight and bias stay local: they are added up with all others
        sums = torch.cat([sum_g, sum_gu]).double()
        ctx.join(sums)
        mean_g, mean_gu = (sums / count).to(mean).chunk(2)
        dx = (g - _wide(mean_g) - unit * _wide(mean_gu)) * _wide(inverse * weight.to(mean))
        return dx.to(x), sum_gu.to(weight), sum_g.to(weight), None, None


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _wide(per_channel: Tensor) -> Tensor:
    return per_channel[:, None, None]
