"""The client processes. Each is a client of every peer in turn, so that all peers see the same ones."""

from __future__ import annotations

import multiprocessing
import traceback
from multiprocessing.connection import Connection
from typing import Any

from compare.peers.base import Buffers, Client, Peer, Sample


class ClientError(Exception):
    """What went wrong in a client."""


class Worker:
    """A client process, seen from the one that measures. `send` and `answer` alternate."""

    def __init__(self, index: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, far = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(index, far), daemon=True)
        self._process.start()
        far.close()

    def send(self, method: str, *arguments: Any) -> None:
        self._pipe.send((method, arguments))

    def answer(self, seconds: float = 120) -> Any:
        if not self._pipe.poll(seconds):
            raise ClientError(f"no answer of a client in {seconds:.0f} seconds")
        fine, value = self._pipe.recv()
        if not fine:
            raise ClientError(value)
        return value

    def leave(self) -> None:
        """Tells it that it is not needed any more."""
        self._pipe.close()

    def stop(self) -> None:
        """After `leave`. Some libraries never come to their end: those are ended."""
        self._process.join(timeout=2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class Clients:
    """What a client process has: its memory, and a connection to each peer."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._clients: dict[str, Client] = {}
        self._buffers = Buffers(1024, index)

    def connect(self, peer: Peer) -> None:
        self._clients[peer.name] = peer.connect(self._index)

    def resize(self, size: int) -> None:
        self._buffers = Buffers(size, self._index)

    def check(self, peer: str) -> tuple[str, ...]:
        """Puts the tensor and gets it back; the operations that this client has."""
        client = self._clients[peer]
        client.check(self._buffers.source)
        return client.operations

    def run(self, peer: str, operation: str, memory: str, start: float, seconds: float) -> Sample:
        return self._clients[peer].run(operation, memory, self._buffers, start, seconds)


def serve(index: int, pipe: Connection) -> None:
    """Does what comes through the pipe until it closes."""
    clients = Clients(index)
    while True:
        try:
            method, arguments = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            pipe.send((True, getattr(clients, method)(*arguments)))
        except Exception as error:
            words = str(error).strip().splitlines() or traceback.format_exc().strip().splitlines()[-1:]
            pipe.send((False, f"{type(error).__name__}: {words[0][:300]}"))
