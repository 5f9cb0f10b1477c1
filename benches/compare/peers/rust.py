"""Clients in Rust, each a process of its own that does what it is told."""

from __future__ import annotations

import json
import subprocess
from array import array
from typing import Any

from compare.peers.base import Buffers, Bytes, Client, Sample
from compare.programs import wirebench


class RustClient(Client):
    """`wirebench client`: the loop runs there."""

    def __init__(self, peer: str, address: str, key: str) -> None:
        command = [str(wirebench()), "client", peer, address, key]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        assert self._child.stderr is not None
        try:
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass  # its last words say why
        said = self._child.stdout.readline()
        if not said:
            raise ConnectionError(self._child.stderr.read().strip() or "the Rust client ended")
        answer: dict[str, Any] = json.loads(said)
        if "error" in answer:
            raise ConnectionError(answer["error"])
        return answer

    def check(self, data: Bytes) -> None:
        self._ask(f"check {data.nbytes}")

    def run(self, operation: str, memory: str, buffers: Buffers, start: float, seconds: float) -> Sample:
        answer = self._ask(f"{operation} {buffers.source.nbytes} {memory} {start:.6f} {seconds}")
        took = array("d", answer["took"])
        return Sample(took=took, moved=answer["moved"], client_cpu=answer["cpu"])

    def close(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(timeout=10)
