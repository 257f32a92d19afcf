"""The max-pool behind a neuron, on spike trains: the steps of a neuron are the bits of one word."""

import triton
import triton.language as tl

from saccade.kernels.bits import packed


@triton.jit
def pool(
    trains, s, code, bits, rows, H, W, h_out, w_out,
    T: tl.constexpr, KEEPS: tl.constexpr, C: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """3x3, stride 2, all steps at once; KEEPS leaves bits, and which tap each spike came from.

    Ties go to the first tap in reading order, as in torch.
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
    for t in tl.static_range(T):
        f = (seen >> t & 1) != 0
        out = t * tl.cast(rows, tl.int64) * C + at
        tl.store(s + out, f.to(s.dtype.element_ty), inside)
        if KEEPS:
            tap = tl.zeros([BR, BC], tl.int32)
            for j in tl.static_range(4):
                tap |= (planes[j] >> t & 1) << j
            tl.store(code + out, tl.where(f, tap, first[:, None]).to(tl.uint8), inside)
            out8 = t * tl.cast(rows, tl.int64) * (C // 8) + at8
            tl.store(bits + out8, packed(f, BR, BC), inside8)
