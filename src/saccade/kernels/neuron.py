"""The neuron as functions of a Triton tile: what every kernel that fires is made of.

The state is float32 whatever the type of the currents. Launch without contracted multiply-adds
(`saccade.ops._triton.FLAGS`), or they would round otherwise than the reference does.
"""

import triton
import triton.language as tl


@triton.jit
def charged(x, v, decay, gain, pull):
    """h = decay v + gain x + pull, rounded in this order."""
    return (decay * v + gain * x) + pull


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
def slope(u, alpha, KIND: tl.constexpr):
    """Surrogate derivative: the table of `saccade.ops.surrogate`."""
    if KIND == "sigmoid":  # even in u: |u| keeps the exponential from overflowing
        e = tl.exp2(-1.4426950408889634 * alpha * tl.abs(u))
        r = tl.rsqrt(1 + e)
        d = alpha * e * (r * r) * (r * r)
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
            keep += (reset - h) * d
    else:
        keep = tl.full(h.shape, 1.0, tl.float32)
        if not DETACH:
            keep -= theta * d
    return keep
