"""What the benchmark knows of a peer: how its server starts, and what one client does."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import threading
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

ROW = 1024
"""Bytes in a row of the tensors."""

KEPT = 128 << 20
"""Bytes that a client which gets into new memory keeps before it gives them back."""


class UnavailableError(Exception):
    """A peer that cannot take part, and why."""


@dataclass
class Sample:
    """What one client did in one slice of time."""

    took: array[float] = field(default_factory=lambda: array("d"))
    """Seconds of each operation that counted."""
    moved: int = 0
    """Bytes carried, those before the count began among them."""
    client_cpu: float = 0.0
    """CPU seconds of the client's process."""


class Client:
    """A connection that carries one tensor in and out. A subclass gives `put` and `get_fresh`, and `get_into`
    where its library can receive into the caller's memory."""

    operations: tuple[str, ...] = ("put", "get")

    def put(self, data: Bytes) -> None:
        """Sends the tensor; returns when the server has acknowledged it."""
        raise NotImplementedError

    def get_fresh(self, size: int) -> Any:
        """The tensor that was put last, in new memory, as the peer's library gives it."""
        raise NotImplementedError

    def get_into(self, out: Bytes) -> None:
        """The tensor that was put last, in the caller's memory."""
        out[:] = as_bytes(self.get_fresh(out.nbytes))

    def select(self, key: str) -> None:
        """Goes on with another key."""
        raise NotImplementedError

    def check(self, data: Bytes) -> None:
        """Raises where not the same bytes come back as were put."""
        self.put(data)
        fresh = as_bytes(self.get_fresh(data.nbytes)).copy()
        warm = np.zeros_like(data)
        self.get_into(warm)
        for got in (fresh, warm):
            if not np.array_equal(got, data):
                raise ValueError("other bytes came back than were put")

    def run(self, operation: str, memory: str, buffers: Buffers, start: float, seconds: float) -> Sample:
        """Goes on until `seconds` after `start` (of the monotonic clock), counting from there on; at
        least one operation before it and one after it."""
        sample, cpu, clock = Sample(), time.process_time(), time.monotonic
        counts, kept = False, []
        while not (counts and sample.took and clock() >= start + seconds):
            counts = counts or (sample.moved > 0 and clock() >= start)
            # To fill new memory is not what is measured.
            source = buffers.source.copy() if operation == "put" and memory == "fresh" else buffers.source
            begun = clock()
            if operation == "put":
                self.put(source)
            elif memory == "fresh":
                kept.append(self.get_fresh(buffers.source.nbytes))
            else:
                self.get_into(buffers.warm)
            took = clock() - begun
            # What is given back at once is not new the next time.
            if len(kept) * buffers.source.nbytes >= KEPT:
                kept.clear()
            sample.moved += buffers.source.nbytes
            if counts:
                sample.took.append(took)
        sample.client_cpu = time.process_time() - cpu
        return sample

    def close(self) -> None:
        """Ends the connection."""


class Buffers:
    """A client's memory: what it puts, and where it receives, both touched before."""

    def __init__(self, size: int, seed: int) -> None:
        self.source: Bytes = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
        self.warm: Bytes = np.ones(size, dtype=np.uint8)


class Peer:
    """A server and the way its clients reach it. Pickled to the client processes, once it has started."""

    name = ""
    about = ""
    """What it is, in one line of the report."""
    stores = True
    """Whether a put is kept."""

    def __getstate__(self) -> dict[str, Any]:
        # What starts with _ belongs to the process that started the server.
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def start(self) -> None:
        """Starts the server; raises UnavailableError where that cannot be."""

    def pids(self) -> list[int]:
        """The processes whose CPU time is the server's."""
        return []

    def connect(self, worker: int) -> Client:
        """The connection of the client number `worker`. Called in that client's process."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ends the server."""


class Served(Peer):
    """One whose server is one process, which `start` starts."""

    _server: Process

    def pids(self) -> list[int]:
        return [self._server.pid]

    def stop(self) -> None:
        self._server.stop()


class Through(Peer):
    """Another way to a server that runs already."""

    def __init__(self, server: Peer) -> None:
        self._server = server

    @property
    def server(self) -> Peer:
        """The server that it leads to."""
        return self._server

    def pids(self) -> list[int]:
        return self._server.pids()


class Process:
    """A server as a child process, with a folder of its own that goes with it."""

    def __init__(
        self, command: Sequence[str | Path], ready: str = "", env: dict[str, str] | None = None
    ) -> None:
        """Waits for the line of output that starts with `ready`; the rest of it is `self.said`."""
        self.folder = Path(tempfile.mkdtemp(prefix="sira-compare-"))
        self.log = self.folder / "log"
        self.said = ""
        command = [str(part).replace("{folder}", str(self.folder)) for part in command]
        try:
            with self.log.open("w") as log:
                self._child = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=self.folder, env=env
                )
        except OSError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise UnavailableError(f"{command[0]} does not start: {error.strerror}") from error
        if ready:
            self._await(ready)
        # Nobody else reads the pipe, and a full one would stop the server.
        assert self._child.stdout is not None
        threading.Thread(target=self._child.stdout.read, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._child.pid

    def _await(self, ready: str) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith(ready):
                self.said = line.removeprefix(ready).strip()
                return
        raise UnavailableError(self.why())

    def why(self) -> str:
        """Why it ended, from its last words."""
        status = self._child.wait(timeout=10)
        words = " ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:])
        self.stop()
        return f"ended with status {status}: {words or 'without a word'}"

    def ended(self) -> bool:
        return self._child.poll() is not None

    def stop(self) -> None:
        if not self.ended():
            self._child.send_signal(signal.SIGTERM)
            try:
                self._child.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def as_bytes(value: Any) -> Bytes:
    """The bytes of whatever a client gives, without a copy where it is in one piece."""
    if isinstance(value, np.ndarray):
        return value.reshape(-1).view(np.uint8)
    return np.frombuffer(value, dtype=np.uint8)
