"""Kernels that every thread of an OpenMP takes its part of, entered without Python.

A thread that came through Python would have to wait for the interpreter's lock, which whoever is
ahead holds until it has found its kernel: it falls asleep, and waking it takes longer than a small
kernel does. So one compiled function opens the team, and the threads call the kernel in it.

Numba's cache does not see a change in this file: whoever makes it deletes `kernels/__pycache__`.
"""

from types import FunctionType

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.compiler import Flags
from numba.extending import intrinsic

from saccade.kernels.vector import kernel

_I32, _WORD = ir.IntType(32), ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()


def shared(function):
    """From a kernel (part, parts, *args) to one (openmp, threads, *args) that calls all parts.

    `openmp` holds the addresses of GOMP_parallel, omp_get_thread_num and omp_get_num_threads. The
    result is True where a part failed, which for these kernels means that it found no memory.
    """
    code, name = function.__code__, f"{function.__name__}_by_all"
    # for the cache a function is its file, its name and its line
    code = _by_all.__code__.replace(
        co_filename=code.co_filename, co_firstlineno=code.co_firstlineno, co_name=name
    )
    scope = {"__name__": function.__module__, "_open": _open, "_kernel": kernel(function)}
    launch = FunctionType(code, scope, name)
    launch.__qualname__, launch.__doc__ = name, function.__doc__
    return kernel(launch)


def _by_all(openmp, threads, *args):
    return _open(_kernel, openmp, threads, args)


@intrinsic
def _open(typing, function, openmp, threads, args):
    """GOMP_parallel on a function of one pointer, to what the kernel takes."""
    takes = types.intp, types.intp, *args

    def code(context, builder, signature, values):
        _, (begin, rank, size), threads, given = (
            values[0], cgutils.unpack_tuple(builder, values[1]), *values[2:]
        )  # fmt: skip
        # for this launcher alone: no machine code and no entry from Python of its own
        compiled = context.compile_subroutine(
            builder, function.dispatcher.py_func, types.void(*takes), flags=_as_kernel()
        )
        failed = cgutils.alloca_once_value(builder, ir.Constant(_I32, 0))
        inside = cgutils.pack_struct(builder, [given, rank, size, failed])
        place = cgutils.alloca_once_value(builder, inside)
        part = _part(context, builder.module, inside.type, compiled.fndesc)
        form = ir.FunctionType(ir.VoidType(), [part.type, _BYTES, _I32, _I32])
        builder.call(
            builder.inttoptr(begin, form.as_pointer()),
            [part, builder.bitcast(place, _BYTES), builder.trunc(threads, _I32), _I32(0)],
        )
        return builder.icmp_signed("!=", builder.load(failed), _I32(0))

    return types.boolean(function, openmp, threads, args), code


def _as_kernel():
    """The options of `saccade.kernels.vector.kernel`, whatever releases the interpreter's lock."""
    flags = Flags()
    flags.nrt, flags.error_model = True, "numpy"
    return flags


def _part(context, module, kind, described):
    """void part(inside *): the kernel for whichever thread comes."""
    form = ir.FunctionType(ir.VoidType(), [_BYTES])
    function = ir.Function(module, form, module.get_unique_name("part"))
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    inside = builder.load(builder.bitcast(function.args[0], kind.as_pointer()))
    given, rank, size, failed = cgutils.unpack_tuple(builder, inside)
    ask = ir.FunctionType(_I32, []).as_pointer()
    which = [builder.sext(builder.call(builder.inttoptr(f, ask), []), _WORD) for f in (rank, size)]
    status, _ = context.call_conv.call_function(
        builder,
        context.declare_function(module, described),
        described.restype,
        described.argtypes,
        [*which, *cgutils.unpack_tuple(builder, given)],
    )
    with cgutils.if_unlikely(builder, status.is_error):
        builder.store(_I32(1), failed)  # whichever thread comes last: all write the same
    builder.ret_void()
    return function
