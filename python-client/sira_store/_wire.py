"""The wire: what is written into descriptors, tickets and schemas, and what is read from a stream."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import flight

from ._arrays import Outgoing
from ._dtypes import Bytes, nbytes
from ._errors import IncompleteError, InvalidError, by_code

BATCH_BYTES = 4 << 20
"""Bytes of a tensor in one message of a put."""

MAX_KEYS = 65_536
"""Keys of one request, at most."""

MAX_REQUEST = 4_000_000
"""Bytes of one request, at most: a little less than gRPC servers take where nobody configured it."""


KEY_LIST = b"\0SK\1"
"""What a list of keys in binary form begins with, which no JSON does."""

_UINT8 = pa.uint8()

BYTES = pa.schema([pa.field("tensor", _UINT8, nullable=False)])
"""A stream of plain bytes, which carry any element type."""


class Spec(NamedTuple):
    """What a stream's schema says of its tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return nbytes(self.dtype, self.shape)


# json.dumps would make one a call: as dear as the encoding of a small object.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def dumps(value: object) -> bytes:
    """Compact JSON."""
    return _ENCODER.encode(value).encode()


def answer(what: str, text: pa.Buffer | None) -> dict[str, Any]:
    """The JSON object that a server answers with."""
    if text is None:
        raise incomplete(f"{what}: the server ended the put without an answer")
    try:
        answer: dict[str, Any] = json.loads(text.to_pybytes())
    except (ValueError, RecursionError) as error:
        raise by_code("SIRA_INTERNAL", f"SIRA_INTERNAL: {what}: the answer is no JSON: {error}") from error
    if not isinstance(answer, dict):
        raise by_code("SIRA_INTERNAL", f"SIRA_INTERNAL: {what}: the answer is no object")
    return answer


def given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None: what a request does not say has the server's default."""
    return {name: value for name, value in fields.items() if value is not None}


def ticket(key: str, **options: Any) -> flight.Ticket:
    """As `wanted`. Always JSON: a plain key is taken for JSON when its namespace begins with a brace."""
    return flight.Ticket(wanted(key, **options))


def wanted(
    key: str,
    *,
    version: int | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    part: str | None = None,
    kv_spec: str | None = None,
    exact: bool | None = None,
    endpoints: int | None = None,
    encoded: Sequence[str] | None = None,
) -> bytes:
    """What a get asks for. endpoints: of a FlightInfo, in how many streams it would have it. encoded: stages
    of codecs that are decoded here."""
    fields = given(
        version=version, part=part, kv_spec=kv_spec, exact=exact, endpoints=endpoints, encoded=encoded
    )
    if ranges:
        fields["slice"] = {name: list(bounds) for name, bounds in ranges.items()}
    return dumps({"v": 1, "key": key, **fields})


def requests(keys: Sequence[str], **fields: Any) -> Iterator[tuple[int, bytes]]:
    """The bodies of requests for many keys, each with the number of its keys: as few as may be sent."""
    for start in range(0, len(keys), MAX_KEYS):
        page = keys[start : start + MAX_KEYS]
        body = dumps({"v": 1, "keys": page, **fields})
        if len(body) > MAX_REQUEST and len(page) > 1:
            half = len(page) // 2
            yield from requests(page[:half], **fields)
            yield from requests(page[half:], **fields)
        else:
            yield len(page), body


def key_lists(keys: Sequence[str], kv_spec: str | None = None) -> Iterator[tuple[int, bytes]]:
    """As `requests`, in the binary form of lists of keys, which takes a fraction of JSON's time."""
    options = b"" if kv_spec is None else dumps({"kv_spec": kv_spec})
    for start in range(0, len(keys), MAX_KEYS):
        yield from _key_lists(keys[start : start + MAX_KEYS], start, options)


def _key_lists(page: Sequence[str], start: int, options: bytes) -> Iterator[tuple[int, bytes]]:
    try:
        text = "".join(page).encode()
        # Where all is ASCII, there are as many bytes as characters.
        sizes = map(len, page) if text.isascii() else (len(key.encode()) for key in page)
        lengths = np.fromiter(sizes, np.int64, len(page))
    except (TypeError, UnicodeEncodeError) as error:
        raise InvalidError(f"SIRA_BAD_REQUEST: keys from {start} on: {error}", "SIRA_BAD_REQUEST") from error
    if lengths.max(initial=0) > 0xFFFF:
        at = int(lengths.argmax())
        raise InvalidError(
            f"SIRA_BAD_KEY: key {start + at}: {lengths[at]} bytes: {page[at][:80]!r}...", "SIRA_BAD_KEY"
        )
    header = KEY_LIST + struct.pack("<II", len(page), len(options))
    body = b"".join((header, options, text, lengths.astype("<u2").tobytes()))
    if len(body) > MAX_REQUEST and len(page) > 1:
        half = len(page) // 2
        yield from _key_lists(page[:half], start, options)
        yield from _key_lists(page[half:], start + half, options)
    else:
        yield len(page), body


