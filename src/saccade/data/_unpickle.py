"""Reading published pickles without trusting them.

A pickle may name any function of any module and have it called. Here it may name only what a
dictionary of numpy arrays needs, and even those names lead to the stand-ins below: neither numpy's
own constructors nor anything else outside this file is called on what the file says.
"""

import io
import pickle
import pickletools
from typing import Any

import numpy as np

_MEMO = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_CODES = frozenset(["b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])


def load_arrays(data: bytes, *, name: str) -> dict[str, Any]:
    """The dictionary in a pickle of arrays, containers, strings and numbers.

    Text of Python 2 arrives as bytes; keys are given as str.

    Args:
        data: the whole pickle.
        name: of the file, for messages.

    Raises:
        ValueError: where the pickle names a global that is refused, is damaged, or holds
            something else than such a dictionary. Nothing that it names is run.
    """
    try:
        _check_memo(data)
        found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(found, dict):
            raise TypeError(f"an object of type {type(found).__name__}")
        return {_text(key): _resolve(value) for key, value in found.items()}
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(
            f"{name}: got {error or type(error).__name__}, expected a pickled dictionary of arrays"
        ) from error


class _DType:
    """A numpy dtype as pickled: its code, and then its byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: str | bytes, *_copy_flags: object) -> None:
        self.code, self.order = _text(code), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = _text(state[1])
        if order not in tuple("<>|=") or any(state[2:5]):  # 2..4: subarray, names, fields
            raise TypeError(f"a dtype of state {state!r}")
        self.order = order

    def resolve(self) -> np.dtype[Any]:
        """The dtype itself, where it is one of plain numbers."""
        if self.code not in _CODES:
            raise TypeError(f"an array of dtype {self.code!r}")
        return np.dtype(f"{self.order}{self.code}")


class _Array:
    """A numpy array as pickled: made empty, then given its state."""

    __slots__ = ("value",)

    def __init__(self, *_kind_shape_code: object) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran, raw = state
        if not (isinstance(dtype, _DType) and isinstance(raw, bytes)):
            raise TypeError("an array without plain values")
        flat = np.frombuffer(raw, dtype.resolve())
        self.value = flat.reshape(shape, order="F" if fortran else "C")


class _Global:
    """A callable without attributes to set and without a class to reach.

    A pickle may change the objects that it names: a module's function would stay changed.
    """

    __slots__ = ("_make",)
    _make: Any

    def __init__(self, make: Any) -> None:
        object.__setattr__(self, "_make", make)

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError(f"an attempt to set {name!r} of a global")

    def __call__(self, *args: object) -> object:
        return self._make(*args)


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into protocols 0 to 2; other codecs could be made to do work."""
    if encoding != "latin1":
        raise TypeError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _no_array(*_args: object) -> object:
    raise TypeError("a direct call of numpy.ndarray")


_ADMITTED = {
    ("numpy", "dtype"): _Global(_DType),
    ("numpy", "ndarray"): _Global(_no_array),
    ("numpy.core.multiarray", "_reconstruct"): _Global(_Array),
    ("numpy._core.multiarray", "_reconstruct"): _Global(_Array),
    ("_codecs", "encode"): _Global(_encode),
    ("__builtin__", "bytes"): _Global(lambda: b""),  # how Python 3 writes b"" into protocol 2
    ("builtins", "bytes"): _Global(lambda: b""),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"the refused global {module_name}.{global_name}")
        return _ADMITTED[module_name, global_name]


def _check_memo(data: bytes) -> None:
    """Refuse a slot far beyond the last one: the memo grows to it, by gigabytes if it says so."""
    for count, (opcode, argument, _position) in enumerate(pickletools.genops(data)):
        if opcode.name in _MEMO and isinstance(argument, int) and argument > count:
            raise pickle.UnpicklingError(f"memo slot {argument} after {count} steps")


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("ascii")
    if isinstance(value, str):
        return value
    raise TypeError(f"{type(value).__name__} in the place of text")


def _resolve(value: object) -> object:
    if isinstance(value, _Array):
        if value.value is None:
            raise TypeError("an array without values")
        return value.value
    if isinstance(value, _DType | _Global):
        raise TypeError("a bare type in the place of a value")
    return value
