"""Batch norm, LIF over T and max-pool on a CPU: rows of C channels, channels last in memory.

Currents y are [t, n] with n = B*H*W*C; t is 1 where one picture stands for T steps. The norm is
x = a y + b, with coefficients repeated to the length L of a tile, which is a multiple of C. Work
is cut into tasks whose number does not depend on the threads: `part` of `parts` threads takes
every parts-th task, and sums are left by task, so that their order is always the same.
"""

import numpy as np

from saccade.kernels.cpu_neuron import (
    charge,
    differentiate,
    emit,
    f32,
    kernel,
    narrow,
    widen,
)


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
        _add(g, first)
        for i in range(len(g)):
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
