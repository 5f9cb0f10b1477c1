"""The plain pyarrow client, and two of its servers: Arrow's own in C++, and the canned responder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import flight

from compare.peers.base import ROW, Bytes, Client, Process, Served
from compare.programs import wirebench


class FlightClient(Client):
    """What any user of pyarrow writes: a fixed-shape tensor out, a table in."""

    def __init__(self, url: str, key: str, ticket: str = "") -> None:
        """Puts under the path `key`; gets `ticket` (when empty, the key), in which {size} is the tensor's."""
        # By default gRPC calls a Unix socket by its path, which servers in Rust refuse as no host.
        options = [("grpc.default_authority", "localhost")] if url.startswith("grpc+unix:") else None
        self._client = flight.FlightClient(url, generic_options=options)
        self._descriptor = flight.FlightDescriptor.for_path(key)
        self._ticket = ticket or key
        self._source: Bytes | None = None
        self._batch: pa.RecordBatch

    def select(self, key: str) -> None:
        self._descriptor, self._ticket = flight.FlightDescriptor.for_path(key), key

    def put(self, data: Bytes) -> None:
        if data is not self._source:
            rows = data.view(np.uint16).reshape(-1, ROW // 2)
            tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(rows)
            self._source, self._batch = data, pa.record_batch([tensor], names=["tensor"])
        writer, answer = self._client.do_put(self._descriptor, self._batch.schema)
        writer.write_batch(self._batch)
        writer.done_writing()
        answer.read()
        writer.close()

    def get_fresh(self, size: int) -> pa.Table:
        return self._client.do_get(flight.Ticket(self._ticket.format(size=size))).read_all()

    def get_into(self, out: Bytes) -> None:
        at = 0
        for piece in self._client.do_get(flight.Ticket(self._ticket.format(size=out.nbytes))):
            data = _bytes(piece.data.column(0))
            out[at : at + data.nbytes] = data
            at += data.nbytes
        if at != out.nbytes:
            raise ValueError(f"{at} of {out.nbytes} bytes came")

    def check(self, data: Bytes) -> None:
        self.put(data)
        table = self.get_fresh(data.nbytes)
        got = np.concatenate([_bytes(chunk) for chunk in table.column(0).chunks])
        warm = np.zeros_like(data)
        self.get_into(warm)
        if not (np.array_equal(got, data) and np.array_equal(warm, data)):
            raise ValueError("other bytes came back than were put")

    def close(self) -> None:
        self._client.close()


class CannedClient(FlightClient):
    """The same client, of a server that stores nothing."""

    def check(self, data: Bytes) -> None:
        self.put(data)
        table = self.get_fresh(data.nbytes)
        if sum(_bytes(chunk).nbytes for chunk in table.column(0).chunks) != data.nbytes:
            raise ValueError("more or fewer bytes came than were asked for")


def _bytes(column: Any) -> Bytes:
    """The bytes of a tensor column, where they lie."""
    values = column.storage.flatten()
    whole = np.frombuffer(values.buffers()[1], dtype=np.uint8)
    return whole[2 * values.offset : 2 * (values.offset + len(values))]


class ArrowFlight(Served):
    """pyarrow's FlightServerBase: Arrow's C++ server, which keeps tables in a dict."""

    name = "arrow"
    about = "Arrow's C++ Flight server (pyarrow), its client pyarrow"

    def start(self) -> None:
        program = Path(__file__).with_name("arrow_server.py")
        self._server = Process([sys.executable, program], ready="listening on ")
        self.url = self._server.said

    def connect(self, worker: int) -> Client:
        return FlightClient(self.url, f"bench/{worker}")


class Canned(Served):
    """Ready frames, and uploads thrown away: the ceiling of a pyarrow client."""

    name = "canned"
    about = "frames made beforehand, uploads thrown away: what a pyarrow client can reach at all"
    stores = False

    def start(self) -> None:
        self._server = Process([wirebench(), "canned"], ready="listening on ")
        self.url = f"grpc://{self._server.said}"

    def connect(self, worker: int) -> Client:
        return CannedClient(self.url, "bench", "{size}")
