"""Neuron, batch norm and max-pool on a CPU, in Numba: rows of C channels, channels last in memory.

Membranes of a place stay in registers over all steps (`saccade.kernels.vector`). Nothing contracts
a multiply-add but the exponential of a surrogate, so sums round here as they do in the reference.

Currents y are [t, n] with n = B*H*W*C; t is 1 where one picture stands for T steps. The norm is
x = a y + b, with coefficients repeated to the length L, the least multiple of C and of LANES.
Work is cut into tasks whose number does not depend on the threads, and sums are left by task, so
that their order is always the same. `part` of `parts` threads takes neighbours, one piece of
memory: threads in turn would fetch each other's lines ahead, and write to the same lines of sums.
"""

from typing import Any, NamedTuple

import numpy as np

from saccade.kernels.team import shared
from saccade.kernels.vector import (
    LANES,
    contracted,
    equals,
    f32,
    inline,
    inner,
    larger,
    magnitude,
    put,
    reaches,
    scale,
    scratch,
    splat,
    take,
)

ROWS = 16
"""Of places, whose sums stay in registers; all of them fit the first cache."""
SIGMOID, ATAN, RECTANGLE, TRIANGLE, FAST_SIGMOID = range(5)


class Cell(NamedTuple):
    """A neuron: float32 constants, then how it resets and which surrogate it has.

    `bar` is the least number that fires: the threshold, or the next one up where ties stay
    silent. `follow` is False where no gradient passes the reset; `carry` is the decay of gradients.
    """

    decay: Any
    gain: Any
    pull: Any
    theta: Any
    bar: Any
    reset: Any
    rest: Any
    alpha: Any
    carry: Any
    follow: bool
    hard: bool
    kind: int


@inline
def charge(y, a, b, v, p):
    """Membrane h = decay v + gain (a y + b) + pull of the next step, before it fires."""
    return (p.decay * v + p.gain * (a * y + b)) + p.pull


@inline
def fires(h, p):
    """1 where the membrane reaches the threshold, else 0."""
    return reaches(h, p.bar, f32(1), f32(0))


@inline
def settle(h, p):
    """The membrane behind the reset."""
    if p.hard:
        return reaches(h, p.bar, p.reset, h)
    return reaches(h, p.bar, h - p.theta, h)


@inline
def slope(h, p):
    """Surrogate derivative at h - theta: the table of `saccade.ops.surrogate`."""
    alpha = p.alpha
    u = magnitude(h - p.theta)
    if p.kind == SIGMOID:
        e = power_of_two(alpha * f32(-1.4426950408889634) * u)
        w = f32(1) + e
        return alpha * e / (w * w)
    if p.kind == ATAN:
        u = (f32(np.pi / 2) * alpha) * u
        return f32(0.5) * alpha / (f32(1) + u * u)
    if p.kind == RECTANGLE:
        return reaches(u, f32(0.5) / alpha, f32(0), alpha)
    if p.kind == TRIANGLE:
        d = f32(1) - alpha * u
        return alpha * reaches(d, f32(0), d, f32(0))
    w = f32(1) + alpha * u
    return f32(1) / (w * w)


@inline
def power_of_two(x):
    """2^x for x <= 0 without a call; 2^-125 below -125.

    2^n 2^f with |f| <= 1/2, where the polynomial errs by 8e-8, or 3e-7 as rounded.
    """
    x = reaches(f32(-125), x, f32(-125), x)
    n = x + f32(1.5 * 2**23)  # rounds to a whole number
    f = x - (n - f32(1.5 * 2**23))
    e = contracted(f, f32(1.32765e-3), f32(9.67554e-3))
    e = contracted(f, e, f32(5.550713e-2))
    e = contracted(f, e, f32(0.2402212))
    e = contracted(f, e, f32(0.69314697))
    return scale(contracted(f, e, f32(1)), n)


@inline
def differentiate(h, g, carried, p):
    """From the gradient g of the spikes to that of the membrane h, of one step.

    `carried` is the gradient that the next step's charge sends to this step's membrane.
    """
    d = slope(h, p)
    kept = reaches(h, p.bar, f32(0), carried) if p.hard else carried
    if p.follow:
        turned = p.reset - h if p.hard else splat(-p.theta)
        kept = kept + carried * (turned * d)
    return d * g + kept


