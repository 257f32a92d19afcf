"""Arguments of ops at named sizes; an op without a builder here is timed on its own example."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saccade.bench.equality import example_on
from saccade.ops import Fire, Norm, Op


@dataclass(frozen=True, kw_only=True)
class Size:
    """A layer: T steps, B samples, C channels, side x side tokens, heads of an attention."""

    T: int
    B: int
    C: int
    side: int
    heads: int


SIZES = {
    "small": Size(T=4, B=2, C=32, side=8, heads=4),
    "cifar": Size(T=4, B=64, C=384, side=8, heads=12),
    "imagenet": Size(T=4, B=32, C=512, side=14, heads=8),
    "large": Size(T=4, B=64, C=2048, side=14, heads=32),
}
"""cifar is a layer of Spikformer-4-384 at 32 px, imagenet of Spikformer-8-512 at 224 px, and large
its hidden layer at batch 64: 103 million currents, many times what a cache holds."""


class _Maker:
    """Random tensors of one size on one device; spikes are 1 with probability 1/4."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size, self.device = size, device
        self.generator = torch.Generator(device).manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, generator=self.generator)

    def spikes(self, *shape: int) -> Tensor:
        return (torch.rand(*shape, device=self.device, generator=self.generator) < 0.25).float()

    def grid(self, make: Callable[..., Tensor]) -> Tensor:
        """[T B C H W], channels-last in memory."""
        z = self.size
        return make(z.T, z.B, z.side, z.side, z.C).permute(0, 1, 4, 2, 3)

    def heads(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [T B h N d]."""
        z = self.size
        shape = z.T, z.B, z.heads, z.side**2, z.C // z.heads
        return self.spikes(*shape), self.spikes(*shape), self.spikes(*shape)


def _lif(m: _Maker) -> tuple[Any, ...]:
    return m.grid(m.normal) * 2, None, 0.5, 0.5, Fire()


def _conv(m: _Maker) -> tuple[Any, ...]:
    C = m.size.C
    return m.grid(m.spikes), m.normal(C, C, 1, 1) / C**0.5, 1


def _convs(m: _Maker) -> tuple[Any, ...]:
    C = m.size.C
    return m.grid(m.spikes), 1, *(m.normal(C, C, 1, 1) / C**0.5 for _ in range(3))


def _norm(m: _Maker, channels: int | None = None) -> Norm:
    ones = torch.ones(channels or m.size.C, device=m.device)
    zeros = ones * 0
    return Norm(
        weight=ones, bias=zeros, running_mean=zeros.clone(), running_var=ones.clone(), training=True
    )


def _norm_lif(m: _Maker) -> tuple[Any, ...]:
    return m.grid(m.normal), _norm(m), 0.5, 0.5, Fire(), m.size.T, False


def _linear_lif(m: _Maker) -> tuple[Any, ...]:
    C = m.size.C
    layers: list[Any] = []
    for _ in range(3):
        layers += [m.normal(C, C, 1, 1) / C**0.5, _norm(m), 0.5, 0.5, Fire()]
    return m.grid(m.spikes), m.size.T, *layers


def _conv_lif(m: _Maker) -> tuple[Any, ...]:
    z = m.size
    x, weight = m.normal(1, z.B, 3, 16 * z.side, 16 * z.side), m.normal(z.C // 8, 3, 3, 3) / 4
    norm = _norm(m, len(weight))
    return x, weight, 1, norm, 0.5, 0.5, Fire(), z.T, True


def _ssa(m: _Maker) -> tuple[Any, ...]:
    q, k, v = (m.grid(m.spikes) for _ in range(3))
    return q, k, v, m.size.heads, 0.125, 0.5, 0.5, Fire(v_threshold=0.5)


def _linear_ssa(m: _Maker) -> tuple[Any, ...]:
    x, steps, *layers = _linear_lif(m)
    return x, steps, m.size.heads, 0.125, 0.5, 0.5, Fire(v_threshold=0.5), *layers


def _token_scan(m: _Maker) -> tuple[Any, ...]:
    z = m.size
    tok = m.spikes(z.T, z.B, z.C, z.side**2)
    return tok, torch.eye(4, device=m.device)[None] * 0.9, m.normal(1, 4), m.normal(z.C, 4)


def _soma(m: _Maker) -> tuple[Any, ...]:
    return m.grid(m.normal), 1.0


def _affine_lif(m: _Maker) -> tuple[Any, ...]:
    ones = torch.ones(m.size.C, device=m.device)
    y = m.grid(m.normal) * 2
    return y, ones, ones * 0, 0.5, 0.5, Fire(), m.size.T, False, y.dtype


def _project_lif(m: _Maker) -> tuple[Any, ...]:
    C = m.size.C
    weight = m.normal(C, C, 1, 1).mul(40).round().clamp(-127, 127).to(torch.int8)
    scale = torch.full((C,), 1 / 40 / C**0.5, device=m.device)
    return m.grid(m.spikes).to(torch.int8), weight, scale, scale * 0, 0.5, 0.5, Fire(), 1, False


def _sense_lif(m: _Maker) -> tuple[Any, ...]:
    z = m.size
    x, weight = m.normal(1, z.B, 3, 16 * z.side, 16 * z.side), m.normal(z.C // 8, 3, 3, 3) / 4
    return x, weight, torch.zeros(len(weight), device=m.device), 0.5, 0.5, Fire(), z.T, 1, True


MAKE: dict[str, Callable[[_Maker], tuple[Any, ...]]] = {
    "lif": _lif,
    "conv": _conv,
    "convs": _convs,
    "conv_lif": _conv_lif,
    "norm_lif": _norm_lif,
    "linear_lif": _linear_lif,
    "affine_lif": _affine_lif,
    "project_lif": _project_lif,
    "sense_lif": _sense_lif,
    "ssa": _ssa,
    "linear_ssa": _linear_ssa,
    "ssa_mix": lambda m: (*m.heads(), 0.125),
    "causal_mix": lambda m: (*m.heads(), 0.125),
    "sasa_aggregate": lambda m: (*m.heads()[:2], "product", 0.25),
    "token_scan": _token_scan,
    "pmsn_soma": _soma,
}


def arguments(op: Op, size: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    """Arguments of a named size; the example's where none is made.

    Floating-point tensors are in `dtype`, but constants of each channel, which have one axis.
    """
    make = MAKE.get(op.name)
    args = make(_Maker(SIZES[size], device)) if make else example_on(op, device)
    return tuple(
        a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() and a.dim() > 1 else a
        for a in args
    )
