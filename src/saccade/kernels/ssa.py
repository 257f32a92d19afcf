"""Spiking self-attention: Q (K^T V), scaled, and its neuron, over all steps."""

import triton
import triton.language as tl

from saccade.kernels.bits import ones
from saccade.kernels.neuron import after, charged, fires, led, reset_slope, slope


@triton.jit
def _spikes(
    x, bits, frame, n, head, N,
    d: tl.constexpr, D: tl.constexpr, C: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Spikes of tokens n in one head, [tokens, D], zero outside; from bits where there are any."""
    row = tl.cast(frame, tl.int64) * N + n
    if BITS:
        j = tl.arange(0, D // 8)
        at = row[:, None] * (C // 8) + head * (d // 8) + j[None, :]
        byte = tl.load(bits + at, (n < N)[:, None] & (j < d // 8)[None, :], 0).to(tl.int32)
        eights = byte[:, :, None] >> tl.arange(0, 8)[None, None, :] & 1
        s = ones(tl.reshape(eights, [n.shape[0], D]), DTYPE)
    else:
        j = tl.arange(0, D)
        at = row[:, None] * C + head * d + j[None, :]
        s = tl.load(x + at, (n < N)[:, None] & (j < d)[None, :], 0.0).to(DTYPE)
    return s


@triton.jit
def pairs(
    k, v, k_bits, v_bits, kv, N, heads,
    d: tl.constexpr, D: tl.constexpr, C: tl.constexpr, BITS: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """K^T V of one step, sample and head: [D, D] counts."""
    frame, head = tl.program_id(0), tl.program_id(1)
    total = tl.zeros([D, D], tl.float32)
    start = 0
    while start < N:  # a "for" is pipelined, which costs more than it brings here
        n = start + tl.arange(0, BN)
        k_n = _spikes(k, k_bits, frame, n, head, N, d, D, C, BITS, tl.float16)
        v_n = _spikes(v, v_bits, frame, n, head, N, d, D, C, BITS, tl.float16)
        total = tl.dot(tl.trans(k_n), v_n, total)
        start += BN
    i = tl.arange(0, D)
    at = (frame * heads + head).to(tl.int64) * D * D + i[:, None] * D + i[None, :]
    tl.store(kv + at, total.to(kv.dtype.element_ty))


@triton.jit
def _current(q_n, kv, at, scale, WIDE: tl.constexpr):
    """Q (K^T V) s, exact: counts beyond float16's integers are split in two."""
    counts = tl.load(kv + at)
    if WIDE:
        high = tl.floor(counts / 1024)
        low = (counts - 1024 * high).to(tl.float16)
        product = 1024 * tl.dot(q_n, high.to(tl.float16)) + tl.dot(q_n, low)
    else:
        product = tl.dot(q_n, counts.to(tl.float16))
    return product * scale


@triton.jit
def fire(
    q, q_bits, kv, s, s_bits, start, B, N, heads, scale,
    rest, decay, gain, pull, theta, reset, alpha,
    HARD: tl.constexpr, STRICT: tl.constexpr, POWERS: tl.constexpr, T: tl.constexpr,
    WIDE: tl.constexpr,
    BITS: tl.constexpr, KEEPS: tl.constexpr, d: tl.constexpr, D: tl.constexpr, C: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """The product and its neuron for some tokens, from `start` on, of one sample and head."""
    b, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    n = start + tl.program_id(1) * BN + tl.arange(0, BN)
    i, j8 = tl.arange(0, D), tl.arange(0, D // 8)
    v = tl.full([BN, D], rest, tl.float32)
    for t in tl.static_range(T):
        frame = t * B + b
        q_n = _spikes(q, q_bits, frame, n, head, N, d, D, C, BITS, tl.float16)
        pair = (frame * heads + head).to(tl.int64) * D * D + i[:, None] * D + i[None, :]
        current = _current(q_n, kv, pair, led(scale, gain, POWERS), WIDE)
        h = charged(current, v, decay, gain, pull, POWERS)
        f = fires(h, theta, STRICT)
        v = after(h, f, theta, reset, HARD)
        row = frame.to(tl.int64) * N + n
        at = row[:, None] * C + head * d + i[None, :]
        tl.store(s + at, f.to(s.dtype.element_ty), (n < N)[:, None] & (i < d)[None, :])
        if KEEPS:
            eights = tl.reshape(f.to(tl.int32), [BN, D // 8, 8])
            byte = tl.sum(eights << tl.arange(0, 8)[None, None, :], 2).to(tl.uint8)
            at8 = row[:, None] * (C // 8) + head * (d // 8) + j8[None, :]
            tl.store(s_bits + at8, byte, (n < N)[:, None] & (j8 < d // 8)[None, :])


@triton.jit
def back_queries(
    q, q_bits, kv, grad_s, grad_q, grad_c, start, B, N, heads, scale,
    rest, decay, gain, pull, theta, reset, alpha,
    HARD: tl.constexpr, STRICT: tl.constexpr, POWERS: tl.constexpr, DETACH: tl.constexpr,
    KIND: tl.constexpr,
    T: tl.constexpr, WIDE: tl.constexpr, BITS: tl.constexpr, PRECISION: tl.constexpr,
    d: tl.constexpr, D: tl.constexpr, C: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradients of the unscaled product (kept for `back_pairs`) and of Q."""
    b, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    n = start + tl.program_id(1) * BN + tl.arange(0, BN)
    i = tl.arange(0, D)
    inside = (n < N)[:, None] & (i < d)[None, :]
    v = tl.full([BN, D], rest, tl.float32)
    hs = ()
    for t in tl.static_range(T):
        frame = t * B + b
        q_n = _spikes(q, q_bits, frame, n, head, N, d, D, C, BITS, tl.float16)
        pair = (frame * heads + head).to(tl.int64) * D * D + i[:, None] * D + i[None, :]
        current = _current(q_n, kv, pair, led(scale, gain, POWERS), WIDE)
        h = charged(current, v, decay, gain, pull, POWERS)
        v = after(h, fires(h, theta, STRICT), theta, reset, HARD)
        hs = hs + (h,)
    carried = tl.zeros([BN, D], tl.float32)
    for step in tl.static_range(T):
        h, frame = hs[T - 1 - step], (T - 1 - step) * B + b
        at = (frame.to(tl.int64) * N + n)[:, None] * C + head * d + i[None, :]
        slope_h = slope(h, theta, alpha, KIND)
        keep = reset_slope(h, fires(h, theta, STRICT), slope_h, theta, reset, HARD, DETACH)
        g = tl.fma(carried, keep, slope_h * tl.load(grad_s + at, inside, 0.0).to(tl.float32))
        carried = g * decay
        g = (g * (gain * scale)).to(grad_q.dtype.element_ty)
        tl.store(grad_c + at, g, inside)
        g = tl.where(inside, g, 0.0).to(grad_q.dtype.element_ty)
        pair = (frame * heads + head).to(tl.int64) * D * D + i[:, None] * D + i[None, :]
        counts = tl.load(kv + pair).to(tl.float32).to(grad_q.dtype.element_ty)
        out = tl.dot(g, tl.trans(counts), input_precision=PRECISION)
        tl.store(grad_q + at, out.to(grad_q.dtype.element_ty), inside)


@triton.jit
def back_pairs(
    q, k, v, q_bits, k_bits, v_bits, grad_c, grad_k, grad_v, N, heads,
    BITS: tl.constexpr, PRECISION: tl.constexpr, d: tl.constexpr, D: tl.constexpr,
    C: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradients of K and V of one step, sample and head, through that of K^T V."""
    frame, head = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, D)
    grad_pairs = tl.zeros([D, D], tl.float32)
    for start in range(0, N, BN):  # pipelined, which pays here
        n = start + tl.arange(0, BN)
        at = (frame.to(tl.int64) * N + n)[:, None] * C + head * d + i[None, :]
        g = tl.load(grad_c + at, (n < N)[:, None] & (i < d)[None, :], 0.0)
        q_n = _spikes(q, q_bits, frame, n, head, N, d, D, C, BITS, g.dtype)
        grad_pairs = tl.dot(tl.trans(q_n), g, grad_pairs, input_precision=PRECISION)
    pairs = grad_pairs.to(grad_k.dtype.element_ty)
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        inside = (n < N)[:, None] & (i < d)[None, :]
        at = (frame.to(tl.int64) * N + n)[:, None] * C + head * d + i[None, :]
        v_n = _spikes(v, v_bits, frame, n, head, N, d, D, C, BITS, pairs.dtype)
        out = tl.dot(v_n, tl.trans(pairs), input_precision=PRECISION)
        tl.store(grad_k + at, out.to(grad_k.dtype.element_ty), inside)
        k_n = _spikes(k, k_bits, frame, n, head, N, d, D, C, BITS, pairs.dtype)
        out = tl.dot(k_n, pairs, input_precision=PRECISION)
        tl.store(grad_v + at, out.to(grad_v.dtype.element_ty), inside)
