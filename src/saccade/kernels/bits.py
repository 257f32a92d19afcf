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


@triton.jit
def ones(eights, DTYPE: tl.constexpr):
    """Bits 0 and 1 in int32 as numbers, by the pattern of a one.

    A GPU converts integers in the unit that also takes exponentials, at a quarter of the rate.
    """
    if DTYPE.is_fp16():
        numbers = (eights * 0x3C00).to(tl.int16).to(tl.float16, bitcast=True)
    elif DTYPE.is_bf16():
        numbers = (eights * 0x3F80).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        tl.static_assert(DTYPE.is_fp32(), "no pattern of a one is known")
        numbers = (eights * 0x3F800000).to(tl.float32, bitcast=True)
    return numbers
