"""Bytes over TCP and nothing else: what a socket carries."""

from __future__ import annotations

import socket
import struct

import numpy as np

from compare.peers.base import Bytes, Client, Process, Served, Through
from compare.peers.rust import RustClient
from compare.programs import wirebench

SMALL = 128 << 10
"""Up to so many bytes, a copy is cheaper than another system call."""


class RawClient(Client):
    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def put(self, data: Bytes) -> None:
        head = struct.pack("<cQ", b"P", data.nbytes)
        if data.nbytes <= SMALL:
            self._socket.sendall(head + data.tobytes())
        else:
            self._socket.sendall(head)
            self._socket.sendall(data.data)
        self._receive(memoryview(bytearray(1)))

    def get_fresh(self, size: int) -> Bytes:
        out = np.empty(size, dtype=np.uint8)
        self.get_into(out)
        return out

    def get_into(self, out: Bytes) -> None:
        self._socket.sendall(struct.pack("<cQ", b"G", out.nbytes))
        self._receive(out.data)

    def _receive(self, into: memoryview) -> None:
        while into.nbytes:
            got = self._socket.recv_into(into, 0, socket.MSG_WAITALL)
            if got == 0:
                raise ConnectionError("the server has closed the connection")
            into = into[got:]

    def close(self) -> None:
        self._socket.close()


class Raw(Served):
    name = "raw"
    about = "raw TCP: a length, then bytes; one buffer a connection, nothing is kept"
    stores = False

    def start(self) -> None:
        self._server = Process([wirebench(), "raw"], ready="listening on ")
        host, port = self._server.said.rsplit(":", 1)
        self.host, self.port = host, int(port)

    def connect(self, worker: int) -> Client:
        return RawClient(self.host, self.port)


class RawRust(Through):
    """The same server and another client, to set beside the clients in Rust."""

    name = "raw-rust"
    about = "raw TCP, its client in Rust"
    stores = False

    def start(self) -> None:
        assert isinstance(self.server, Raw)
        self.address = f"{self.server.host}:{self.server.port}"

    def connect(self, worker: int) -> Client:
        return RustClient("raw", self.address, "")
