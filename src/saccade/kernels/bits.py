"""Spikes as bits, eight a byte, the first in the lowest."""

import triton
import triton.language as tl


@triton.jit
def unpack(bits, s, n, BLOCK: tl.constexpr):
    """Bytes to eight numbers each."""
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b = tl.load(bits + byte, byte < n, 0).to(tl.int32)
    eights = b[:, None] >> tl.arange(0, 8)[None, :] & 1
    at = byte[:, None] * 8 + tl.arange(0, 8)[None, :]
    tl.store(s + at, eights.to(s.dtype.element_ty), (byte < n)[:, None])


@triton.jit
def packed(f, BR: tl.constexpr, BC: tl.constexpr):
    """Eight channels a byte, the first in the lowest bit."""
    eights = tl.reshape(f.to(tl.int32), [BR, BC // 8, 8])
    return tl.sum(eights << tl.arange(0, 8)[None, None, :], 2).to(tl.uint8)
