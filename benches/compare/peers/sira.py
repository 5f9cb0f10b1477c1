"""Sira, and the ways to reach it."""

from __future__ import annotations

from pathlib import Path

from compare.peers.base import Client, Peer, Process
from compare.peers.flight import FlightClient
from compare.peers.rust import RustClient
from compare.programs import sira

CONFIG = Path(__file__).parents[1] / "sira.toml"


class Sira(Peer):
    """The server, with plain pyarrow as its client."""

    name = "sira"
    about = "Sira in memory at Weak, its client pyarrow"
    config = CONFIG

    def start(self) -> None:
        command: list[str | Path] = [
            sira(),
            "serve",
            "--config",
            self.config,
            "--data",
            "{folder}/data",
            "--listen",
            "127.0.0.1:0",
        ]
        self._server = Process(command, ready="sira: listening on ")
        self.url = self._server.said

    def pids(self) -> list[int]:
        return [self._server.pid]

    def connect(self, worker: int) -> Client:
        return FlightClient(self.url, f"bench/{worker}")

    def stop(self) -> None:
        self._server.stop()


class Through(Peer):
    """Another way to a server that runs already."""

    def __init__(self, server: Sira) -> None:
        self._server = server

    def start(self) -> None:
        self.url = self._server.url

    def pids(self) -> list[int]:
        return self._server.pids()


class SiraRust(Through):
    name = "sira-rust"
    about = "Sira, its client in Rust"

    def connect(self, worker: int) -> Client:
        return RustClient("sira", self.url, f"bench/rust-{worker}")
