"""The memory limit holds under load, for large tensors and for many keys.

Short by default; for the full figures: SIRA_SOAK=60 (seconds), SIRA_LARGE=4 (GiB), SIRA_KEYS=200000.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import flight

import sira_store
from server import Server

LIMIT = 512 << 20
SLACK = 256 << 20
SOAK = float(os.environ.get("SIRA_SOAK", "8"))
LARGE = float(os.environ.get("SIRA_LARGE", "0.75"))
KEYS = int(os.environ.get("SIRA_KEYS", "5000"))


def resident(pid: int) -> int:
    """Anonymous and shared memory of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return sum(int(values[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))


class Watch:
    """The most memory a server held while this was open."""

    def __init__(self, server: Server) -> None:
        self.server, self.most, self.done = server, 0, threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.done.wait(0.02):
            self.most = max(self.most, resident(self.server.pid))

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


@pytest.fixture
def limited(tmp_path: Path):
    with Server(tmp_path / "data", config='[memory]\nlimit = "512 MiB"\n') as server:
        yield server


def test_writers_and_readers_stay_within_the_limit(limited: Server) -> None:
    """16 writers and 16 readers with plain pyarrow: no error, every read whole, memory within the limit."""
    kv = np.random.default_rng(0).integers(0, 1 << 16, (16, 4, 1 << 17), dtype=np.uint16)  # 16 MiB
    stop = time.monotonic() + SOAK
    problems: list[str] = []
    counts = {"put": 0, "get": 0}

    def put(client: flight.FlightClient, key: str, value: int) -> None:
        array = kv.copy()
        array[:, 0, 0] = value
        tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(array)
        batch = pa.record_batch([tensor], names=["tensor"])
        writer, answer = client.do_put(flight.FlightDescriptor.for_path("soak", key), batch.schema)
        writer.write_batch(batch)
        writer.done_writing()
        assert answer.read() is not None
        writer.close()

    def write(number: int) -> None:
        with flight.FlightClient(limited.url) as client:
            value = 0
            while time.monotonic() < stop:
                value += 1
                put(client, f"k{number}", value)
                counts["put"] += 1

    def read(number: int) -> None:
        with flight.FlightClient(limited.url) as client:
            while time.monotonic() < stop:
                table = client.do_get(flight.Ticket(f"soak/k{number}".encode())).read_all()
                got = table.column(0).combine_chunks().to_numpy_ndarray().reshape(kv.shape)
                assert (got[:, 0, 0] == got[0, 0, 0]).all(), "torn"
                assert (got[:, 1:] == kv[:, 1:]).all(), "wrong bytes"
                counts["get"] += 1

    def run(what, number: int) -> None:
        try:
            what(number)
        except Exception as error:
            problems.append(f"{what.__name__} {number}: {error!r}")

    with flight.FlightClient(limited.url) as client:
        for number in range(16):
            put(client, f"k{number}", 0)
    with Watch(limited) as watch:
        threads = [threading.Thread(target=run, args=(what, n)) for what in (write, read) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(f"{counts} in {SOAK} s, at most {watch.most >> 20} MiB")
    assert problems == []
    assert min(counts.values()) >= 16
    assert watch.most < LIMIT + SLACK


def test_a_tensor_larger_than_memory_goes_in_and_out(limited: Server) -> None:
    rows = int(LARGE * 64)
    block = np.random.default_rng(1).integers(0, 256, 16 << 20, dtype=np.uint8)
    item = pa.list_(pa.uint8(), 1 << 20)
    names = {"sira.shape": f"[{rows},16,{1 << 20}]", "sira.dtype": "uint8"}
    schema = pa.schema([pa.field("tensor", item)], metadata=names)
    with Watch(limited) as watch, flight.FlightClient(limited.url) as client:
        writer, answer = client.do_put(flight.FlightDescriptor.for_path("large", "k"), schema)
        for row in range(rows):
            block[:8] = np.frombuffer(row.to_bytes(8, "little"), np.uint8)
            rows_of_block = pa.FixedSizeListArray.from_arrays(pa.array(block), 1 << 20)
            writer.write_batch(pa.record_batch([rows_of_block], schema=schema))
        writer.done_writing()
        assert answer.read() is not None
        writer.close()

        at = 0
        for chunk in client.do_get(flight.Ticket(b"large/k")):
            column = chunk.data.column(0)
            column = column.storage if isinstance(column, pa.ExtensionArray) else column
            values = column.flatten().to_numpy()
            for start in range(0, len(values), 1 << 20):
                row, offset = divmod(at + start, 16 << 20)
                expected = block[offset : offset + (1 << 20)]
                if offset == 0:
                    assert int.from_bytes(values[start : start + 8].tobytes(), "little") == row
                    assert (values[start + 8 : start + (1 << 20)] == expected[8:]).all()
                else:
                    assert (values[start : start + (1 << 20)] == expected).all()
            at += len(values)
    assert at == rows * (16 << 20)
    print(f"{at >> 20} MiB in and out, at most {watch.most >> 20} MiB")
    assert watch.most < LIMIT + SLACK


def test_many_keys_list_in_pages_with_flat_memory(limited: Server) -> None:
    def fill(part: int) -> None:
        with sira_store.connect(limited.url) as sira:
            for i in range(part, KEYS, 8):
                sira.put(f"many/{i:08d}", np.full(4, i))

    threads = [threading.Thread(target=fill, args=(part,)) for part in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    before = resident(limited.pid)
    with Watch(limited) as watch, sira_store.connect(limited.url) as sira:
        names = [info.key for info in sira.scan("many/")]
        with flight.FlightClient(limited.url) as client:
            flights = sum(1 for _ in client.list_flights(b'{"v":1,"prefix":"many/"}'))
    print(f"{KEYS} keys: {before >> 20} MiB before, at most {watch.most >> 20} MiB while listing")
    assert names == [f"many/{i:08d}" for i in range(KEYS)]
    assert flights == KEYS
    assert watch.most < before + (64 << 20)


def test_many_large_keys_in_one_stream_with_little_memory(tmp_path: Path) -> None:
    """Commits of a stream run while it goes on: they give back what the next key needs."""
    with (
        Server(tmp_path / "data", '[memory]\nlimit = "256 MiB"\n') as server,
        sira_store.connect(server.url) as sira,
    ):
        block = np.random.default_rng(1).integers(0, 255, 7 << 20, dtype=np.uint8)
        results = sira.put_many((f"many/{i}", block) for i in range(16))
        assert [result for result in results if isinstance(result, sira_store.SiraError)] == []
        for array in sira.get_many([f"many/{i}" for i in range(16)]):
            np.testing.assert_array_equal(array, block)


def test_announcements_without_bytes_end_the_stream(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, flight.connect(server.url) as plain:
        descriptor = flight.FlightDescriptor.for_command(b'{"v":1,"put_many":true}')
        schema = pa.schema([pa.field("tensor", pa.uint8(), nullable=False)])
        writer, reader = plain.do_put(descriptor, schema)
        part = {"dtype": "uint8", "shape": [1 << 30], "attributes": {"a": "x" * 4000}}
        items = {"items": [{"key": f"many/{i}", "parts": [part]} for i in range(200)]}
        before = resident(server.pid)
        with pytest.raises((pa.ArrowException, OSError), match=r"SIRA_BAD_REQUEST|ahead|closed|finish"):
            for _ in range(300):
                writer.write_metadata(pa.py_buffer(json.dumps(items).encode()))
            writer.done_writing()
            reader.read()
            writer.close()
        assert resident(server.pid) - before < 64 << 20
