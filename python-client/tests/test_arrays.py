"""Tensors to bytes and back, and the index arithmetic of a lazy tensor: what needs no server."""

from __future__ import annotations

import errno
import itertools
import pickle
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import samples
import sira_store
from sira_store import _arrays, _dtypes, _errors, _lazy, _wire


def by_the_bit(elements: NDArray[Any], width: int) -> bytes:
    """safetensors' packing, written down as it is defined."""
    number = sum(int(element) << (i * width) for i, element in enumerate(elements.view(np.uint8).reshape(-1)))
    return number.to_bytes(elements.size * width // 8, "little")


@pytest.mark.parametrize("dtype", samples.BITS)
@pytest.mark.parametrize("count", [0, 4, 8, 12, 1024])
def test_packing_is_that_of_safetensors(dtype: str, count: int) -> None:
    elements = samples.array(dtype, (count,))
    sent = _arrays.outgoing(elements)
    assert sent.data.tobytes() == by_the_bit(elements, samples.BITS[dtype])
    back = _arrays.incoming(dtype, (count,), None, "numpy").finish(sent.data)
    assert samples.same(back, elements)


def test_packing_ignores_the_bits_that_no_element_has() -> None:
    dirty = np.array([0xF1, 0xA2], np.uint8).view(ml_dtypes.float4_e2m1fn)
    assert _arrays.outgoing(dirty).data.tobytes() == b"\x21"


@pytest.mark.parametrize("dtype, count", [("float4_e2m1fn", 3), ("float6_e2m3fn", 2), ("float6_e3m2fn", 5)])
def test_a_packed_tensor_that_ends_inside_a_byte_is_refused(dtype: str, count: int) -> None:
    with pytest.raises(sira_store.InvalidError, match="do not fill whole bytes"):
        _arrays.outgoing(samples.array(dtype, (count,)))


@pytest.mark.parametrize("dtype", samples.DTYPES)
@pytest.mark.parametrize("shape", samples.SHAPES)
def test_every_type_and_shape_comes_back(dtype: str, shape: tuple[int, ...]) -> None:
    if not samples.fits(dtype, shape):
        shape = (*shape, 4)
    array = samples.array(dtype, shape)
    name, sent_shape, data = _arrays.outgoing(array)
    assert (name, sent_shape) == (dtype, shape)
    assert data.size == _dtypes.nbytes(dtype, shape)
    assert samples.same(_arrays.incoming(name, shape, None, "numpy").finish(data), array)
    out = np.empty_like(array)
    target = _arrays.incoming(name, shape, out, "numpy")
    if target.buffer is not None:
        target.buffer[:] = data
        data = target.buffer
    assert target.finish(data) is out
    assert samples.same(out, array)


def test_contiguous_memory_is_sent_from_where_it_lies() -> None:
    array = samples.array("bfloat16", (3, 5))
    data = _arrays.outgoing(array).data
    assert data.ctypes.data == array.ctypes.data
    schema = _wire.schema(
        _arrays.outgoing(array), axes=None, codec=None, ttl=None, consistency=None, if_=None, attributes=None
    )
    (batch,) = _wire.batches(data, schema)
    assert batch.column(0).buffers()[1].address == array.ctypes.data


def test_other_layouts_are_sent_in_order() -> None:
    array = samples.array("int32", (4, 6))
    for other in (array.T, array[::2, 1::3], array[::-1], np.asfortranarray(array)):
        assert _arrays.outgoing(other).data.tobytes() == other.tobytes("C")
    big_endian = array.astype(">i4")
    sent = _arrays.outgoing(big_endian)
    assert sent.dtype == "int32"
    assert sent.data.tobytes() == array.tobytes()


def test_lists_and_scalars_are_arrays_too() -> None:
    assert _arrays.outgoing([[1.0, 2.0]])[:2] == ("float64", (1, 2))
    assert _arrays.outgoing(np.float32(1))[:2] == ("float32", ())


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a"]),
        np.array([None]),
        np.zeros(2, "complex128"),
        np.zeros(2, "M8[s]"),
        np.zeros(2, "i4,i4"),
        np.zeros(2, ml_dtypes.int4),
        np.ma.masked_array([1, 2], [0, 1]),
    ],
    ids=str,
)
def test_what_is_no_tensor_is_refused(array: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="SIRA_BAD_TENSOR"):
        _arrays.outgoing(array)


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((2, 3), "float64"),
        np.zeros((3, 2), "float32"),
        np.zeros((2, 3), ">f4"),
        bytearray(24),
        [0.0] * 6,
    ],
    ids=["type", "shape", "byte order", "bytes", "list"],
)
def test_an_out_that_does_not_fit_is_refused(out: Any) -> None:
    with pytest.raises(sira_store.InvalidError, match="out is"):
        _arrays.incoming("float32", (2, 3), out, "numpy")


