"""The neuron as functions of a tile in cache: what every CPU kernel that fires is made of.

A tile is some consecutive numbers of one step, float32, short enough for the first cache; so a
loop more over it costs little, and short loops over few arrays are those that become vectors.
Numba fuses no multiply-add unless asked, so sums round here as they do in the reference.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload

kernel = njit(nogil=True, cache=True, error_model="numpy")
f32, u32, i32 = np.float32, np.uint32, np.int32
"""Every constant has a type: beside a plain Python number, Numba makes float64 of float32."""
SIGMOID, ATAN, RECTANGLE, TRIANGLE, FAST_SIGMOID = range(5)


class Cell(NamedTuple):
    """A neuron: float32 constants, then how it resets and which surrogate it has.

    `bar` is the least number that fires: the threshold, or the next one up where ties stay
    silent. `follow` is 0 where no gradient passes the reset; `carry` is the decay of gradients.
    """

    decay: Any
    gain: Any
    pull: Any
    theta: Any
    bar: Any
    reset: Any
    rest: Any
    alpha: Any
    follow: Any
    carry: Any
    hard: bool
    kind: int


def widen(x):
    """float32 of a number as it is stored: bfloat16 arrives as the uint16 of its bits."""


@overload(widen)
def _widen(x):
    if isinstance(x, types.Integer):
        return lambda x: u32(u32(x) << 16).view(f32)
    return lambda x: x


def narrow(x, like):
    """`x` as a number of the type of `like`; bfloat16 rounds to nearest, ties to even."""


@overload(narrow)
def _narrow(x, like):
    if isinstance(like, types.Integer):
        return _rounded
    return lambda x, like: x


def _rounded(x, like):
    bits = f32(x).view(u32)
    odd = u32(u32(bits >> 16) & u32(1))
    # NaN has no rounding: adding to its bits could make infinity or zero of it
    bits = u32(bits + u32(0x7FFF) + odd) if x == x else u32(0x7FC00000)
    return np.uint16(bits >> 16)


@kernel
def charge(y, a, b, v, h, p):
    """h = decay v + gain (a y + b) + pull, and the membrane behind the reset in v."""
    for i in range(len(y)):
        h[i] = a[i] * widen(y[i]) + b[i]
    for i in range(len(h)):
        c = (p.decay * v[i] + p.gain * h[i]) + p.pull
        h[i] = c
        v[i] = (p.reset if p.hard else c - p.theta) if c >= p.bar else c


@kernel
def emit(h, s, p):
    """1 where the membrane reaches the threshold, else 0, in the type of s."""
    if len(s):
        one, zero = narrow(f32(1), s[0]), narrow(f32(0), s[0])
        for i in range(len(h)):
            s[i] = one if h[i] >= p.bar else zero


@kernel
def slope(h, d, p):
    """Surrogate derivative at h - theta: the table of `saccade.ops.surrogate`."""
    alpha = p.alpha
    if p.kind == SIGMOID:
        for i in range(len(h)):
            e = exp_minus(alpha * abs(h[i] - p.theta))
            w = f32(1) + e
            d[i] = alpha * e / (w * w)
    elif p.kind == ATAN:
        w = f32(np.pi / 2) * alpha
        for i in range(len(h)):
            u = w * (h[i] - p.theta)
            d[i] = f32(0.5) * alpha / (f32(1) + u * u)
    elif p.kind == RECTANGLE:
        for i in range(len(h)):
            d[i] = alpha if abs(h[i] - p.theta) < f32(0.5) / alpha else f32(0)
    elif p.kind == TRIANGLE:
        for i in range(len(h)):
            d[i] = alpha * max(f32(1) - alpha * abs(h[i] - p.theta), f32(0))
    else:
        for i in range(len(h)):
            w = f32(1) + alpha * abs(h[i] - p.theta)
            d[i] = f32(1) / (w * w)


@kernel
def exp_minus(x):
    """exp(-x) for x >= 0 to a few units in the last place, without a call; exp(-87) beyond 87.

    2^n exp(r) with |r| <= ln 2 / 2, where the Taylor series to the sixth power errs by 1e-7.
    """
    x = min(x, f32(87))
    n = np.floor(f32(0.5) - x * f32(1.4426950408889634))
    # ln 2 in two parts, of which n times the first is exact
    r = (-x - n * f32(0.693359375)) + n * f32(2.12194440e-4)
    e = f32(1 / 720)
    e = e * r + f32(1 / 120)
    e = e * r + f32(1 / 24)
    e = e * r + f32(1 / 6)
    e = e * r + f32(0.5)
    e = e * r + f32(1)
    e = e * r + f32(1)
    power = u32(u32(i32(n) + i32(127)) << 23).view(f32)
    return e * power


@kernel
def differentiate(h, d, g, carried, p):
    """From the gradient of the spikes, in g, to that of the current, of one step; moves `carried`.

    `carried` is the gradient that the next step's charge sends to this step's membrane.
    """
    slope(h, d, p)
    for i in range(len(h)):
        g[i] = d[i] * g[i]
    for i in range(len(h)):
        c = h[i]
        kept = f32(0) if p.hard and c >= p.bar else f32(1)
        kept += p.follow * ((p.reset - c if p.hard else -p.theta) * d[i])
        total = g[i] + carried[i] * kept
        g[i] = p.gain * total
        carried[i] = p.carry * total
