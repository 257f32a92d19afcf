"""Spiking self-attention on a CPU, in Numba: no head is copied, and no current reaches memory.

A step of a sample is N tokens of C channels, as they lie: channels of a head side by side. In
K^T V of all heads, [d, C], row i holds at channel c what channel i of c's head in K and channel c
of V have in common; so both products run over whole rows, whatever d is, as long as half a vector
lies in one head. Sums of spikes are integers, exact in any order.
"""

from saccade.kernels.cpu import charge, differentiate, edge, fires, settle
from saccade.kernels.team import shared
from saccade.kernels.vector import LANES, contracted, f32, halves, inner, put, scratch, splat, take


@shared
def attend(part, parts, q, k, v, kv, s, d, scale, p):
    """Q (K^T V) of each head and the neuron behind it: q, k, v, s [T, B, N, C], kv [T, B, d, C]."""
    T, B, N, C = q.shape
    n = N * C
    wide_q, wide_k, wide_v = scratch(n), scratch(n), scratch(n)
    current, memory = scratch(n), scratch(n)
    for sample in range(edge(part, parts, B, 1), edge(part + 1, parts, B, 1)):
        memory[:] = p.rest
        for t in range(T):
            at, pairs = (t * B + sample) * n, (t * B + sample) * d * C
            widen(q, at, wide_q)
            widen(k, at, wide_k)
            widen(v, at, wide_v)
            _pair(wide_k, wide_v, kv, pairs, N, C, d)
            _apply(wide_q, kv, pairs, current, N, C, d)
            for x in range(0, n, LANES):
                h = charge(take(current, x, n - x), scale, f32(0), take(memory, x, n - x), p)
                put(fires(h, p), s, at + x, n - x)
                put(settle(h, p), memory, x, n - x)


@shared
def back_attend(part, parts, q, k, v, kv, grad_s, grad_q, grad_k, grad_v, d, scale, p):
    """The gradients of q, k and v; currents and membranes are found again from q and kv."""
    T, B, N, C = q.shape
    n = N * C
    wide_q, wide_k, wide_v = scratch(n), scratch(n), scratch(n)
    current, grad = scratch(n), scratch(n)
    h, carried = scratch(T * n), scratch(n)
    pairs, turned = scratch(d * C), scratch(d * C)
    for sample in range(edge(part, parts, B, 1), edge(part + 1, parts, B, 1)):
        for t in range(T):
            at = t * B + sample
            widen(q, at * n, wide_q)
            _apply(wide_q, kv, at * d * C, current, N, C, d)
            for x in range(0, n, LANES):
                m = n - x
                v_ = settle(take(h, (t - 1) * n + x, m), p) if t else splat(p.rest)
                put(charge(take(current, x, m), scale, f32(0), v_, p), h, t * n + x, m)
        carried[:] = 0
        for t in range(T - 1, -1, -1):
            at = t * B + sample
            for x in range(0, n, LANES):
                m = n - x
                g, c = take(grad_s, at * n + x, m), take(carried, x, m)
                total = differentiate(take(h, t * n + x, m), g, c, p)
                put(p.carry * total, carried, x, m)
                put(scale * (p.gain * total), grad, x, m)
            widen(q, at * n, wide_q)
            widen(k, at * n, wide_k)
            widen(v, at * n, wide_v)
            _turn(kv, at * d * C, turned, C, d)
            _apply(grad, turned, 0, current, N, C, d)
            narrow(current, grad_q, at * n)
            _pair(wide_q, grad, pairs, 0, N, C, d)
            _apply(wide_k, pairs, 0, current, N, C, d)
            narrow(current, grad_v, at * n)
            _turn(pairs, 0, turned, C, d)
            _apply(wide_v, turned, 0, current, N, C, d)
            narrow(current, grad_k, at * n)


@inner
def widen(x, at, out):
    """The numbers of x from place `at` on, as float32."""
    for i in range(0, len(out), LANES):
        put(take(x, at + i, len(out) - i), out, i, len(out) - i)


@inner
def narrow(x, out, at):
    """The inverse of `widen`."""
    for i in range(0, len(x), LANES):
        put(take(x, i, len(x) - i), out, at + i, len(x) - i)


@inner
def _pair(k, v, kv, at, N, C, d):
    """K^T V of each head, to place `at` of kv; sums of spikes are exact in any order."""
    for c in range(0, C, LANES):
        m, low, high = C - c, c // d * d, min(c + LANES // 2, C - 1) // d * d
        for i in range(0, d, 4):
            first = second = third = fourth = splat(f32(0))
            for n in range(0, N * C, C):
                x = take(v, n + c, m)
                a, b = n + low + i, n + high + i
                first = contracted(halves(k, a, b), x, first)
                second = contracted(halves(k, a + 1, b + 1), x, second)
                third = contracted(halves(k, a + 2, b + 2), x, third)
                fourth = contracted(halves(k, a + 3, b + 3), x, fourth)
            put(first, kv, at + i * C + c, m)
            put(second, kv, at + (i + 1) * C + c, m)
            put(third, kv, at + (i + 2) * C + c, m)
            put(fourth, kv, at + (i + 3) * C + c, m)


@inner
def _apply(q, kv, at, out, N, C, d):
    """Q times the pairs of its head, for four tokens at once; the last one fills a gap."""
    last = (N - 1) * C
    for c in range(0, C, LANES):
        m, low, high = C - c, c // d * d, min(c + LANES // 2, C - 1) // d * d
        for n in range(0, N * C, 4 * C):
            rows = n, min(n + C, last), min(n + 2 * C, last), min(n + 3 * C, last)
            first = second = third = fourth = splat(f32(0))
            for i in range(d):
                x, a, b = take(kv, at + i * C + c, m), low + i, high + i
                first = contracted(halves(q, rows[0] + a, rows[0] + b), x, first)
                second = contracted(halves(q, rows[1] + a, rows[1] + b), x, second)
                third = contracted(halves(q, rows[2] + a, rows[2] + b), x, third)
                fourth = contracted(halves(q, rows[3] + a, rows[3] + b), x, fourth)
            put(first, out, rows[0] + c, m)
            put(second, out, rows[1] + c, m)
            put(third, out, rows[2] + c, m)
            put(fourth, out, rows[3] + c, m)


@inner
def _turn(kv, at, out, C, d):
    """The pairs of each head, transposed."""
    for head in range(0, C, d):
        for i in range(d):
            for c in range(d):
                out[c * C + head + i] = kv[at + i * C + head + c]
