"""What a put that was acknowledged survives, and what damage and full disks do."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import flight

import samples
import sira_store
from server import Server

LEVELS = ["strong", "eventual"]

# Enough for a few of the tensors that the test then puts.
TINY = """
[storage.backends.{backend}]
max_size = "8 MiB"
"""


# Nothing outlives the process.
MEMORY = """
[storage]
default_backend = "memory"
record_backend = "memory"
consistency = "weak"
[storage.backends.memory]
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server that this test may kill."""
    with Server(tmp_path / "data") as server:
        yield server


def weights(seed: int) -> NDArray[Any]:
    """9.6 MB that a codec makes smaller."""
    return np.random.default_rng(seed).standard_normal((4, 1_200_000), np.float32).astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("consistency", LEVELS)
def test_an_acknowledged_put_survives_a_kill(own: Server, consistency: str) -> None:
    arrays = {
        f"ns/{dtype}/{shape}": samples.array(dtype, shape)
        for dtype in ("bfloat16", "float32", "bool", "float4_e2m1fn", "complex64")
        for shape in ((), (0,), (8,), (3, 40_000), (5, 64, 4096), (2, 2_400_000))
        if samples.fits(dtype, shape)
    }
    versions = {}
    with sira_store.connect(own.url) as sira:
        for key, array in arrays.items():
            put = sira.put(key, array, consistency=consistency, attributes={"of": key})
            versions[key] = put.version
        sira.delete("ns/bool/()")
    own.kill()
    own.restart()
    del arrays["ns/bool/()"]
    with sira_store.connect(own.url) as sira:
        assert [info.key for info in sira.scan()] == sorted(arrays, key=str.encode)
        assert not sira.exists("ns/bool/()")
        for key, array in arrays.items():
            assert samples.same(sira.get(key), array), key
            info = sira.info(key)
            assert (info.version, info.attributes) == (versions[key], {"of": key})


def test_overwrites_and_deletes_survive_a_kill(own: Server) -> None:
    with sira_store.connect(own.url) as sira:
        for value in range(5):
            for size in (10, 300_000):
                sira.put(f"ns/{size}", np.full(size, value, np.int32))
                sira.put(f"ns/gone/{size}", np.full(size, value, np.int32))
        version = sira.info("ns/10").version
        for size in (10, 300_000):
            sira.delete(f"ns/gone/{size}")
    own.kill()
    own.restart()
    with sira_store.connect(own.url) as sira:
        assert [info.key for info in sira.scan("ns/")] == ["ns/10", "ns/300000"]
        for size in (10, 300_000):
            assert np.array_equal(sira.get(f"ns/{size}"), np.full(size, 4, np.int32))
        # Versions go on where they were: one that was seen never names another content.
        assert sira.put("ns/10", np.zeros(1)).version > version


def test_records_in_memory_go_with_the_process_and_touch_no_others(own: Server) -> None:
    array = np.arange(100_000, dtype=np.float32)
    with sira_store.connect(own.url) as sira:
        sira.put("ns/disk", array)
    assert own.terminate() == 0
    catalog = own.data / "catalog"
    before = {file.name: file.stat().st_mtime_ns for file in catalog.iterdir()}
    on_disk, own.config = own.config, MEMORY
    own.restart()
    for _ in range(2):
        with sira_store.connect(own.url) as sira:
            assert list(sira.scan()) == []
            assert sira.put("ns/memory", array, if_="absent").created
            assert not sira.put("ns/memory", -array).created
            assert [info.key for info in sira.scan()] == ["ns/memory"]
            assert np.array_equal(sira.get("ns/memory"), -array)
            assert sira.delete("ns/memory")
            assert not sira.exists("ns/memory")
            sira.put("ns/memory", array)
        own.kill()
        own.restart()
    assert own.terminate() == 0
    assert {file.name: file.stat().st_mtime_ns for file in catalog.iterdir()} == before
    own.config = on_disk
    own.restart()
    with sira_store.connect(own.url) as sira:
        assert [info.key for info in sira.scan()] == ["ns/disk"]
        assert np.array_equal(sira.get("ns/disk"), array)


def test_a_put_that_a_kill_cut_off_is_not_there(own: Server) -> None:
    schema = pa.schema([pa.field("tensor", pa.uint8())], metadata={"sira.shape": f"[{32 << 20}]"})
    batch = pa.record_batch([pa.array(np.ones(4 << 20, np.uint8))], schema=schema)
    client = flight.connect(own.url)
    writer, _ = client.do_put(flight.FlightDescriptor.for_path("ns/x"), schema)
    for _ in range(5):
        writer.write_batch(batch)
    own.kill()
    with pytest.raises((pa.ArrowException, OSError)):
        writer.close()
    own.restart()
    with sira_store.connect(own.url) as sira:
        assert not sira.exists("ns/x")
        assert sira.put("ns/x", np.ones(3), if_="absent").created


def test_a_stop_drains_and_loses_nothing(own: Server) -> None:
    array = samples.array("uint16", (3, 1_000_000))
    with sira_store.connect(own.url) as sira:
        for consistency in ("strong", "eventual", "weak"):
            sira.put(f"ns/{consistency}", array, consistency=consistency)
    assert own.terminate() == 0
    own.restart()
    with sira_store.connect(own.url) as sira:
        for consistency in ("strong", "eventual", "weak"):
            assert samples.same(sira.get(f"ns/{consistency}"), array), consistency
    assert own.terminate() == 0


def test_a_restart_keeps_expiry(own: Server) -> None:
    with sira_store.connect(own.url) as sira:
        sira.put("ns/x", np.zeros(3), ttl=3600)
        expires = sira.info("ns/x").expires_ms
        sira.put("ns/y", np.zeros(3), ttl=1)
    own.kill()
    own.restart()
    time.sleep(1)  # the put was before this second, so its end is over
    with sira_store.connect(own.url) as sira:
        assert sira.info("ns/x").expires_ms == expires
        assert not sira.exists("ns/y")
        assert [info.key for info in sira.scan()] == ["ns/x"]


def test_a_connection_outlives_nothing_but_says_so(own: Server) -> None:
    with sira_store.connect(own.url) as sira:
        sira.put("ns/x", np.zeros(3))
        own.kill()
        with pytest.raises(sira_store.UnavailableError):
            sira.get("ns/x")


@pytest.mark.parametrize("codec", ["none", "zstd", "planes+zstd"])
def test_flipped_bits_are_never_read_as_data(own: Server, codec: str) -> None:
    # Large enough to go to the object store.
    arrays = {f"ns/{i}": weights(seed=i) for i in range(3)}
    with sira_store.connect(own.url) as sira:
        for key, array in arrays.items():
            sira.put(key, array, codec=codec, consistency="strong")
    assert own.terminate() == 0

    # One bit in the middle of each large file: those are chunks, whatever they are called.
    files = [file for file in (own.data / "object").rglob("*") if file.is_file()]
    chunks = [file for file in files if file.stat().st_size > 100_000]
    assert len(chunks) >= len(arrays)
    pick = random.Random(0)
    for chunk in chunks:
        data = bytearray(chunk.read_bytes())
        data[pick.randrange(len(data) // 4, len(data) * 3 // 4)] ^= 1 << pick.randrange(8)
        chunk.write_bytes(data)

    own.restart()
    with sira_store.connect(own.url) as sira:
        for key in arrays:
            with pytest.raises(sira_store.CorruptError, match="SIRA_CORRUPT") as caught:
                sira.get(key)
            assert key in str(caught.value)
            assert "object" in str(caught.value)
        # The rest goes on, and a new put heals the key.
        for key, array in arrays.items():
            sira.put(key, array, codec=codec)
            assert samples.same(sira.get(key), array)


def test_one_flipped_bit_spoils_one_tensor(own: Server) -> None:
    arrays = {f"ns/{i}": samples.array("uint8", (9_000_000,), seed=i) for i in range(3)}
    with sira_store.connect(own.url) as sira:
        for key, array in arrays.items():
            sira.put(key, array, codec="none", consistency="strong")
    assert own.terminate() == 0
    chunk = max(
        (file for file in (own.data / "object").rglob("*") if file.is_file()),
        key=lambda file: file.stat().st_size,
    )
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 0x10
    chunk.write_bytes(data)
    own.restart()
    outcomes = []
    with sira_store.connect(own.url) as sira:
        for key, array in arrays.items():
            try:
                assert samples.same(sira.get(key), array)
                outcomes.append("whole")
            except sira_store.CorruptError:
                outcomes.append("corrupt")
    assert sorted(outcomes) == ["corrupt", "whole", "whole"]


@pytest.mark.parametrize("backend", ["rocksdb", "object", "file"])
def test_a_full_backend_refuses_and_a_delete_makes_room(tmp_path: Path, backend: str) -> None:
    array = samples.array("uint8", (1 << 20,))
    with (
        Server(tmp_path / "data", TINY.format(backend=backend)) as server,
        sira_store.connect(server.url) as sira,
    ):
        kept = []
        with pytest.raises(OSError) as caught:
            for i in range(64):
                sira.put(f"ns/{i}", array, codec="none")
                kept.append(f"ns/{i}")
        assert isinstance(caught.value, sira_store.OutOfSpaceError)
        assert caught.value.code == "SIRA_OUT_OF_SPACE"
        assert kept
        # What was refused is not there, what was acknowledged is, and reads go on.
        assert [info.key for info in sira.scan()] == sorted(kept, key=str.encode)
        for key in kept:
            assert samples.same(sira.get(key), array)
        for key in kept:
            assert sira.delete(key)
        sira.put("ns/again", array, codec="none")
        assert samples.same(sira.get("ns/again"), array)
