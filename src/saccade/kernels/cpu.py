"""Neuron, batch norm and max-pool on a CPU, in Numba: rows of C channels, channels last in memory.

A tile is some consecutive numbers of one step, float32, short enough for the first cache; so a
loop more over it costs little, and short loops over few arrays are those that become vectors.
Numba fuses no multiply-add unless asked, so sums round here as they do in the reference. All of it
is one file, because Numba's cache does not see when an imported function has changed.

Currents y are [t, n] with n = B*H*W*C; t is 1 where one picture stands for T steps. The norm is
x = a y + b, with coefficients repeated to the length L of a tile, which is a multiple of C. Work
is cut into tasks whose number does not depend on the threads: `part` of `parts` threads takes
every parts-th task, and sums are left by task, so that their order is always the same.
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
        c = (p.decay * v[i] + p.gain * (a[i] * widen(y[i]) + b[i])) + p.pull
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
        c = h[i]
        kept = f32(0) if p.hard and c >= p.bar else f32(1)
        kept += p.follow * ((p.reset - c if p.hard else -p.theta) * d[i])
        total = d[i] * g[i] + carried[i] * kept
        g[i] = p.gain * total
        carried[i] = p.carry * total


@kernel
def sums(part, parts, y, shift, per_task, partial):
    """Of each place of a tile, sum of (y - shift) and of its square: partial [tasks, 2, L]."""
    n, L = len(y), len(shift)
    for task in range(part, len(partial), parts):
        partial[task] = 0
        first, second = partial[task, 0], partial[task, 1]
        for start in range(task * per_task * L, min(n, (task + 1) * per_task * L), L):
            tile = y[start : min(n, start + L)]
            for i in range(len(tile)):
                d = widen(tile[i]) - shift[i]
                first[i] += d
                second[i] += d * d


@kernel
def fire(part, parts, y, a, b, v0, s, v_end, p):
    """The neuron on normalised currents; v0 and v_end are empty where nobody gives or asks."""
    n, L, T = y.shape[1], len(a), len(s)
    memory, h = np.empty(L, f32), np.empty(L, f32)
    for start in range(part * L, n, parts * L):
        end = min(n, start + L)
        m = end - start
        v = memory[:m]
        if len(v0):
            for i in range(m):
                v[i] = widen(v0[start:end][i])
        else:
            v[:] = p.rest
        for t in range(T):
            charge(y[min(t, len(y) - 1), start:end], a[:m], b[:m], v, h[:m], p)
            emit(h[:m], s[t, start:end], p)
        if len(v_end):
            v_end[start:end] = v


@kernel
def back(part, parts, y, a, b, mean, v0, grad_s, grad_v, grad_x, grad_v0, partial, per_task, p):
    """The gradient behind the norm, and its sums: partial [tasks, 2, L], or [tasks, 2, 0]."""
    n, L, T = y.shape[1], len(a), len(grad_s)
    once = len(y) < T
    h, d, g = np.empty((T, L), f32), np.empty(L, f32), np.empty((T, L), f32)
    v, carried = np.empty(L, f32), np.empty(L, f32)
    for task in range(part, len(partial), parts):
        partial[task] = 0
        for start in range(task * per_task * L, min(n, (task + 1) * per_task * L), L):
            end = min(n, start + L)
            m = end - start
            if len(v0):
                for i in range(m):
                    v[i] = widen(v0[start:end][i])
            else:
                v[:] = p.rest
            for t in range(T):
                charge(y[min(t, len(y) - 1), start:end], a[:m], b[:m], v[:m], h[t, :m], p)
                _read(grad_s[t, start:end], g[t, :m])
            carried[:] = 0
            if len(grad_v):
                _read(grad_v[start:end], carried[:m])
            for t in range(T - 1, -1, -1):
                differentiate(h[t, :m], d[:m], g[t, :m], carried[:m], p)
                last = T - 1 if once else t  # where one step stands for all, it takes their sum
                if t < last:
                    _add(g[t, :m], g[last, :m])
                if t == 0 or not once:
                    out = y[t, start:end], mean[:m], grad_x[t, start:end]
                    _leave(g[last, :m], *out, partial[task, 0], partial[task, 1])
            if len(grad_v0):
                _write(carried[:m], grad_v0[start:end])


@kernel
def _read(x, out):
    for i in range(len(out)):
        out[i] = widen(x[i])


@kernel
def _write(x, out):
    for i in range(len(out)):
        out[i] = narrow(x[i], out[0])


@kernel
def _add(x, to):
    for i in range(len(x)):
        to[i] += x[i]


@kernel
def _leave(g, y, mean, grad_x, first, second):
    """One step's gradient, and what it adds to the two sums of the norm."""
    _write(g, grad_x)
    if len(first):
        for i in range(len(g)):
            first[i] += g[i]
            second[i] += g[i] * (widen(y[i]) - mean[i])


