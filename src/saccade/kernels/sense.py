"""The layer that sees pictures: a small convolution of real numbers, and its neuron."""

import triton
import triton.language as tl

from saccade.kernels.neuron import after, charged, fires, led


@triton.jit
def sense(
    x, weight, shift, s, held, M, H, W, h_out, w_out, rest, decay, gain, pull, theta, reset, alpha,
    HARD: tl.constexpr, STRICT: tl.constexpr, POWERS: tl.constexpr, T: tl.constexpr,
    ONCE: tl.constexpr,
    N: tl.constexpr, C: tl.constexpr, SIDE: tl.constexpr, STRIDE: tl.constexpr,
    TRAINS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Spikes [T M N] of pictures [t B C H W] and kernels [N C SIDE SIDE]; M = B h_out w_out.

    Places are along the fast axis of the tile, so that a tap of neighbours is one read; all taps of
    all channels, at most BK, meet the kernel at once. TRAINS leaves all steps in one word: [M N].
    Membranes begin at rest, or in held [M N] where it is given: there they stay.
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
    b = tl.load(shift + n, n < N, 0.0)[:, None]
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
            current = tl.dot(w, x_t, input_precision=PRECISION) + b
        h = charged(led(current, gain, POWERS), v, decay, gain, pull, POWERS)
        f = fires(h, theta, STRICT)
        v = after(h, f, theta, reset, HARD)
        if TRAINS:
            train |= f.to(tl.int32) << t
        else:
            tl.store(s + t * tl.cast(M, tl.int64) * N + out, f.to(s.dtype.element_ty), inside)
    if TRAINS:
        tl.store(s + out, train.to(s.dtype.element_ty), inside)
    if held is not None:
        tl.store(held + out, v, inside)
