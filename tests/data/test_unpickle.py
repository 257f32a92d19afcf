"""Pickles that are not to be trusted."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from saccade.data._unpickle import _ADMITTED, load_arrays


class Call:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("dtype", ["uint8", "<i8", ">i4", "float32"])
def test_arrays_lists_and_text_come_back(protocol: int, dtype: str):
    batch = {
        b"data": np.arange(12).reshape(3, 4).astype(dtype),
        b"columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        b"labels": [1, 2, 255],
        "names": ["a.png", b"", b"b.png"],
    }
    back = load_arrays(pickle.dumps(batch, protocol), name="x")
    assert np.array_equal(back["data"], batch[b"data"])
    assert back["data"].dtype == np.dtype(dtype)
    assert np.array_equal(back["columns"], batch[b"columns"])
    assert (back["labels"], back["names"]) == (batch[b"labels"], batch["names"])


def test_the_opcodes_of_python_2_come_back():
    # what cPickle of Python 2 writes: its str in BINSTRING opcodes, numpy under its old name
    pixels = bytes(range(6))
    pickled = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03"
        b"cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02K\x03\x86"
        b"cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89T\x06\x00\x00\x00" + pixels + b"tb"
        b"U\x06labelsq\x08]q\x09(K\x03K\x05eu."
    )
    back = load_arrays(pickled, name="x")
    assert back["data"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert back["labels"] == [3, 5]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_payload_is_refused_by_name_and_not_run(tmp_path: Path, protocol: int):
    trace = tmp_path / "trace"
    pickled = pickle.dumps({b"data": Call(os.system, f"touch {trace}")}, protocol)
    assert b"system" in pickled
    with pytest.raises(ValueError, match=rf"batch: got the refused global {os.name}\.system"):
        load_arrays(pickled, name="batch")
    assert not trace.exists()


@pytest.mark.parametrize(
    "name",
    [
        *("builtins.eval", "builtins.getattr", "builtins.__import__", "numpy.load"),
        *("numpy.core.multiarray.scalar", "numpy.ndarray.tofile", "functools.partial"),
        *("_codecs.decode", "copyreg._reconstructor", "numpy.dtype.__class__"),
    ],
)
def test_every_other_global_is_refused(name: str):
    module, _, function = name.rpartition(".")
    with pytest.raises(ValueError, match="refused global"):
        load_arrays(f"c{module}\n{function}\n.".encode(), name="x")
    # as protocol 4 writes it, where dots may lead into an object
    head, _, dotted = name.partition(".")
    texts = b"".join(b"\x8c" + bytes([len(t)]) + t.encode() for t in (head, dotted))
    with pytest.raises(ValueError, match="refused global"):
        load_arrays(b"\x80\x04" + texts + b"\x93.", name="x")


@pytest.mark.parametrize("entry", _ADMITTED, ids=".".join)
@pytest.mark.parametrize(
    "state", [b"}U\x05_makeK\x01s", b"N}X\x05\0\0\0_makeK\x01s\x86", b"}X\x01\0\0\0aK\x01s"]
)
def test_an_admitted_global_cannot_be_changed(entry: tuple[str, str], state: bytes):
    before = _ADMITTED[entry]._make
    with pytest.raises(ValueError, match=r"^x: got "):
        load_arrays("c{}\n{}\n".format(*entry).encode() + state + b"b.", name="x")
    assert _ADMITTED[entry]._make is before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "an object of type list"),
        ({1: 2}, "int in the place of text"),
        ({"a": np.array([{}], dtype=object)}, "without plain values"),
        ({"a": np.array(["text"])}, "dtype 'U4'"),
        ({"a": np.zeros(2, dtype=[("field", "u1")])}, "dtype"),
        ({"a": np.dtype("u1")}, "bare type"),
        ({"a": Call(np.ndarray, (3,))}, "direct call of numpy.ndarray"),
    ],
)
def test_other_content_is_refused(content: object, message: str):
    with pytest.raises(ValueError, match=message):
        load_arrays(pickle.dumps(content, 2), name="x")


def test_an_array_that_claims_more_values_than_it_has_is_refused():
    pickled = pickle.dumps({"a": np.zeros((3, 5), np.uint8)}, 4)
    assert pickled.count(b"K\x03K\x05") == 1
    with pytest.raises(ValueError, match="cannot reshape"):
        load_arrays(pickled.replace(b"K\x03K\x05", b"K\xffK\xff"), name="x")


def test_only_the_codec_that_carries_bytes_is_admitted():
    import codecs

    with pytest.raises(ValueError, match="bytes in the encoding 'rot13'"):
        load_arrays(pickle.dumps({"a": Call(codecs.encode, "a", "rot13")}, 2), name="x")


@pytest.mark.parametrize("slot", [b"r\xff\xff\xff\x7f", b"p99999999999\n"])
def test_a_memo_slot_that_would_fill_the_memory_is_refused(slot: bytes):
    with pytest.raises(ValueError, match="memo slot"):
        load_arrays(b"\x80\x02}" + slot + b".", name="x")


def complaint(data: bytes) -> str:
    """What a `ValueError` says, if there is one; another error goes through."""
    try:
        return f"x: got {load_arrays(data, name='x')}"
    except ValueError as error:
        return str(error)


GOOD = pickle.dumps({b"data": np.zeros((1, 3), np.uint8), b"labels": [1]}, 2)


@given(st.binary(max_size=60))
@example(b"")
@example(b"\x80\x05\x95" + struct.pack("<Q", 2**62))
@example(b"\x96" + struct.pack("<Q", 2**62) + b".")
def test_arbitrary_bytes_raise_nothing_but_value_error(data: bytes):
    assert complaint(data).startswith("x: got ")


@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=3))
def test_a_damaged_pickle_raises_nothing_but_value_error(at: int, patch: bytes):
    assert complaint(GOOD[:at] + patch + GOOD[at + len(patch) :]).startswith("x: got ")


@given(st.integers(0, len(GOOD) - 1))
def test_a_truncated_pickle_is_refused(length: int):
    with pytest.raises(ValueError, match=r"^x: got "):
        load_arrays(GOOD[:length], name="x")
