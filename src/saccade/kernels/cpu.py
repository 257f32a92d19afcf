"""Neuron, batch norm and max-pool on a CPU, in Numba: rows of C channels, channels last in memory.

Kernels are written on vectors of LANES float32, a type of their own: so the membranes of a place
stay in registers over all steps, and no compiler has to prove that arrays do not overlap. Nothing
contracts a multiply-add but the exponential of a surrogate, so sums round here as they do in the
reference. All of it is one file, because Numba's cache does not see when an imported function has
changed.

Currents y are [t, n] with n = B*H*W*C; t is 1 where one picture stands for T steps. The norm is
x = a y + b, with coefficients repeated to the length L, the least multiple of C and of LANES.
Work is cut into tasks whose number does not depend on the threads: `part` of `parts` threads takes
every parts-th task, and sums are left by task, so that their order is always the same.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.cgutils import get_or_insert_function
from numba.core.errors import TypingError
from numba.extending import intrinsic, models, overload, register_model

kernel = njit(nogil=True, cache=True, error_model="numpy")
inline = njit(nogil=True, cache=True, error_model="numpy", forceinline=True)
f32 = np.float32
"""Every constant has a type: beside a vector stands float32 alone."""
LANES, TILE = 32, 1024
"""Numbers of a vector; and those that go to one thread after another, about."""
SIGMOID, ATAN, RECTANGLE, TRIANGLE, FAST_SIGMOID = range(5)
_I32 = ir.IntType(32)
_INTEGERS, _FLOATS = ir.VectorType(_I32, LANES), ir.VectorType(ir.FloatType(), LANES)


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


class Vector(types.Type):
    """LANES float32, on which every operation acts at once; a float32 beside them is repeated."""


vector = Vector("vector")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _FLOATS)


def _repeated(builder, x, lanes: int = LANES):
    """A number in every lane; a vector as it is."""
    if isinstance(x.type, ir.VectorType):
        return x
    undefined = ir.Constant(ir.VectorType(x.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, x, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, undefined, zeros)


def _every(number: int) -> ir.Constant:
    return ir.Constant(_INTEGERS, [number] * LANES)


def _lanewise(arity: int, emit: Callable[..., Any]):
    """The function emit(builder, *vectors) as kernels call it."""

    def typed(*kinds):
        if any(not isinstance(k, Vector) and k != types.float32 for k in kinds):
            raise TypingError(f"got {kinds}, expected vectors and float32")
        return vector(*kinds), lambda context, builder, signature, args: emit(
            builder, *(_repeated(builder, x) for x in args)
        )

    forms = {
        1: lambda context, x: typed(x),
        2: lambda context, x, y: typed(x, y),
        3: lambda context, x, y, z: typed(x, y, z),
        4: lambda context, x, y, z, w: typed(x, y, z, w),
    }
    return intrinsic(forms[arity])


def _infix(symbol, emit: Callable[..., Any]) -> None:
    """Let an operator of Python stand for a function of two vectors."""
    function = _lanewise(2, emit)

    @overload(symbol)
    def _(x, y):
        if isinstance(x, Vector) or isinstance(y, Vector):
            return lambda x, y: function(x, y)
        return None


def _library(name: str) -> Callable[..., Any]:
    """A function of LLVM that works lane by lane."""

    def emit(builder, *args):
        kind = ir.FunctionType(_FLOATS, [_FLOATS] * len(args))
        full = f"llvm.{name}.v{LANES}f32"
        function = get_or_insert_function(builder.module, kind, full)
        return builder.call(function, args)

    return emit


def _choose(sign: str) -> Callable[..., Any]:
    return lambda builder, x, y, yes, no: builder.select(builder.fcmp_ordered(sign, x, y), yes, no)


def _scale(builder, x, n):
    """`n` as 1.5 * 2^23 + n: its last bits are those of n."""
    power = builder.shl(builder.bitcast(n, _INTEGERS), _every(23))
    return builder.bitcast(builder.add(builder.bitcast(x, _INTEGERS), power), _FLOATS)


_infix(operator.add, lambda builder, x, y: builder.fadd(x, y))
_infix(operator.sub, lambda builder, x, y: builder.fsub(x, y))
_infix(operator.mul, lambda builder, x, y: builder.fmul(x, y))
_infix(operator.truediv, lambda builder, x, y: builder.fdiv(x, y))
splat = _lanewise(1, lambda builder, x: x)
reaches = _lanewise(4, _choose(">="))
"""reaches(x, y, yes, no): `yes` where x >= y, else `no`; `no` where one of them is no number."""
equals = _lanewise(4, _choose("=="))
magnitude = _lanewise(1, _library("fabs"))
contracted = _lanewise(3, _library("fmuladd"))
"""contracted(x, y, z): x y + z, rounded once or twice as suits the machine."""
scale = _lanewise(2, _scale)
"""scale(x, 1.5 * 2^23 + n): x 2^n, where both are normal numbers."""


def _pointer(context, builder, kind, array, at):
    """Where LANES numbers of an array lie, and the bytes of one."""
    number = context.get_data_type(kind.dtype)
    data = context.make_array(kind)(context, builder, array).data
    to = ir.VectorType(number, LANES).as_pointer()
    return builder.bitcast(builder.gep(data, [at]), to), kind.dtype.bitwidth // 8


def _below(builder, m):
    """Which lanes are among the first `m`."""
    lanes = ir.Constant(_INTEGERS, list(range(LANES)))
    return builder.icmp_signed("<", lanes, _repeated(builder, builder.trunc(m, _I32)))


def _masked(builder, name: str, result, *args):
    """llvm.masked.load or .store, which leaves memory of other lanes alone."""
    numbers = args[0].type if name == "store" else result
    bits = "i16" if numbers.element == ir.IntType(16) else "f32"
    kind = ir.FunctionType(result, [x.type for x in args])
    full = f"llvm.masked.{name}.v{LANES}{bits}.p0"
    return builder.call(get_or_insert_function(builder.module, kind, full), args)


def _widened(builder, numbers):
    if numbers.type == _FLOATS:
        return numbers
    wide = builder.shl(builder.zext(numbers, _INTEGERS), _every(16))
    return builder.bitcast(wide, _FLOATS)


def _narrowed(builder, numbers):
    """bfloat16, rounded to nearest, ties to even."""
    bits = builder.bitcast(numbers, _INTEGERS)
    odd = builder.and_(builder.lshr(bits, _every(16)), _every(1))
    rounded = builder.lshr(builder.add(builder.add(bits, _every(0x7FFF)), odd), _every(16))
    # NaN has no rounding: adding to its bits could make infinity or zero of it
    real = builder.fcmp_ordered("ord", numbers, numbers)
    bits = builder.select(real, rounded, _every(0x7FC0))
    return builder.trunc(bits, ir.VectorType(ir.IntType(16), LANES))


@intrinsic
def take(context, x, at, m):
    """Numbers at, at + 1, ... of the memory of x, at most `m`; lanes beyond are 0.

    bfloat16 lies there as the uint16 of its bits. Arrays go to no function but those of Numba's
    own kind, such as this: every call of another counts references, in the innermost loop.
    """

    def code(context, builder, signature, args):
        array, at, m = args
        pointer, size = _pointer(context, builder, signature.args[0], array, at)
        stored = ir.VectorType(context.get_data_type(signature.args[0].dtype), LANES)
        whole = builder.icmp_signed(">=", m, ir.Constant(m.type, LANES))
        with builder.if_else(whole, likely=True) as (then, otherwise):
            with then:
                full, full_block = builder.load(pointer, align=size), builder.block
            with otherwise:
                zeros = ir.Constant(stored, [0] * LANES)
                given = pointer, ir.Constant(_I32, size), _below(builder, m), zeros
                some, some_block = _masked(builder, "load", stored, *given), builder.block
        numbers = builder.phi(stored)
        numbers.add_incoming(full, full_block)
        numbers.add_incoming(some, some_block)
        return _widened(builder, numbers)

    return vector(x, types.intp, types.intp), code


@intrinsic
def put(context, numbers, x, at, m):
    """The inverse of `take`: at most `m` lanes, as x stores them."""

    def code(context, builder, signature, args):
        numbers, array, at, m = args
        pointer, size = _pointer(context, builder, signature.args[1], array, at)
        stored = _narrowed(builder, numbers) if size == 2 else numbers
        whole = builder.icmp_signed(">=", m, ir.Constant(m.type, LANES))
        with builder.if_else(whole, likely=True) as (then, otherwise):
            with then:
                builder.store(stored, pointer, align=size)
            with otherwise:
                given = stored, pointer, ir.Constant(_I32, size), _below(builder, m)
                _masked(builder, "store", ir.VoidType(), *given)
        return context.get_dummy_value()

    return types.void(numbers, x, types.intp, types.intp), code


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


@kernel
def sums(part, parts, y, shift, share, partial):
    """Of each place, sum of (y - shift) and of its square: partial [tasks, 2, L]."""
    n, L = len(y), len(shift)
    for task in range(part, len(partial), parts):
        partial[task] = 0
        first, second = partial[task, 0], partial[task, 1]
        for start in range(task * share, min(n, (task + 1) * share), L):
            for j in range(0, min(L, n - start), LANES):
                m = n - start - j
                d = take(y, start + j, m) - take(shift, j, m)
                put(take(first, j, LANES) + d, first, j, LANES)
                put(take(second, j, LANES) + d * d, second, j, LANES)


@kernel
def fire(part, parts, y, a, b, v0, s, v_end, p):
    """The neuron on normalised currents; v0 and v_end are empty where nobody gives or asks."""
    (steps, n), L, T = y.shape, len(a), len(s)
    block = max(1, TILE // L) * L
    for start in range(part * block, n, parts * block):
        for row in range(start, min(n, start + block), L):
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


@kernel
def back(part, parts, y, a, b, mean, v0, grad_s, grad_v, grad_x, grad_v0, partial, share, p):
    """The gradient behind the norm, and its sums: partial [tasks, 2, L], or [tasks, 2, 0]."""
    (steps, n), L, T = y.shape, len(a), len(grad_s)
    once, summed, h = steps < T, partial.shape[2] > 0, np.empty(T * LANES, f32)
    for task in range(part, len(partial), parts):
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


@kernel
def back_norm(part, parts, grad, y, scale, slant, level):
    """scale g + slant y + level in place: from the gradient behind the norm to that before it."""
    n, L = len(y), len(scale)
    block = max(1, TILE // L) * L
    for start in range(part * block, n, parts * block):
        for row in range(start, min(n, start + block), L):
            for j in range(0, min(L, n - row), LANES):
                i, m = row + j, n - row - j
                out = take(scale, j, LANES) * take(grad, i, m)
                out = out + (take(slant, j, LANES) * take(y, i, m) + take(level, j, LANES))
                put(out, grad, i, m)


@kernel
def fire_pool(part, parts, y, a, b, s, p):
    """y [t, B, H, W C] to s [T, B, h, w, C]: 1 where any of the pixels 2i-1 to 2i+1 fires.

    a and b have the length W C of a row. Row 2i+1 is kept for the window below.
    """
    (T, B, h_out, w_out, C), (steps, _, H, L) = s.shape, y.shape
    above, lines = np.empty(T * L, f32), np.empty(T * L, f32)
    for sample in range(part, B, parts):
        above[:] = 0
        for i in range(h_out):
            lines[:] = above
            for row in range(2 * i, min(2 * i + 2, H)):
                for x in range(0, L, LANES):
                    m, v = L - x, splat(p.rest)
                    a_, b_ = take(a, x, m), take(b, x, m)
                    for t in range(T):
                        at = ((min(t, steps - 1) * B + sample) * H + row) * L + x
                        c = charge(take(y, at, m), a_, b_, v, p)
                        v, spikes = settle(c, p), fires(c, p)
                        put(spikes, above, t * L + x, m)
                        put(larger(take(lines, t * L + x, m), spikes), lines, t * L + x, m)
            for t in range(T):
                at = ((t * B + sample) * h_out + i) * w_out * C
                _widest(lines, t * L, L, s, at, w_out, C)


@inline
def larger(x, y):
    return reaches(x, y, x, y)


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


@kernel
def back_pool(part, parts, y, a, b, mean, grad_s, grad_x, partial, p):
    """As `back`, through the max-pool: the first spike of a window in reading order takes it.

    One task a sample; a and b have the length of a row, mean has C. Membranes `h` of the last three rows of pixels are at hand, row r in slot
    r % 3; and of the last two rows of windows which of its nine pixels `won`, row i in slot i % 2.
    """
    (T, B, h_out, w_out, C), (steps, _, H, L) = grad_s.shape, y.shape
    once, w = steps < T, w_out * C
    h, won = np.empty(3 * T * L, f32), np.empty(2 * T * w, f32)
    for sample in range(part, B, parts):
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


@intrinsic
def halves(context, x, low, high):
    """x[low] in the lower half of the lanes, x[high] in the upper; x is a flat float32 array."""

    def code(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        low, high = (builder.load(builder.gep(data, [at])) for at in args[1:])
        low, high = (_repeated(builder, x, LANES // 2) for x in (low, high))
        return builder.shuffle_vector(low, high, ir.Constant(_INTEGERS, list(range(LANES))))

    return vector(x, types.intp, types.intp), code


@kernel
def attend(part, parts, q, k, v, kv, s, d, scale, p):
    """Q (K^T V) of each head and the neuron behind it: q, k, v, s [T, B, N, C], kv [T, B, d, C].

    Row i of kv holds, at channel c, what channel i of c's head in K and channel c of V have in
    common; d is a multiple of half a vector, so that half a vector lies in one head.
    """
    T, B, N, C = q.shape
    n = N * C
    wide_q, wide_k, wide_v = np.empty(n, f32), np.empty(n, f32), np.empty(n, f32)
    current, memory = np.empty(n, f32), np.empty(n, f32)
    for sample in range(part, B, parts):
        memory[:] = p.rest
        for t in range(T):
            at, pairs = (t * B + sample) * n, (t * B + sample) * d * C
            _widen(q, at, wide_q)
            _widen(k, at, wide_k)
            _widen(v, at, wide_v)
            _pair(wide_k, wide_v, kv, pairs, N, C, d)
            _apply(wide_q, kv, pairs, current, N, C, d)
            for x in range(0, n, LANES):
                h = charge(take(current, x, n - x), scale, f32(0), take(memory, x, n - x), p)
                put(fires(h, p), s, at + x, n - x)
                put(settle(h, p), memory, x, n - x)


@kernel
def back_attend(part, parts, q, k, v, kv, grad_s, grad_q, grad_k, grad_v, d, scale, p):
    """The gradients of q, k and v; currents and membranes are found again from q and kv."""
    T, B, N, C = q.shape
    n = N * C
    wide_q, wide_k, wide_v = np.empty(n, f32), np.empty(n, f32), np.empty(n, f32)
    current, grad = np.empty(n, f32), np.empty(n, f32)
    h, carried = np.empty(T * n, f32), np.empty(n, f32)
    pairs, turned = np.empty(d * C, f32), np.empty(d * C, f32)
    for sample in range(part, B, parts):
        for t in range(T):
            at = t * B + sample
            _widen(q, at * n, wide_q)
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
            _widen(q, at * n, wide_q)
            _widen(k, at * n, wide_k)
            _widen(v, at * n, wide_v)
            _turn(kv, at * d * C, turned, C, d)
            _apply(grad, turned, 0, current, N, C, d)
            _narrow(current, grad_q, at * n)
            _pair(wide_q, grad, pairs, 0, N, C, d)
            _apply(wide_k, pairs, 0, current, N, C, d)
            _narrow(current, grad_v, at * n)
            _turn(pairs, 0, turned, C, d)
            _apply(wide_v, turned, 0, current, N, C, d)
            _narrow(current, grad_k, at * n)


@kernel
def _widen(x, at, out):
    for i in range(0, len(out), LANES):
        put(take(x, at + i, len(out) - i), out, i, len(out) - i)


@kernel
def _narrow(x, out, at):
    for i in range(0, len(x), LANES):
        put(take(x, i, len(x) - i), out, at + i, len(x) - i)


@kernel
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


@kernel
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


@kernel
def _turn(kv, at, out, C, d):
    """The pairs of each head, transposed."""
    for head in range(0, C, d):
        for i in range(d):
            for c in range(d):
                out[c * C + head + i] = kv[at + i * C + head + c]
