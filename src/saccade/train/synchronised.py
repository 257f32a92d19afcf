"""Batch norm over the joined batch of all processes; models know nothing of it.

The statistics are sums (of ones, x and x^2), so one all-reduce forward and one backward make them
those of the joined batch. Sums travel in float64, where taking the squared mean off costs nothing
that float32 could show. It works wherever `torch.distributed` does, on a CPU too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.autograd import Function

_AXES = (0, 2, 3)


class SynchronisedNorm(nn.BatchNorm2d):
    """Batch norm whose training statistics are those of all processes; evaluation is as ever."""

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalise; every process must call it as often as the others."""
        if not self.training:
            return super().forward(x)
        weight = x.new_ones(self.num_features) if self.weight is None else self.weight
        bias = x.new_zeros(self.num_features) if self.bias is None else self.bias
        y, count, mean, var = _Normalise.apply(x, weight, bias, self.eps)  # type: ignore[no-untyped-call]
        self._keep(count, mean, var)
        normalised: Tensor = y
        return normalised

    @torch.no_grad()
    def _keep(self, count: Tensor, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics; the variance that is kept is the unbiased one."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = self.momentum
        if share is None:  # the plain average over all batches
            share = 1.0 / float(self.num_batches_tracked)
        unbiased = var * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(unbiased.to(self.running_var), share)


class _Normalise(Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, with sums over all processes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exact = x.to(_at_least_float32(x))
        local_var, local_mean = torch.var_mean(exact, _AXES, correction=0)
        n = torch.tensor([x.numel() // x.shape[1]], dtype=torch.float64, device=x.device)
        m, v = local_mean.double(), local_var.double()
        sums = torch.cat([n, n * m, n * (v + m * m)])
        distributed.all_reduce(sums)
        count, total, squares = sums[0], *sums[1:].chunk(2)
        mean = total / count
        var = (squares / count - mean * mean).clamp(min=0)
        inverse = (var + eps).rsqrt().to(exact)
        ctx.save_for_backward(x, weight, mean.to(exact), inverse, count)
        scale = inverse * weight.to(exact)
        shift = bias.to(exact) - mean.to(exact) * scale
        y = torch.addcmul(_wide(shift), exact, _wide(scale)).to(x)
        ctx.mark_non_differentiable(count, mean, var)
        return y, count, mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        g = grads[0].to(mean)
        unit = (x.to(mean) - _wide(mean)) * _wide(inverse)
        sum_g, sum_gu = g.sum(_AXES), (g * unit).sum(_AXES)
        # the gradients of weight and bias stay local: they are averaged with all others
        sums = torch.cat([sum_g, sum_gu]).double()
        distributed.all_reduce(sums)
        mean_g, mean_gu = (sums / count).to(mean).chunk(2)
        dx = (g - _wide(mean_g) - unit * _wide(mean_gu)) * _wide(inverse * weight.to(mean))
        return dx.to(x), sum_gu.to(weight), sum_g.to(weight), None


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _wide(per_channel: Tensor) -> Tensor:
    return per_channel[:, None, None]


@contextmanager
def synchronised(model: nn.Module) -> Iterator[None]:
    """Inside this block every `BatchNorm2d` of the model takes the statistics of all processes.

    The modules stay what and where they are, hooks and parameters included; only their class is
    another for a while.
    """
    with _as(model, nn.BatchNorm2d, SynchronisedNorm):
        yield


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """Inside this block no norm waits for another process."""
    with _as(model, SynchronisedNorm, nn.BatchNorm2d):
        yield


@contextmanager
def _as(model: nn.Module, before: type[nn.Module], inside: type[nn.Module]) -> Iterator[None]:
    norms = [m for m in model.modules() if type(m) is before]
    for norm in norms:
        norm.__class__ = inside
    try:
        yield
    finally:
        for norm in norms:
            norm.__class__ = before
