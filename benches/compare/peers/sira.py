"""Sira, and the ways to reach it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from compare.peers.base import (
    ROW,
    Buffers,
    Bytes,
    Client,
    Process,
    Sample,
    Served,
    Through,
    UnavailableError,
    as_bytes,
)
from compare.peers.flight import FlightClient
from compare.peers.rust import RustClient
from compare.programs import sira


class Sira(Served):
    """The server, with plain pyarrow as its client."""

    name = "sira"
    about = "Sira in memory at Weak, its client pyarrow"
    config = Path(__file__).parents[1] / "sira.toml"

    def start(self) -> None:
        command: list[str | Path] = [sira(), "serve", "--config", self.config, "--data", "{folder}/data"]
        command += ["--listen", "127.0.0.1:0"]
        command += ["--unix-socket", "{folder}/socket"]
        self._server = Process(command, ready="sira: listening on ")
        self.url = self._server.said
        self.unix = f"grpc+unix://{self._server.folder}/socket"

    def connect(self, worker: int) -> Client:
        return FlightClient(self.url, f"bench/{worker}")


class SiraRust(Through):
    name = "sira-rust"
    about = "Sira, its client in Rust"

    def start(self) -> None:
        assert isinstance(self.server, Sira)
        self.url = self.server.url

    def connect(self, worker: int) -> Client:
        return RustClient("sira", self.url, f"bench/{worker}")


class SiraUnix(Through):
    name = "sira-unix"
    about = "Sira over its Unix socket, its client pyarrow"

    def start(self) -> None:
        assert isinstance(self.server, Sira)
        self.url = self.server.unix

    def connect(self, worker: int) -> Client:
        return FlightClient(self.url, f"bench/{worker}")


class SiraNative(SiraRust):
    name = "sira-native"
    about = "Sira, its client sira_store with the extension"

    def start(self) -> None:
        if importlib.util.find_spec("sira_native") is None:
            raise UnavailableError(
                "the extension of the Python client (python-client/native) is not installed"
            )
        super().start()

    def connect(self, worker: int) -> Client:
        return StoreClient(self.url, f"bench/{worker}")


class SiraHost(SiraUnix):
    """Into the caller's memory, from memory that the server shares."""

    name = "sira-host"
    about = "Sira on the same host, its client sira_store over the Unix socket"

    def connect(self, worker: int) -> Client:
        return StoreClient(self.url, f"bench/{worker}")


class SiraMap(SiraHost):
    """No copy at all: a tensor is mapped, looked at, and let go."""

    name = "sira-map"
    about = "Sira on the same host, tensors mapped without a copy"

    def connect(self, worker: int) -> Client:
        return MapClient(self.url, f"bench/{worker}")


class StoreClient(Client):
    """sira_store: arrays in, arrays out."""

    def __init__(self, url: str, key: str) -> None:
        import sira_store

        self._client: Any = sira_store.connect(url)
        self._key = key

    def put(self, data: Bytes) -> None:
        self._client.put(self._key, rows(data))

    def get_fresh(self, size: int) -> Any:
        return self._client.get(self._key)

    def get_into(self, out: Bytes) -> None:
        self._client.get(self._key, out=rows(out))

    def close(self) -> None:
        self._client.close()


class MapClient(StoreClient):
    """Gets that are mapped: there is no buffer of the caller's, warm or fresh."""

    operations = ("get",)

    def get_fresh(self, size: int) -> Any:
        return self._client.map(self._key)

    def get_into(self, out: Bytes) -> None:
        out[:] = as_bytes(np.asarray(self.get_fresh(out.nbytes)))

    def run(self, operation: str, memory: str, buffers: Buffers, start: float, seconds: float) -> Sample:
        return super().run(operation, "fresh", buffers, start, seconds)


def rows(data: Bytes) -> Any:
    """The tensor that lies in these bytes."""
    return data.view(np.uint16).reshape(-1, ROW // 2)
