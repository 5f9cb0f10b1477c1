"""`sira export` and `sira import`: files that fastavro reads and writes, kills in the middle, damage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastavro
import pytest
import xxhash
from exports import MIB, SCHEMA, command, run, same, with_fastavro
from numpy.typing import NDArray

import samples
import sira_store
from server import Server

LARGE = 40
"""Tensors of 1 MiB that an export or import is killed in the middle of."""


def put_all_kinds(sira: sira_store.Client, ns: str) -> dict[str, NDArray[Any]]:
    arrays = {}
    for i, dtype in enumerate(samples.DTYPES):
        for shape in samples.SHAPES:
            if samples.fits(dtype, shape):
                key = f"{ns}/{dtype}/{'x'.join(map(str, shape)) or 'scalar'}"
                arrays[key] = samples.array(dtype, shape, i)
                sira.put(key, arrays[key])
    key = f"{ns}/large"
    arrays[key] = samples.array("uint16", (3, MIB), 5)
    sira.put(key, arrays[key])
    return arrays


@pytest.mark.parametrize("codec", ["null", "deflate", "zstandard"])
def test_every_kind_is_read_by_fastavro_and_imported_bit_for_bit(
    server: Server, sira: sira_store.Client, ns: str, target: Server, tmp_path: Path, codec: str
) -> None:
    arrays = put_all_kinds(sira, ns)
    file = tmp_path / "all.avro"
    said = run(server, "export", f"{ns}/", file, "--codec", codec)
    assert said.startswith(f"{file}: {len(arrays)} tensors, 6.")
    assert "meanwhile" not in said
    found = with_fastavro(file)
    assert list(found) == sorted(arrays, key=str.encode)
    for key, array in arrays.items():
        assert samples.same(found[key], array), key
    run(target, "import", file)
    with sira_store.connect(target.url) as there:
        assert [info.key for info in there.scan()] == list(found)
        for key, array in arrays.items():
            assert samples.same(there.get(key), array), key
    assert not list(tmp_path.glob("all.avro.*"))


def test_what_is_said_of_a_tensor_is_kept_and_keys_may_move(
    server: Server, sira: sira_store.Client, ns: str, target: Server, tmp_path: Path
) -> None:
    array = samples.array("bfloat16", (4, 6))
    options: dict[str, Any] = {
        "axes": ["token", "dim"],
        "attributes": {"model": "m", "empty": "", "unicode": "é\U0001f980"},
        "consistency": "strong",
    }
    sira.put(f"{ns}/a/1", array, codec="planes+zstd", ttl=3600, **options)
    sira.put(f"{ns}/a/1", array, codec="planes+zstd", ttl=3600, **options)
    sira.put(f"{ns}/a/soon", array, ttl=1)
    sira.put(f"{ns}/b", array)
    file = tmp_path / "some.avro"
    assert "2 tensors" in run(server, "export", f"{ns}/a/", file)
    with file.open("rb") as stream:
        reader = fastavro.reader(stream)
        assert reader.metadata["sira.export.version"] == "1"
        assert reader.metadata["sira.export.prefix"] == f"{ns}/a/"
        header = next(reader)["header"]
    assert header["version"] == 2
    assert header["parts"][0]["axes"] == ["token", "dim"]
    time.sleep(1.2)
    said = run(target, "import", file, "--prefix", "moved/x-")
    assert "1 tensor, 48 B; 1 have expired since the export" in said
    with sira_store.connect(target.url) as there:
        (info,) = there.scan()
        was = sira.info(f"{ns}/a/1")
        assert (info.key, info.version) == ("moved/x-1", 1)
        for name in ("dtype", "shape", "axes", "codec", "consistency", "attributes"):
            assert getattr(info, name) == getattr(was, name), name
        assert info.expires_ms is not None
        assert was.expires_ms is not None
        assert abs(info.expires_ms - was.expires_ms) < 5000
        assert samples.same(there.get("moved/x-1"), array)
        # What is there stays as it is, if asked for, and is replaced otherwise.
        there.put("moved/x-1", samples.array("uint8", (3,)))
        assert "1 were there already" in run(target, "import", file, "--prefix", "moved/x-", "--if-absent")
        assert there.info("moved/x-1").version == 2
        run(target, "import", file, "--prefix", "moved/x-")
        assert samples.same(there.get("moved/x-1"), array)


def records(key: str, array: NDArray[Any], chunk: int = 1000) -> Iterator[dict[str, Any]]:
    """A tensor as another program would write it, checksums by the published algorithm."""

    def xxh3(data: bytes) -> int:
        return int.from_bytes(xxhash.xxh3_64_digest(data), "big", signed=True)

    data = array.tobytes()
    part = {"dtype": array.dtype.name, "shape": list(array.shape), "nbytes": len(data)}
    yield {"header": {"key": key, "parts": [part]}}
    offsets = range(0, len(data), chunk)
    for offset in offsets:
        piece = data[offset : offset + chunk]
        yield {"chunk": {"key": key, "offset": offset, "data": piece, "xxh3": xxh3(piece)}}
    yield {"end": {"key": key, "chunks": len(offsets), "nbytes": len(data), "xxh3": xxh3(data)}}


@pytest.mark.parametrize("codec", ["null", "deflate"])
def test_what_fastavro_writes_is_imported(target: Server, tmp_path: Path, codec: str) -> None:
    arrays = {f"from/{name}": samples.array(name, (30, 40), 7) for name in ("float32", "bool", "bfloat16")}
    arrays["from/scalar"] = samples.array("int64", ())
    arrays["from/none"] = samples.array("int64", (0, 3))
    file = tmp_path / "made.avro"
    made = [record for key, array in arrays.items() for record in records(key, array)]
    with file.open("wb") as stream:
        fastavro.writer(stream, SCHEMA, made, codec=codec)
    assert f"{len(arrays)} tensors" in run(target, "import", file)
    with sira_store.connect(target.url) as there:
        assert there.info("from/bool").consistency == "eventual"
        for key, array in arrays.items():
            assert samples.same(there.get(key), array), key


def test_a_wrong_end_of_an_empty_tensor_stores_nothing(target: Server, tmp_path: Path) -> None:
    file = tmp_path / "made.avro"
    made = list(records("from/none", samples.array("int64", (0, 3))))
    made[-1]["end"]["xxh3"] += 1
    with file.open("wb") as stream:
        fastavro.writer(stream, SCHEMA, made)
    assert "tensor from/none: the checksum of all its bytes is wrong" in run(target, "import", file, code=1)
    with sira_store.connect(target.url) as there:
        assert not list(there.scan())


def test_damaged_and_torn_files_store_nothing_of_the_tensor(
    server: Server, sira: sira_store.Client, ns: str, target: Server, tmp_path: Path
) -> None:
    for name, shape in [("a", (10,)), ("b", (5, MIB)), ("c", (10,))]:
        sira.put(f"{ns}/{name}", samples.array("uint8", shape))
    file = tmp_path / "whole.avro"
    run(server, "export", f"{ns}/", file)
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[4 * MIB] ^= 1
    broken = tmp_path / "broken.avro"
    for content, reason in [
        (bytes(damaged), "the checksum of the chunk at byte 3145728 of part 0 is wrong"),
        (whole[: 4 * MIB], "the file ends in the middle of it"),
        (whole[: 4 * MIB] + bytes(2 * MIB), "at byte "),
    ]:
        broken.write_bytes(content)
        said = run(target, "import", broken, code=1)
        assert said.startswith(f"sira: {broken}: tensor {ns}/b: nothing of it was stored: at byte ")
        assert reason in said
        assert said.rstrip().endswith("1 tensor before it imported: go on with --resume")
        with sira_store.connect(target.url) as there:
            assert [info.key for info in there.scan()] == [f"{ns}/a"]
            there.delete(f"{ns}/a")
        broken.with_name("broken.avro.import").unlink()


def large(sira: sira_store.Client, ns: str) -> dict[str, NDArray[Any]]:
    arrays = {f"{ns}/{i:03}": samples.array("uint8", (MIB,), i) for i in range(LARGE)}
    arrays |= {f"{ns}/{i:03}-small": samples.array("float16", (i,), i) for i in range(LARGE)}
    for key, array in arrays.items():
        sira.put(key, array)
    return arrays


def stopped(arguments: list[str], when: Callable[[], bool]) -> subprocess.Popen[bytes] | None:
    """Starts a command and stops it as soon as `when` holds; None where it was done before."""
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None:
        if when():
            os.kill(process.pid, signal.SIGSTOP)
            if os.waitpid(process.pid, os.WUNTRACED)[1] & 0xFF == 0x7F:
                return process
            break
    process.communicate()
    return None


def in_the_middle(make: Callable[[], subprocess.Popen[bytes] | None]) -> subprocess.Popen[bytes]:
    for _ in range(20):
        if (process := make()) is not None:
            return process
    pytest.fail("twenty times the command was done before it could be stopped")


def test_a_killed_export_goes_on_to_the_same_content(
    server: Server, sira: sira_store.Client, ns: str, tmp_path: Path
) -> None:
    arrays = large(sira, ns)
    file, partial = tmp_path / "x.avro", tmp_path / "x.avro.partial"

    def attempt() -> subprocess.Popen[bytes] | None:
        file.unlink(missing_ok=True)
        arguments = command(server, "export", f"{ns}/", file)
        return stopped(arguments, lambda: partial.exists() and partial.stat().st_size > 5 * MIB)

    process = in_the_middle(attempt)
    assert "another export is writing it" in run(server, "export", f"{ns}/", file, "--resume", code=1)
    process.kill()
    process.communicate()
    assert not file.exists()
    assert "go on with --resume, or remove it" in run(server, "export", f"{ns}/", file, code=1)
    said = run(server, "export", f"{ns}/", file, "--resume")
    assert f"{len(arrays)} tensors" in said
    assert int(said.split("; ")[1].split()[0]) >= 4, said
    found = with_fastavro(file)
    assert list(found) == sorted(arrays)
    assert all(samples.same(found[key], array) for key, array in arrays.items())
    assert not partial.exists()


def test_an_export_whose_server_goes_away_goes_on(tmp_path: Path) -> None:
    file, partial = tmp_path / "x.avro", tmp_path / "x.avro.partial"
    with Server(tmp_path / "data") as server:
        with sira_store.connect(server.url) as sira:
            arrays = large(sira, "t")

        def attempt() -> subprocess.Popen[bytes] | None:
            file.unlink(missing_ok=True)
            arguments = command(server, "export", "", file)
            return stopped(arguments, lambda: partial.exists() and partial.stat().st_size > 5 * MIB)

        process = in_the_middle(attempt)
        server.kill()
        os.kill(process.pid, signal.SIGCONT)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        said = errors.decode().rstrip()
        assert said.endswith(f"so far are in {partial}: go on with --resume"), said
        with server:
            run(server, "export", "", file, "--resume", "--codec", "null")
        found = with_fastavro(file)
        assert list(found) == sorted(arrays)
        assert all(samples.same(found[key], array) for key, array in arrays.items())


def test_keys_that_change_or_vanish_meanwhile_are_told(
    server: Server, sira: sira_store.Client, ns: str, tmp_path: Path
) -> None:
    arrays: dict[str, Any] = {**large(sira, ns)}
    file, partial = tmp_path / "x.avro", tmp_path / "x.avro.partial"

    def attempt() -> subprocess.Popen[bytes] | None:
        file.unlink(missing_ok=True)
        arguments = command(server, "export", f"{ns}/", file)
        return stopped(arguments, lambda: partial.exists() and partial.stat().st_size > MIB)

    process = in_the_middle(attempt)
    gone, changed, in_parts = (f"{ns}/{LARGE - i:03}" for i in (1, 2, 3))
    sira.delete(gone)
    arrays[changed] = samples.array("int32", (5, 5))
    arrays[in_parts] = {"k": samples.array("int8", (5, 5)), "v": samples.array("uint8", (MIB + 1,))}
    for key in (changed, in_parts):
        sira.put(key, arrays[key])
    del arrays[gone]
    os.kill(process.pid, signal.SIGCONT)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert b"; 2 changed meanwhile: their newer version was taken; 1 vanished meanwhile" in said
    found = with_fastavro(file)
    assert list(found) == sorted(arrays)
    assert all(same(found[key], array) for key, array in arrays.items())


@pytest.mark.parametrize("how", ["--resume", "--if-absent"])
def test_a_killed_import_goes_on(
    server: Server, sira: sira_store.Client, ns: str, target: Server, tmp_path: Path, how: str
) -> None:
    arrays = large(sira, ns)
    file, state = tmp_path / "x.avro", tmp_path / "x.avro.import"
    run(server, "export", f"{ns}/", file)
    with sira_store.connect(target.url) as there:

        def attempt() -> subprocess.Popen[bytes] | None:
            for info in there.scan():
                there.delete(info.key)
            return stopped(command(target, "import", file), state.exists)

        process = in_the_middle(attempt)
        process.kill()
        process.communicate()
        imported = [info.key for info in there.scan()]
        assert 0 < len(imported) < len(arrays)
        versions = {info.key: info.version for info in there.scan()}
        said = run(target, "import", file, how)
        known = json.loads(state.read_text())["tensors"] if state.exists() else 0
        if how == "--resume":
            assert " were imported before" in said
            assert known == 0, "the state is gone when the import is done"
        else:
            assert f"; {len(imported)} were there already" in said
            assert versions.items() <= {info.key: info.version for info in there.scan()}.items()
        assert [info.key for info in there.scan()] == sorted(arrays)
        assert all(samples.same(there.get(key), array) for key, array in arrays.items())


def test_a_state_of_another_import_is_refused(
    server: Server, sira: sira_store.Client, ns: str, target: Server, tmp_path: Path
) -> None:
    sira.put(f"{ns}/a", samples.array("uint8", (4,)))
    file, state = tmp_path / "x.avro", tmp_path / "x.avro.import"
    run(server, "export", f"{ns}/", file)
    state.write_text(
        json.dumps(
            {
                "v": 1,
                "file": {"marker": "00" * 16, "length": file.stat().st_size},
                **dict.fromkeys(["block", "record", "tensors"], 1),
                "prefix": None,
            }
        )
    )
    assert "of an import of another file" in run(target, "import", file, "--resume", code=1)
    state.write_text("{")
    assert "not the state of an import" in run(target, "import", file, "--resume", code=1)
    state.unlink()
    assert "1 tensor" in run(target, "import", file, "--resume")


def test_files_that_are_no_exports_are_refused(target: Server, tmp_path: Path) -> None:
    other = fastavro.parse_schema({"type": "record", "name": "R", "fields": [{"name": "x", "type": "long"}]})
    file = tmp_path / "other.avro"
    with file.open("wb") as stream:
        fastavro.writer(stream, other, [{"x": 1}])
    assert "the schema is not that of an export of Sira" in run(target, "import", file, code=1)
    with file.open("wb") as stream:
        fastavro.writer(stream, SCHEMA, [], metadata={"sira.export.version": "2"})
    assert 'an export of version "2"; this program reads 1' in run(target, "import", file, code=1)
    file.write_bytes(b"no Avro")
    assert "not an Avro object container file" in run(target, "import", file, code=1)
    with sira_store.connect(target.url) as there:
        assert not list(there.scan())
