"""The wire: what is written into descriptors, tickets and schemas, and what is read from a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import flight

from ._arrays import Outgoing
from ._dtypes import Bytes, nbytes
from ._errors import IncompleteError, InvalidError

BATCH_BYTES = 4 << 20
"""Bytes of a tensor in one message of a put."""


class Spec(NamedTuple):
    """What a stream's schema says of its tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return nbytes(self.dtype, self.shape)


def dumps(value: object) -> bytes:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def ticket(key: str, version: int | None, ranges: Mapping[str, tuple[int, int]] | None) -> flight.Ticket:
    """Always JSON: a plain key is taken for JSON when its namespace begins with a brace."""
    body: dict[str, Any] = {"v": 1, "key": key}
    if version is not None:
        body["version"] = version
    if ranges:
        body["slice"] = {name: list(bounds) for name, bounds in ranges.items()}
    return flight.Ticket(dumps(body))


def condition(if_: str | int) -> str:
    """`sira.if`: the word "absent" or a version."""
    if if_ == "absent":
        return if_
    if isinstance(if_, int) and not isinstance(if_, bool):
        return str(if_)
    raise InvalidError(
        f'SIRA_BAD_REQUEST: if_={if_!r}: it is "absent" or a version, a whole number', "SIRA_BAD_REQUEST"
    )


def schema(
    tensor: Outgoing,
    *,
    axes: Sequence[str] | None,
    codec: str | None,
    ttl: int | None,
    consistency: str | None,
    if_: str | int | None,
    attributes: Mapping[str, str] | None,
) -> pa.Schema:
    """A put's schema. The column is plain bytes, which carry any element type, and the shape is always said,
    so that a stream that breaks off commits nothing."""
    metadata: dict[str, str | bytes] = {"sira.shape": dumps(list(tensor.shape)), "sira.dtype": tensor.dtype}
    if axes is not None:
        if isinstance(axes, str):
            raise InvalidError(
                f"SIRA_BAD_REQUEST: axes={axes!r}: a list of names, one an axis", "SIRA_BAD_REQUEST"
            )
        metadata["sira.axes"] = dumps(list(axes))
    if codec is not None:
        metadata["sira.codec"] = codec
    if ttl is not None:
        if not float(ttl).is_integer():
            raise InvalidError(
                f"SIRA_BAD_REQUEST: ttl={ttl!r}: it is a whole number of seconds", "SIRA_BAD_REQUEST"
            )
        metadata["sira.ttl"] = str(int(ttl))
    if consistency is not None:
        metadata["sira.consistency"] = consistency
    if if_ is not None:
        metadata["sira.if"] = condition(if_)
    for name, text in (attributes or {}).items():
        metadata[f"sira.attr.{name}"] = text
    return pa.schema([pa.field("tensor", pa.uint8(), nullable=False)], metadata=metadata)


def batches(data: Bytes, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The tensor's bytes as record batches over the same memory."""
    buffer = pa.py_buffer(data)
    for start in range(0, data.size, BATCH_BYTES):
        part = buffer.slice(start, min(BATCH_BYTES, data.size - start))
        column = pa.Array.from_buffers(pa.uint8(), part.size, [None, part], null_count=0)
        yield pa.RecordBatch.from_arrays([column], schema=schema)


def spec_of(schema: pa.Schema) -> Spec:
    """What a get's schema says of its tensor."""
    metadata = schema.metadata or {}
    try:
        return Spec(metadata[b"sira.dtype"].decode(), tuple(json.loads(metadata[b"sira.shape"])))
    except (KeyError, ValueError) as error:
        raise InvalidError(
            f"SIRA_BAD_TENSOR: the answer has no tensor's schema, is this a Sira server? {error!r}",
            "SIRA_BAD_TENSOR",
        ) from error


def column_bytes(batch: pa.RecordBatch) -> Bytes:
    """The bytes of a batch's rows, in order, where they lie."""
    column = batch.column(0)
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_fixed_size_list(column.type):
        column = column.flatten()
    if not len(column):
        return np.empty(0, np.uint8)
    width = column.type.bit_width // 8
    return np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)


def receive(reader: flight.FlightStreamReader, size: int, buffer: Bytes | None) -> Bytes:
    """All of a stream, which must be exactly `size` bytes. Each byte is copied once, into `buffer` or into
    memory allocated here, or not at all when all come in one message and the caller has no place for them."""
    filled = 0
    while True:
        # To the very end, even when all bytes are here: the status comes behind them.
        try:
            batch = reader.read_chunk().data
        except StopIteration:
            break
        data = column_bytes(batch)
        if filled + data.size > size:
            raise _incomplete(f"the stream went on after the tensor's {size} bytes")
        if buffer is None and data.size == size:
            buffer = data
        elif data.size:
            if buffer is None:
                buffer = np.empty(size, np.uint8)
            buffer[filled : filled + data.size] = data
        filled += data.size
    if filled != size:
        raise _incomplete(f"the stream ended after {filled} of {size} bytes")
    return np.empty(0, np.uint8) if buffer is None else buffer


def _incomplete(message: str) -> IncompleteError:
    return IncompleteError(f"SIRA_INCOMPLETE: {message}", "SIRA_INCOMPLETE")
