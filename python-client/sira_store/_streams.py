"""One tensor over several connections at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from pyarrow import flight

from . import _arrays, _wire
from ._dtypes import Bytes
from ._errors import InvalidError, translated

if TYPE_CHECKING:
    from typing import Any

MAX_STREAMS = 64
"""Streams of one get, at most: endpoints that a server gives."""

_T = TypeVar("_T")


class Connections:
    """A client's connection, and more to the same server, made when they are wanted. Threads share them."""

    def __init__(self, first: flight.FlightClient, connect: Callable[[], flight.FlightClient]) -> None:
        self._all = [first]
        self._connect = connect
        self._lock = Lock()

    def take(self, count: int) -> list[flight.FlightClient]:
        """So many of them."""
        with self._lock:
            while len(self._all) < count:
                self._all.append(self._connect())
            return self._all[:count]

    def close(self) -> None:
        """Ends them."""
        with self._lock:
            for connection in self._all:
                connection.close()


def check_streams(streams: int) -> None:
    """Refuses a number of streams that cannot be."""
    if isinstance(streams, bool) or not isinstance(streams, int) or not 1 <= streams <= MAX_STREAMS:
        raise InvalidError(
            f"SIRA_BAD_REQUEST: streams={streams!r}: it is 1 to {MAX_STREAMS}", "SIRA_BAD_REQUEST"
        )


def get(
    connections: Sequence[flight.FlightClient],
    info: flight.FlightInfo,
    options: flight.FlightCallOptions,
    url: str,
    out: Any,
    framework: _arrays.Framework,
) -> Any:
    """The tensor of `info`, each endpoint over a connection of its own, each into its place of one buffer."""
    with translated(url):
        spec = _wire.spec_of(info.schema)
    target = _arrays.incoming(spec.dtype, spec.shape, out, framework)
    readers: list[flight.FlightStreamReader] = []

    def open_(connection: flight.FlightClient, ticket: flight.Ticket) -> flight.FlightStreamReader:
        with translated(url):
            reader = connection.do_get(ticket, options)
            readers.append(reader)
            return reader

    def receive(reader: flight.FlightStreamReader, place: Bytes) -> None:
        with translated(url):
            _wire.receive(reader, place.size, place)

    try:
        opened = _together(open_, connections, [endpoint.ticket for endpoint in info.endpoints])
        with translated(url):
            ends = np.cumsum([_wire.spec_of(reader.schema).nbytes for reader in opened]).tolist()
        if ends[-1] != spec.nbytes:
            raise _wire.incomplete(f"streams of {ends[-1]} bytes for a tensor of {spec.nbytes}")
        data = np.empty(spec.nbytes, np.uint8) if target.buffer is None else target.buffer
        _together(receive, opened, np.split(data, ends[:-1]), stop=lambda: _cancel(readers))
    except BaseException:
        _cancel(readers)  # or the server would go on sending what nobody reads
        raise
    return target.finish(data)


def _cancel(readers: Sequence[flight.FlightStreamReader]) -> None:
    for reader in list(readers):
        reader.cancel()


def _together(
    run: Callable[[Any, Any], _T],
    first: Sequence[Any],
    second: Sequence[Any],
    stop: Callable[[], None] = lambda: None,
) -> list[_T]:
    """Runs each pair in a thread of its own. The error that comes first is raised, once `stop` has ended the
    others."""
    with ThreadPoolExecutor(len(second)) as pool:
        futures = [pool.submit(run, one, other) for one, other in zip(first, second, strict=True)]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop()
            raise
    return [future.result() for future in futures]