@inner
def edge(part, parts, n, L):
    """Where the share of a part begins: one piece each of n numbers, cut between tiles of L."""
    return min(n, -(-n // L) * part // parts * L)


@shared
def sums(part, parts, y, shift, share, partial):
    """Of each place, sum of (y - shift) and of its square: partial [tasks, 2, L]."""
    n, L = len(y), len(shift)
    for task in range(edge(part, parts, len(partial), 1), edge(part + 1, parts, len(partial), 1)):
        partial[task] = 0
        first, second = partial[task, 0], partial[task, 1]
        stop = min(n, (task + 1) * share)
        for start in range(task * share, stop, ROWS * L):
            for j in range(0, min(L, stop - start), LANES):
                one, two = splat(f32(0)), splat(f32(0))
                for i in range(start + j, min(stop, start + ROWS * L), L):
                    d = take(y, i, n - i) - take(shift, j, n - i)
                    one = one + d
                    two = two + d * d
                put(take(first, j, LANES) + one, first, j, LANES)
                put(take(second, j, LANES) + two, second, j, LANES)


@shared
def fire(part, parts, y, a, b, v0, s, v_end, p):
    """The neuron on normalised currents; v0 and v_end are empty where nobody gives or asks."""
    (steps, n), L, T = y.shape, len(a), len(s)
    for row in range(edge(part, parts, n, L), edge(part + 1, parts, n, L), L):
        for j in range(0, min(L, n - row), LANES):
            i, m = row + j, n - row - j
            a_, b_ = take(a, j, LANES), take(b, j, LANES)
            v = take(v0, i, m) if len(v0) else splat(p.rest)
            for t in range(T):
                h = charge(take(y, min(t, steps - 1) * n + i, m), a_, b_, v, p)
                put(fires(h, p), s, t * n + i, m)
                v = settle(h, p)
            if len(v_end):
                put(v, v_end, i, m)


@shared
def back(part, parts, y, a, b, mean, v0, grad_s, grad_v, grad_x, grad_v0, partial, share, p):
    """The gradient behind the norm, and its sums: partial [tasks, 2, L], or [tasks, 2, 0]."""
    (steps, n), L, T = y.shape, len(a), len(grad_s)
    once, summed, h = steps < T, partial.shape[2] > 0, scratch(T * LANES)
    for task in range(edge(part, parts, len(partial), 1), edge(part + 1, parts, len(partial), 1)):
        partial[task] = 0
        first, second = partial[task, 0], partial[task, 1]
        for start in range(task * share, min(n, (task + 1) * share), L):
            for j in range(0, min(L, n - start), LANES):
                i, m = start + j, n - start - j
                a_, b_, mean_ = take(a, j, LANES), take(b, j, LANES), take(mean, j, LANES)
                v = take(v0, i, m) if len(v0) else splat(p.rest)
                for t in range(T):
                    c = charge(take(y, min(t, steps - 1) * n + i, m), a_, b_, v, p)
                    put(c, h, t * LANES, LANES)
                    v = settle(c, p)
                carried = take(grad_v, i, m) if len(grad_v) else splat(f32(0))
                total, one, two = splat(f32(0)), splat(f32(0)), splat(f32(0))
                for t in range(T - 1, -1, -1):
                    g = take(grad_s, t * n + i, m)
                    grad = differentiate(take(h, t * LANES, LANES), g, carried, p)
                    carried = p.carry * grad
                    # where one step stands for all, it takes their sum
                    total = p.gain * grad + total if once else p.gain * grad
                    if t == 0 or not once:
                        put(total, grad_x, t * n + i, m)
                        one = one + total
                        two = two + total * (take(y, t * n + i, m) - mean_)
                if summed:
                    put(take(first, j, LANES) + one, first, j, LANES)
                    put(take(second, j, LANES) + two, second, j, LANES)
                if len(grad_v0):
                    put(carried, grad_v0, i, m)


@shared
def back_norm(part, parts, grad, y, scale, slant, level):
    """scale g + slant y + level in place: from the gradient behind the norm to that before it."""
    n, L = len(y), len(scale)
    for row in range(edge(part, parts, n, L), edge(part + 1, parts, n, L), L):
        for j in range(0, min(L, n - row), LANES):
            i, m = row + j, n - row - j
            out = take(scale, j, LANES) * take(grad, i, m)
            out = out + (take(slant, j, LANES) * take(y, i, m) + take(level, j, LANES))
            put(out, grad, i, m)


@shared
def fire_pool(part, parts, y, a, b, held, s, p):
    """y [t, B, H, W C] to s [T, B, h, w, C]: 1 where any of the pixels 2i-1 to 2i+1 fires.

    a and b have the length W C of a row. Row 2i+1 is kept for the window below. Membranes go on in
    `held`, which is empty where they begin at rest and nobody asks for the last.
    """
    (T, B, h_out, w_out, C), (steps, _, H, L) = s.shape, y.shape
    above, lines = scratch(T * L), scratch(T * L)
    for sample in range(edge(part, parts, B, 1), edge(part + 1, parts, B, 1)):
        above[:] = 0
        for i in range(h_out):
            for x in range(0, T * L, LANES):  # as a slice it would bring strings, for its errors
                put(take(above, x, T * L - x), lines, x, T * L - x)
            for row in range(2 * i, min(2 * i + 2, H)):
                for x in range(0, L, LANES):
                    m, place = L - x, (sample * H + row) * L + x
                    v = take(held, place, m) if len(held) else splat(p.rest)
                    a_, b_ = take(a, x, m), take(b, x, m)
                    for t in range(T):
                        at = min(t, steps - 1) * B * H * L + place
                        c = charge(take(y, at, m), a_, b_, v, p)
                        v, spikes = settle(c, p), fires(c, p)
                        put(spikes, above, t * L + x, m)
                        put(larger(take(lines, t * L + x, m), spikes), lines, t * L + x, m)
                    if len(held):
                        put(v, held, place, m)
            for t in range(T):
                at = ((t * B + sample) * h_out + i) * w_out * C
                _widest(lines, t * L, L, s, at, w_out, C)


@inline
def _widest(lines, line, L, s, at, w_out, C):
    """The max of columns 2j-1, 2j and 2j+1 of a line, for all j."""
    for j in range(w_out):
        left, right = line + max((2 * j - 1) * C, 0), line + min((2 * j + 1) * C, L - C)
        for c in range(0, C, LANES):
            m = C - c
            x, z = take(lines, left + c, m), take(lines, right + c, m)
            most = larger(larger(x, z), take(lines, line + 2 * j * C + c, m))
            put(most, s, at + j * C + c, m)


@shared
def back_pool(part, parts, y, a, b, mean, grad_s, grad_x, partial, p):
    """As `back`, through the max-pool: the first spike of a window in reading order takes it.

    One task a sample; a and b have the length of a row, mean has C. Of the last three rows of
    pixels membranes `h` are at hand, row r in slot r % 3; of the last two rows of windows which of
    its nine pixels `won`, row i in slot i % 2.
    """
    (T, B, h_out, w_out, C), (steps, _, H, L) = grad_s.shape, y.shape
    once, w = steps < T, w_out * C
    h, won = scratch(3 * T * L), scratch(2 * T * w)
    for sample in range(edge(part, parts, B, 1), edge(part + 1, parts, B, 1)):
        partial[sample] = 0
        first, second = partial[sample, 0], partial[sample, 1]
        for i in range(h_out):
            for row in range(2 * i, min(2 * i + 2, H)):
                for x in range(0, L, LANES):
                    m, v = L - x, splat(p.rest)
                    a_, b_ = take(a, x, m), take(b, x, m)
                    for t in range(T):
                        at = ((min(t, steps - 1) * B + sample) * H + row) * L + x
                        c = charge(take(y, at, m), a_, b_, v, p)
                        put(c, h, ((row % 3) * T + t) * L + x, m)
                        v = settle(c, p)
            for t in range(T):
                _find(h, t, i, won, ((i % 2) * T + t) * w, (T, H, L, w_out, C), p)
            # the last row of these meets the next window too
            for row in range(max(2 * i - 1, 0), H if i == h_out - 1 else 2 * i + 1):
                for x in range(L // C):
                    for c in range(0, C, LANES):
                        m, carried, total = C - c, splat(f32(0)), splat(f32(0))
                        one, two, mean_ = splat(f32(0)), splat(f32(0)), take(mean, c, m)
                        for t in range(T - 1, -1, -1):
                            windows = grad_s, (t * B + sample) * h_out * w + c
                            g = _given(won, t, row, x, c, windows, (T, h_out, w_out, C))
                            at = ((row % 3) * T + t) * L + x * C + c
                            grad = differentiate(take(h, at, m), g, carried, p)
                            carried = p.carry * grad
                            total = p.gain * grad + total if once else p.gain * grad
                            if t == 0 or not once:
                                at = ((t * B + sample) * H + row) * L + x * C + c
                                put(total, grad_x, at, m)
                                one = one + total
                                two = two + total * (take(y, at, m) - mean_)
                        put(take(first, c, m) + one, first, c, m)
                        put(take(second, c, m) + two, second, c, m)


@inline
def _find(h, t, i, won, at, sizes, p):
    """For the windows of row i, the first pixel that fired, else the first: 0 to 8."""
    T, H, L, w_out, C = sizes
    top, bottom = max(2 * i - 1, 0), min(2 * i + 2, H)
    for j in range(w_out):
        left, right = max(2 * j - 1, 0), min(2 * j + 2, L // C)
        for c in range(0, C, LANES):
            m = C - c
            found = splat(f32(3 * (top - 2 * i + 1) + left - 2 * j + 1))
            for row in range(bottom - 1, top - 1, -1):
                for x in range(right - 1, left - 1, -1):
                    c_ = take(h, ((row % 3) * T + t) * L + x * C + c, m)
                    pixel = f32(3 * (row - 2 * i + 1) + x - 2 * j + 1)
                    found = reaches(c_, p.bar, pixel, found)
            put(found, won, at + j * C + c, m)


@inline
def _given(won, t, row, x, c, windows, sizes):
    """The gradient that pixel (row, x) takes from the one, two or four windows that it is in."""
    T, h_out, w_out, C = sizes
    grad, at = windows
    m, g = C - c, splat(f32(0))
    for i in range(row // 2, min((row + 1) // 2 + 1, h_out)):
        for j in range(x // 2, min((x + 1) // 2 + 1, w_out)):
            winner = take(won, (((i % 2) * T + t) * w_out + j) * C + c, m)
            pixel = f32(3 * (row - 2 * i + 1) + x - 2 * j + 1)
            g = g + equals(winner, pixel, take(grad, at + (i * w_out + j) * C, m), f32(0))
    return g
