"""The max-pool behind a neuron, on spike trains: the steps of a neuron are the bits of one word."""

import triton
import triton.language as tl

from saccade.kernels.bits import packed


@triton.jit
def pool(
    trains, s, code, bits, rows, H, W, h_out, w_out,
    T: tl.constexpr, KEEPS: tl.constexpr, LONG: tl.constexpr, C: tl.constexpr, BR: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """3x3, stride 2, all steps at once; KEEPS leaves bits, and which tap each spike came from.

    Ties go to the first tap in reading order, as in torch. Taps of LONG steps share a word of
    `code` [words, R, C], four bits each, the first step in the lowest.
    """
    r = tl.program_id(0) * BR + tl.arange(0, BR)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    c8 = tl.program_id(1) * (BC // 8) + tl.arange(0, BC // 8)
    size = h_out * w_out
    i_out, j_out = (r % size) // w_out, r % w_out
    middle = ((r // size).to(tl.int64) * H + 2 * i_out) * W + 2 * j_out
    centre = trains + middle[:, None] * C + c[None, :]
    seen = tl.zeros([BR, BC], tl.int32)
    planes = (seen, seen, seen, seen)  # bit t of plane j is bit j of the tap of step t
    for tap in tl.static_range(9):
        i, j = 2 * i_out - 1 + tap // 3, 2 * j_out - 1 + tap % 3
        there = (r < rows) & (i >= 0) & (i < H) & (j >= 0) & (j < W)
        pixel = centre + ((tap // 3 - 1) * W + tap % 3 - 1) * C
        train = tl.load(pixel, there[:, None] & (c < C)[None, :], 0).to(tl.int32)
        if KEEPS:
            found = ()
            for j in tl.static_range(4):
                found = found + (planes[j] | (train & ~seen) if tap >> j & 1 else planes[j],)
            planes = found
        seen |= train
    first = tl.where(i_out == 0, 3, 0) + tl.where(j_out == 0, 1, 0)
    inside = (r < rows)[:, None] & (c < C)[None, :]
    inside8 = (r < rows)[:, None] & (c8 < C // 8)[None, :]
    at = r.to(tl.int64)[:, None] * C + c[None, :]
    at8 = r.to(tl.int64)[:, None] * (C // 8) + c8[None, :]
    for n in tl.static_range((T + LONG - 1) // LONG if KEEPS else 0):
        word = _fourfold(~seen >> n * LONG, LONG) * first[:, None]
        for j in tl.static_range(4):
            word |= _fourfold(planes[j] >> n * LONG, LONG) << j
        to = code + n * tl.cast(rows, tl.int64) * C + at
        tl.store(to, word.to(code.dtype.element_ty), inside)
    for t in tl.static_range(T):
        f = (seen >> t & 1) != 0
        out = t * tl.cast(rows, tl.int64) * C + at
        tl.store(s + out, f.to(s.dtype.element_ty), inside)
        if KEEPS:
            out8 = t * tl.cast(rows, tl.int64) * (C // 8) + at8
            tl.store(bits + out8, packed(f, BR, BC), inside8)


@triton.jit
def _fourfold(train, LONG: tl.constexpr):
    """The first LONG bits, 4 or 8, four places apart."""
    if LONG == 8:
        train = (train & 0xFF | train << 12) & 0xF000F
        train = (train | train << 6) & 0x3030303
        train = (train | train << 3) & 0x11111111
    else:
        train = (train & 0xF | train << 6) & 0x303
        train = (train | train << 3) & 0x1111
    return train


@triton.jit
def windows(
    grad_s, code, step, i_out, j_out, channel, h_out, w_out,
    T: tl.constexpr, LONG: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Gradients and codes of the windows that begin at squares of four pixels, and right and below.

    grad_s and code begin at the windows of the line i_out. Of each window, the square's, to the
    right, below and both, all T gradients and as many words as hold T codes.
    """
    gs, words = (), ()
    for near in tl.static_range(4):
        j, long = j_out + near % 2, tl.where(i_out + near // 2 < h_out, w_out, 0)
        there = (j < long)[:, None] & (channel < C)[None, :]
        at = (near // 2 * w_out + j)[:, None] * C + channel[None, :]
        for word in tl.static_range((T + LONG - 1) // LONG):
            words = words + (tl.load(code + word * step + at, there, -1),)
        for t in tl.static_range(T):
            gs = gs + (tl.load(grad_s + t * step + at, there, 0.0),)
    return gs, words


@triton.jit
def arrived(gs, words, PIXEL: tl.constexpr, t: tl.constexpr, T: tl.constexpr, LONG: tl.constexpr):
    """The gradient that came through `windows` to one pixel of each square: through 1, 2 or 4."""
    total = gs[0].to(tl.float32) * 0
    for near in tl.static_range(4):
        if near // 2 <= PIXEL // 2 and near % 2 <= PIXEL % 2:
            tap = (PIXEL // 2 + 1 - near // 2 * 2) * 3 + PIXEL % 2 + 1 - near % 2 * 2
            word = words[near * ((T + LONG - 1) // LONG) + t // LONG].to(tl.int32)
            came = (word >> 4 * (t % LONG) & 15) == tap
            total = tl.where(came, total + gs[near * T + t].to(tl.float32), total)
    return total