@kernel
def back_norm(part, parts, grad, y, scale, slant, level):
    """scale g + slant y + level in place: from the gradient behind the norm to that before it."""
    n, L = len(y), len(scale)
    for start in range(part * L, n, parts * L):
        g, y_ = grad[start : min(n, start + L)], y[start : min(n, start + L)]
        for i in range(len(g)):
            out = scale[i] * widen(g[i]) + (slant[i] * widen(y_[i]) + level[i])
            g[i] = narrow(out, g[0])


@kernel
def fire_pool(part, parts, y, a, b, s, p):
    """y [t, B, H, W C] to s [T, B, h, w, C]: 1 where any of the pixels 2i-1 to 2i+1 fires.

    a and b have the length W C of a row. Row 2i+1 is kept for the window below.
    """
    (T, B, h_out, _, C), (H, L) = s.shape, y.shape[2:]
    v, h = np.empty(L, f32), np.empty(L, f32)
    above, lines = np.empty((T, L), f32), np.empty((T, L), f32)
    for sample in range(part, B, parts):
        above[:] = 0
        for i in range(h_out):
            lines[:] = above
            for row in range(2 * i, min(2 * i + 2, H)):
                v[:] = p.rest
                for t in range(T):
                    charge(y[min(t, len(y) - 1), sample, row], a, b, v, h, p)
                    emit(h, above[t], p)
                    _join(above[t], lines[t])
            for t in range(T):
                _widest(lines[t], s[t, sample, i], C)


@kernel
def _join(x, line):
    for i in range(len(x)):
        line[i] = max(line[i], x[i])


@kernel
def _widest(line, out, C):
    """The max of columns 2j-1, 2j and 2j+1 of a line."""
    last = len(line) - C
    for j in range(len(out)):
        left, middle, right = max((2 * j - 1) * C, 0), 2 * j * C, min((2 * j + 1) * C, last)
        x, y, z = line[left : left + C], line[middle : middle + C], line[right : right + C]
        to = out[j]
        for c in range(C):
            to[c] = narrow(max(max(x[c], y[c]), z[c]), to[0])


@kernel
def back_pool(part, parts, y, a, b, mean, grad_s, grad_x, partial, p):
    """As `back`, through the max-pool: the first spike of a window in reading order takes it.

    One task a sample. Of the last three rows of pixels, membranes `h` and gradients `g` of the
    spikes are at hand; slots: 0 the row above the window's middle, 1 the middle, 2 the last.
    """
    (T, B, h_out, w_out, C), (H, L) = grad_s.shape, y.shape[2:]
    once = len(y) < T
    h, g = np.empty((3, T, L), f32), np.empty((3, T, L), f32)
    v, d, carried, found = np.empty(L, f32), np.empty(L, f32), np.empty(L, f32), np.empty(C, f32)
    for sample in range(part, B, parts):
        partial[sample] = 0
        for i in range(h_out):
            low, high = 0 if i else 1, min(3, H - 2 * i + 1)
            for slot in range(1, high):
                v[:] = p.rest
                for t in range(T):
                    row = y[min(t, len(y) - 1), sample, 2 * i + slot - 1]
                    charge(row, a, b, v, h[slot, t], p)
                g[slot] = 0
            for t in range(T):
                for j in range(w_out):
                    _scatter(grad_s[t, sample, i, j], h, g, t, found, low, high, j, p)
            # the last row meets the next window too
            for slot in range(low, high if i == h_out - 1 else 2):
                carried[:] = 0
                at = 2 * i + slot - 1
                for t in range(T - 1, -1, -1):
                    differentiate(h[slot, t], d, g[slot, t], carried, p)
                    last = T - 1 if once else t
                    if t < last:
                        _add(g[slot, t], g[slot, last])
                    if t == 0 or not once:
                        out = y[t, sample, at], mean, grad_x[t, sample, at]
                        _leave(g[slot, last], *out, partial[sample, 0], partial[sample, 1])
            h[0], g[0] = h[2], g[2]


@kernel
def _scatter(grad, h, g, t, found, low, high, j, p):
    """The gradient of one window, to the first of its pixels that fired, else to the first."""
    C, W = len(grad), h.shape[2] // len(grad)
    left, right = max(2 * j - 1, 0), min(2 * j + 2, W)
    found[:] = 0
    for slot in range(low, high):
        for k in range(left, right):
            h_k, g_k = h[slot, t, k * C : (k + 1) * C], g[slot, t, k * C : (k + 1) * C]
            for c in range(C):
                takes = f32(1) - found[c] if h_k[c] >= p.bar else f32(0)
                found[c] += takes
                g_k[c] += takes * widen(grad[c])
    g_k = g[low, t, left * C : (left + 1) * C]
    for c in range(C):
        g_k[c] += (f32(1) - found[c]) * widen(grad[c])
