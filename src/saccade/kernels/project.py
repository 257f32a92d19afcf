"""A convolution of integers and its neuron in one kernel: the currents never reach memory."""

import triton
import triton.language as tl

from saccade.kernels.neuron import after, charged, emitted, fires, led


@triton.jit
def project(
    x, weight, scale, shift, s, held, onto, M, H, W, h_out, w_out,
    rest, decay, gain, pull, theta, reset, alpha,
    HARD: tl.constexpr, STRICT: tl.constexpr, POWERS: tl.constexpr, T: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr,
    SIDE: tl.constexpr, STRIDE: tl.constexpr, TRAINS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Spikes [T M N] of int8 [T B H W K] and kernels [N SIDE SIDE K]; M = B h_out w_out.

    The accumulators of all T steps share the tiles of the kernel. Programs run through GROUP tiles
    of rows before the next tile of columns, so that both stay in the cache; a program that takes
    several loads the next one's while its neurons fire. TRAINS leaves all steps of a neuron in one
    word: [M N]. Membranes begin at rest, or in held [M N] where it is given: there they stay.
    Spikes are added to onto [T M N] where that is given.
    """
    columns, tall = tl.cdiv(N, BN), tl.cdiv(M, BM)
    k = tl.arange(0, BK)
    for program in tl.range(tl.program_id(0), columns * tall, tl.num_programs(0), flatten=True):
        first = program // (GROUP * columns) * GROUP
        height = tl.minimum(tall - first, GROUP)
        within = program % (GROUP * columns)
        m = (first + within % height) * BM + tl.arange(0, BM)
        n = within // height * BN + tl.arange(0, BN)
        row = tl.minimum(m, M - 1)
        kernel = weight + tl.minimum(n, N - 1)[None, :] * (SIDE * SIDE * K) + k[:, None]
        if SIDE == 1 and STRIDE == 1:
            i, j = row, row
            middle = row.to(tl.int64)
            step = tl.cast(M, tl.int64) * K
        else:
            size = h_out * w_out
            i, j = row % size // w_out * STRIDE, row % w_out * STRIDE
            frame = (row // size).to(tl.int64)
            middle = (frame * H + i) * W + j
            step = tl.cast(M // size, tl.int64) * H * W * K
        CHUNKS: tl.constexpr = (K + BK - 1) // BK
        sums = ()
        for _ in tl.static_range(T):
            sums = sums + (tl.zeros([BM, BN], tl.int32),)
        for chunk in range(0, SIDE * SIDE * CHUNKS):
            tap, start = chunk // CHUNKS, chunk % CHUNKS * BK
            if K % BK == 0:
                w = tl.load(kernel + (tap * K + start))
            else:
                w = tl.load(kernel + (tap * K + start), (start + k < K)[:, None], 0)
            if SIDE == 1:
                pixel = middle
                there = row >= 0
            else:
                down, right = tap // SIDE - SIDE // 2, tap % SIDE - SIDE // 2
                pixel = middle + (down * W + right)
                there = (i + down >= 0) & (i + down < H) & (j + right >= 0) & (j + right < W)
            at = pixel[:, None] * K + (start + k)[None, :]
            added = ()
            for t in tl.static_range(T):
                if K % BK == 0 and SIDE == 1:
                    x_t = tl.load(x + t * step + at)
                elif K % BK == 0:
                    x_t = tl.load(x + t * step + at, there[:, None], 0)
                else:
                    x_t = tl.load(x + t * step + at, there[:, None] & (start + k < K)[None, :], 0)
                added = added + (tl.dot(x_t, w, sums[t], out_dtype=tl.int32),)
            sums = added
        a = led(tl.load(scale + n, n < N, 0.0)[None, :], gain, POWERS)
        b = led(tl.load(shift + n, n < N, 0.0)[None, :], gain, POWERS)
        inside = (m < M)[:, None] & (n < N)[None, :]
        out = m.to(tl.int64)[:, None] * N + n[None, :]
        v = tl.full([BM, BN], rest, tl.float32)
        if held is not None:
            v = tl.load(held + out, inside, 0.0)
        train = tl.zeros([BM, BN], tl.int32)
        for t in tl.static_range(T):
            h = charged(a * sums[t].to(tl.float32) + b, v, decay, gain, pull, POWERS)
            f = fires(h, theta, STRICT)
            v = after(h, f, theta, reset, HARD)
            if TRAINS:
                train |= f.to(tl.int32) << t
            else:
                to = t * tl.cast(M, tl.int64) * N + out
                tl.store(s + to, emitted(f, onto, to, inside).to(s.dtype.element_ty), inside)
        if TRAINS:
            tl.store(s + out, train.to(s.dtype.element_ty), inside)
        if held is not None:
            tl.store(held + out, v, inside)