def axis_names(axes: Sequence[str]) -> list[str]:
    """One name an axis."""
    if isinstance(axes, (str, Mapping)):
        raise InvalidError(
            f"SIRA_BAD_REQUEST: axes={axes!r}: a list of names, one an axis", "SIRA_BAD_REQUEST"
        )
    return list(axes)


def seconds(ttl: float) -> int:
    """A time to live."""
    if not float(ttl).is_integer():
        raise InvalidError(
            f"SIRA_BAD_REQUEST: ttl={ttl!r}: it is a whole number of seconds", "SIRA_BAD_REQUEST"
        )
    return int(ttl)


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
    kv_spec: str | None = None,
    derived_from_lossy: bool | None = None,
) -> pa.Schema:
    """A put's schema. The column is plain bytes, which carry any element type, and the shape is always said,
    so that a stream that breaks off commits nothing."""
    metadata: dict[str, str | bytes] = {"sira.shape": dumps(list(tensor.shape)), "sira.dtype": tensor.dtype}
    if axes is not None:
        metadata["sira.axes"] = dumps(axis_names(axes))
    if codec is not None:
        metadata["sira.codec"] = codec
    if ttl is not None:
        metadata["sira.ttl"] = str(seconds(ttl))
    if consistency is not None:
        metadata["sira.consistency"] = consistency
    if if_ is not None:
        metadata["sira.if"] = condition(if_)
    if kv_spec is not None:
        metadata["sira.kv_spec"] = kv_spec
    if derived_from_lossy:
        metadata["sira.derived_from_lossy"] = "true"
    for name, text in (attributes or {}).items():
        metadata[f"sira.attr.{name}"] = text
    return BYTES.with_metadata(metadata)


def batches(data: Bytes, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The tensor's bytes as record batches over the same memory."""
    buffer = pa.py_buffer(data)
    for start in range(0, data.size, BATCH_BYTES):
        part = buffer.slice(start, min(BATCH_BYTES, data.size - start))
        column = pa.Array.from_buffers(_UINT8, part.size, [None, part], null_count=0)
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


class Gathering:
    """The bytes of a tensor as they come, which must be exactly `size`. Each is copied once, into `buffer` or
    into memory allocated here, or not at all when all come at once and the caller has no place for them."""

    def __init__(self, size: int, buffer: Bytes | None) -> None:
        self.size = size
        self.filled = 0
        self._buffer = buffer

    def add(self, data: Bytes) -> None:
        """The next bytes."""
        filled = self.filled + data.size
        if filled > self.size:
            raise incomplete(f"the stream went on after the tensor's {self.size} bytes")
        if self._buffer is None and data.size == self.size:
            self._buffer = data
        elif data.size:
            if self._buffer is None:
                self._buffer = np.empty(self.size, np.uint8)
            self._buffer[self.filled : filled] = data
        self.filled = filled

    def room(self, size: int) -> Bytes:
        """Where the next bytes go, for whoever writes them there."""
        start, filled = self.filled, self.filled + size
        if filled > self.size:
            raise incomplete(f"the stream went on after the tensor's {self.size} bytes")
        if self._buffer is None:
            self._buffer = np.empty(self.size, np.uint8)
        self.filled = filled
        return self._buffer[start:filled]

    def finish(self) -> Bytes:
        """All of them."""
        if self.filled != self.size:
            raise incomplete(f"the stream ended after {self.filled} of {self.size} bytes")
        return np.empty(0, np.uint8) if self._buffer is None else self._buffer


def receive(reader: flight.FlightStreamReader, size: int, buffer: Bytes | None) -> Bytes:
    """All of a stream that is one tensor."""
    gathering = Gathering(size, buffer)
    while True:
        # To the very end, even when all bytes are here: the status comes behind them.
        try:
            batch = reader.read_chunk().data
        except StopIteration:
            return gathering.finish()
        gathering.add(column_bytes(batch))


def incomplete(message: str) -> IncompleteError:
    """A stream that is not what was promised."""
    return IncompleteError(f"SIRA_INCOMPLETE: {message}", "SIRA_INCOMPLETE")
