"""The spike: one Heaviside step, and a table of the derivatives that stand in for its own.

u is the distance of the membrane from the threshold; a spike is 1[u >= 0], or strictly 1[u > 0].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saccade._registry import Registry

Derivative = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """A derivative d(u, alpha), the alpha it is usually given, and where it comes from."""

    derivative: Derivative
    alpha: float
    source: str


SURROGATE: Registry[Surrogate] = Registry("surrogate")


def _sigmoid(u: Tensor, alpha: float) -> Tensor:
    s = torch.sigmoid(alpha * u)
    return torch.addcmul(s, s, s, value=-1).mul_(alpha)  # alpha s (1 - s)


def _atan(u: Tensor, alpha: float) -> Tensor:
    return alpha / 2 / (1 + (math.pi / 2 * alpha * u) ** 2)


def _rectangle(u: Tensor, alpha: float) -> Tensor:
    return alpha * (u.abs() < 0.5 / alpha).to(u.dtype)


def _triangle(u: Tensor, alpha: float) -> Tensor:
    return alpha * (1 - alpha * u.abs()).clamp(min=0)


def _fast_sigmoid(u: Tensor, alpha: float) -> Tensor:
    return 1 / (1 + alpha * u.abs()) ** 2


for _name, _entry in {
    "sigmoid": Surrogate(derivative=_sigmoid, alpha=4.0, source="arXiv:2209.15425, Eq. 20"),
    "atan": Surrogate(derivative=_atan, alpha=2.0, source="arXiv:2007.05785"),
    "rectangle": Surrogate(derivative=_rectangle, alpha=1.0, source="arXiv:1706.02609"),
    "triangle": Surrogate(derivative=_triangle, alpha=1.0, source="arXiv:1511.07889"),
    "fast_sigmoid": Surrogate(derivative=_fast_sigmoid, alpha=10.0, source="arXiv:1705.11146"),
}.items():
    SURROGATE.add(_name)(_entry)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, surrogate: str, alpha: float, strict: bool) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate, ctx.alpha = surrogate, alpha
        return (u > 0 if strict else u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (u,) = ctx.saved_tensors
        return grads[0] * SURROGATE[ctx.surrogate].derivative(u, ctx.alpha), None, None, None


def spike(
    u: Tensor, surrogate: str = "sigmoid", alpha: float = 4.0, *, strict: bool = False
) -> Tensor:
    """1[u >= 0], or 1[u > 0] where strict, with the derivative that `surrogate` names."""
    out: Tensor = _Spike.apply(u, surrogate, alpha, strict)  # type: ignore[no-untyped-call]
    return out
