"""Writes crates/flight/tests/mutations/streams: put streams of pyarrow, as gRPC messages.

pyarrow's Flight client sends what its IPC writer writes, each message in a FlightData: this wraps them alike.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

FOLDER = Path(__file__).parent.parent / "crates/flight/tests/mutations/streams"


def field(number: int, value: bytes) -> bytes:
    """A protobuf field of bytes."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    low = number & 0x7F
    return bytes([low]) if number < 0x80 else bytes([low | 0x80]) + varint(number >> 7)


def messages(schema: pa.Schema, batches: list[pa.RecordBatch]) -> Iterator[pa.Message]:
    """The IPC messages of a stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    yield from pa.ipc.MessageReader.open_stream(sink.getvalue())


def write(
    name: str, descriptor: bytes, batches: list[pa.RecordBatch], metadata: list[bytes] | None = None
) -> None:
    """Writes one stream; `metadata` goes with its batches."""
    stream = b""
    for index, message in enumerate(messages(batches[0].schema, batches)):
        data = field(1, descriptor) if index == 0 else b""
        data += field(2, message.metadata.to_pybytes())
        if index > 0 and metadata:
            data += field(3, metadata[index - 1])
        if message.body is not None and message.body.size > 0:
            data += field(1000, message.body.to_pybytes())
        stream += b"\0" + len(data).to_bytes(4, "big") + data
    (FOLDER / f"{name}.bin").write_bytes(stream)


def path(*parts: str) -> bytes:
    """A FlightDescriptor of a path."""
    return varint(1 << 3) + varint(1) + b"".join(field(3, part.encode()) for part in parts)


def command(value: object) -> bytes:
    """A FlightDescriptor of a command."""
    return varint(1 << 3) + varint(2) + field(2, json.dumps(value).encode())


def main() -> None:
    """Writes all of them."""
    FOLDER.mkdir(exist_ok=True)
    array = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    tensor = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [3, 2], dim_names=["head", "dim"]),
        pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), 6),
    )
    write("tensor", path("ns", "pyarrow"), [pa.record_batch([tensor], names=["tensor"])])
    options = {"sira.shape": "[4,3,2]", "sira.dtype": "float32", "sira.attr.model": "m"}
    schema = pa.schema([pa.field("x", pa.float32())], metadata=options)
    batches = [pa.record_batch([pa.array(part.ravel())], schema=schema) for part in (array[:1], array[1:])]
    write("batches", path("ns/batches"), batches)
    permuted = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [3, 2], dim_names=["a", "b"], permutation=[1, 0]),
        pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), 6),
    )
    write("permuted", path("ns", "permuted"), [pa.record_batch([permuted], names=["tensor"])])
    items = {
        "items": [{"key": f"ns/many/{i}", "parts": [{"dtype": "float32", "shape": [3, 2]}]} for i in range(4)]
    }
    rows = pa.record_batch([pa.array(array.view(np.uint8).ravel())], names=["tensor"])
    write("many", command({"v": 1, "put_many": True}), [rows], [json.dumps(items).encode()])


if __name__ == "__main__":
    main()