def test_a_read_only_out_is_refused() -> None:
    out = np.zeros(3, "float32")
    out.flags.writeable = False
    with pytest.raises(sira_store.InvalidError, match="read-only"):
        _arrays.incoming("float32", (3,), out, "numpy")


def test_an_odd_address_is_not_handed_on() -> None:
    memory = np.arange(41, dtype=np.uint8)
    odd = memory[1:] if memory.ctypes.data % 8 == 0 else memory[:40]
    array = _arrays.incoming("float64", (5,), None, "numpy").finish(odd)
    assert array.flags.aligned
    assert array.tobytes() == odd.tobytes()


def test_batches_cover_every_byte_once() -> None:
    data = np.arange(2 * _wire.BATCH_BYTES + 5, dtype=np.uint32).astype(np.uint8)
    sent = _arrays.outgoing(data)
    schema = _wire.schema(sent, axes=None, codec=None, ttl=None, consistency=None, if_=None, attributes=None)
    parts = [_wire.column_bytes(batch) for batch in _wire.batches(sent.data, schema)]
    assert [part.size for part in parts] == [_wire.BATCH_BYTES, _wire.BATCH_BYTES, 5]
    assert np.concatenate(parts).tobytes() == data.tobytes()


def test_options_are_written_as_the_wire_has_them() -> None:
    tensor = _arrays.outgoing(np.zeros((2, 0), "int8"))
    schema = _wire.schema(
        tensor,
        axes=["a,b", ""],
        codec="zstd:9",
        ttl=60,
        consistency="strong",
        if_=7,
        attributes={"né": "ü"},
    )
    assert {name.decode(): value.decode() for name, value in schema.metadata.items()} == {
        "sira.shape": "[2,0]",
        "sira.dtype": "int8",
        "sira.axes": '["a,b",""]',
        "sira.codec": "zstd:9",
        "sira.ttl": "60",
        "sira.consistency": "strong",
        "sira.if": "7",
        "sira.attr.né": "ü",
    }


@pytest.mark.parametrize("ttl", [0.5, float("nan"), float("inf")])
def test_a_fraction_of_a_second_is_refused(ttl: Any) -> None:
    tensor = _arrays.outgoing(np.zeros(1))
    with pytest.raises(sira_store.InvalidError, match="whole number of seconds"):
        _wire.schema(tensor, axes=None, codec=None, ttl=ttl, consistency=None, if_=None, attributes=None)


@pytest.mark.parametrize("if_", ["present", True, 1.0, ""])
def test_other_conditions_are_refused(if_: Any) -> None:
    with pytest.raises(sira_store.InvalidError, match="SIRA_BAD_REQUEST"):
        _wire.condition(if_)


EDGES = [None, 0, 1, 2, 4, 5, 9, -1, -2, -5, -6]
INDICES: list[Any] = [
    *(slice(*edges) for edges in itertools.product(EDGES, EDGES, [None, 1, 2, 3, 7, -1, -2, -7])),
    *(0, 4, -1, -5),
    np.int64(2),
]


def apply(index: Any, array: NDArray[Any]) -> NDArray[Any]:
    """What a lazy tensor does, with numpy in the server's place."""
    ranges, local, shape = _lazy.plan(index, array.shape)
    part = array[tuple(slice(*ranges[axis]) if axis in ranges else slice(None) for axis in range(array.ndim))]
    assert part.shape == shape
    return part[local]


def test_every_slice_of_one_axis_is_numpys() -> None:
    array = np.arange(5)
    for index in INDICES:
        assert np.array_equal(apply(index, array), array[index]), index


