"""The wire as a plain Arrow Flight user sees it: pyarrow and numpy, and no package of Sira's."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import flight

import samples

NULL = pa.array([1, None, 3], pa.int32())


def path(key: str) -> flight.FlightDescriptor:
    return flight.FlightDescriptor.for_path(key)


def command(**fields: Any) -> flight.FlightDescriptor:
    return flight.FlightDescriptor.for_command(json.dumps(fields))


def rows(array: NDArray[Any], *, keep: int = 1, names: Sequence[str] | None = None) -> pa.Array:
    """A fixed_shape_tensor column: the first `keep` axes are rows, the others the extension's shape."""
    inner = array.shape[keep:]
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(array.dtype), inner, dim_names=names)
    flat = pa.array(array.reshape(-1))
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(flat, math.prod(inner)))


def put(
    client: flight.FlightClient,
    descriptor: flight.FlightDescriptor,
    columns: pa.Array | Iterable[pa.Array],
    options: flight.FlightCallOptions | None = None,
    **metadata: object,
) -> dict[str, Any]:
    """Puts one batch a column given; `sira_shape=[2]` is the metadata `sira.shape`.
    Gives the PutResult's JSON."""
    columns = [columns] if isinstance(columns, pa.Array) else list(columns)
    named = {
        name.replace("sira_", "sira.").replace("attr_", "attr."): value
        if isinstance(value, str)
        else json.dumps(value)
        for name, value in metadata.items()
    }
    schema = pa.schema([pa.field("tensor", columns[0].type)], metadata=named)
    batches = [pa.RecordBatch.from_arrays([column], schema=schema) for column in columns]
    return send(client, descriptor, schema, batches, options)


def send(
    client: flight.FlightClient,
    descriptor: flight.FlightDescriptor,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    options: flight.FlightCallOptions | None = None,
) -> dict[str, Any]:
    writer, reader = client.do_put(descriptor, schema, options)
    try:
        for batch in batches:
            writer.write_batch(batch)
        writer.done_writing()
        answer = reader.read()
    finally:
        # Raises the server's reason where there is one, in place of an error of writing.
        writer.close()
    return json.loads(answer.to_pybytes())


def column_bytes(column: pa.Array) -> bytes:
    """The bytes of a carrier's rows."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage.flatten()
    width = column.type.bit_width // 8
    if not len(column):
        return b""
    return column.buffers()[1].to_pybytes()[column.offset * width : (column.offset + len(column)) * width]


def get(client: flight.FlightClient, ticket: str | bytes | dict[str, Any]) -> tuple[pa.Schema, bytes]:
    """A get's schema and all its bytes."""
    if isinstance(ticket, dict):
        ticket = json.dumps({"v": 1, **ticket})
    reader = client.do_get(flight.Ticket(ticket))
    return reader.schema, b"".join(column_bytes(chunk.data.column(0)) for chunk in reader)


def shape_of(schema: pa.Schema) -> tuple[int, ...]:
    return tuple(json.loads(schema.metadata[b"sira.shape"]))


def dtype_of(schema: pa.Schema) -> str:
    return schema.metadata[b"sira.dtype"].decode()


def axes_of(schema: pa.Schema) -> list[str]:
    return json.loads(schema.metadata.get(b"sira.axes", b"null")) or [""] * len(shape_of(schema))


def act(client: flight.FlightClient, name: str, **body: Any) -> dict[str, Any]:
    (result,) = client.do_action(flight.Action(name, json.dumps({"v": 1, **body}).encode()))
    return json.loads(result.body.to_pybytes())


def exists(client: flight.FlightClient, key: str) -> bool:
    return act(client, "exists", key=key)["exists"]


