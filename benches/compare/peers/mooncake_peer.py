"""Mooncake Store over TCP: its master, and a process that lends it memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from compare.peers.base import Bytes, Client, Peer, Process, UnavailableError
from compare.peers.redis_peer import free_port, wait_for

SEGMENT = 4 << 30
LOCAL_BUFFER = 128 << 20
"""As Mooncake's documentation has it."""


class MooncakeClient(Client):
    """The store's Python binding; buffers that stay are registered, as its documentation asks."""

    def __init__(self, master: str, key: str) -> None:
        self._store: Any = open_store(master, 0)
        self._key, self._version = key, 0
        self._registered: dict[int, Bytes] = {}

    def put(self, data: Bytes) -> None:
        # A key is written once in Mooncake: the next version is another key, and the last one goes.
        key = f"{self._key}/{self._version + 1}"
        if id(data) in self._registered:
            status = self._store.put_from(key, data.ctypes.data, data.nbytes)
        else:
            status = self._store.put(key, data.data)
        if status != 0:
            raise ConnectionError(f"put: status {status}")
        if self._version:
            self._store.remove(f"{self._key}/{self._version}", True)
        self._version += 1

    def get_fresh(self, size: int) -> bytes:
        got: bytes = self._store.get(f"{self._key}/{self._version}")
        if len(got) != size:
            raise ConnectionError(f"get: {len(got)} of {size} bytes")
        return got

    def get_into(self, out: Bytes) -> None:
        self._register(out)
        got = self._store.get_into(f"{self._key}/{self._version}", out.ctypes.data, out.nbytes)
        if got != out.nbytes:
            raise ConnectionError(f"get_into: status {got}")

    def check(self, data: Bytes) -> None:
        for old in list(self._registered.values()):
            self._store.unregister_buffer(old.ctypes.data)
        self._registered.clear()
        self._register(data)
        super().check(data)

    def _register(self, buffer: Bytes) -> None:
        if id(buffer) not in self._registered:
            status = self._store.register_buffer(buffer.ctypes.data, buffer.nbytes)
            if status != 0:
                raise ConnectionError(f"register_buffer: status {status}")
            self._registered[id(buffer)] = buffer

    def close(self) -> None:
        self._store.close()


def open_store(master: str, segment: int) -> Any:
    """A store that lends `segment` bytes to the others."""
    # It tells its story on standard error otherwise.
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault("MC_LOG_LEVEL", "ERROR")
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    status = store.setup("127.0.0.1", "P2PHANDSHAKE", segment, LOCAL_BUFFER, "tcp", "", master)
    if status != 0:
        raise ConnectionError(f"Mooncake's setup: status {status}")
    return store


class Mooncake(Peer):
    name = "mooncake"
    about = "Mooncake Store over TCP, its client the store's Python binding"

    def start(self) -> None:
        try:
            import mooncake.store  # noqa: F401
        except ImportError as error:
            raise UnavailableError(f"no mooncake: {error}") from error
        port = free_port()
        self.master = f"127.0.0.1:{port}"
        master = Path(sys.executable).with_name("mooncake_master")
        self._server = Process([master, f"--rpc_port={port}", f"--metrics_port={free_port()}"])
        try:
            wait_for(port, self._server)
            owner: list[str | Path] = [
                sys.executable,
                Path(__file__).with_name("mooncake_owner.py"),
                self.master,
                str(SEGMENT),
            ]
            self._owner = Process(owner, ready="lends memory")
        except UnavailableError:
            self._server.stop()
            raise

    def pids(self) -> list[int]:
        return [self._server.pid, self._owner.pid]

    def connect(self, worker: int) -> Client:
        return MooncakeClient(self.master, f"bench/{worker}")

    def stop(self) -> None:
        self._owner.stop()
        self._server.stop()