@pytest.mark.parametrize(
    "index",
    [
        (),
        ...,
        (..., 0),
        (0, ...),
        (1, ..., 2),
        (slice(1, 3), slice(None, None, -1)),
        (slice(None), 2, slice(3, 0, -2)),
        (0, 1, 2),
        (0, 1, 2, ...),
        (slice(2, 2), 1),
        (..., slice(None, None, 3), slice(1, None)),
    ],
    ids=str,
)
def test_indices_of_several_axes_are_numpys(index: Any) -> None:
    array = np.arange(4 * 3 * 5).reshape(4, 3, 5)
    got = apply(index, array)
    assert got.shape == array[index].shape
    assert np.array_equal(got, array[index])


def test_only_what_is_covered_is_asked_for() -> None:
    assert _lazy.plan((slice(None), slice(10, 20), -1), (4, 100, 3))[0] == {1: (10, 20), 2: (2, 3)}
    assert _lazy.plan(slice(90, 10, -7), (100,))[0] == {0: (13, 91)}
    assert _lazy.plan(..., (4, 100)) == ({}, (slice(None), slice(None)), (4, 100))


@pytest.mark.parametrize(
    "index", [5, -6, None, (0, 0), True, [0, 1], np.array([0, 1]), 1.0, "token", (..., ...)], ids=str
)
def test_other_indices_are_refused(index: Any) -> None:
    with pytest.raises(IndexError):
        _lazy.plan(index, (5,))


def test_errors_are_the_built_in_ones_too() -> None:
    full = _errors.by_code("SIRA_OUT_OF_SPACE", "SIRA_OUT_OF_SPACE: backend object: full")
    assert isinstance(full, OSError)
    assert full.errno == errno.ENOSPC
    missing = _errors.by_code("SIRA_NOT_FOUND", "SIRA_NOT_FOUND: ns/key")
    assert isinstance(missing, KeyError)
    assert str(missing) == "SIRA_NOT_FOUND: ns/key"
    assert isinstance(_errors.by_code("SIRA_BUSY", ""), ConnectionError)
    assert isinstance(_errors.by_code("SIRA_BAD_KEY", ""), ValueError)
    assert isinstance(_errors.by_code("SIRA_UNSUPPORTED", ""), NotImplementedError)
    unknown = _errors.by_code("SIRA_OF_TOMORROW", "SIRA_OF_TOMORROW: new")
    assert type(unknown) is sira_store.SiraError
    for error in (full, missing, unknown):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), copy.code, str(copy)) == (type(error), error.code, str(error))


def test_a_code_is_found_in_what_pyarrow_wraps_round_it() -> None:
    text = "Flight returned not found error, with message: SIRA_NOT_FOUND: ns/key. Client context: IOError: x"
    error = _errors.translate(KeyError(text), "grpc://host:1")
    assert isinstance(error, sira_store.NotFoundError)
    assert (error.code, str(error)) == ("SIRA_NOT_FOUND", "SIRA_NOT_FOUND: ns/key")


def test_no_server_is_an_error_that_names_it() -> None:
    with sira_store.connect("127.0.0.1:1") as sira:
        with pytest.raises(sira_store.UnavailableError, match=r"grpc://127\.0\.0\.1:1"):
            sira.exists("ns/key")
        with pytest.raises(ConnectionError):
            sira.put("ns/key", np.zeros(3))
        with pytest.raises(ConnectionError):
            sira.get("ns/key")


def test_connect_takes_what_people_write(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sira_store.connect("localhost:9").url == "grpc://localhost:9"
    assert sira_store.connect("grpc+tcp://localhost:9").url == "grpc+tcp://localhost:9"
    monkeypatch.delenv("SIRA_URL", raising=False)
    assert sira_store.connect().url == sira_store.DEFAULT_URL
    monkeypatch.setenv("SIRA_URL", "grpc://elsewhere:1")
    assert sira_store.connect().url == "grpc://elsewhere:1"
    for url in ("http://localhost:9", "grpc://localhost:port"):
        with pytest.raises(ValueError, match="grpc://host:port"):
            sira_store.connect(url)


def test_torch_is_not_imported_by_itself() -> None:
    package = Path(sira_store.__file__).parents[1]
    code = (
        f"import sys; sys.path[:0] = [{str(package)!r}, {sysconfig.get_path('purelib')!r}]\n"
        "import numpy, sira_store\n"
        "sira_store._client._arrays.outgoing(numpy.zeros(3))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
