"""Gets and puts of a KV cache, raw and in encoded chunks: how long they take, and what they cost the server.

    export PYTHONPATH=benches:python-client/tests
    .venv/bin/python -m encoded [FILE.safetensors] [--codec planes+zstd] [--repeat 5]

Needs bin/sira (or SIRA_BIN) and the extension (`make native`). Without a file, random normal values in
bfloat16 stand for a cache, and compress about as well. Raw and encoded take turns in one run; figures are
medians of their repeats. The slow connections go through a proxy on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

import sira_store
from server import Server
from slow_link import SlowLink

TICK = os.sysconf("SC_CLK_TCK")
RATES = {"125 MB/s": 125e6, "500 MB/s": 500e6, "loopback": None}


def cache(path: Path | None) -> np.ndarray:
    """A cache in bfloat16: its tensors of one shape one after another, or values that look like one's."""
    if path is None:
        values = np.random.default_rng(0).standard_normal((30, 2, 1536, 3, 64), np.float32)
        return values.astype(ml_dtypes.bfloat16)
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        start, parts = file.tell(), []
        for name, entry in header.items():
            if name != "__metadata__" and entry["dtype"] == "BF16":
                file.seek(start + entry["data_offsets"][0])
                size = entry["data_offsets"][1] - entry["data_offsets"][0]
                parts.append(np.frombuffer(file.read(size), ml_dtypes.bfloat16).reshape(entry["shape"]))
    shape = parts[0].shape
    same = [part for part in parts if part.shape == shape]
    return np.concatenate(same) if len(same) > 1 else same[0]


def cpu(pid: int) -> float:
    """CPU seconds that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def timed(pid: int, nbytes: int, call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a call, and CPU seconds of the server for each GB."""
    cpu_before, begun = cpu(pid), time.perf_counter()
    call()
    taken = time.perf_counter() - begun
    return taken, (cpu(pid) - cpu_before) / (nbytes / 1e9)


def main() -> None:
    """Prints one line for each kind of connection."""
    parser = argparse.ArgumentParser(prog="encoded", description=__doc__.partition("\n")[0])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--codec", default="planes+zstd")
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    array, codec = cache(arguments.file), arguments.codec
    nbytes = array.nbytes
    axes = ["layer", "kv", "token", "head", "dim"][: array.ndim]
    out = np.zeros_like(array)
    # Nothing stays in memory, so that a raw get is one that the server decodes.
    config = '[memory]\nlimit = "1 GiB"\n[storage]\nenable_caching = false\n'
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "data", config) as server:
        with sira_store.connect(server.url, lookup_deadline=None) as client:
            client.put("bench/kv", array, axes=axes, codec=codec)
            ratio = nbytes / client.info("bench/kv").stored_bytes
        print(f"{nbytes / 1e6:.1f} MB, {codec}: ratio {ratio:.3f}; medians of {arguments.repeat}")
        print("connection  call    raw s  encoded s  raw/encoded  server CPU s a GB")
        for name, rate in RATES.items():
            link = SlowLink(server.url, rate) if rate else None
            client = sira_store.connect(link.url if link else server.url, lookup_deadline=None)
            calls: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
                "get": (
                    lambda c=client: c.get("bench/kv", out, encoded=False),
                    lambda c=client: c.get("bench/kv", out, encoded=True),
                ),
                "put": (
                    lambda c=client: c.put("bench/raw", array, axes=axes, codec=codec),
                    lambda c=client: c.put("bench/encoded", array, axes=axes, encode=codec),
                ),
            }
            for call, (raw, encoded) in calls.items():
                runs = [
                    (timed(server.pid, nbytes, raw), timed(server.pid, nbytes, encoded))
                    for _ in range(arguments.repeat)
                ]
                seconds = [statistics.median(run[i][0] for run in runs) for i in (0, 1)]
                costs = [statistics.mean(run[i][1] for run in runs) for i in (0, 1)]
                assert call != "get" or out.tobytes() == array.tobytes()
                spent = f"{seconds[0]:8.3f} {seconds[1]:10.3f} {seconds[0] / seconds[1]:12.2f}"
                print(f"{name:>10} {call:>5} {spent} {costs[0]:10.2f} -> {costs[1]:.2f}")
            client.close()
            if link:
                link.__exit__(None, None, None)


if __name__ == "__main__":
    main()
