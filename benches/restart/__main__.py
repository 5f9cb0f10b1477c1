"""How soon a store answers after its server was killed: with very many small tensors, and with much on disk.

    export PYTHONPATH=benches:python-client/tests
    .venv/bin/python -m restart [--tensors 1000000] [--gigabytes 20] [--data FOLDER]

Needs bin/sira (or SIRA_BIN) and room for the data twice. Each server is killed while it has nothing to do
(SIGKILL) and started over the same folder. What is timed: until it listens, a page of a listing by prefix,
and the first get of a tensor, which comes from disk. The page cache of the system stays as it is, unless this
may empty it (root).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import sira_store
from server import Server

CONFIG = """
[memory]
limit = "2 GiB"
[storage]
default_backend = "rocksdb"
record_backend = "rocksdb"
consistency = "eventual"
enable_caching = false
[storage.backends.rocksdb]
"""
BATCH = 2000
MEBIBYTE = 1 << 20


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def drop_caches() -> bool:
    """Empties the page cache; false where that is not allowed."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def restarted(server: Server) -> None:
    """Kills the server, starts it, and says how long that took."""
    server.kill()
    cold = drop_caches()
    begun = time.perf_counter()
    server.start()
    state = "page cache empty" if cold else "page cache as it was"
    print(f"  listens after SIGKILL in {time.perf_counter() - begun:.2f} s ({state})")


def small(server: Server, count: int) -> None:
    """Very many tensors of 256 bytes."""
    value = np.arange(64, dtype=np.float32)
    begun = time.perf_counter()
    with sira_store.connect(server.url) as client:
        for first in range(0, count, BATCH):
            keys = range(first, min(first + BATCH, count))
            client.put_many({f"small/{key % 1000:03}/{key:09}": value + key for key in keys})
    print(f"{count} tensors of {value.nbytes} bytes, put in {time.perf_counter() - begun:.0f} s")
    restarted(server)
    with sira_store.connect(server.url) as client:
        print(f"  first get {1e3 * timed(lambda: client.get('small/000/000000000')):.1f} ms")

        def page(prefix: str) -> None:
            listing = client.scan(prefix, page=1000)
            assert next(iter(listing)).key.startswith(prefix)

        pages = [timed(lambda p=f"small/{group:03}/": page(p)) for group in range(0, 1000, 10)]
        first, median = 1e3 * pages[0], 1e3 * statistics.median(pages)
        print(f"  a page of 1,000 keys by prefix: first {first:.1f} ms, median {median:.1f} ms")
        for key in (0, count // 2, count - 1):
            assert client.get(f"small/{key % 1000:03}/{key:09}")[0] == key


def large(server: Server, gigabytes: int) -> None:
    """Much on disk, in tensors of 64 MiB."""
    random = np.random.default_rng(0)
    value = random.integers(0, 256, 64 * MEBIBYTE, np.uint8)
    count = max(1, round(gigabytes * 1e9 / value.nbytes))
    begun = time.perf_counter()
    with sira_store.connect(server.url) as client:
        for key in range(count):
            value[:8] = np.frombuffer(key.to_bytes(8, "little"), np.uint8)
            client.put(f"large/{key:06}", value, codec="none")
    taken = time.perf_counter() - begun
    print(f"{count} tensors of 64 MiB, put in {taken:.0f} s ({count * value.nbytes / taken / 1e9:.2f} GB/s)")
    restarted(server)
    with sira_store.connect(server.url) as client:
        key = count // 2
        begun = time.perf_counter()
        got = client.get(f"large/{key:06}")
        print(f"  first get of 64 MiB {1e3 * (time.perf_counter() - begun):.0f} ms")
        assert got[:8].tobytes() == key.to_bytes(8, "little")


def main() -> None:
    """Both kinds, each over a data folder of its own."""
    parser = argparse.ArgumentParser(prog="restart", description=__doc__.partition("\n")[0])
    parser.add_argument("--tensors", type=int, default=1_000_000)
    parser.add_argument("--gigabytes", type=int, default=20)
    parser.add_argument("--data", type=Path, help="where the data folders are made; default: the system's")
    arguments = parser.parse_args()
    for fill, amount in ((small, arguments.tensors), (large, arguments.gigabytes)):
        if amount == 0:
            continue
        with (
            tempfile.TemporaryDirectory(dir=arguments.data) as folder,
            Server(Path(folder) / "data", CONFIG) as server,
        ):
            fill(server, amount)


if __name__ == "__main__":
    main()
