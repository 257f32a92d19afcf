"""A linear map of spikes and its neuron in one kernel: the currents never reach memory."""

import triton
import triton.language as tl

from saccade.kernels.neuron import after, charged, fires


@triton.jit
def project(
    x, weight, scale, shift, s, M, rest, decay, gain, pull, theta, reset, alpha,
    HARD: tl.constexpr, STRICT: tl.constexpr, T: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Spikes [T M N] of int8 [T M K] and an int8 matrix [N K]; T accumulators share its tiles.

    Programs run through GROUP tiles of rows before the next tile of columns, so that both stay
    in the cache.
    """
    columns = tl.cdiv(N, BN)
    program, tall = tl.program_id(0), tl.cdiv(M, BM)
    first = program // (GROUP * columns) * GROUP
    height = tl.minimum(tall - first, GROUP)
    within = program % (GROUP * columns)
    m = (first + within % height) * BM + tl.arange(0, BM)
    n = within // height * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    rows = tl.minimum(m, M - 1).to(tl.int64)[:, None] * K + k[None, :]
    kernel = weight + tl.minimum(n, N - 1)[None, :] * K + k[:, None]
    step = tl.cast(M, tl.int64) * K
    sums = ()
    for _ in tl.static_range(T):
        sums = sums + (tl.zeros([BM, BN], tl.int32),)
    for start in range(0, K, BK):
        if K % BK == 0:
            w = tl.load(kernel + start)
        else:
            w = tl.load(kernel + start, (start + k < K)[:, None], 0)
        added = ()
        for t in tl.static_range(T):
            if K % BK == 0:
                x_t = tl.load(x + t * step + rows + start)
            else:
                x_t = tl.load(x + t * step + rows + start, (start + k < K)[None, :], 0)
            added = added + (tl.dot(x_t, w, sums[t], out_dtype=tl.int32),)
        sums = added
    a = tl.load(scale + n, n < N, 0.0)[None, :]
    b = tl.load(shift + n, n < N, 0.0)[None, :]
    v = tl.full([BM, BN], rest, tl.float32)
    inside = (m < M)[:, None] & (n < N)[None, :]
    out = m.to(tl.int64)[:, None] * N + n[None, :]
    for t in tl.static_range(T):
        h = charged(a * sums[t].to(tl.float32) + b, v, decay, gain, pull)
        f = fires(h, theta, STRICT)
        v = after(h, f, theta, reset, HARD)
        tl.store(s + t * tl.cast(M, tl.int64) * N + out, f.to(s.dtype.element_ty), inside)
