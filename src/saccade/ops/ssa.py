"""Spiking self-attention in Triton: Q (K^T V), scaled, and the neuron behind it, over all steps.

q, k, v and the output are spikes [T B C H W], channels-last in memory; N = H*W tokens, h heads,
d = C/h. Forward is two kernels: K^T V of each step, sample and head (integers up to N, exact in
float16 up to 2048 and split in two beyond), then Q times that with the membrane in registers. The
current between them never reaches memory. Backward finds it again, then needs one pass for Q and
one for K and V.
"""

from typing import Any

import torch
from torch import Tensor

from saccade.kernels import ssa as kernels
from saccade.ops._packed import bits_of, remember
from saccade.ops._triton import (
    DTYPES,
    FLAGS,
    Kernels,
    channels_last,
    launch,
    operator,
    power_of_two,
    tiles,
)
from saccade.ops._triton import refuses as no_kernel
from saccade.ops.lif.constants import constants, fire_of, scalars
from saccade.ops.lif.exact import inexact
from saccade.ops.lif.reference import Fire

EXACT = 2048
"""Integers up to here are exact in float16."""


def refuses(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float,
    decay: float | Tensor, gain: float | Tensor, fire: Fire,
) -> str | None:  # fmt: skip
    """Constants only, channels last in memory, heads of 8 to 128 channels, and exact sums."""
    if isinstance(decay, Tensor) or isinstance(gain, Tensor):
        return "decay and gain are learned here"
    if fire.detach_membrane:
        return "detach_membrane has no kernel"
    d = q.shape[2] // heads
    if d % 8 or d > 128:
        return f"heads of {d} channels, not a multiple of 8 up to 128"
    if not all(x.permute(0, 1, 3, 4, 2).is_contiguous() for x in (q, k, v)):
        return "the spikes are not channels-last in memory"
    most = q.shape[3] * q.shape[4] * d
    return inexact(len(q), most, scale, decay, gain, fire) or no_kernel(
        q, len(q), (*DTYPES, torch.int8)
    )


def _sizes(q: Tensor, heads: int) -> tuple[int, int, dict[str, int]]:
    """B, N, and the sizes that kernels are compiled for."""
    _, B, C, H, W = q.shape
    d = C // heads
    return B, H * W, {"d": d, "D": max(16, power_of_two(d)), "C": C}


def _tokens(steps: int, D: int) -> int:
    """Tokens of a program whose membranes of all steps stay in registers."""
    return max(16, min(64, 16384 // power_of_two(steps * D)))


def _shares(N: int, BN: int) -> list[tuple[int, int, int]]:
    """Tokens as launches of programs: the first token, how many programs, and tokens of each.

    What is left over from whole programs has smaller ones where these would be half empty.
    """
    whole, left = divmod(N, BN)
    if not whole or left > BN // 2:
        return [(0, tiles(N, BN), BN)]
    rest = [(whole * BN, 1, max(16, power_of_two(left)))] if left else []
    return [(0, whole, BN), *rest]


def run(
    q: Tensor, k: Tensor, v: Tensor, q_bits: Tensor, k_bits: Tensor, v_bits: Tensor, heads: int,
    scale: float, keeps: bool, decay: float, gain: float, v_threshold: float,
    v_reset: float | None, v_rest: float, strict: bool, detach_reset: bool, surrogate: str,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Spikes, their bits, and K^T V."""
    fire = fire_of(v_threshold, v_reset, v_rest, strict, detach_reset, surrogate, alpha)
    (B, N, size), T = _sizes(q, heads), len(q)
    counts = torch.float16 if N <= EXACT else torch.float32
    kv = torch.empty(T * B, heads, size["D"], size["D"], dtype=counts, device=q.device)
    s = torch.empty_like(q)
    C, H, W = q.shape[2:]
    bits = torch.empty((T, B, H, W, C // 8) if keeps else 0, dtype=torch.uint8, device=q.device)
    common = size | {"BITS": q_bits.numel() > 0}
    launch(kernels.pairs, (T * B, heads), k, v, k_bits, v_bits, kv, N, heads, BN=64, **common)
    for start, programs, BN in _shares(N, _tokens(T, size["D"])):
        launch(
            kernels.fire, (B * heads, programs), q, q_bits, kv, s, bits, start, B, N, heads,
            scale, fire.rest, T=T, WIDE=N > EXACT, KEEPS=keeps, BN=BN, **common,
            **constants(decay, gain, fire), **FLAGS,
        )  # fmt: skip
    return s, bits, kv


@operator("ssa_backward")
def run_back(
    q: Tensor, k: Tensor, v: Tensor, q_bits: Tensor, k_bits: Tensor, v_bits: Tensor, kv: Tensor,
    grad_s: Tensor, heads: int, scale: float, decay: float, gain: float, v_threshold: float,
    v_reset: float | None, v_rest: float, strict: bool, detach_reset: bool, surrogate: str,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v."""
    fire = fire_of(v_threshold, v_reset, v_rest, strict, detach_reset, surrogate, alpha)
    (B, N, size), T = _sizes(grad_s, heads), len(grad_s)
    grad_q, grad_k, grad_v, grad_c = (torch.empty_like(grad_s) for _ in range(4))
    precision = "ieee" if grad_s.dtype == torch.float32 else "tf32"
    common = size | {"BITS": q_bits.numel() > 0, "PRECISION": precision}
    for start, programs, BN in _shares(N, _tokens(T, size["D"])):
        launch(
            kernels.back_queries, (B * heads, programs), q, q_bits, kv, grad_s, grad_q, grad_c,
            start, B, N, heads, scale, fire.rest, DETACH=detach_reset, KIND=surrogate, T=T,
            WIDE=N > EXACT, BN=BN, **common, **constants(decay, gain, fire), **FLAGS,
        )  # fmt: skip
    launch(
        kernels.back_pairs, (T * B, heads), q, k, v, q_bits, k_bits, v_bits, grad_c, grad_k,
        grad_v, N, heads, BN=64, **common,
    )  # fmt: skip
    return grad_q, grad_k, grad_v


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    q, k, v, *bits, ctx.heads, ctx.scale, _ = inputs[:9]
    ctx.constants, ctx.bits = inputs[9:], bits[0].numel() > 0
    ctx.set_materialize_grads(False)  # bits and counts have none
    ctx.save_for_backward(*(bits if ctx.bits else (q, k, v)), output[2])


def _differentiate(ctx: Any, grad_s: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    *kept, kv = ctx.saved_tensors
    nothing = [torch.empty(0, dtype=torch.uint8, device=grad_s.device)] * 3
    spikes, bits = (nothing, kept) if ctx.bits else (kept, nothing)
    grads = run_back(
        *spikes, *bits, kv, channels_last(grad_s), ctx.heads, ctx.scale, *ctx.constants
    )
    return *grads, *(None for _ in range(6 + len(ctx.constants)))


_op = Kernels("ssa_forward", run, _keep, _differentiate)


def scan(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float,
    decay: float, gain: float, fire: Fire,
) -> Tensor:  # fmt: skip
    """See `saccade.attention.ssa`."""
    bits = [bits_of(x) for x in (q, k, v)]
    if any(b is None for b in bits):
        bits = [torch.empty(0, dtype=torch.uint8, device=q.device)] * 3
    keeps = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    s, packed, _ = _op(q, k, v, *bits, heads, scale, keeps, decay, gain, *scalars(fire))
    if keeps:
        remember(s, packed)
    spikes: Tensor = s
    return spikes
