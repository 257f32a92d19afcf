"""The neuron as functions of a Triton tile: what every kernel that fires is made of.

The state is float32 whatever the type of the currents. Launch without contracted multiply-adds
(`saccade.ops._triton.FLAGS`), or they would round otherwise than the reference does.
"""

import triton
import triton.language as tl


@triton.jit
def led(a, gain, POWERS: tl.constexpr):
    """The factor of a current, with gain in it already where that rounds alike; see `charged`."""
    if POWERS:
        a = gain * a
    return a


@triton.jit
def charged(x, v, decay, gain, pull, POWERS: tl.constexpr):
    """h = decay v + gain x + pull, rounded in this order; gain is in x already where POWERS.

    POWERS says that decay and gain are powers of two: their products are exact, so a contracted
    multiply-add rounds as the two operations do. pull is None where there is none.
    """
    if POWERS:
        h = tl.fma(v, decay, x)
    else:
        h = decay * v + gain * x
    if pull is not None:
        h += pull
    return h


@triton.jit
def fires(h, theta, STRICT: tl.constexpr):
    """1[h >= theta], or 1[h > theta]."""
    if STRICT:
        s = h > theta
    else:
        s = h >= theta
    return s


@triton.jit
def after(h, s, theta, reset, HARD: tl.constexpr):
    """The membrane behind the reset."""
    if HARD:
        v = tl.where(s, reset, h)
    else:
        v = h - tl.where(s, theta, 0.0)
    return v


@triton.jit
def emitted(f, onto, at, inside):
    """Spikes as numbers, added to what lies at onto where that is given."""
    s = f
    if onto is not None:
        there = tl.load(onto + at, inside, 0)
        if onto.dtype.element_ty.is_floating():
            s = there.to(tl.float32) + f.to(tl.float32)
        else:
            s = there.to(tl.int32) + f.to(tl.int32)
    return s


@triton.jit
def slope(h, theta, alpha, KIND: tl.constexpr):
    """Surrogate derivative at h - theta: the table of `saccade.ops.surrogate`."""
    u = h - theta
    if KIND == "sigmoid":  # even in u: -|u| keeps the exponential from overflowing
        c, k = 1.4426950408889634 * alpha, tl.rsqrt(alpha)
        e = tl.exp2(-tl.abs(tl.fma(h, c, -c * theta)))
        r = tl.rsqrt(tl.fma(e, k, k))
        d = (r * r) * (r * r * e)
    elif KIND == "atan":
        w = 1.5707963267948966 * alpha * u
        d = alpha / 2 / (1 + w * w)
    elif KIND == "rectangle":
        d = tl.where(tl.abs(u) < 0.5 / alpha, alpha, 0.0)
    elif KIND == "triangle":
        d = alpha * tl.maximum(1 - alpha * tl.abs(u), 0.0)
    else:
        tl.static_assert(KIND == "fast_sigmoid", "this surrogate has no kernel")
        w = 1 + alpha * tl.abs(u)
        d = 1 / (w * w)
    return d


@triton.jit
def reset_slope(h, s, d, theta, reset, HARD: tl.constexpr, DETACH: tl.constexpr):
    """dv/dh of the reset; d is the slope of the spike."""
    if HARD:
        keep = tl.where(s, 0.0, 1.0)
        if not DETACH:
            keep = tl.fma(reset - h, d, keep)
    else:
        keep = tl.full(h.shape, 1.0, tl.float32)
        if not DETACH:
            keep -= theta * d
    return keep
