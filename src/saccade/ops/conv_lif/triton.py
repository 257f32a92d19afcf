"""The layer that sees pictures, while it learns: its norm takes no pass over currents.

A picture of C channels has few taps under a kernel, K = C k k. Mean and covariance of the taps x
measure the currents y = x W^T (`saccade.kernels.gram`), so that one kernel convolves, norms and
fires. The gradient of the kernel,

    d W = a (g - mean g)^T x + b M W S        a, b, S: see `saccade.ops.linear_lif.triton`

takes g, the gradient behind the norm, as it is found: it is corrected only where the picture, too,
has a gradient.
"""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from saccade.kernels import sense as kernels
from saccade.ops._gram import PRECISION, centred, dtype_of, measured, spread_of, turn
from saccade.ops._packed import remember
from saccade.ops._triton import (
    FLAGS,
    cache_size,
    channels_last,
    launch,
    multiprocessors,
    power_of_two,
    tiles,
)
from saccade.ops._triton import refuses as no_kernel
from saccade.ops.conv.packed import back_through
from saccade.ops.lif.constants import constants
from saccade.ops.lif.reference import Fire
from saccade.ops.norm_lif import Norm
from saccade.ops.norm_lif.passes import (
    back_pool,
    back_sums,
    channels_last_memory,
    codes,
    correct,
    no_neuron,
    pool,
    pooled_side,
    word,
)

TAPS = 64
"""Of all channels together, at most: a program takes them at once."""
DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}
LINE = 64
"""Places of a line that a program takes at once."""


def refuses(
    x: Tensor, weight: Tensor, stride: int, norm: Norm, decay: float | Tensor,
    gain: float | Tensor, fire: Fire, steps: int, pools: bool, onto: Tensor | None = None,
) -> str | None:  # fmt: skip
    """One picture for all steps, and norms that measure what this process has."""
    if torch.compiler.is_compiling():
        return "torch.compile sees the plain convolution"
    if (why := no_kernel(x, steps, (torch.float32, torch.bfloat16))) is not None:
        return why
    if len(x) > 1:
        return "its input is another one at every step"
    D, C, side, _ = weight.shape
    if C * side**2 > TAPS:
        return f"{C * side**2} taps are more than the {TAPS} that a program takes at once"
    if side % 2 == 0:
        return "the kernel has no middle"
    if not x.is_contiguous():
        return "pictures lie in memory with gaps"
    if dtype_of(x) == torch.float16:
        return "the range of float16 is too small for its gradients"
    if not norm.training or norm.join is not None:
        return "the statistics are not those of this process's batch"
    if onto is not None:
        return "its spikes are added to something"
    return no_neuron(decay, gain, fire, D)


def slower(
    x: Tensor, weight: Tensor, stride: int, norm: Norm, decay: float | Tensor,
    gain: float | Tensor, fire: Fire, steps: int, pools: bool, onto: Tensor | None = None,
) -> str | None:  # fmt: skip
    """Currents that the cache holds are cheap to keep."""
    kept = x.numel() // x.shape[2] * len(weight) // stride**2 * dtype_of(x).itemsize
    if kept <= cache_size(x.device):
        return f"the cache holds its {kept >> 20} MiB of currents"
    return None


def conv_lif(
    x: Tensor, weight: Tensor, stride: int, norm: Norm, decay: float | Tensor,
    gain: float | Tensor, fire: Fire, steps: int, pools: bool, onto: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """See the reference."""
    learned = weight, norm.weight, norm.bias, norm.offset
    leaves = x, *learned
    keeps = torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in leaves)
    neuron = constants(decay, gain, fire)  # type: ignore[arg-type]  # see refuses
    how: dict[str, Any] = {"steps": steps, "pools": pools, "stride": stride, "norm": norm}
    how |= {"gain": gain, "fire": fire, "neuron": neuron, "dtype": dtype_of(x)}
    s, bits = _Seen.apply(x, keeps, how, *learned)  # type: ignore[no-untyped-call]
    if keeps:
        remember(s, bits)
    spikes: Tensor = s
    return spikes