class TestPut:
    def test_one_batch_of_rows_is_the_tensor(self, plain: flight.FlightClient, ns: str) -> None:
        array = samples.array("float32", (3, 4, 5))
        answer = put(plain, path(f"{ns}/x"), rows(array))
        assert answer["key"] == f"{ns}/x"
        assert answer["created"] is True
        schema, data = get(plain, f"{ns}/x")
        assert (shape_of(schema), dtype_of(schema), data) == ((3, 4, 5), "float32", array.tobytes())

    def test_pyarrows_own_tensor_array(self, plain: flight.FlightClient, ns: str) -> None:
        array = samples.array("int16", (3, 4, 5))
        put(plain, path(f"{ns}/x"), pa.FixedShapeTensorArray.from_numpy_ndarray(array))
        table = plain.do_get(flight.Ticket(f"{ns}/x")).read_all()
        assert np.array_equal(table["tensor"].chunk(0).to_numpy_ndarray().reshape(array.shape), array)

    def test_a_plain_column_is_of_rank_one(self, plain: flight.FlightClient, ns: str) -> None:
        put(plain, path(f"{ns}/x"), pa.array([1.5, -2.5], pa.float64()))
        schema, data = get(plain, f"{ns}/x")
        assert (shape_of(schema), dtype_of(schema)) == ((2,), "float64")
        assert data == np.array([1.5, -2.5]).tobytes()
        assert schema.field(0) == pa.field("tensor", pa.float64(), schema.field(0).nullable)

    def test_an_empty_plain_column(self, plain: flight.FlightClient, ns: str) -> None:
        put(plain, path(f"{ns}/x"), pa.array([], pa.int64()))
        schema, data = get(plain, f"{ns}/x")
        assert (shape_of(schema), dtype_of(schema), data) == ((0,), "int64", b"")

    def test_bfloat16_travels_as_uint16(self, plain: flight.FlightClient, ns: str) -> None:
        array = samples.array("bfloat16", (2, 3, 4))
        put(plain, path(f"{ns}/x"), rows(array.view(np.uint16)), sira_dtype="bfloat16")
        reader = plain.do_get(flight.Ticket(f"{ns}/x"))
        assert reader.schema.field(0).type.value_type == pa.uint16()
        back = reader.read_all()["tensor"].chunk(0).to_numpy_ndarray()
        assert dtype_of(reader.schema) == "bfloat16"
        assert samples.same(back.reshape(2, 3, 4).view(ml_dtypes.bfloat16), array)

    @pytest.mark.parametrize("dtype", samples.DTYPES)
    def test_every_type_by_its_carrier(self, plain: flight.FlightClient, ns: str, dtype: str) -> None:
        for shape in ((), (8,), (3, 4), (0,), (2, 0, 3), (2, 3, 4)):
            if not samples.fits(dtype, shape):
                shape = (*shape, 4)
            column, data = carrier(dtype, shape)
            put(plain, path(f"{ns}/x"), column, sira_shape=list(shape), sira_dtype=dtype)
            schema, got = get(plain, f"{ns}/x")
            assert (shape_of(schema), dtype_of(schema)) == (shape, dtype)
            assert got == data
            kind = schema.field(0).type
            storage = kind.value_type if isinstance(kind, pa.FixedShapeTensorType) else kind
            assert storage == pa.from_numpy_dtype(stored_as(dtype))
            axes = len(shape) + (dtype == "complex64")
            tensor = axes >= 2 and 0 not in shape and dtype not in samples.BITS
            assert isinstance(kind, pa.FixedShapeTensorType) == tensor, (shape, kind)
            if isinstance(kind, pa.FixedShapeTensorType):
                full = [*shape, 2] if dtype == "complex64" else [*shape]
                assert kind.shape == full[len(full) - len(kind.shape) :]
                assert kind.permutation in (None, list(range(len(kind.shape))))

    @pytest.mark.parametrize("dtype", samples.DTYPES)
    def test_plain_bytes_carry_any_type(self, plain: flight.FlightClient, ns: str, dtype: str) -> None:
        _, data = carrier(dtype, (2, 5, 4))
        # safetensors' name of the type, in a case of nobody's.
        name = samples.SAFETENSORS[dtype].swapcase()
        halves = [pa.array(np.frombuffer(part, np.uint8)) for part in (data[:7], data[7:])]
        put(plain, path(f"{ns}/x"), halves, sira_shape=[2, 5, 4], sira_dtype=name)
        schema, got = get(plain, f"{ns}/x")
        assert (shape_of(schema), dtype_of(schema), got) == ((2, 5, 4), dtype, data)

    def test_complex_without_a_shape(self, plain: flight.FlightClient, ns: str) -> None:
        array = samples.array("complex64", (3, 4))
        put(plain, path(f"{ns}/x"), rows(array.view(np.float32).reshape(3, 4, 2)), sira_dtype="complex64")
        schema, data = get(plain, f"{ns}/x")
        assert (shape_of(schema), dtype_of(schema), data) == ((3, 4), "complex64", array.tobytes())

    def test_a_transposed_array_is_stored_as_it_looks(self, plain: flight.FlightClient, ns: str) -> None:
        array = samples.array("float32", (3, 4, 5))
        transposed = array.transpose(0, 2, 1)
        column = pa.FixedShapeTensorArray.from_numpy_ndarray(transposed)
        assert column.type.permutation == [1, 0]
        put(plain, path(f"{ns}/x"), column)
        schema, data = get(plain, f"{ns}/x")
        assert shape_of(schema) == (3, 5, 4)
        assert data == transposed.tobytes("C")

    def test_a_permutation_takes_the_axis_names_along(self, plain: flight.FlightClient, ns: str) -> None:
        stored = samples.array("int32", (2, 3, 4, 5))
        kind = pa.fixed_shape_tensor(pa.int32(), [3, 4, 5], dim_names=["x", "y", "z"], permutation=[2, 0, 1])
        storage = pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1)), 60)
        put(plain, path(f"{ns}/x"), pa.ExtensionArray.from_storage(kind, storage))
        schema, data = get(plain, f"{ns}/x")
        assert shape_of(schema) == (2, 5, 3, 4)
        assert axes_of(schema) == ["", "z", "x", "y"]
        assert data == stored.transpose(0, 3, 1, 2).tobytes("C")

    def test_dim_names_name_the_inner_axes(self, plain: flight.FlightClient, ns: str) -> None:
        put(plain, path(f"{ns}/x"), rows(samples.array("int8", (2, 3, 4)), names=["head", "dim"]))
        assert act(plain, "info", key=f"{ns}/x")["axes"] == ["", "head", "dim"]

    @pytest.mark.parametrize("axes", ['["layer","","dim"]', "layer,,dim"])
    def test_axes_are_json_or_commas(self, plain: flight.FlightClient, ns: str, axes: str) -> None:
        array = samples.array("int8", (2, 3, 4))
        put(plain, path(f"{ns}/x"), rows(array, names=["a", "b"]), sira_axes=axes)
        assert act(plain, "info", key=f"{ns}/x")["axes"] == ["layer", "", "dim"]

    def test_the_key_is_the_paths_parts_joined(self, plain: flight.FlightClient, ns: str) -> None:
        for parts in ([ns, "a", "b"], [f"{ns}/a/b"], [ns, "a/b"]):
            answer = put(plain, flight.FlightDescriptor.for_path(*parts), pa.array([1]))
            assert answer["key"] == f"{ns}/a/b"

    def test_a_command(self, plain: flight.FlightClient, ns: str) -> None:
        array = samples.array("bfloat16", (2, 6))
        descriptor = command(
            v=1,
            key=f"{ns}/x",
            shape=[2, 6],
            dtype="BF16",
            axes=["a", "b"],
            codec="none",
            ttl=3600,
            consistency="strong",
            attributes={"who": "me"},
            **{"if": "absent"},
        )
        assert put(plain, descriptor, rows(array.view(np.uint16)))["created"] is True
        info = act(plain, "info", key=f"{ns}/x")
        assert (info["dtype"], info["shape"], info["axes"]) == ("bfloat16", [2, 6], ["a", "b"])
        assert (info["attributes"], info["consistency"]) == ({"who": "me"}, "strong")
        assert info["expires_ms"] - info["created_ms"] == 3_600_000
        assert get(plain, f"{ns}/x")[1] == array.tobytes()

    @pytest.mark.parametrize(
        "fields", [{}, {"v": 2}, {"v": 1, "shap": [3]}, {"v": 1, "key": 3}, {"v": 1, "shape": [-1]}], ids=str
    )
    def test_a_wrong_command(self, plain: flight.FlightClient, ns: str, fields: dict[str, Any]) -> None:
        with pytest.raises(pa.ArrowInvalid, match="SIRA_BAD_"):
            put(plain, command(**{"key": f"{ns}/x", **fields}), pa.array([1, 2, 3]))
        assert not exists(plain, f"{ns}/x")

    def test_a_command_and_metadata_at_once(self, plain: flight.FlightClient, ns: str) -> None:
        with pytest.raises(pa.ArrowInvalid, match="SIRA_BAD_REQUEST"):
            put(plain, command(v=1, key=f"{ns}/x"), pa.array([1, 2, 3]), sira_shape=[3])

    def test_attributes(self, plain: flight.FlightClient, ns: str) -> None:
        many = {f"sira_attr_{i}": "x" * 4096 for i in range(63)}
        put(plain, path(f"{ns}/x"), pa.array([1]), **many, sira_attr_größe="ü", mine="ignored")
        attributes = act(plain, "info", key=f"{ns}/x")["attributes"]
        assert attributes == {**{str(i): "x" * 4096 for i in range(63)}, "größe": "ü"}

    @pytest.mark.parametrize(
        "metadata, code",
        [
            ({"sira_shap": [3]}, "SIRA_BAD_REQUEST"),
            ({"sira_shape": "three"}, "SIRA_BAD_"),
            ({"sira_shape": [-3]}, "SIRA_BAD_"),
            ({"sira_shape": [1] * 65}, "SIRA_BAD_"),
            ({"sira_shape": [2**40, 2**40]}, "SIRA_BAD_"),
            ({"sira_dtype": "float3"}, "SIRA_BAD_"),
            ({"sira_dtype": "float32"}, "SIRA_BAD_TENSOR"),
            ({"sira_axes": "a,b"}, "SIRA_BAD_"),
            ({"sira_codec": "zip"}, "SIRA_UNKNOWN_CODEC"),
            ({"sira_ttl": "0"}, "SIRA_BAD_REQUEST"),
            ({"sira_ttl": "1.5"}, "SIRA_BAD_REQUEST"),
            ({"sira_ttl": "-1"}, "SIRA_BAD_REQUEST"),
            ({"sira_ttl": "soon"}, "SIRA_BAD_REQUEST"),
            ({"sira_consistency": "maybe"}, "SIRA_BAD_REQUEST"),
            ({"sira_if": "maybe"}, "SIRA_BAD_REQUEST"),
            ({f"sira_attr_{i}": "" for i in range(65)}, "SIRA_BAD_"),
            ({"sira_attr_" + "n" * 129: ""}, "SIRA_BAD_"),
            ({"sira_attr_n": "v" * 4097}, "SIRA_BAD_"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_wrong_metadata(
        self, plain: flight.FlightClient, ns: str, metadata: dict[str, Any], code: str
    ) -> None:
        with pytest.raises(pa.ArrowInvalid, match=code):
            put(plain, path(f"{ns}/x"), pa.array([1, 2, 3], pa.int64()), **metadata)
        assert not exists(plain, f"{ns}/x")

    def test_an_unknown_codec_is_told_the_known_ones(self, plain: flight.FlightClient, ns: str) -> None:
        with pytest.raises(pa.ArrowInvalid, match=r"SIRA_UNKNOWN_CODEC: .*lz4"):
            put(plain, path(f"{ns}/x"), pa.array([1]), sira_codec="zip")

    @pytest.mark.parametrize("codec", ["none", "lz4", "zstd", "zstd:9", "gzip", "planes+zstd"])
    def test_every_codec_keeps_every_bit(self, plain: flight.FlightClient, ns: str, codec: str) -> None:
        array = samples.array("bfloat16", (64, 3000))
        put(plain, path(f"{ns}/x"), rows(array.view(np.uint16)), sira_dtype="bfloat16", sira_codec=codec)
        assert get(plain, f"{ns}/x")[1] == array.tobytes()

    @pytest.mark.parametrize(
        "column",
        [
            NULL,
            pa.array(["a", "b"]).dictionary_encode(),
            pa.array([1, 1]).dictionary_encode(),
            pa.array([True, False]),
            pa.array(["a"]),
            pa.array([b"a"]),
            pa.array([[1, 2]]),
            pa.array([{"a": 1}]),
            pa.array([1], pa.timestamp("s")),
            pa.array([None, None]),
        ],
        ids=lambda column: str(column.type)[:30],
    )
    def test_columns_that_are_no_tensor(self, plain: flight.FlightClient, ns: str, column: pa.Array) -> None:
        with pytest.raises(pa.ArrowException, match=r"SIRA_(BAD_TENSOR|UNSUPPORTED)"):
            put(plain, path(f"{ns}/x"), column)
        assert not exists(plain, f"{ns}/x")

    def test_nulls_inside_a_tensor(self, plain: flight.FlightClient, ns: str) -> None:
        kind = pa.fixed_shape_tensor(pa.int32(), [3])
        column = pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(NULL, 3))
        with pytest.raises(pa.ArrowException, match="SIRA_BAD_TENSOR"):
            put(plain, path(f"{ns}/x"), column)
        assert not exists(plain, f"{ns}/x")

    @pytest.mark.parametrize("count", [0, 2])
    def test_not_one_column(self, plain: flight.FlightClient, ns: str, count: int) -> None:
        schema = pa.schema([pa.field(f"tensor{i}", pa.int32()) for i in range(count)])
        with pytest.raises(pa.ArrowException, match="SIRA_BAD_TENSOR"):
            send(plain, path(f"{ns}/x"), schema, [pa.RecordBatch.from_pylist([], schema=schema)])

    @pytest.mark.parametrize("compression", ["lz4", "zstd"])
    def test_compressed_bodies(self, plain: flight.FlightClient, ns: str, compression: str) -> None:
        options = flight.FlightCallOptions(write_options=pa.ipc.IpcWriteOptions(compression=compression))
        with pytest.raises(pa.ArrowException, match=r"SIRA_(BAD_TENSOR|UNSUPPORTED)"):
            put(plain, path(f"{ns}/x"), pa.array(np.zeros(10_000)), options)
        assert not exists(plain, f"{ns}/x")


class TestWhole:
    """A put is whole or it is not there."""

    def test_many_batches_with_a_shape(self, plain: flight.FlightClient, ns: str) -> None:
        array = samples.array("uint16", (10, 6))
        parts = [rows(array[start:stop]) for start, stop in ((0, 1), (1, 7), (7, 10))]
        put(plain, path(f"{ns}/x"), parts, sira_shape=[2, 5, 6], sira_axes="a,b,c")
        schema, data = get(plain, f"{ns}/x")
        assert (shape_of(schema), data) == ((2, 5, 6), array.tobytes())

    def test_a_second_batch_without_a_shape(self, plain: flight.FlightClient, ns: str) -> None:
        with pytest.raises(pa.ArrowInvalid, match=r"SIRA_INCOMPLETE: .*sira\.shape"):
            put(plain, path(f"{ns}/x"), [pa.array([1, 2]), pa.array([3])])
        assert not exists(plain, f"{ns}/x")

    def test_no_batch_without_a_shape(self, plain: flight.FlightClient, ns: str) -> None:
        with pytest.raises(pa.ArrowInvalid, match="SIRA_"):
            send(plain, path(f"{ns}/x"), pa.schema([pa.field("tensor", pa.int32())]), [])
        assert not exists(plain, f"{ns}/x")

    @pytest.mark.parametrize("batches", [0, 1, 2, 4])
    def test_too_few_or_too_many_rows(self, plain: flight.FlightClient, ns: str, batches: int) -> None:
        schema = pa.schema([pa.field("tensor", pa.int32())], metadata={"sira.shape": "[3,100]"})
        batch = pa.record_batch([pa.array(range(100), pa.int32())], schema=schema)
        with pytest.raises(pa.ArrowInvalid, match="SIRA_INCOMPLETE"):
            send(plain, path(f"{ns}/x"), schema, [batch] * batches)
        assert not exists(plain, f"{ns}/x")

    def test_a_broken_put_leaves_what_was_there(self, plain: flight.FlightClient, ns: str) -> None:
        before = put(plain, path(f"{ns}/x"), pa.array([7], pa.int32()))
        with pytest.raises(pa.ArrowInvalid, match="SIRA_INCOMPLETE"):
            put(plain, path(f"{ns}/x"), pa.array([8], pa.int32()), sira_shape=[2])
        assert get(plain, f"{ns}/x")[1] == np.array([7], np.int32).tobytes()
        assert act(plain, "info", key=f"{ns}/x")["version"] == before["version"]

    def test_a_writer_that_raises_half_way(self, plain: flight.FlightClient, ns: str) -> None:
        schema = pa.schema([pa.field("tensor", pa.int32())], metadata={"sira.shape": "[3,100]"})
        batch = pa.record_batch([pa.array(range(100), pa.int32())], schema=schema)
        writer, _ = plain.do_put(path(f"{ns}/x"), schema)
        # pyarrow ends the stream as if all were well: the exception is ours or the server's refusal.
        with pytest.raises((RuntimeError, pa.ArrowInvalid)), writer:
            writer.write_batch(batch)
            raise RuntimeError("the disk with the other half is gone")
        assert not exists(plain, f"{ns}/x")

    def test_a_shape_of_ten_terabytes_in_a_kilobyte(self, plain: flight.FlightClient, ns: str) -> None:
        with pytest.raises(pa.ArrowException, match=r"SIRA_(OUT_OF_SPACE|INCOMPLETE|BAD_TENSOR|BUSY)"):
            put(plain, path(f"{ns}/x"), pa.array(np.zeros(1024, np.uint8)), sira_shape=[10 << 40])
        assert not exists(plain, f"{ns}/x")
        assert act(plain, "health")["status"] == "healthy"

    def test_nothing_is_seen_before_the_end(self, plain: flight.FlightClient, ns: str) -> None:
        schema = pa.schema([pa.field("tensor", pa.int32())], metadata={"sira.shape": "[2,100]"})
        batch = pa.record_batch([pa.array(range(100), pa.int32())], schema=schema)
        writer, reader = plain.do_put(path(f"{ns}/x"), schema)
        writer.write_batch(batch)
        assert not exists(plain, f"{ns}/x")
        assert act(plain, "list", prefix=f"{ns}/")["entries"] == []
        writer.write_batch(batch)
        writer.done_writing()
        assert json.loads(reader.read().to_pybytes())["created"] is True
        writer.close()
        assert exists(plain, f"{ns}/x")


class TestConditions:
    def test_absent_is_answered_before_the_body(self, plain: flight.FlightClient, ns: str) -> None:
        put(plain, path(f"{ns}/x"), pa.array([1]))
        schema = pa.schema(
            [pa.field("tensor", pa.int64())], metadata={"sira.if": "absent", "sira.shape": "[4]"}
        )
        # Not one batch is written, and none would be enough: the refusal is that of the condition.
        # The limit only keeps a server that waits for the body from hanging the tests.
        writer, reader = plain.do_put(path(f"{ns}/x"), schema, flight.FlightCallOptions(timeout=60))
        with pytest.raises(pa.ArrowException, match="SIRA_EXISTS"):
            if reader.read() is None:
                writer.close()

    def test_absent(self, plain: flight.FlightClient, ns: str) -> None:
        assert put(plain, path(f"{ns}/x"), pa.array([0]), sira_if="absent")["created"] is True
        for i in range(1, 5):
            with pytest.raises(pa.ArrowException, match="SIRA_EXISTS"):
                put(plain, path(f"{ns}/x"), pa.array([i]), sira_if="absent")
        assert get(plain, f"{ns}/x")[1] == np.array([0]).tobytes()

    def test_versions(self, plain: flight.FlightClient, ns: str) -> None:
        first = put(plain, path(f"{ns}/x"), pa.array([1]))["version"]
        answer = put(plain, path(f"{ns}/x"), pa.array([2]), sira_if=str(first))
        assert answer["version"] > first
        assert answer["created"] is False
        with pytest.raises(pa.ArrowException, match="SIRA_STALE"):
            put(plain, path(f"{ns}/x"), pa.array([3]), sira_if=str(first))
        with pytest.raises(pa.ArrowException, match="SIRA_STALE"):
            act(plain, "delete", key=f"{ns}/x", **{"if": str(first)})
        assert get(plain, f"{ns}/x")[1] == np.array([2]).tobytes()
        assert act(plain, "delete", key=f"{ns}/x", **{"if": str(answer["version"])}) == {"deleted": True}
        with pytest.raises(pa.ArrowException, match=r"SIRA_(STALE|NOT_FOUND)"):
            put(plain, path(f"{ns}/x"), pa.array([3]), sira_if=str(first))

    def test_expiry_is_kept_to_at_once(self, plain: flight.FlightClient, ns: str) -> None:
        put(plain, path(f"{ns}/x"), pa.array([1]), sira_ttl="1")
        put(plain, path(f"{ns}/y"), pa.array([1]), sira_ttl="1")
        end = time.time() + 1.02
        while time.time() < end:
            time.sleep(0.02)
        # Client and server share a clock here, and the puts began before the wait did.
        for key in (f"{ns}/x", f"{ns}/y"):
            assert not exists(plain, key)
            with pytest.raises(KeyError, match="SIRA_NOT_FOUND"):
                get(plain, key)
            with pytest.raises(KeyError, match="SIRA_NOT_FOUND"):
                plain.get_flight_info(path(key))
        assert act(plain, "list", prefix=f"{ns}/")["entries"] == []
        assert act(plain, "delete", key=f"{ns}/x") == {"deleted": False}
        assert put(plain, path(f"{ns}/x"), pa.array([1]), sira_if="absent")["created"] is True


class TestKeys:
    @pytest.mark.parametrize(
        "rest",
        [
            "a",
            " ",
            ".",
            "a//b",
            "/a",
            "a/",
            "...",
            "a:b@c=d",
            "a?b#c%2e%2e&d*",
            "é/模型",
            "\\",
            "a.b",
            "k" * 512,
        ],
        ids=lambda rest: repr(rest)[:20],
    )
    def test_ordinary_ones(self, plain: flight.FlightClient, ns: str, rest: str) -> None:
        key = f"{ns}/{rest}"
        assert put(plain, path(key), pa.array([1, 2]))["key"] == key
        assert get(plain, {"key": key})[1] == get(plain, key)[1] == np.array([1, 2]).tobytes()
        assert [entry["key"] for entry in act(plain, "list", prefix=key)["entries"]] == [key]
        assert plain.get_flight_info(path(key)).total_bytes == 16
        assert act(plain, "delete", key=key) == {"deleted": True}
        assert not exists(plain, key)

    def test_keys_that_look_alike_are_different(self, plain: flight.FlightClient, ns: str) -> None:
        keys = [f"{ns}/{rest}" for rest in ("a", "A", "a/", "a//", "a%2F", "a ", "é", "e\u0301")]
        for i, key in enumerate(keys):
            assert put(plain, path(key), pa.array([i]))["created"] is True
        for i, key in enumerate(keys):
            assert get(plain, key)[1] == np.array([i]).tobytes()

    def test_the_longest_namespace_and_a_brace(self, plain: flight.FlightClient) -> None:
        for namespace in ("n" * 64, "é" * 32, "{ns}"):
            key = f"{namespace}/x"
            assert put(plain, path(key), pa.array([1]))["key"] == key
            assert get(plain, {"key": key})[1] == np.array([1]).tobytes()

    @pytest.mark.parametrize(
        "key",
        [
            *(
                "",
                "/",
                "a",
                "a/",
                "/a",
                "//a",
                "./a",
                "../a",
                "ns/..",
                "ns/../a",
                "ns/a/..",
                "ns/a/../b",
                "..",
            ),
            *("ns/\0", "ns/a\nb", "ns/\x1f", "ns/\x7f", "ns/\x85", "n\ts/a"),
            *("n" * 65 + "/a", "é" * 33 + "/a", "ns/" + "k" * 513, "ns/" + "é" * 257),
        ],
        ids=lambda key: repr(key)[:20],
    )
    def test_refused_ones(self, plain: flight.FlightClient, key: str) -> None:
        with pytest.raises(pa.ArrowInvalid, match="SIRA_BAD_KEY"):
            put(plain, path(key), pa.array([1]))
        with pytest.raises(pa.ArrowInvalid, match="SIRA_BAD_KEY"):
            put(plain, command(v=1, key=key), pa.array([1]))
        with pytest.raises(pa.ArrowInvalid, match="SIRA_BAD_KEY"):
            get(plain, {"key": key})
        for name in ("info", "exists", "delete"):
            with pytest.raises(pa.ArrowInvalid, match="SIRA_BAD_KEY"):
                act(plain, name, key=key)
        with pytest.raises(pa.ArrowInvalid, match="SIRA_BAD_KEY"):
            plain.get_flight_info(path(key))

    def test_a_path_that_is_no_text(self, plain: flight.FlightClient) -> None:
        with pytest.raises(pa.ArrowException):
            put(plain, flight.FlightDescriptor.for_path(b"ns/\xff\xfe"), pa.array([1]))
        with pytest.raises(pa.ArrowInvalid, match="SIRA_BAD_"):
            get(plain, b"ns/\xff\xfe")


class TestGet:
    def test_flight_info(self, plain: flight.FlightClient, ns: str) -> None:
        array = samples.array("float16", (4, 5, 6))
        version = put(plain, path(f"{ns}/x"), rows(array), sira_axes="a,b,c")["version"]
        for descriptor in (
            path(f"{ns}/x"),
            flight.FlightDescriptor.for_path(ns, "x"),
            command(v=1, key=f"{ns}/x"),
        ):
            info = plain.get_flight_info(descriptor)
            assert info.total_bytes == array.nbytes
            assert json.loads(info.app_metadata) == act(plain, "info", key=f"{ns}/x")
            (endpoint,) = info.endpoints
            assert endpoint.locations == []
            ticket = json.loads(endpoint.ticket.ticket)
            assert (ticket["v"], ticket["key"], ticket["version"]) == (1, f"{ns}/x", version)
            reader = plain.do_get(endpoint.ticket)
            assert reader.schema.equals(info.schema, check_metadata=True)
            batches = [chunk.data for chunk in reader]
            assert sum(batch.num_rows for batch in batches) == info.total_records
            assert b"".join(column_bytes(batch.column(0)) for batch in batches) == array.tobytes()

    def test_a_flight_info_demands_what_its_ticket_would(self, plain: flight.FlightClient, ns: str) -> None:
        first = put(plain, path(f"{ns}/x"), pa.array([1]))["version"]
        second = put(plain, path(f"{ns}/x"), pa.array([2]))["version"]
        for ask in (plain.get_flight_info, plain.get_schema):
            with pytest.raises(pa.ArrowException, match="SIRA_STALE"):
                ask(command(v=1, key=f"{ns}/x", version=first))
            with pytest.raises(pa.ArrowException, match="SIRA_NOT_FOUND"):
                ask(command(v=1, key=f"{ns}/x", kv_spec="0" * 64))
        info = plain.get_flight_info(command(v=1, key=f"{ns}/x", version=second, exact=True))
        ticket = json.loads(info.endpoints[0].ticket.ticket)
        assert (ticket["version"], ticket["exact"]) == (second, True)

    def test_a_ranged_flight_info(self, plain: flight.FlightClient, ns: str) -> None:
        array = samples.array("float16", (4, 5, 6))
        put(plain, path(f"{ns}/x"), rows(array), sira_axes="a,b,c")
        info = plain.get_flight_info(command(v=1, key=f"{ns}/x", slice={"b": [1, 3]}))
        part = array[:, 1:3]
        assert info.total_bytes == part.nbytes
        assert shape_of(info.schema) == part.shape
        assert get(plain, info.endpoints[0].ticket.ticket)[1] == part.tobytes("C")

    def test_schema(self, plain: flight.FlightClient, ns: str) -> None:
        put(plain, path(f"{ns}/x"), rows(samples.array("float16", (4, 5, 6))))
        schema = plain.get_schema(path(f"{ns}/x")).schema
        assert shape_of(schema) == (4, 5, 6)
        assert schema.equals(plain.do_get(flight.Ticket(f"{ns}/x")).schema, check_metadata=True)

    @pytest.mark.parametrize(
        "ranges",
        [
            {"layer": [1, 3]},
            {"token": [5, 13]},
            {"3": [2, 3]},
            {"layer": [0, 4], "token": [0, 20]},
            {"layer": [3, 4], "token": [19, 20], "3": [7, 8], "kv": [1, 2]},
            {"kv": [0, 1], "3": [1, 7]},
            {},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("dtype", ["bfloat16", "uint8", "complex64", "bool", "float64"])
    def test_ranges(
        self, plain: flight.FlightClient, ns: str, dtype: str, ranges: dict[str, list[int]]
    ) -> None:
        array = samples.array(dtype, (4, 2, 20, 8))
        names = ["layer", "kv", "token", ""]
        data = pa.array(array.reshape(-1).view(np.uint8))
        put(plain, path(f"{ns}/x"), data, sira_shape=[4, 2, 20, 8], sira_dtype=dtype, sira_axes=names)
        part = array[tuple(slice(*ranges.get(name or "3", [None])) for name in names)]
        schema, got = get(plain, {"key": f"{ns}/x", "slice": ranges})
        assert (shape_of(schema), dtype_of(schema), axes_of(schema)) == (part.shape, dtype, names)
        assert got == part.tobytes("C")

    def test_ranges_of_a_large_tensor(self, plain: flight.FlightClient, ns: str) -> None:
        # Several chunks on every axis, whatever the chunks are.
        array = samples.array("uint16", (6, 700, 3, 1000))
        put(plain, path(f"{ns}/x"), rows(array), sira_axes="layer,token,head,dim")
        rng = np.random.default_rng(1)
        for _ in range(12):
            edges = [sorted(rng.choice(extent + 1, 2, replace=False).tolist()) for extent in array.shape]
            ranges = dict(zip(("layer", "token", "head", "dim"), edges, strict=True))
            schema, got = get(plain, {"key": f"{ns}/x", "slice": ranges})
            part = array[tuple(slice(*edge) for edge in edges)]
            assert (shape_of(schema), got) == (part.shape, part.tobytes("C")), ranges

    @pytest.mark.parametrize(
        "fields",
        [
            {"slice": {"b": [0, 1]}},
            {"slice": {"2": [0, 1]}},
            {"slice": {"a": [0, 4]}},
            {"slice": {"a": [2, 1]}},
            {"slice": {"a": [-1, 1]}},
            {"slice": {"a": [0]}},
            {"slice": {"a": 1}},
            {"slice": [0, 1]},
            {"slices": {}},
            {"v": 2},
            {"version": "one"},
        ],
        ids=str,
    )
    def test_wrong_tickets(self, plain: flight.FlightClient, ns: str, fields: dict[str, Any]) -> None:
        put(plain, path(f"{ns}/x"), rows(np.zeros((3, 2), np.int8)), sira_axes="a,")
        with pytest.raises(pa.ArrowInvalid, match="SIRA_BAD_"):
            get(plain, {"key": f"{ns}/x", **fields})

    @pytest.mark.parametrize("ticket", [b"{", b"{}", b'{"v":1}', b"[]", b"", b"\x00\x01"], ids=repr)
    def test_tickets_that_are_none(self, plain: flight.FlightClient, ticket: bytes) -> None:
        with pytest.raises(pa.ArrowInvalid, match="SIRA_BAD_"):
            get(plain, ticket)

    def test_a_ticket_pins_its_version(self, plain: flight.FlightClient, ns: str) -> None:
        first = put(plain, path(f"{ns}/x"), pa.array([1]))["version"]
        assert get(plain, {"key": f"{ns}/x", "version": first})[1] == np.array([1]).tobytes()
        put(plain, path(f"{ns}/x"), pa.array([2]))
        with pytest.raises(pa.ArrowException, match="SIRA_STALE"):
            get(plain, {"key": f"{ns}/x", "version": first})

    @pytest.mark.parametrize(
        "shape", [(20, 300_001), (2, 3, 1_500_000), (1, 1, 2_500_000), (9_000_000,)], ids=str
    )
    def test_no_message_is_large(self, plain: flight.FlightClient, ns: str, shape: tuple[int, ...]) -> None:
        array = samples.array("uint16", shape)
        put(plain, path(f"{ns}/x"), pa.array(array.reshape(-1)), sira_shape=list(shape))
        reader = plain.do_get(flight.Ticket(f"{ns}/x"))
        parts = [column_bytes(chunk.data.column(0)) for chunk in reader]
        assert max(len(part) for part in parts) <= 4 << 20
        assert b"".join(parts) == array.tobytes()
        assert shape_of(reader.schema) == shape

    def test_an_empty_tensor_has_no_batch(self, plain: flight.FlightClient, ns: str) -> None:
        schema = pa.schema([pa.field("tensor", pa.float32())], metadata={"sira.shape": "[3,0,5]"})
        send(plain, path(f"{ns}/x"), schema, [])
        reader = plain.do_get(flight.Ticket(f"{ns}/x"))
        assert shape_of(reader.schema) == (3, 0, 5)
        assert list(reader) == []

    def test_what_is_not_there(self, plain: flight.FlightClient, ns: str) -> None:
        for ask in (
            lambda: get(plain, f"{ns}/none"),
            lambda: plain.get_flight_info(path(f"{ns}/none")),
            lambda: plain.get_schema(path(f"{ns}/none")),
            lambda: act(plain, "info", key=f"{ns}/none"),
        ):
            with pytest.raises(KeyError, match="SIRA_NOT_FOUND"):
                ask()


class TestList:
    def test_criteria(self, plain: flight.FlightClient, ns: str) -> None:
        keys = [f"{ns}/{name}" for name in ("a", "b/1", "b/2", "c", "é")]
        for i, key in enumerate(keys):
            put(plain, path(key), rows(np.zeros((2, i + 1), np.int16)))

        def listed(**criteria: Any) -> list[str]:
            found = plain.list_flights(json.dumps({"v": 1, **criteria}).encode())
            return [b"/".join(info.descriptor.path).decode() for info in found]

        assert listed(prefix=f"{ns}/") == keys
        assert listed(prefix=f"{ns}/b/") == keys[1:3]
        assert listed(prefix=f"{ns}/", after=keys[1]) == keys[2:]
        assert listed(prefix=f"{ns}/", after=f"{ns}/b") == keys[1:]
        assert listed(prefix=f"{ns}/", limit=2) == keys[:2]
        assert listed(prefix=f"{ns}/", after=keys[-1]) == []
        everything = [b"/".join(info.descriptor.path).decode() for info in plain.list_flights()]
        assert set(keys) <= set(everything)
        assert everything == sorted(everything, key=str.encode)
        (info,) = plain.list_flights(json.dumps({"v": 1, "prefix": f"{ns}/c"}).encode())
        assert info.total_bytes == 16
        assert shape_of(info.schema) == (2, 4)
        assert json.loads(info.app_metadata) == act(plain, "info", key=f"{ns}/c")
        assert get(plain, info.endpoints[0].ticket.ticket)[1] == bytes(16)

    @pytest.mark.parametrize(
        "criteria", [b"{", b"{}", b'{"v":1,"prefx":"a"}', b'{"v":1,"limit":"a"}', b"ns/"]
    )
    def test_wrong_criteria(self, plain: flight.FlightClient, criteria: bytes) -> None:
        with pytest.raises(pa.ArrowInvalid, match="SIRA_BAD_REQUEST"):
            list(plain.list_flights(criteria))

    def test_pages(self, plain: flight.FlightClient, ns: str) -> None:
        keys = [f"{ns}/{i}" for i in range(5)]
        for key in keys:
            put(plain, path(key), pa.array([1]))
        first = act(plain, "list", prefix=f"{ns}/", limit=2)
        assert [entry["key"] for entry in first["entries"]] == keys[:2]
        second = act(plain, "list", prefix=f"{ns}/", limit=2, after=first["next"])
        assert [entry["key"] for entry in second["entries"]] == keys[2:4]
        last = act(plain, "list", prefix=f"{ns}/", limit=2, after=second["next"])
        assert [entry["key"] for entry in last["entries"]] == keys[4:]
        assert "next" not in last
        assert "next" not in act(plain, "list", prefix=f"{ns}/", limit=5)
        assert first["entries"][0] == act(plain, "info", key=keys[0])
        for limit in (0, 10_001, -1):
            with pytest.raises(pa.ArrowInvalid, match="SIRA_BAD_REQUEST"):
                act(plain, "list", limit=limit)


class TestActions:
    def test_info(self, plain: flight.FlightClient, ns: str) -> None:
        answer = put(
            plain,
            path(f"{ns}/x"),
            rows(samples.array("int32", (4, 6))),
            sira_axes="a,b",
            sira_consistency="strong",
        )
        info = act(plain, "info", key=f"{ns}/x")
        assert set(info) == {
            *("key", "version", "generation", "dtype", "shape", "axes", "nbytes", "stored_bytes", "backend"),
            *("tiers", "codec", "consistency", "created_ms", "expires_ms", "attributes"),
        }
        assert (info["key"], info["version"]) == (f"{ns}/x", answer["version"])
        assert (info["dtype"], info["shape"], info["axes"]) == ("int32", [4, 6], ["a", "b"])
        assert (info["nbytes"], info["consistency"], info["attributes"]) == (96, "strong", {})
        assert info["expires_ms"] is None
        assert info["tiers"]
        assert isinstance(info["stored_bytes"], int)

    def test_exists_and_delete(self, plain: flight.FlightClient, ns: str) -> None:
        assert act(plain, "exists", key=f"{ns}/x") == {"exists": False, "cache": False}
        version = put(plain, path(f"{ns}/x"), pa.array([1]))["version"]
        assert act(plain, "exists", key=f"{ns}/x") == {"exists": True, "version": version, "cache": False}
        assert act(plain, "delete", key=f"{ns}/x") == {"deleted": True}
        assert act(plain, "delete", key=f"{ns}/x") == {"deleted": False}
        assert act(plain, "exists", key=f"{ns}/x") == {"exists": False, "cache": False}

    def test_an_empty_body_where_nothing_is_required(self, plain: flight.FlightClient) -> None:
        for name in ("stats", "health", "list"):
            (result,) = plain.do_action(name)
            assert isinstance(json.loads(result.body.to_pybytes()), dict)

    @pytest.mark.parametrize(
        "name, body",
        [
            ("info", b""),
            ("info", b"{"),
            ("info", b'{"key":"a/b"}'),
            ("exists", b'{"v":2,"key":"a/b"}'),
            ("exists", b'{"v":1,"key":"a/b","if":"1"}'),
            ("delete", b'{"v":1}'),
            ("delete", b'{"v":1,"key":"a/b","when":"now"}'),
            ("delete", b'{"v":1,"key":["a"]}'),
            ("stats", b'{"v":1,"all":true}'),
            ("list", b"\xff\xfe"),
        ],
        ids=str,
    )
    def test_wrong_bodies(self, plain: flight.FlightClient, name: str, body: bytes) -> None:
        with pytest.raises(pa.ArrowInvalid, match="SIRA_BAD_REQUEST"):
            list(plain.do_action(flight.Action(name, body)))

    def test_actions_are_listed(self, plain: flight.FlightClient) -> None:
        names = {action.type for action in plain.list_actions()}
        assert names >= {"info", "exists", "delete", "list", "stats", "health"}

    def test_an_unknown_action(self, plain: flight.FlightClient) -> None:
        with pytest.raises(pa.ArrowException, match=r"SIRA_(UNSUPPORTED|BAD_REQUEST)"):
            list(plain.do_action("dance"))

    def test_cancel_and_renew(self, plain: flight.FlightClient, ns: str) -> None:
        put(plain, path(f"{ns}/x"), pa.array([1]))
        info = plain.get_flight_info(path(f"{ns}/x"))
        # CancelFlightInfoRequest { info = 1 }, answered by CancelFlightInfoResult { status = 1 }, which is
        # NOT_CANCELLABLE = 3.
        (result,) = plain.do_action(flight.Action("CancelFlightInfo", field_one(info.serialize())))
        assert result.body.to_pybytes() == b"\x08\x03"
        endpoint = field_one(info.endpoints[0].serialize())
        with pytest.raises(NotImplementedError, match="SIRA_UNSUPPORTED"):
            list(plain.do_action(flight.Action("RenewFlightEndpoint", endpoint)))
        assert exists(plain, f"{ns}/x")

    def test_what_is_not_offered_says_so(self, plain: flight.FlightClient, ns: str) -> None:
        with pytest.raises(NotImplementedError, match="SIRA_UNSUPPORTED"):
            writer, reader = plain.do_exchange(path(f"{ns}/x"))
            try:
                reader.read_chunk()
            finally:
                writer.close()
        with pytest.raises(NotImplementedError, match="SIRA_UNSUPPORTED"):
            plain.authenticate_basic_token("user", "password")


def field_one(message: bytes) -> bytes:
    """A protobuf message whose field 1 is this message."""
    length, varint = len(message), b""
    while length > 127:
        varint += bytes([length & 127 | 128])
        length >>= 7
    return b"\x0a" + varint + bytes([length]) + message


def stored_as(dtype: str) -> np.dtype[Any]:
    """numpy's name of the Arrow type that a tensor of this type travels in."""
    if dtype == "bfloat16":
        return np.dtype(np.uint16)
    if dtype == "complex64":
        return np.dtype(np.float32)
    if dtype == "bool" or dtype in samples.BITS or dtype.startswith("float8"):
        return np.dtype(np.uint8)
    return np.dtype(dtype)


def carrier(dtype: str, shape: tuple[int, ...]) -> tuple[pa.Array, bytes]:
    """A random tensor's carrier, as the page about the wire has it, and its bytes."""
    array = samples.array(dtype, shape)
    if dtype in samples.BITS:
        size = array.size * samples.bits(dtype) // 8
        packed = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        return pa.array(packed), packed.tobytes()
    stored = array.reshape(-1).view(stored_as(dtype))
    inner = [*shape, 2] if dtype == "complex64" else [*shape]
    if len(inner) >= 2 and 0 not in inner:
        return rows(stored.reshape(inner)), array.tobytes()
    return pa.array(stored), array.tobytes()


@pytest.mark.parametrize("letter", ["x", "é"])
def test_a_long_error_keeps_its_code(plain: flight.FlightClient, ns: str, letter: str) -> None:
    with pytest.raises(pa.ArrowInvalid, match="SIRA_BAD_REQUEST"):
        act(plain, "info", **{"key": f"{ns}/x", letter * 10_000: 1})
    with pytest.raises(pa.ArrowInvalid, match="SIRA_BAD_REQUEST"):
        get(plain, {"key": f"{ns}/x", letter * 10_000: 1})


@pytest.mark.parametrize("nbytes", [64 << 10, 256 << 10, (1 << 20) + 8, 9 << 20])
def test_bodies_are_aligned_in_the_clients_memory(plain: flight.FlightClient, ns: str, nbytes: int) -> None:
    array = np.arange(nbytes // 8, dtype=np.int64)
    put(plain, path(f"{ns}/a"), pa.array(array), sira_shape=[array.size])
    many = json.dumps({"v": 1, "keys": [f"{ns}/a"]})
    for ticket in (f"{ns}/a", many):
        table = plain.do_get(flight.Ticket(ticket.encode())).read_all()
        buffers = [chunk.buffers()[-1] for chunk in table.column(0).chunks]
        assert {buffer.address % 16 for buffer in buffers} == {0}
        assert b"".join(column_bytes(chunk) for chunk in table.column(0).chunks)[:nbytes] == array.tobytes()
