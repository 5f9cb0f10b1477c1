"""The rounds: every peer in turn, in an order drawn anew each time, for a slice of time."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from compare.peers.base import Peer, Sample, Through, UnavailableError
from compare.proc import Used, busy, used
from compare.stats import percentiles
from compare.worker import ClientError, Worker

WARM_UP = 0.06
"""Seconds before a slice in which clients work already."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """What is measured: an operation on tensors of a size, by so many clients."""

    size: int
    clients: int
    operation: str
    """put or get"""
    memory: str
    """warm: the client's buffer was used before; fresh: it is new each time"""

    def __str__(self) -> str:
        return f"{self.operation} of {binary(self.size)}, {self.clients} client(s), {self.memory} buffers"


@dataclass
class Result:
    """What a peer did in a cell."""

    cell: Cell
    peer: str
    rates: list[float] = field(default_factory=list)
    """GB/s of each round, all clients together."""
    took: list[float] = field(default_factory=list)
    """Seconds of each operation, of all rounds."""
    moved: int = 0
    server: Used = field(default_factory=Used)
    client_cpu: float = 0.0
    error: str = ""

    def add(self, samples: Sequence[Sample], server: Used) -> None:
        size = self.cell.size
        self.rates.append(sum(len(s.took) * size / sum(s.took) for s in samples) / 1e9)
        self.took += [took for s in samples for took in s.took]
        self.moved += sum(s.moved for s in samples)
        self.client_cpu += sum(s.client_cpu for s in samples)
        self.server = self.server + server

    def as_json(self) -> dict[str, Any]:
        """All that the report needs, without the single operations."""
        known: dict[str, Any] = {**asdict(self.cell), "peer": self.peer}
        if self.error:
            return {**known, "error": self.error}
        gb = self.moved / 1e9
        return {
            **known,
            "gb_per_s": [round(rate, 5) for rate in self.rates],
            "operations": len(self.took),
            "seconds": percentiles(self.took),
            "server_user_s_per_gb": self.server.user / gb,
            "server_kernel_s_per_gb": self.server.kernel / gb,
            "server_minor_faults_per_gb": self.server.minor_faults / gb,
            "server_major_faults_per_gb": self.server.major_faults / gb,
            "client_s_per_gb": self.client_cpu / gb,
        }


class Run:
    """Servers and clients that are there, and who is not and why."""

    def __init__(self, peers: Sequence[Peer], clients: int, say: Say) -> None:
        self._say = say
        self.missing: dict[str, str] = {}
        self.others: list[float] = []
        """Of each slice, the share of the machine that neither servers nor clients had."""
        self.workers: list[Worker] = []
        self.peers: list[Peer] = []
        for peer in peers:
            try:
                self._start(peer)
            except UnavailableError as error:
                self._drop(peer, str(error))
        try:
            self.workers = [Worker(index) for index in range(clients)]
            for peer in list(self.peers):
                try:
                    ask(self.workers, "connect", peer)
                except ClientError as error:
                    self._drop(peer, str(error))
        except BaseException:
            self.stop()
            raise

    def _start(self, peer: Peer) -> None:
        if isinstance(peer, Through) and peer.server.name in self.missing:
            raise UnavailableError(f"{peer.server.name} is not there")
        peer.start()
        self.peers.append(peer)

    def _drop(self, peer: Peer, why: str) -> None:
        self.missing[peer.name] = why
        self._say(f"{peer.name} does not take part: {why}")

    def taking_part(self) -> list[Peer]:
        """The peers that are there."""
        return [peer for peer in self.peers if peer.name not in self.missing]

    def size(self, size: int, clients: int) -> dict[str, tuple[str, ...] | str]:
        """Prepares the first `clients` clients for tensors of `size` bytes: each puts one and compares what
        comes back. By peer, its operations or what went wrong."""
        workers = self.workers[:clients]
        ask(workers, "resize", size)
        able: dict[str, tuple[str, ...] | str] = {}
        for peer in self.taking_part():
            try:
                able[peer.name] = ask(workers, "check", peer.name)[0]
            except ClientError as error:
                able[peer.name] = str(error)
                self._say(f"{peer.name}, {binary(size)}: {error}")
        return able

    def cell(
        self, cell: Cell, able: dict[str, tuple[str, ...] | str], rounds: int, seconds: float
    ) -> list[Result]:
        """Every peer, round by round."""
        results: dict[str, Result] = {}
        for peer in self.taking_part():
            can = able[peer.name]
            if isinstance(can, str):
                results[peer.name] = Result(cell, peer.name, error=can)
            elif cell.operation in can:
                results[peer.name] = Result(cell, peer.name)
        for _ in range(rounds):
            turn = [
                peer for peer in self.taking_part() if peer.name in results and not results[peer.name].error
            ]
            random.shuffle(turn)
            for peer in turn:
                result = results[peer.name]
                try:
                    result.add(*self._slice(peer, cell, seconds))
                except ClientError as error:
                    result.error = str(error)
                    self._say(f"{peer.name}, {cell}: {error}")
        return list(results.values())

    def _slice(self, peer: Peer, cell: Cell, seconds: float) -> tuple[list[Sample], Used]:
        before, all_before, began = used(peer.pids()), busy(), time.monotonic()
        start = time.monotonic() + WARM_UP
        samples = ask(
            self.workers[: cell.clients], "run", peer.name, cell.operation, cell.memory, start, seconds
        )
        server = used(peer.pids()) - before
        ours = server.user + server.kernel + sum(sample.client_cpu for sample in samples)
        room = (time.monotonic() - began) * (os.cpu_count() or 1)
        self.others.append(max(0.0, busy() - all_before - ours) / room)
        return samples, server

    def stop(self) -> None:
        """Ends clients, then servers, those first that others stand on last."""
        for worker in self.workers:
            worker.leave()
        for worker in self.workers:
            worker.stop()
        for peer in reversed(self.peers):
            peer.stop()


def ask(workers: Sequence[Worker], method: str, *arguments: Any) -> list[Any]:
    """All workers at once; their answers."""
    for worker in workers:
        worker.send(method, *arguments)
    answers, failed = [], None
    for worker in workers:
        try:
            answers.append(worker.answer())
        except ClientError as error:
            failed = error
    if failed is not None:
        raise failed
    return answers


def binary(size: int) -> str:
    """`64 KiB`, `16 MiB`."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"
