"""Layers of 8-bit weights on a CPU, in Numba: only inputs that are not 0 cost anything.

Inputs are spikes or small integers, channels last in memory. Of each place of the output the inputs
of its window that are not 0 are listed, as often as they count; then the rows of weights that they
stand for are added up, for as many output channels at once as fit in registers, and the neuron
fires on the sum. Sums are whole numbers: int16 for as many rows as cannot overflow, float32 beyond.
"""

import numpy as np

from saccade.kernels.cpu import charge, edge, fires, settle
from saccade.kernels.team import shared
from saccade.kernels.vector import (
    BYTES,
    LANES,
    awake,
    counted,
    f32,
    inline,
    larger,
    lowest,
    nought,
    plus,
    population,
    put,
    splat,
    take,
)

PLACES = 16
"""Of the output, for which weights are fetched once."""
NOTED = 8
"""Inputs that are listed at once, however few there are; what is too much is written over."""
ROWS = 256
"""Of weights from -128 to 127, whose sum is an int16."""


@shared
def project(part, parts, x, w, side, stride, scale, shift, held, s, most, p):
    """Integers x [T, B, H, W, K] from 0 to `most` meet weights w: spikes s [T, B, h, w, N], int8.

    Membranes go on in `held`, flat [B, h, w, N], or begin at rest where it is empty.

    w is flat, int16: of the first 4 LANES channels of the output a row for each tap and input
    [side, side, K], of the next 4 LANES and so on; then of the next LANES. The last are filled up.
    """
    (T, B, H, W, K), (_, _, h, w_out, N) = x.shape, s.shape
    flat, rows, across = x.reshape(-1), side * side * K, -(-w_out // PLACES)
    room = rows * most
    heard, ends = np.empty(PLACES * T * room + NOTED, np.int32), np.empty(PLACES * T, np.int64)
    work, blocks = B * h * across, N // (4 * LANES) * (4 * LANES)
    sizes = T, B * h * w_out * N, N, room
    for piece in range(edge(part, parts, work, 1), edge(part + 1, parts, work, 1)):
        row, left = piece // across, piece % across * PLACES
        sample, i, many = row // h, row % h, min(PLACES, w_out - left)
        first = (row * w_out + left) * N
        for place in range(many):
            for t in range(T):
                slot = place * T + t
                corner = (t * B + sample) * H, i * stride, (left + place) * stride
                ends[slot] = _listen(flat, corner, heard, slot * room, (H, W, K), side, most)
        for j in range(0, blocks, 4 * LANES):
            for place in range(many):
                at = first + place * N
                known = scale, shift, held
                _fire_four(w, j * rows, heard, ends, place * T, known, s, at, j, sizes, p)
        for j in range(blocks, N, LANES):
            for place in range(many):
                at = first + place * N
                known = scale, shift, held
                _fire_one(w, j * rows, heard, ends, place * T, known, s, at, j, sizes, p)


@inline
def _listen(x, corner, heard, end, sizes, side, most):
    """Which rows of w a place of the output adds up; the end of the list."""
    (H, W, K), (frame, top, left) = sizes, corner
    pad = side // 2
    begin, stop = max(left - pad, 0), min(left - pad + side, W)
    for i in range(max(top - pad, 0), min(top - pad + side, H)):
        # pixels of a row, and what meets them, lie one behind the other
        row = ((frame + i) * W + begin) * K
        tap = ((i - top + pad) * side + begin - left + pad) * K
        n = (stop - begin) * K
        for k in range(0, n, BYTES):
            bits = awake(x, row + k, n - k)
            if most == 1:
                end = _note(bits, tap + k, heard, end)
                continue
            while bits:
                c = k + lowest(bits)
                bits &= bits - np.uint64(1)
                for _ in range(x[row + c]):
                    heard[end] = tap + c
                    end += 1
    return end


@inline
def _note(bits, base, heard, end):
    """List base + c for each bit c, NOTED at a time: the length of a shorter loop is guessed."""
    left = population(bits)
    while True:
        for i in range(NOTED):
            heard[end + i] = base + lowest(bits)
            bits &= bits - np.uint64(1)
        if left <= NOTED:
            return end + left
        left, end = left - NOTED, end + NOTED


@inline
def _fire_four(w, base, heard, ends, slot, known, s, at, j, sizes, p):
    """Spikes of four vectors of channels from j on, over all steps."""
    (T, step, N, room), (scale, shift, held), m = sizes, known, at + j
    v, u = _begun(held, m, LANES, p), _begun(held, m + LANES, LANES, p)
    y, z = _begun(held, m + 2 * LANES, LANES, p), _begun(held, m + 3 * LANES, LANES, p)
    for t in range(T):
        a = b = c = d = splat(f32(0))
        end = ends[slot + t]
        for begin in range((slot + t) * room, end, ROWS):
            e = f = g = o = nought()
            for i in range(begin, min(begin + ROWS, end)):
                row = base + heard[i] * (4 * LANES)
                e, f = plus(e, w, row), plus(f, w, row + LANES)
                g, o = plus(g, w, row + 2 * LANES), plus(o, w, row + 3 * LANES)
            a, b, c, d = a + counted(e), b + counted(f), c + counted(g), d + counted(o)
        v = _fire(a, scale, shift, v, s, at + t * step, j, N, p)
        u = _fire(b, scale, shift, u, s, at + t * step, j + LANES, N, p)
        y = _fire(c, scale, shift, y, s, at + t * step, j + 2 * LANES, N, p)
        z = _fire(d, scale, shift, z, s, at + t * step, j + 3 * LANES, N, p)
    if len(held):
        put(v, held, m, LANES)
        put(u, held, m + LANES, LANES)
        put(y, held, m + 2 * LANES, LANES)
        put(z, held, m + 3 * LANES, LANES)


@inline
def _fire_one(w, base, heard, ends, slot, known, s, at, j, sizes, p):
    """The same of one vector."""
    (T, step, N, room), (scale, shift, held) = sizes, known
    v = _begun(held, at + j, N - j, p)
    for t in range(T):
        a, end = splat(f32(0)), ends[slot + t]
        for begin in range((slot + t) * room, end, ROWS):
            e = nought()
            for i in range(begin, min(begin + ROWS, end)):
                e = plus(e, w, base + heard[i] * LANES)
            a = a + counted(e)
        v = _fire(a, scale, shift, v, s, at + t * step, j, N, p)
    if len(held):
        put(v, held, at + j, N - j)


@inline
def _begun(held, at, m, p):
    """Membranes before the first step."""
    return take(held, at, m) if len(held) else splat(p.rest)


@inline
def _fire(total, scale, shift, v, s, at, j, N, p):
    """Spikes of one step of one vector of channels; the membrane behind them."""
    m = N - j
    h = charge(total, take(scale, j, m), take(shift, j, m), v, p)
    put(fires(h, p), s, at + j, m)
    return settle(h, p)


@shared
def pool(part, parts, x, s):
    """The 3x3 max-pool of stride 2 of spikes x [F, H, W, C] to s [F, h, w, C]."""
    (F, H, W, C), (_, h, w_out, _) = x.shape, s.shape
    for row in range(edge(part, parts, F * h, 1), edge(part + 1, parts, F * h, 1)):
        frame, i = row // h, row % h
        for j in range(w_out):
            for c in range(0, C, LANES):
                most = splat(f32(0))
                for y in range(max(2 * i - 1, 0), min(2 * i + 2, H)):
                    for z in range(max(2 * j - 1, 0), min(2 * j + 2, W)):
                        most = larger(most, take(x, ((frame * H + y) * W + z) * C + c, C - c))
                put(most, s, (row * w_out + j) * C + c, C - c)