class _Sizes:
    """Of a layer: what its kernels are compiled for, and what they are given."""

    def __init__(self, x: Tensor, weight: Tensor, stride: int, pools: bool) -> None:
        (_, self.B, C, *picture), (self.N, _, side, _) = x.shape, weight.shape
        self.grid = [(length - 1) // stride + 1 for length in picture]
        self.out = [pooled_side(n) for n in self.grid] if pools else self.grid
        self.picture, self.M, self.K = picture, self.B * self.grid[0] * self.grid[1], C * side**2
        self.taps: dict[str, Any] = {"C": C, "SIDE": side, "STRIDE": stride}
        self.taps |= {"BK": max(16, power_of_two(self.K))}


class _Seen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, keeps: bool, how: dict[str, Any], weight: Tensor, *learned: Any
    ) -> tuple[Tensor, Tensor]:
        z, T, dtype = _Sizes(x, weight, how["stride"], how["pools"]), how["steps"], how["dtype"]
        kernel = _kernel(weight, dtype)
        mean, cov = _moments(x, z, dtype)
        spread = spread_of(kernel, cov)
        coef = measured(kernel, spread, mean, how["norm"], T * z.M)
        s = channels_last_memory(x, T, z.B, z.N, *z.out, dtype=dtype)
        size = (T, z.B, *z.out, z.N // 8) if keeps else (0,)
        bits = torch.empty(size, dtype=torch.uint8, device=x.device)
        code = codes(s) if keeps and how["pools"] else torch.empty(0, device=x.device)
        y = channels_last_memory(x, 1, z.B, z.N, *z.grid, dtype=dtype)
        _fire(x, kernel, coef, y, s, bits, code, z, how, keeps)
        ctx.save_for_backward(x, weight, y, mean, spread, coef, code)
        ctx.z, ctx.how = z, how
        ctx.set_materialize_grads(False)  # bits have none
        return s, bits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        if grad is None:
            return (None,) * 7
        x, weight, y, mean, spread, coef, code = ctx.saved_tensors
        z, how, g = ctx.z, ctx.how, torch.empty_like(y)
        fire, known = how["fire"], (y, coef, channels_last(grad))
        neuron = how["neuron"] | {"DETACH": fire.detach_reset, "KIND": fire.surrogate}
        if how["pools"]:
            partial = back_pool(*known, code, g, how["steps"], fire.rest, neuron)
        else:
            partial = back_sums(*known, g, how["steps"], fire.rest, neuron)
        grad_w = weight.new_empty(weight.shape)
        measures = _kernel(weight, y.dtype), spread, mean, coef
        sums = turn(*measures, _product(x, g, z), partial, grad_w.view(z.N, z.K), z.M, how["gain"])
        of_offset = None if how["norm"].offset is None else sums[3]
        grad_x = None
        if ctx.needs_input_grad[0]:
            correct(g, y, coef, sums, how["steps"], how["gain"], True)
            given, kernel = x.to(y.dtype), weight.to(y.dtype)
            grad_x = back_through(g, given, kernel, how["stride"], (True, False), None)[0]
        return grad_x, None, None, grad_w, sums[2], sums[0], of_offset


def _moments(x: Tensor, z: _Sizes, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean [K] and covariance [parts, K, K] of the taps of all places."""
    BK, lines = z.taps["BK"], z.B * z.grid[0]
    P = min(lines, 4 * multiprocessors(x.device))
    products = torch.empty(P, BK, BK, device=x.device)
    sums = torch.empty(P, z.K, device=x.device)
    launch(
        kernels.moments, (P,), x, products, sums, lines, *z.picture, *z.grid, BM=LINE,
        DTYPE=DTYPES[dtype], PRECISION=PRECISION, num_warps=2, **z.taps,
    )  # fmt: skip
    total, taken = (v.sum(0, keepdim=True, dtype=torch.float64) for v in (products, sums))
    return centred(total[None], taken, z.M, dtype)


def _fire(
    x: Tensor, kernel: Tensor, coef: Tensor, y: Tensor, s: Tensor, bits: Tensor, code: Tensor,
    z: _Sizes, how: dict[str, Any], keeps: bool,
) -> None:  # fmt: skip
    """Spikes to `s`, currents before the norm to `y`, and what the way back takes of both."""
    T, pools, BM, BN = how["steps"], how["pools"], 128, min(64, max(16, power_of_two(z.N)))
    left = channels_last_memory(x, 1, z.B, z.N, *z.grid, dtype=word(T)) if pools else s
    launch(
        kernels.sense, (tiles(z.M, BM), tiles(z.N, BN)), x, kernel, coef[2], coef[3], y,
        left, bits, None, z.M, *z.picture, *z.grid, how["fire"].rest, T=T, ONCE=True, N=z.N,
        TRAINS=pools, BITS=keeps and not pools, BM=BM, BN=BN, PRECISION=PRECISION, **z.taps,
        **how["neuron"], **FLAGS,
    )  # fmt: skip
    if pools:
        pool(left, s, code, bits, keeps=keeps)


def _product(x: Tensor, g: Tensor, z: _Sizes) -> Tensor:
    """g^T x [N K] of the taps x."""
    BN = min(64, max(16, power_of_two(z.N)))
    P = max(1, min(z.B * z.grid[0], 4 * multiprocessors(x.device) // tiles(z.N, BN)))
    products = torch.empty(P, z.N, z.K, device=x.device)
    launch(
        kernels.product, (P, tiles(z.N, BN)), x, g, products, z.B * z.grid[0], *z.picture, *z.grid,
        N=z.N, BM=LINE, BN=BN, PRECISION=PRECISION, num_warps=2, num_stages=2, **z.taps,
    )  # fmt: skip
    return products.sum(0)


def _kernel(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """[D C k k] in any layout as [D K]."""
    return weight.detach().flatten(1).to(dtype)
