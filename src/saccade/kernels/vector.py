"""Vectors of LANES float32 as a type of Numba: what the CPU kernels are written on.

An operation on them is one of LLVM's on all lanes, which becomes the instructions that a machine
has: nothing depends on whether a compiler can prove that arrays do not overlap, and what a kernel
carries from step to step stays in registers. Only `contracted` contracts a multiply-add.

Numba's cache looks at the file of a kernel alone, and does not see a change in this one: whoever
makes it deletes `kernels/__pycache__`. Arrays go to intrinsics such as `take` as they are; every
other function would count references to them, in the innermost loop.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.cgutils import get_or_insert_function
from numba.core.errors import TypingError
from numba.extending import intrinsic, models, overload, register_model

_OPTIONS = {"nogil": True, "cache": True, "error_model": "numpy", "no_cfunc_wrapper": True}
_WITHIN = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""What kernels alone call has no entry from Python, which takes as long to compile as itself; to
call it from there crashes."""
kernel = njit(**_OPTIONS)
inner = njit(**_OPTIONS | _WITHIN)
inline = njit(**_OPTIONS | _WITHIN, forceinline=True)
f32 = np.float32
"""Every constant has a type: beside a vector stands float32 alone."""
LANES = 32
"""Two registers of AVX-512 a vector: while one waits for a result, the other works."""
LINE = 16
"""float32 of a line of a cache."""
_I32 = ir.IntType(32)
_INTEGERS, _FLOATS = ir.VectorType(_I32, LANES), ir.VectorType(ir.FloatType(), LANES)


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

    @overload(symbol, jit_options=_WITHIN)
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
    bits = {ir.IntType(8): "i8", ir.IntType(16): "i16"}.get(numbers.element, "f32")
    kind = ir.FunctionType(result, [x.type for x in args])
    full = f"llvm.masked.{name}.v{LANES}{bits}.p0"
    return builder.call(get_or_insert_function(builder.module, kind, full), args)


def _widened(builder, numbers):
    if numbers.type == _FLOATS:
        return numbers
    if numbers.type.element == ir.IntType(8):
        return builder.sitofp(numbers, _FLOATS)
    wide = builder.shl(builder.zext(numbers, _INTEGERS), _every(16))
    return builder.bitcast(wide, _FLOATS)


def _narrowed(builder, numbers, size):
    """As memory holds them: float32, bfloat16 rounded to nearest, ties to even, or int8."""
    if size == 4:
        return numbers
    if size == 1:
        return builder.fptosi(numbers, ir.VectorType(ir.IntType(8), LANES))
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

    bfloat16 lies there as the uint16 of its bits; int8 are whole numbers. Arrays go to no function
    but those of Numba's own kind, such as this: every call of another counts references, in the
    innermost loop.
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
        stored = _narrowed(builder, numbers, size)
        whole = builder.icmp_signed(">=", m, ir.Constant(m.type, LANES))
        with builder.if_else(whole, likely=True) as (then, otherwise):
            with then:
                builder.store(stored, pointer, align=size)
            with otherwise:
                given = stored, pointer, ir.Constant(_I32, size), _below(builder, m)
                _masked(builder, "store", ir.VoidType(), *given)
        return context.get_dummy_value()

    return types.void(numbers, x, types.intp, types.intp), code


@intrinsic
def halves(context, x, low, high):
    """x[low] in the lower half of the lanes, x[high] in the upper; x is a flat float32 array."""

    def code(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        low, high = (builder.load(builder.gep(data, [at])) for at in args[1:])
        low, high = (_repeated(builder, x, LANES // 2) for x in (low, high))
        return builder.shuffle_vector(low, high, ir.Constant(_INTEGERS, list(range(LANES))))

    return vector(x, types.intp, types.intp), code


@inline
def larger(x, y):
    """Lane by lane."""
    return reaches(x, y, x, y)


@inner
def scratch(n):
    """n float32 that begin where a vector may: by itself each could lie across two lines."""
    x = np.empty(n + LINE, f32)
    first = -(x.ctypes.data // 4) % LINE
    return x[first : first + n]


class Counts(types.Type):
    """LANES int16."""


counts = Counts("counts")
_COUNTS = ir.VectorType(ir.IntType(16), LANES)
BYTES = 64
"""That `awake` looks at together."""


@register_model(Counts)
class _CountsModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _COUNTS)


@intrinsic
def nought(context):
    """Counts of 0."""
    zeros = ir.Constant(_COUNTS, [0] * LANES)
    return counts(), lambda context, builder, signature, args: zeros


@intrinsic
def plus(context, x, array, at):
    """The counts x and those of a flat int16 array from `at` on, added."""

    def code(context, builder, signature, args):
        pointer, size = _pointer(context, builder, signature.args[1], *args[1:])
        return builder.add(args[0], builder.load(pointer, align=size))

    return counts(x, array, types.intp), code


@intrinsic
def counted(context, x):
    """The counts as a vector of float32."""
    return vector(x), lambda context, builder, signature, args: builder.sitofp(args[0], _FLOATS)


@intrinsic
def awake(context, x, at, m):
    """Which of the bytes at, at + 1, ... of x are not 0, as bits; of BYTES, the first m count."""

    def code(context, builder, signature, args):
        array, at, m = args
        byte, word = ir.IntType(8), ir.IntType(BYTES)
        many, which = (ir.VectorType(kind, BYTES) for kind in (byte, ir.IntType(1)))
        data = context.make_array(signature.args[0])(context, builder, array).data
        pointer = builder.bitcast(builder.gep(data, [at]), many.as_pointer())
        all_of, zeros = ir.Constant(m.type, BYTES), ir.Constant(many, [0] * BYTES)
        few = builder.icmp_signed("<", m, all_of)
        ones = builder.lshr(word(-1), builder.sub(all_of, builder.select(few, m, all_of)))
        kind = ir.FunctionType(many, [pointer.type, _I32, which, many])
        load = get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{BYTES}i8.p0")
        seen = builder.call(load, [pointer, _I32(1), builder.bitcast(ones, which), zeros])
        return builder.bitcast(builder.icmp_unsigned("!=", seen, zeros), word)

    return types.uint64(x, types.intp, types.intp), code


@intrinsic
def lowest(context, bits):
    """The place of the lowest bit that is set; the number of all bits where none is."""

    def code(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.intp(types.uint64), code


@intrinsic
def population(context, bits):
    """How many bits are set."""

    def code(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.intp(types.uint64), code
