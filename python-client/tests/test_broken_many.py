"""A server that breaks the promises of streams of many keys: nothing wrong is taken for right, and nothing is
allocated beyond what came. A small Flight server of pyarrow's, since the real one does none of this."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import flight

import sira_store
from sira_store import Item
from sira_store._get_many import Collector
from sira_store._put_many import Sender, announce

SCHEMA = pa.schema([pa.field("tensor", pa.uint8())])
KEY = {"version": 1, "parts": 1}
PART = {"dtype": "int32", "shape": [4]}
WHOLE = bytes(range(16))

Message = tuple[Any, bytes]
"""Metadata, bytes."""


def first(index: int = 0, bytes: int = 16, **fields: Any) -> dict[str, Any]:
    """A segment that begins a key."""
    return {"index": index, "offset": 0, "bytes": bytes, "key": KEY, "part": PART, **fields}


def said(*segments: dict[str, Any]) -> dict[str, Any]:
    return {"segments": list(segments)}


STREAMS: dict[str, list[Message]] = {
    "whole": [(said(first()), WHOLE), (said(first(1)), WHOLE)],
    "split": [
        (said(first(bytes=5)), WHOLE[:5]),
        (said({"index": 0, "offset": 0, "bytes": 11}, first(1, offset=11)), WHOLE[5:] + WHOLE),
    ],
    "no keys": [],
    "one of two": [(said(first()), WHOLE)],
    "three of two": [(said(first(i)), WHOLE) for i in range(3)],
    "out of order": [(said(first(1)), WHOLE), (said(first(0)), WHOLE)],
    "twice": [(said(first()), WHOLE), (said(first()), WHOLE)],
    "negative index": [(said(first(-1)), WHOLE)],
    "index of text": [(said(first("0")), WHOLE)],  # type: ignore[arg-type]
    "too few bytes": [(said(first(bytes=15)), WHOLE), (said(first(1)), WHOLE)],
    "too many bytes": [(said(first(bytes=17)), WHOLE + b"x"), (said(first(1)), WHOLE)],
    "behind the message": [(said(first(offset=8)), WHOLE)],
    "before the message": [(said(first(offset=-8)), WHOLE)],
    "negative bytes": [(said(first(bytes=-1)), WHOLE)],
    "fractions": [(said(first(offset=0.5)), WHOLE)],
    "no header": [(said({"index": 0, "offset": 0, "bytes": 16, "part": PART}), WHOLE)],
    "no part": [(said({"index": 0, "offset": 0, "bytes": 16, "key": KEY}), WHOLE)],
    "two headers": [(said(first(bytes=8), first(bytes=8, offset=8)), WHOLE)],
    "no parts": [(said(first(key={"version": 1, "parts": 0})), WHOLE)],
    "too many parts": [(said(first(key={"version": 1, "parts": 65})), WHOLE)],
    "a part that never comes": [
        (said(first(key={"version": 1, "parts": 2})), WHOLE),
        (said(first(1)), WHOLE),
    ],
    "a part twice": [
        (said(first(key={"version": 1, "parts": 2})), WHOLE),
        (said({"index": 0, "offset": 0, "bytes": 16, "part": PART}), WHOLE),
    ],
    "a part within a part": [
        (said(first(bytes=8)), WHOLE[:8]),
        (said({"index": 0, "offset": 0, "bytes": 16, "part": PART}), WHOLE),
    ],
    "huge": [(said(first(part={"dtype": "uint8", "shape": [1 << 62]})), WHOLE)],
    "large": [(said(first(bytes=1, part={"dtype": "uint8", "shape": [1 << 33]})), b"x")],
    "huger": [(said(first(part={"dtype": "uint8", "shape": [1 << 62] * 3})), WHOLE)],
    "huge and empty": [(said(first(bytes=0, part={"dtype": "uint8", "shape": [0, 1 << 62, 1 << 62]})), b"")],
    "negative shape": [(said(first(part={"dtype": "uint8", "shape": [-4, -4]})), WHOLE)],
    "shape of text": [(said(first(part={"dtype": "uint8", "shape": ["16"]})), WHOLE)],
    "many axes": [(said(first(part={"dtype": "uint8", "shape": [16] + [1] * 64})), WHOLE)],
    "part of a list": [(said(first(part=[1])), WHOLE)],
    "name of a list": [(said(first(part={"name": ["k"], **PART})), WHOLE)],
    "no json": [(b"{", WHOLE)],
    "deep": [(b"[" * 100_000, WHOLE)],
    "not utf-8": [(b'{"segments":"\xff"}', WHOLE)],
    "a list": [(b"[]", WHOLE)],
    "nothing": [(b"", WHOLE)],
    "no segments": [({}, WHOLE)],
    "segments of numbers": [({"segments": [7]}, WHOLE)],
    "an error that is none": [(said({"index": 0, "error": 7}), b"")],
}


class Liar(flight.FlightServerBase):
    """Answers with the stream that the first key names; of a put, with as many results as it names."""

    def do_get(self, context: Any, ticket: flight.Ticket) -> Any:
        name = json.loads(ticket.ticket)["keys"][0].removeprefix("ns/")
        return flight.GeneratorStream(SCHEMA, self.stream(name))

    def stream(self, name: str) -> Iterator[Any]:
        yield from ()
        name, _, end = name.partition("|")
        for metadata, data in STREAMS[name]:
            batch = pa.record_batch([pa.array(np.frombuffer(data, np.uint8))], schema=SCHEMA)
            yield batch, metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
        if end == "cut":
            raise flight.FlightUnavailableError("Socket closed")
        if end == "broken":
            raise flight.FlightInternalError("SIRA_BACKEND: backend object: gone")

    def do_put(self, context: Any, descriptor: flight.FlightDescriptor, reader: Any, writer: Any) -> None:
        keys = []
        while True:
            try:
                chunk = reader.read_chunk()
            except StopIteration:
                break
            if chunk.app_metadata is not None:
                keys += [item["key"] for item in json.loads(chunk.app_metadata.to_pybytes())["items"]]
        many = int(keys[0].removeprefix("ns/"))
        if many >= 0:
            results = [{"key": key, "version": 1, "created": True} for key in keys]
            writer.write(json.dumps({"results": (results * 3)[:many]}).encode())

    def do_action(self, context: Any, action: flight.Action) -> list[bytes]:
        # One key: its text lies between the header and its length.
        return [action.body.to_pybytes()[12:-2].removeprefix(b"ns/")]


@pytest.fixture(scope="module")
def liar(way: str) -> Iterator[sira_store.Client]:
    with Liar("grpc://127.0.0.1:0") as server, sira_store.connect(f"127.0.0.1:{server.port}") as client:
        yield client


def keys(name: str) -> list[str]:
    return [f"ns/{name}", "ns/other"]


@pytest.mark.parametrize("name", ["whole", "split"])
def test_what_is_right_is_read(liar: sira_store.Client, name: str) -> None:
    expected = np.frombuffer(WHOLE, np.int32)
    assert all(np.array_equal(array, expected) for array in liar.get_many(keys(name)))
    out = [np.empty(4, np.int32), np.empty(4, np.int32)]
    filled = liar.get_many(keys(name), out)
    assert all(a is b and np.array_equal(a, expected) for a, b in zip(filled, out, strict=True))


@pytest.mark.parametrize("out", [None, [np.empty(4, np.int32)] * 2], ids=["new", "out"])
@pytest.mark.parametrize("name", [name for name in STREAMS if name not in ("whole", "split")])
def test_what_is_wrong_is_refused(liar: sira_store.Client, name: str, out: Any) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((sira_store.IncompleteError, sira_store.InvalidError, MemoryError)):
        liar.get_many(keys(name), out)
    # The most this process ever had, in KiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (64 << 10)


@pytest.mark.parametrize("name", ["no keys", "one of two", "whole"])
@pytest.mark.parametrize("end, error", [("cut", "UnavailableError"), ("broken", "UnavailableError")])
def test_a_stream_that_breaks_off(liar: sira_store.Client, name: str, end: str, error: str) -> None:
    with pytest.raises(getattr(sira_store, error)):
        liar.get_many(keys(f"{name}|{end}"))


def test_wrong_parts_are_refused(liar: sira_store.Client) -> None:
    for parts in (["k"], ["data", "k"], []):
        with pytest.raises(sira_store.IncompleteError):
            liar.get_many(keys("whole"), parts=parts)
    assert list(liar.get_many(keys("whole"), parts=["data"])[0]) == ["data"]


@pytest.mark.parametrize("many", [-1, 0, 1, 3])
def test_a_put_with_too_few_or_too_many_results(liar: sira_store.Client, many: int) -> None:
    with pytest.raises(sira_store.IncompleteError):
        liar.put_many({f"ns/{many}": np.zeros(3), "ns/x": np.zeros(3)})
    if many != 1:
        with pytest.raises(sira_store.IncompleteError):
            liar.put(f"ns/{many}", {"k": np.zeros(3)})


@pytest.mark.parametrize(
    "answer", ["{}", '{"bitmap":""}', '{"bitmap":"AAA="}', '{"bitmap":"?"}', '{"bitmap":7}', "[]", "{"]
)
def test_a_wrong_bitmap_is_refused(liar: sira_store.Client, answer: str) -> None:
    with pytest.raises(sira_store.InternalError):
        liar.exists_many([f"ns/{answer}"], deadline=None)


def test_arrays_that_came_whole_are_not_copied() -> None:
    body = np.frombuffer(np.arange(256, dtype=np.int32).tobytes(), np.uint8)
    part = {"dtype": "int32", "shape": [2, 16]}
    segments = [first(i, 128, offset=128 * i, part=part) for i in range(3)]
    out = [None, np.empty((2, 16), np.int32), None]
    collector = Collector(["ns/a", "ns/b", "ns/c"], out, parts=None, framework="numpy")
    collector.message(json.dumps(said(*segments)).encode(), body)
    collector.end()
    assert [np.shares_memory(array, body) for array in collector.results] == [True, False, True]
    assert collector.results[1] is out[1]
    assert np.array_equal(np.concatenate(collector.results).ravel(), np.arange(96))


def test_large_arrays_are_sent_from_where_they_lie_and_small_ones_together() -> None:
    sent: list[tuple[list[str], int, int]] = []

    class Writer:
        def write_with_metadata(self, batch: pa.RecordBatch, metadata: pa.Buffer) -> None:
            keys = [item["key"] for item in json.loads(metadata.to_pybytes())["items"]]
            sent.append((keys, batch.column(0).buffers()[1].address, len(batch)))

        def write_batch(self, batch: pa.RecordBatch) -> None:
            sent.append(([], batch.column(0).buffers()[1].address, len(batch)))

        def write_metadata(self, metadata: pa.Buffer) -> None:
            sent.append(([item["key"] for item in json.loads(metadata.to_pybytes())["items"]], 0, 0))

        def done_writing(self) -> None: ...

        def close(self) -> None: ...

    class Client:
        def do_put(self, *_: Any) -> tuple[Any, Any]:
            results = [{"key": key, "version": 1, "created": True} for keys, _, _ in sent for key in keys]
            answer = pa.py_buffer(json.dumps({"results": results}).encode())
            return Writer(), type("Reader", (), {"read": lambda _: answer})()

    large, larger = np.zeros(1 << 20, np.uint8), np.zeros((9 << 20) + 1, np.uint8)
    few, most = np.zeros(10, np.uint8), np.zeros((512 << 10) - 1, np.uint8)
    with Sender(Client(), None, "grpc://") as sender:
        for key, array in zip(
            "abcdefgh", (few, few, large, larger, few[:0], most, few, few[:0]), strict=True
        ):
            sender.add(*announce(key, Item(array), None))
        for i in range(8):
            sender.add(*announce(str(i), Item(most), None))
        sender.finish()
    at = larger.ctypes.data
    assert [(keys, size) for keys, _, size in sent] == [
        (["a", "b", "c"], 20),
        ([], 1 << 20),
        (["d"], 4 << 20),
        ([], 4 << 20),
        ([], (1 << 20) + 1),
        ([*"efgh0123456"], 10 + 7 * most.size),  # announces a key that no longer fits in
        (["7"], 2 * most.size),
    ]
    assert [address for _, address, _ in sent[1:5]] == [large.ctypes.data, at, at + (4 << 20), at + (8 << 20)]
