"""The layer that sees pictures: a small convolution of real numbers, and its neuron."""

import triton
import triton.language as tl

from saccade.kernels.bits import packed
from saccade.kernels.neuron import after, charged, fires, led


@triton.jit
def sense(
    x, weight, scale, shift, y, s, bits, held, M, H, W, h_out, w_out,
    rest, decay, gain, pull, theta, reset, alpha,
    HARD: tl.constexpr, STRICT: tl.constexpr, POWERS: tl.constexpr, T: tl.constexpr,
    ONCE: tl.constexpr, N: tl.constexpr, C: tl.constexpr, SIDE: tl.constexpr, STRIDE: tl.constexpr,
    TRAINS: tl.constexpr, BITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Spikes [T M N] of pictures [t B C H W] and kernels [N C SIDE SIDE]; M = B h_out w_out.

    Places are along the fast axis of the tile, so that a tap of neighbours is one read; all taps of
    all channels, at most BK, meet the kernel at once. Where y [M N] is given it takes the currents;
    what charges the neurons is those times scale, where that is given, plus shift. TRAINS leaves
    all steps in one word: [M N]; BITS spikes as bits beside them. Membranes begin at rest, or in
    held [M N] where it is given: there they stay.
    """
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    channel, tap = k // (SIDE * SIDE), k % (SIDE * SIDE)
    size = h_out * w_out
    i = (m % size // w_out * STRIDE)[None, :] + (tap // SIDE - SIDE // 2)[:, None]
    j = (m % w_out * STRIDE)[None, :] + (tap % SIDE - SIDE // 2)[:, None]
    picture = (m // size).to(tl.int64)[None, :] * C + channel[:, None]
    seen = (channel < C)[:, None] & (m < M)[None, :] & (i >= 0) & (i < H) & (j >= 0) & (j < W)
    at = (picture * H + i) * W + j
    step = tl.cast(M // size, tl.int64) * C * H * W
    known = (n < N)[:, None] & (channel < C)[None, :]
    w = tl.load(weight + n[:, None] * (C * SIDE * SIDE) + k[None, :], known, 0.0)
    b = led(tl.load(shift + n, n < N, 0.0)[:, None], gain, POWERS)
    current = tl.zeros([BN, BM], tl.float32)
    inside = (n < N)[:, None] & (m < M)[None, :]
    out = m.to(tl.int64)[None, :] * N + n[:, None]
    v = tl.full([BN, BM], rest, tl.float32)
    if held is not None:
        v = tl.load(held + out, inside, 0.0)
    train = tl.zeros([BN, BM], tl.int32)
    for t in tl.static_range(T):
        if t == 0 or not ONCE:
            x_t = tl.load(x + t * step + at, seen, 0.0).to(w.dtype)
            current = tl.dot(w, x_t, input_precision=PRECISION)
            if y is not None:
                tl.store(y + out, current.to(y.dtype.element_ty), inside)
                current = current.to(y.dtype.element_ty).to(tl.float32)
            if scale is not None:
                a = led(tl.load(scale + n, n < N, 0.0)[:, None], gain, POWERS)
                current = a * current + b
            else:
                current = led(current, gain, POWERS) + b
        h = charged(current, v, decay, gain, pull, POWERS)
        f = fires(h, theta, STRICT)
        v = after(h, f, theta, reset, HARD)
        if TRAINS:
            train |= f.to(tl.int32) << t
        else:
            tl.store(s + t * tl.cast(M, tl.int64) * N + out, f.to(s.dtype.element_ty), inside)
        if BITS:
            n8 = tl.program_id(1) * (BN // 8) + tl.arange(0, BN // 8)
            at8 = (t * tl.cast(M, tl.int64) + m)[:, None] * (N // 8) + n8[None, :]
            there = (m < M)[:, None] & (n8 < N // 8)[None, :]
            tl.store(bits + at8, packed(tl.trans(f.to(tl.int32)), BM, BN), there)
    if TRAINS:
        tl.store(s + out, train.to(s.dtype.element_ty), inside)
    if held is not None:
        tl.store(held + out, v, inside)


@triton.jit
def _line(
    x, line, start, h_out, w_out, H, W, k,
    C: tl.constexpr, SIDE: tl.constexpr, STRIDE: tl.constexpr, BM: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Taps k of BM places of a line of a frame [C H W], from the place `start` on: [taps, BM].

    Lines are those of h_out in every frame, w_out long; beyond them are zeros.
    """
    channel, tap = k // (SIDE * SIDE), k % (SIDE * SIDE)
    frame, i_out = (line // h_out).to(tl.int64), line % h_out
    j_out = start + tl.arange(0, BM)
    i, right = i_out * STRIDE + tap // SIDE - SIDE // 2, tap % SIDE - SIDE // 2
    j = (j_out * STRIDE)[None, :] + right[:, None]
    inside = ((channel < C) & (i >= 0) & (i < H))[:, None] & (j_out < w_out)[None, :]
    at = ((frame * C + channel) * H + i) * W
    return tl.load(x + at[:, None] + j, inside & (j >= 0) & (j < W), 0.0).to(DTYPE)


@triton.jit
def moments(
    x, products, sums, lines, H, W, h_out, w_out, C: tl.constexpr, SIDE: tl.constexpr,
    STRIDE: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """This program's share of lines in x^T x of the taps of their places, and in sums of these.

    products [P, BK, BK]; sums [P, K], K = C SIDE SIDE.
    """
    k = tl.arange(0, BK)
    block = tl.zeros([BK, BK], tl.float32)
    count = tl.zeros([BK, 16], tl.float32)
    ones = tl.full([BM, 16], 1.0, DTYPE)
    line = tl.program_id(0)
    while line < lines:
        for start in range(0, w_out, BM):
            taps = _line(x, line, start, h_out, w_out, H, W, k, C, SIDE, STRIDE, BM, DTYPE)
            block = tl.dot(taps, tl.trans(taps), block, input_precision=PRECISION)
            count = tl.dot(taps, ones, count, input_precision=PRECISION)
        line += tl.num_programs(0)
    to = products + tl.program_id(0) * BK * BK
    tl.store(to + k[:, None] * BK + k[None, :], block)
    K: tl.constexpr = C * SIDE * SIDE
    tl.store(sums + tl.program_id(0) * K + k, tl.sum(count, 1) / 16, k < K)


@triton.jit
def product(
    x, g, products, lines, H, W, h_out, w_out, N: tl.constexpr, C: tl.constexpr,
    SIDE: tl.constexpr, STRIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """This program's share of lines in g^T x of the taps x of their places: products [P, N, K]."""
    n, k = tl.program_id(1) * BN + tl.arange(0, BN), tl.arange(0, BK)
    block = tl.zeros([BN, BK], tl.float32)
    line = tl.program_id(0)
    while line < lines:
        for start in range(0, w_out, BM):
            taps = _line(
                x, line, start, h_out, w_out, H, W, k, C, SIDE, STRIDE, BM, g.dtype.element_ty
            )
            j = start + tl.arange(0, BM)
            at = line.to(tl.int64) * w_out * N + j[:, None] * N + n[None, :]
            given = tl.load(g + at, (j < w_out)[:, None] & (n < N)[None, :], 0.0)
            block = tl.dot(tl.trans(given), tl.trans(taps), block, input_precision=PRECISION)
        line += tl.num_programs(0)
    K: tl.constexpr = C * SIDE * SIDE
    to = products + tl.program_id(0) * (N * K) + n[:, None] * K + k[None, :]
    tl.store(to, block, (n < N)[:, None] & (k < K)[None, :])
