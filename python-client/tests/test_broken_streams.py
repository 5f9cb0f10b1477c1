"""A server that breaks its promises: the client must never take a part for the whole. It is a small Flight
server of pyarrow's, since the real one does not do these things when asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import flight

import sira_store
from sira_store import _wire

ROWS = 1000
METADATA = {"sira.shape": json.dumps([4, ROWS]), "sira.dtype": "int32"}
SCHEMA = pa.schema([pa.field("tensor", pa.int32())], metadata=METADATA)


class Liar(flight.FlightServerBase):
    """Sends as many rows of the four as the key says, and ends as the key says."""

    def do_get(self, context: Any, ticket: flight.Ticket) -> flight.GeneratorStream:
        batches, end = json.loads(ticket.ticket)["key"].removeprefix("ns/").split("/")
        schema = SCHEMA.remove_metadata() if end == "nameless" else SCHEMA

        def stream() -> Iterator[pa.RecordBatch]:
            for row in range(int(batches)):
                yield pa.record_batch([pa.array(np.full(ROWS, row, np.int32))], schema=schema)
            if end == "corrupt":
                raise flight.FlightInternalError("SIRA_CORRUPT: ns/x: chunk 3 of backend object")
            if end == "cut":
                raise flight.FlightUnavailableError("Socket closed")

        return flight.GeneratorStream(schema, stream())

    def do_put(self, context: Any, descriptor: flight.FlightDescriptor, reader: Any, writer: Any) -> None:
        reader.read_all()

    def do_action(self, context: Any, action: flight.Action) -> list[bytes]:
        return []


@pytest.fixture(scope="module")
def liar(way: str) -> Iterator[sira_store.Client]:
    with Liar("grpc://127.0.0.1:0") as server, sira_store.connect(f"127.0.0.1:{server.port}") as client:
        yield client


def test_all_of_it_is_read(liar: sira_store.Client) -> None:
    expected = np.repeat(np.arange(4, dtype=np.int32), ROWS).reshape(4, ROWS)
    assert np.array_equal(liar.get("ns/4/clean"), expected)
    out = np.empty_like(expected)
    assert liar.get("ns/4/clean", out=out) is out
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("out", [None, np.empty((4, ROWS), np.int32)], ids=["new", "out"])
@pytest.mark.parametrize("batches", [0, 1, 3, 5, 9])
def test_a_clean_end_that_is_not_the_end(liar: sira_store.Client, batches: int, out: Any) -> None:
    with pytest.raises(sira_store.IncompleteError, match="SIRA_INCOMPLETE: the stream"):
        liar.get(f"ns/{batches}/clean", out=out)


@pytest.mark.parametrize("batches", [0, 2, 4])
def test_an_error_midway_or_behind_the_last_byte(liar: sira_store.Client, batches: int) -> None:
    with pytest.raises(sira_store.CorruptError, match="chunk 3 of backend object"):
        liar.get(f"ns/{batches}/corrupt")
    with pytest.raises(sira_store.UnavailableError):
        liar.get(f"ns/{batches}/cut")


def test_an_answer_that_is_no_tensor(liar: sira_store.Client) -> None:
    with pytest.raises(sira_store.InvalidError, match="is this a Sira server"):
        liar.get("ns/4/nameless")


def test_a_put_without_an_answer(liar: sira_store.Client) -> None:
    with pytest.raises(sira_store.IncompleteError, match="without an answer"):
        liar.put("ns/x", np.zeros(3))


def test_an_action_without_an_answer(liar: sira_store.Client) -> None:
    with pytest.raises(sira_store.InternalError, match="0 results"):
        liar.stats()


def test_the_one_message_of_a_small_tensor_is_not_copied() -> None:
    column = pa.array(np.arange(24, dtype=np.uint8))
    batch = pa.record_batch([column], schema=pa.schema([("tensor", pa.uint8())]))

    class Reader:
        chunks = iter([flight_chunk(batch)])

        def read_chunk(self) -> Any:
            return next(self.chunks)

    data = _wire.receive(Reader(), 24, None)
    assert data.ctypes.data == column.buffers()[1].address


def flight_chunk(batch: pa.RecordBatch) -> Any:
    """What a stream's reader gives for a batch."""
    return type("Chunk", (), {"data": batch})()
