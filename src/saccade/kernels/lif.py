"""The recurrence in one pass over the currents each way; backward finds the membranes again."""

import triton
import triton.language as tl

from saccade.kernels.neuron import after, charged, fires, led, reset_slope, slope


@triton.jit
def forward(
    x, v0, s, v_last, n, rest, decay, gain, pull, theta, reset, alpha,
    HARD: tl.constexpr, STRICT: tl.constexpr, POWERS: tl.constexpr, START: tl.constexpr,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Spikes of all steps and the membrane after the last."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    if START:
        v = tl.load(v0 + i, inside, 0.0).to(tl.float32)
    else:
        v = tl.full([BLOCK], rest, tl.float32)
    for t in tl.static_range(T):
        x_t = tl.load(x + t * n + i, inside, 0.0).to(tl.float32)
        h = charged(led(x_t, gain, POWERS), v, decay, gain, pull, POWERS)
        f = fires(h, theta, STRICT)
        v = after(h, f, theta, reset, HARD)
        tl.store(s + t * n + i, f.to(s.dtype.element_ty), inside)
    tl.store(v_last + i, v.to(v_last.dtype.element_ty), inside)


@triton.jit
def backward(
    x, v0, grad_s, grad_v, grad_x, grad_v0, n, rest, decay, gain, pull, theta, reset, alpha,
    HARD: tl.constexpr, STRICT: tl.constexpr, POWERS: tl.constexpr, DETACH: tl.constexpr,
    KIND: tl.constexpr,
    START: tl.constexpr, END: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of the currents and of the first membrane."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    if START:
        v = tl.load(v0 + i, inside, 0.0).to(tl.float32)
    else:
        v = tl.full([BLOCK], rest, tl.float32)
    hs = ()
    for t in tl.static_range(T):
        x_t = tl.load(x + t * n + i, inside, 0.0).to(tl.float32)
        h = charged(led(x_t, gain, POWERS), v, decay, gain, pull, POWERS)
        v = after(h, fires(h, theta, STRICT), theta, reset, HARD)
        hs = hs + (h,)
    carried = tl.zeros([BLOCK], tl.float32)
    if END:
        carried += tl.load(grad_v + i, inside, 0.0).to(tl.float32)
    for step in tl.static_range(T):
        h = hs[T - 1 - step]
        at = (T - 1 - step) * n + i
        d = slope(h, theta, alpha, KIND)
        keep = reset_slope(h, fires(h, theta, STRICT), d, theta, reset, HARD, DETACH)
        g = tl.fma(carried, keep, d * tl.load(grad_s + at, inside, 0.0).to(tl.float32))
        carried = g * decay
        tl.store(grad_x + at, (g * gain).to(grad_x.dtype.element_ty), inside)
    if START:
        tl.store(grad_v0 + i, carried.to(grad_v0.dtype.element_ty), inside)
