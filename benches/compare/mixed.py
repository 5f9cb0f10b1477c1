"""Gets of 1 MiB from memory, alone and while another client puts without pause."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import flight

from compare.measure import Say, ask
from compare.peers.base import Bytes, Client, Peer, Sample, UnavailableError
from compare.peers.flight import ArrowFlight
from compare.peers.redis_peer import Redis
from compare.peers.sira import Sira
from compare.programs import ROOT
from compare.stats import quantile, spread
from compare.worker import Worker

GET, PUT = 1 << 20, 4 << 20
"""Bytes of what is got, and of what is put meanwhile."""

KEYS, ROLLING = 16, 160
"""Keys that are got in turn, and those that are put in turn."""

SAMPLE = ROOT / "examples" / "sample" / "smollm2-kv.safetensors"


def kv_cache(size: int) -> Bytes:
    """The bytes of a real KV cache, repeated: what codecs are made for."""
    raw = np.frombuffer(SAMPLE.read_bytes(), dtype=np.uint8)
    header = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    return np.resize(raw[header:], size)


class Cycling(Client):
    """A client that goes through some keys, one after another. Its tensors are of a KV cache."""

    def __init__(self, client: Client, prefix: str, keys: int) -> None:
        self._client = client
        self._keys = [f"{prefix}/{number}" for number in range(keys)]
        self._next = 0
        self._data: Bytes = kv_cache(0)

    def _turn(self) -> Client:
        self._client.select(self._keys[self._next % len(self._keys)])
        self._next += 1
        return self._client

    def put(self, data: Bytes) -> None:
        if self._data.nbytes != data.nbytes:
            self._data = kv_cache(data.nbytes)
        self._turn().put(self._data)

    def get_fresh(self, size: int) -> Any:
        return self._turn().get_fresh(size)

    def get_into(self, out: Bytes) -> None:
        self._turn().get_into(out)

    def check(self, data: Bytes) -> None:
        for _ in self._keys:
            self.put(data)
        out = np.zeros_like(data)
        for _ in self._keys:
            self.get_into(out)
            if not np.array_equal(out, self._data):
                raise ValueError("other bytes came back than were put")

    def close(self) -> None:
        self._client.close()


class Rolling(Cycling):
    """One whose tensors may be evicted: what it puts need not come back."""

    def check(self, data: Bytes) -> None:
        for _ in self._keys:
            self.put(data)


class Mixed(Peer):
    """A server whose first client gets and whose second one puts."""

    def __init__(self, server: Peer) -> None:
        self.server, self.name, self.about = server, server.name, server.about

    def start(self) -> None:
        self.server.start()

    def pids(self) -> list[int]:
        return self.server.pids()

    def connect(self, worker: int) -> Client:
        client = self.server.connect(worker)
        return Cycling(client, "hot", KEYS) if worker == 0 else Rolling(client, "load", ROLLING)

    def stop(self) -> None:
        self.server.stop()

    def settle(self) -> None:
        """Waits until the server has done what was put."""
        time.sleep(0.5)

    def did(self) -> str:
        """What the server has done besides."""
        return ""


class MixedSira(Mixed):
    """Sira with little memory over RocksDB."""

    def __init__(self) -> None:
        super().__init__(SmallSira())

    def settle(self) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end and self._action("stats")["memory"]["unwritten_bytes"]:
            time.sleep(0.1)
        super().settle()

    def did(self) -> str:
        for entry in self._action("namespaces")["namespaces"]:
            if entry["namespace"] == "load":
                return f", {entry['operations']['evictions']} tensors evicted in all"
        return ""

    def _action(self, name: str) -> Any:
        assert isinstance(self.server, Sira)
        with flight.FlightClient(self.server.url) as client:
            return json.loads(next(iter(client.do_action(flight.Action(name, b"")))).body.to_pybytes())


class SmallSira(Sira):
    """The server of the second table."""

    about = "Sira with 768 MiB of memory over RocksDB, its client pyarrow"
    config = Path(__file__).with_name("mixed.toml")


def measure(names: Sequence[str], rounds: int, seconds: float, say: Say) -> dict[str, Any]:
    """By server and by what else goes on: p50 and p99 of the gets of each round."""
    figures: dict[str, Any] = {}
    for peer in (MixedSira(), Mixed(ArrowFlight()), Mixed(Redis())):
        if peer.name not in names:
            continue
        try:
            peer.start()
        except UnavailableError as error:
            say(f"{peer.name} does not take part: {error}")
            continue
        workers = [Worker(0), Worker(1)]
        try:
            figures[peer.name] = server(peer, workers, rounds, seconds, say)
        finally:
            for worker in workers:
                worker.leave()
            for worker in workers:
                worker.stop()
            peer.stop()
    return figures


def server(peer: Mixed, workers: list[Worker], rounds: int, seconds: float, say: Say) -> dict[str, Any]:
    getter, putter = workers
    ask(workers, "connect", peer)
    ask([getter], "resize", GET)
    ask([getter], "check", peer.name)
    # Memory and disk are full before the count begins, and eviction runs.
    ask([putter], "resize", PUT)
    ask([putter], "check", peer.name)
    quiet: dict[str, Any] = {"p50_s": [], "p99_s": [], "meanwhile": "nothing"}
    puts: dict[str, Any] = {"p50_s": [], "p99_s": [], "meanwhile": ""}
    rates = []
    for number in range(rounds):
        say(f"{peer.name}: gets of 1 MiB alone and beside puts, round {number + 1} of {rounds}")
        peer.settle()
        keep(quiet, gets(getter, peer, seconds))
        start = time.monotonic() + 1
        putter.send("run", peer.name, "put", "warm", start, seconds)
        time.sleep(1)
        keep(puts, gets(getter, peer, seconds))
        sample = putter.answer()
        rates.append(len(sample.took) * PUT / sum(sample.took) / 1e9)
    puts["meanwhile"] = f"puts of 4 MiB at {spread(rates).median:.2f} GB/s{peer.did()}"
    return {"quiet": quiet, "beside puts": puts}


def gets(getter: Worker, peer: Peer, seconds: float) -> Sample:
    sample: Sample = ask([getter], "run", peer.name, "get", "fresh", time.monotonic(), seconds)[0]
    return sample


def keep(figures: dict[str, Any], sample: Sample) -> None:
    ordered = sorted(sample.took)
    figures["p50_s"].append(quantile(ordered, 0.5))
    figures["p99_s"].append(quantile(ordered, 0.99))
