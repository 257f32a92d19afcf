"""Batch norm, LIF over T and max-pool: rows of C channels, channels-last; R = B*H*W rows a step."""

import triton
import triton.language as tl

from saccade.kernels.bits import packed
from saccade.kernels.neuron import after, charged, emitted, fires, led, reset_slope, slope
from saccade.kernels.pool import arrived, windows


@triton.jit
def sums(y, partial, rows, C: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    """Of each channel: sum of (y - y_0) and of its square, over this program's share of rows.

    From the last row to the first: what the product wrote last is still in the cache.
    """
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    channel = c < C
    shift = tl.load(y + c, channel, 0.0).to(tl.float32)[None, :]
    first = tl.zeros([BR, BC], tl.float32)
    second = tl.zeros([BR, BC], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        r = (tl.cdiv(rows, BR) - 1 - tile) * BR + tl.arange(0, BR)
        inside = (r < rows)[:, None] & channel[None, :]
        at = r.to(tl.int64)[:, None] * C + c[None, :]
        d = tl.load(y + at, inside, 0.0).to(tl.float32) - shift
        d = tl.where(inside, d, 0.0)
        first += d
        second += d * d
    out = partial + tl.program_id(0) * (2 * C) + c
    tl.store(out, tl.sum(first, 0), channel)
    tl.store(out + C, tl.sum(second, 0), channel)


@triton.jit
def added(partial, c, channel, P, C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    """The two sums of channels c over all programs, in float64."""
    first = tl.zeros([BC], tl.float64)
    second = tl.zeros([BC], tl.float64)
    for start in range(0, P, BP):
        p = start + tl.arange(0, BP)
        at = p[:, None] * (2 * C) + c[None, :]
        inside = (p < P)[:, None] & channel[None, :]
        first += tl.sum(tl.load(partial + at, inside, 0.0).to(tl.float64), 0)
        second += tl.sum(tl.load(partial + at + C, inside, 0.0).to(tl.float64), 0)
    return first, second


@triton.jit
def statistics(
    y, partial, weight, bias, offset, running_mean, running_var, coef, P, n, correction, momentum,
    eps, OFFSET: tl.constexpr, C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Mean, 1/sd, and the norm as an affine map; moves the running statistics."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    channel = c < C
    first, second = added(partial, c, channel, P, C, BP, BC)
    off = first / n
    mean = tl.load(y + c, channel, 0.0).to(tl.float64) + off
    var = (second / n - off * off).to(tl.float32)
    settle(
        mean.to(tl.float32), var, correction, weight, bias, offset, running_mean, running_var, coef,
        momentum, eps, c, channel, OFFSET, C,
    )  # fmt: skip


@triton.jit
def moments(y, partial, out, P, n, C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    """Sums of this process, in float64: of y and of its square, [2, C], then of ones."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    channel = c < C
    first, second = added(partial, c, channel, P, C, BP, BC)
    shift = tl.load(y + c, channel, 0.0).to(tl.float64)
    tl.store(out + c, first + n * shift, channel)
    tl.store(out + C + c, second + 2 * shift * first + n * shift * shift, channel)
    tl.store(out + 2 * C + c, tl.zeros([BC], tl.float64) + n, c == 0)


@triton.jit
def joined_statistics(
    sums, weight, bias, offset, running_mean, running_var, coef, n, shown, momentum, eps,
    OFFSET: tl.constexpr, C: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """As `statistics`, of `moments` that were added up over processes; their share goes behind."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    channel = c < C
    count = tl.load(sums + 2 * C)
    mean = tl.load(sums + c, channel, 0.0) / count
    var = tl.load(sums + C + c, channel, 0.0) / count - mean * mean
    var = tl.maximum(var, 0.0).to(tl.float32)
    seen = count * shown
    correction = (seen / tl.maximum(seen - 1, 1.0)).to(tl.float32)
    settle(
        mean.to(tl.float32), var, correction, weight, bias, offset, running_mean, running_var, coef,
        momentum, eps, c, channel, OFFSET, C,
    )  # fmt: skip
    tl.store(coef + 4 * C + c, tl.zeros([BC], tl.float32) + (n / count).to(tl.float32), channel)


@triton.jit
def settle(
    mean, var, correction, weight, bias, offset, running_mean, running_var, coef, momentum, eps, c,
    channel, OFFSET: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Coefficients of known statistics; moves the running ones."""
    rstd = 1 / tl.sqrt(var + eps)
    a = tl.load(weight + c, channel, 0.0).to(tl.float32) * rstd
    tl.store(coef + c, mean, channel)
    tl.store(coef + C + c, rstd, channel)
    tl.store(coef + 2 * C + c, a, channel)
    tl.store(coef + 3 * C + c, tl.load(bias + c, channel, 0.0) - mean * a, channel)
    if OFFSET:
        mean += tl.load(offset + c, channel, 0.0)
    old = tl.load(running_mean + c, channel, 0.0)
    tl.store(running_mean + c, old + momentum * (mean - old), channel)
    old = tl.load(running_var + c, channel, 0.0)
    tl.store(running_var + c, old + momentum * (var * correction - old), channel)


@triton.jit
def _current(coef, c, channel, gain, POWERS: tl.constexpr, C: tl.constexpr):
    """a and b of the current a y + b."""
    a = tl.load(coef + 2 * C + c, channel, 0.0)[None, :]
    b = tl.load(coef + 3 * C + c, channel, 0.0)[None, :]
    return led(a, gain, POWERS), led(b, gain, POWERS)


@triton.jit
def fire(
    y, coef, s, bits, held, onto, rows, rest, decay, gain, pull, theta, reset, alpha,
    HARD: tl.constexpr, STRICT: tl.constexpr, POWERS: tl.constexpr, T: tl.constexpr,
    ONCE: tl.constexpr,
    BITS: tl.constexpr, TRAINS: tl.constexpr, C: tl.constexpr, ROW: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Norm as an affine map, and the neuron; TRAINS leaves all steps of a neuron in one word.

    Rows of y are ROW numbers apart. Membranes begin at rest, or in held where it is given: there
    they stay. Spikes are added to onto, which lies as they do, where that is given.
    """
    r = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    c8 = tl.program_id(1) * (BC // 8) + tl.arange(0, BC // 8)
    inside = (r < rows)[:, None] & (c < C)[None, :]
    inside8 = (r < rows)[:, None] & (c8 < C // 8)[None, :]
    a, b = _current(coef, c, c < C, gain, POWERS, C)
    at = r[:, None] * C + c[None, :]
    at_y, step = r[:, None] * ROW + c[None, :], tl.cast(rows, tl.int64) * ROW
    at8 = r[:, None] * (C // 8) + c8[None, :]
    v = tl.full([BR, BC], rest, tl.float32)
    if held is not None:
        v = tl.load(held + at, inside, 0.0)
    x = tl.zeros([BR, BC], tl.float32)
    train = tl.zeros([BR, BC], tl.int32)
    ys = ()
    for t in tl.static_range(0 if TRAINS else T):  # before a store, which no load may pass
        if t == 0 or not ONCE:
            ys = ys + (tl.load(y + t * step + at_y, inside, 0.0),)
    for t in tl.static_range(T):
        if t == 0 or not ONCE:
            if TRAINS:
                y_t = tl.load(y + t * step + at_y, inside, 0.0)
            else:
                y_t = ys[t]
            x = a * y_t.to(tl.float32) + b
        h = charged(x, v, decay, gain, pull, POWERS)
        f = fires(h, theta, STRICT)
        v = after(h, f, theta, reset, HARD)
        if TRAINS:
            train |= f.to(tl.int32) << t
        elif s is not None:
            to = t * tl.cast(rows, tl.int64) * C + at
            tl.store(s + to, emitted(f, onto, to, inside).to(s.dtype.element_ty), inside)
        if BITS:
            out8 = bits + t * tl.cast(rows, tl.int64) * (C // 8) + at8
            tl.store(out8, packed(f, BR, BC), inside8)
    if TRAINS:
        tl.store(s + at, train.to(s.dtype.element_ty), inside)
    if held is not None:
        tl.store(held + at, v, inside)


@triton.jit
def back(
    y, coef, sums, grad_s, out, partial, rows, n, rest, decay, gain, pull, theta, reset, alpha,
    HARD: tl.constexpr, STRICT: tl.constexpr, POWERS: tl.constexpr, DETACH: tl.constexpr,
    KIND: tl.constexpr,
    T: tl.constexpr, ONCE: tl.constexpr, LEAVES: tl.constexpr, BATCH: tl.constexpr,
    C: tl.constexpr, ROW: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """LEAVES the two "sums" that the norm needs first, or then the gradient "before" the norm.

    Or the gradient "behind" the norm, and of its sums the first. Rows of y and of a gradient are
    ROW numbers apart.
    """
    SUMS: tl.constexpr = LEAVES != "before"
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    channel = c < C
    a, b = _current(coef, c, channel, gain, POWERS, C)
    mean, scale, slant, level = _before(coef, sums, c, channel, n, gain, BATCH and not SUMS, C)
    first = tl.zeros([BR, BC], tl.float32)
    second = tl.zeros([BR, BC], tl.float32)
    tile = tl.program_id(0)
    while tile < tl.cdiv(rows, BR):
        r = (tile * BR + tl.arange(0, BR)).to(tl.int64)
        inside = (r < rows)[:, None] & channel[None, :]
        at, step_y = r[:, None] * ROW + c[None, :], tl.cast(rows, tl.int64) * ROW
        v = tl.full([BR, BC], rest, tl.float32)
        hs, ys, gs = (), (), ()
        y_t = tl.zeros([BR, BC], tl.float32)
        for t in tl.static_range(T):
            if t == 0 or not ONCE:
                y_t = tl.load(y + t * step_y + at, inside, 0.0).to(tl.float32)
            h = charged(a * y_t + b, v, decay, gain, pull, POWERS)
            v = after(h, fires(h, theta, STRICT), theta, reset, HARD)
            hs, ys = hs + (h,), ys + (y_t,)
        for t in tl.static_range(T):  # before the first store, which no load behind it may pass
            at_t = (t * tl.cast(rows, tl.int64) + r)[:, None] * C + c[None, :]
            gs = gs + (tl.load(grad_s + at_t, inside, 0.0),)
        carried = tl.zeros([BR, BC], tl.float32)
        summed = tl.zeros([BR, BC], tl.float32)
        for step in tl.static_range(T):
            h, y_t = hs[T - 1 - step], ys[T - 1 - step]
            d = slope(h, theta, alpha, KIND)
            keep = reset_slope(h, fires(h, theta, STRICT), d, theta, reset, HARD, DETACH)
            g = tl.fma(carried, keep, d * gs[T - 1 - step].to(tl.float32))
            carried = g * decay
            if ONCE:
                summed += g
            else:
                if SUMS:
                    first += g
                if LEAVES == "sums":
                    second = tl.fma(g, y_t - mean, second)
                elif LEAVES == "before":
                    g = tl.fma(scale, g, tl.fma(slant, y_t, level))
                if LEAVES != "sums":
                    to = out + (T - 1 - step) * step_y + at
                    tl.store(to, g.to(out.dtype.element_ty), inside)
        if ONCE:
            if SUMS:
                first += summed
            if LEAVES == "sums":
                second = tl.fma(summed, y_t - mean, second)
            elif LEAVES == "before":
                summed = tl.fma(scale, summed, T * tl.fma(slant, y_t, level))
            if LEAVES != "sums":
                tl.store(out + at, summed.to(out.dtype.element_ty), inside)
        tile += tl.num_programs(0)
    if SUMS:
        _leave(partial, first, second, gain, c, channel, C)


@triton.jit
def _before(coef, sums, c, channel, n, gain, BATCH: tl.constexpr, C: tl.constexpr):
    """The mean of y, and the gradient before the norm, scale g + slant y + level."""
    mean = tl.load(coef + c, channel, 0.0)[None, :]
    rstd = tl.load(coef + C + c, channel, 0.0)[None, :]
    a = tl.load(coef + 2 * C + c, channel, 0.0)[None, :]
    slant, level = a * 0, a * 0
    if BATCH:
        slant = -a * rstd * rstd * tl.load(sums + C + c, channel, 0.0)[None, :] / n
        level = -a * tl.load(sums + c, channel, 0.0)[None, :] / n - slant * mean
    return mean, gain * a, slant, level


@triton.jit
def _leave(partial, first, second, gain, c, channel, C: tl.constexpr):
    """This program's two sums over its rows."""
    to = partial + tl.program_id(0) * (2 * C) + c
    tl.store(to, gain * tl.sum(first, 0), channel)
    tl.store(to + C, gain * tl.sum(second, 0), channel)


@triton.jit
def back_pool(
    y, coef, grad_s, code, out, partial, frames, H, W, h_out, w_out,
    rest, decay, gain, pull, theta, reset, alpha,
    HARD: tl.constexpr, STRICT: tl.constexpr, POWERS: tl.constexpr, DETACH: tl.constexpr,
    KIND: tl.constexpr,
    FIRST: tl.constexpr, LAST: tl.constexpr, T: tl.constexpr, ONCE: tl.constexpr,
    LONG: tl.constexpr, C: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The gradient behind the norm, through the max-pool, and its two sums.

    A program takes lines of squares of four pixels, of which it goes through FIRST to LAST, so that
    windows are read once.
    """
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    channel = c < C
    a, b = _current(coef, c, channel, gain, POWERS, C)
    mean = tl.load(coef + c, channel, 0.0)[None, :]
    first = tl.zeros([BR, BC], tl.float32)
    second = tl.zeros([BR, BC], tl.float32)
    step_y = tl.cast(frames, tl.int64) * H * W * C
    step_s = tl.cast(frames, tl.int64) * h_out * w_out * C
    line = tl.program_id(0)
    while line < frames * h_out:
        frame, i_out = (line // h_out).to(tl.int64), line % h_out
        above = (frame * h_out + i_out) * w_out * C
        pixels = (frame * H + 2 * i_out) * W * C
        start = 0
        while start < w_out:
            j_out = start + tl.arange(0, BR)
            gs, words = windows(
                grad_s + above, code + above, step_s, i_out, j_out, c, h_out, w_out, T, LONG, C
            )
            ys = ()
            for pixel in tl.static_range(FIRST, LAST + 1):  # no load may pass a store
                j, long = 2 * j_out + pixel % 2, tl.where(2 * i_out + pixel // 2 < H, W, 0)
                inside = (j < long)[:, None] & channel[None, :]
                at = (pixel // 2 * W + j)[:, None] * C + c[None, :]
                for t in tl.static_range(1 if ONCE else T):
                    ys = ys + (tl.load(y + pixels + t * step_y + at, inside, 0.0),)
            for pixel in tl.static_range(FIRST, LAST + 1):
                j, long = 2 * j_out + pixel % 2, tl.where(2 * i_out + pixel // 2 < H, W, 0)
                inside = (j < long)[:, None] & channel[None, :]
                to = out + pixels + (pixel // 2 * W + j)[:, None] * C + c[None, :]
                v = tl.full([BR, BC], rest, tl.float32)
                summed = tl.zeros([BR, BC], tl.float32)
                if ONCE:
                    y_t = ys[pixel - FIRST].to(tl.float32)
                    x = a * y_t + b
                    through = tl.full([BR, BC], 1.0, tl.float32)
                    for t in tl.static_range(T):
                        h = charged(x, v, decay, gain, pull, POWERS)
                        d, f = slope(h, theta, alpha, KIND), fires(h, theta, STRICT)
                        came = arrived(gs, words, pixel, t, T, LONG)
                        summed = tl.fma(through, d * came, summed)
                        keep = reset_slope(h, f, d, theta, reset, HARD, DETACH)
                        through = tl.fma(through, decay * keep, 1.0)
                        v = after(h, f, theta, reset, HARD)
                    summed = tl.where(inside, summed, 0.0)
                    tl.store(to, summed.to(out.dtype.element_ty), inside)
                    first += summed
                    second = tl.fma(summed, y_t - mean, second)
                else:
                    hs = ()
                    for t in tl.static_range(T):
                        x = a * ys[(pixel - FIRST) * T + t].to(tl.float32) + b
                        h = charged(x, v, decay, gain, pull, POWERS)
                        v = after(h, fires(h, theta, STRICT), theta, reset, HARD)
                        hs = hs + (h,)
                    carried = tl.zeros([BR, BC], tl.float32)
                    for step in tl.static_range(T):
                        h = hs[T - 1 - step]
                        d, f = slope(h, theta, alpha, KIND), fires(h, theta, STRICT)
                        came = arrived(gs, words, pixel, T - 1 - step, T, LONG)
                        keep = reset_slope(h, f, d, theta, reset, HARD, DETACH)
                        g = tl.fma(carried, keep, d * came)
                        carried = g * decay
                        g = tl.where(inside, g, 0.0)
                        tl.store(to + (T - 1 - step) * step_y, g.to(out.dtype.element_ty), inside)
                        first += g
                        y_t = ys[(pixel - FIRST) * T + T - 1 - step].to(tl.float32)
                        second = tl.fma(g, y_t - mean, second)
            start += BR
        line += tl.num_programs(0)
    _leave(partial, first, second, gain, c, channel, C)


@triton.jit
def back_norm(
    g, y, coef, sums, rows, n, gain, shown,
    BATCH: tl.constexpr, C: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """From the gradient behind the norm to that before it, in place."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    channel = c < C
    _, scale, slant, level = _before(coef, sums, c, channel, n, gain, BATCH, C)
    r = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64)
    inside = (r < rows)[:, None] & channel[None, :]
    at = r[:, None] * C + c[None, :]
    out = scale * tl.load(g + at, inside, 0.0).to(tl.float32)
    if BATCH:
        out += shown * tl.fma(slant, tl.load(y + at, inside, 0.0).to(tl.float32), level)
    tl.store(g + at, out.to(g.dtype.element_ty), inside)


@triton.jit
def total(partial, coef, sums, P, C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    """Both sums over all programs, [2 C]; then the gradient of the norm's weight, and zeros.

    A batch's own mean takes an offset of its currents away: zeros are the gradient of one.
    """
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    first, second = added(partial, c, c < C, P, C, BP, BC)
    tl.store(sums + c, first.to(tl.float32), c < C)
    tl.store(sums + C + c, second.to(tl.float32), c < C)
    rstd = tl.load(coef + C + c, c < C, 0.0)
    tl.store(sums + 2 * C + c, second.to(tl.float32) * rstd, c < C)
    tl.store(sums + 3 * C + c, tl.zeros([BC], tl.float32), c < C)
