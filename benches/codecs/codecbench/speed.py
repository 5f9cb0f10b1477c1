"""Ratio and speed on one core: everyone in turn, round by round, in an order drawn anew each time."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from codecbench import program
from codecbench.lossless import PEERS, Peer
from codecbench.tensors import Tensor, joined, write

BUFFER = 64 << 20
FAR = 8 << 20
"""A file of so many bytes may be repeated: zstd looks back 2 MiB at level 3, the others less."""
SLICE = 0.1
"""Seconds that one is at work before the next has its turn; at least one operation."""

Say = Callable[[str], None]


@dataclass
class Result:
    """What one compressor did."""

    name: str
    about: str
    fresh: str = ""
    bytes: int = 0
    encode_gb_s: list[float] = field(default_factory=list)
    decode_gb_s: list[float] = field(default_factory=list)
    error: str = ""


def measure(
    tensors: list[Tensor], names: Sequence[str], ours: Sequence[str], rounds: int, say: Say
) -> dict[str, Any]:
    """Peers of these names and codecs of Sira's on the same bytes."""
    tensor = joined(tensors, BUFFER, FAR)
    with one_core() as core, TemporaryDirectory(prefix="sira-codecs-") as folder:
        file = Path(folder) / "kv.safetensors"
        write(file, {"kv": tensor}, tensor.metadata)
        runners = [Here(kind, tensor) for kind in PEERS if kind.name in names]
        everyone: list[Here | Ours] = [*runners, *(Ours(name, file) for name in ours)]
        for number in range(1, rounds + 1):
            say(f"[{number}/{rounds}] {len(everyone)} codecs on {tensor.raw.size / 1e6:.1f} MB")
            random.shuffle(everyone)
            for runner in everyone:
                runner.turn()
    order = [*(kind.name for kind in PEERS), *(f"sira {name}" for name in ours)]
    results = sorted((runner.result for runner in everyone), key=lambda result: order.index(result.name))
    return {
        "bytes": tensor.raw.size,
        "dtype": tensor.dtype,
        "shape": tensor.shape,
        "core": core,
        "rounds": rounds,
        "codecs": [asdict(result) for result in results],
    }


class Here:
    """A library in this process. What it decodes is compared once, and the first operations do not count."""

    def __init__(self, kind: type[Peer], tensor: Tensor) -> None:
        self.result = Result(kind.name, kind.about, kind.fresh)
        self.raw_bytes = tensor.raw.size
        try:
            self.peer = kind(tensor)
            self.peer.prepare()
            self.result.bytes = self.peer.encode()
            if not np.array_equal(self.peer.decode(), tensor.raw):
                self.result.error = "gives other bytes back"
        # What a library raises, and that it is missing, is its own.
        except Exception as error:
            self.result.error = f"{type(error).__name__}: {error}"

    def turn(self) -> None:
        """A slice of encodes, then one of decodes."""
        if not self.result.error:
            self.result.encode_gb_s.append(self._rate(self.peer.encode, self.peer.prepare))
            self.result.decode_gb_s.append(self._rate(self.peer.decode, lambda: None))

    def _rate(self, work: Callable[[], Any], prepare: Callable[[], None]) -> float:
        took, done = 0.0, 0
        while took < SLICE:
            prepare()
            began = time.perf_counter()
            work()
            took += time.perf_counter() - began
            done += 1
        return round(done * self.raw_bytes / took / 1e9, 5)


class Ours:
    """A codec of Sira's: the program measures itself in warm buffers, once a round."""

    def __init__(self, codec: str, file: Path) -> None:
        self.codec, self.file = codec, file
        self.result = Result(f"sira {codec}", "Sira")

    def turn(self) -> None:
        if self.result.error:
            return
        try:
            [found] = program.tried(self.file, self.codec, seconds=SLICE)
        except (program.ProgramError, ValueError) as error:
            self.result.error = str(error)
            return
        if not found["exact"]:
            self.result.error = "gives other bytes back"
        self.result.bytes = found["stored_bytes"]
        self.result.encode_gb_s.append(found["encode_gb_s"])
        self.result.decode_gb_s.append(found["decode_gb_s"])


@contextmanager
def one_core() -> Generator[int, None, None]:
    """This process, and those that it starts, on the last of its cores; interrupts mostly come to the
    first."""
    before = os.sched_getaffinity(0)
    core = max(before)
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, before)
