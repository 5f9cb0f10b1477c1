"""`sira export` and `sira import` of keys with several parts and of those that follow KV specs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
import xxhash
from exports import MIB, SCHEMA, run, same, with_fastavro

import samples
import sira_store
from server import REPOSITORY, Server
from sira_store import KvSpec

GOLDEN = REPOSITORY / "crates" / "server" / "golden" / "export-1.avro"
FP8 = KvSpec.nhd("größe", dtype="float8_e4m3fn", scales=["head"], block_tokens=16, kv_heads=8, head_dim=128)
PAGED = KvSpec.paged("m", dtype="bfloat16", block_tokens=16, kv_heads=2, head_dim=64)


def block(seed: int) -> dict[str, Any]:
    """What follows [`FP8`]."""
    return {
        part.name: samples.array(part.dtype, tuple(map(int, filter(None, part.shape or ()))), seed + i)
        for i, part in enumerate(FP8.parts)
    }


def put_blocks(sira: sira_store.Client, ns: str) -> dict[str, Any]:
    """Small keys and such that are streamed, with and without a spec; what lies under each."""
    given: dict[str, Any] = {f"{ns}/block-{i:03}": block(i) for i in range(50)}
    for key, parts in given.items():
        sira.put(key, parts, spec=FP8)
    for name, blocks in (("paged-small", 3), ("paged-large", 200)):
        given[f"{ns}/{name}"] = samples.array("bfloat16", (blocks, 2, 16, 2, 64), blocks)
        sira.put(f"{ns}/{name}", given[f"{ns}/{name}"], spec=PAGED)
    several = {
        "packed": samples.array("float4_e2m1fn", (3, 8), 1),
        "none": np.empty((0, 3), np.float16),
        "large": samples.array("uint16", (3, MIB), 2),
        "scalar": np.array(7, np.int32),
        "odd": samples.array("uint8", (2 * MIB + 3,), 3),
        "last": np.empty((0,), np.int8),
    }
    for key, parts in (("several", several), ("empty", {"a": np.empty((0,), np.int8), "b": several["none"]})):
        given[f"{ns}/{key}"] = parts
        sira.put(
            f"{ns}/{key}",
            parts,
            axes={"b": ["x", ""]} if key == "empty" else {"large": ["x", "y"]},
            attributes={"a": {"of": "é"}} if key == "empty" else {"odd": {"empty": ""}, "none": {"a": "b"}},
            codec={"b": "zstd:3"} if key == "empty" else {"large": "planes+zstd", "odd": "lz4"},
            consistency="strong",
            ttl=3600,
        )
    given[f"{ns}/one"] = {"k": several["large"]}
    sira.put(f"{ns}/one", given[f"{ns}/one"])
    return given


def stays(info: sira_store.TensorInfo) -> dict[str, Any]:
    """What of a key an export keeps. Where it lies, and as how many bytes, is the server's own."""
    kept = ("dtype", "shape", "axes", "attributes", "codec", "consistency", "kv_spec")
    parts = [
        (part.name, part.dtype, part.shape, part.axes, part.nbytes, part.attributes, part.codec)
        for part in info.parts
    ]
    return {"parts": parts, **{name: getattr(info, name) for name in kept}}


@pytest.mark.parametrize("codec", ["null", "zstandard"])
def test_parts_and_specs_come_back(
    server: Server, sira: sira_store.Client, ns: str, target: Server, tmp_path: Path, codec: str
) -> None:
    given = put_blocks(sira, ns)
    file = tmp_path / "x.avro"
    assert f"{len(given)} tensors" in run(server, "export", f"{ns}/", file, "--codec", codec)
    found = with_fastavro(file)
    assert list(found) == sorted(given)
    assert all(same(found[key], value) for key, value in given.items())
    with file.open("rb") as stream:
        headers = [record["header"] for record in fastavro.reader(stream) if record["header"]]
    specs = {header["kv_spec"]["hash"]: header["kv_spec"]["json"] for header in headers if header["kv_spec"]}
    assert {hash: KvSpec.from_json(json.loads(text)) for hash, text in specs.items()} == {
        sira.register_spec(spec): spec for spec in (FP8, PAGED)
    }
    run(target, "import", file)
    with sira_store.connect(target.url, lookup_deadline=None) as there:
        assert [info.key for info in there.scan()] == sorted(given)
        for key, value in given.items():
            assert stays(there.info(key)) == stays(sira.info(key)), key
            got = there.get(key, parts=list(value)) if isinstance(value, dict) else there.get(key)
            assert same(got, value), key
        assert all(there.kv_spec(hash) == sira.kv_spec(hash) for hash in specs)
        assert same(there.get(f"{ns}/block-007", spec=FP8), given[f"{ns}/block-007"])
        ttl = there.info(f"{ns}/several").expires_ms
        was = sira.info(f"{ns}/several").expires_ms
        assert ttl is not None
        assert was is not None
        assert abs(ttl - was) < 5000
        assert f"; {len(given)} were there already" in run(target, "import", file, "--if-absent")
        assert {info.version for info in there.scan()} == {1}


def test_the_golden_file_is_imported(target: Server, tmp_path: Path) -> None:
    file = tmp_path / "golden.avro"
    file.write_bytes(GOLDEN.read_bytes())
    found = with_fastavro(file)
    assert f"{len(found)} tensors" in run(target, "import", file)
    with sira_store.connect(target.url, lookup_deadline=None) as there:
        assert [info.key for info in there.scan()] == list(found)
        assert all(same(there.get(key), value) for key, value in found.items())
        hash = there.info("t/parts").kv_spec
        assert hash is not None
        assert [part.name for part in there.kv_spec(hash).parts] == list(found["t/parts"])


def test_damage_in_any_part_stores_nothing_of_the_key(
    server: Server, sira: sira_store.Client, ns: str, target: Server, tmp_path: Path
) -> None:
    sira.put(f"{ns}/a", block(1), spec=FP8)
    sira.put(f"{ns}/b", {name: samples.array("uint8", (2 * MIB,), i) for i, name in enumerate(["k", "v"])})
    sira.put(f"{ns}/c", block(2), spec=FP8)
    file = tmp_path / "x.avro"
    run(server, "export", f"{ns}/", file)
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[3 * MIB + MIB // 2] ^= 1
    for content, reason in [
        (whole[: 3 * MIB], "the file ends in the middle of it"),
        (bytes(damaged), "the checksum of the chunk at byte 1048576 of part 1 is wrong"),
    ]:
        file.write_bytes(content)
        said = run(target, "import", file, code=1)
        assert f"tensor {ns}/b: nothing of it was stored: at byte " in said
        assert reason in said
        assert said.rstrip().endswith("1 tensor before it imported: go on with --resume")
        with sira_store.connect(target.url, lookup_deadline=None) as there:
            assert [info.key for info in there.scan()] == [f"{ns}/a"]
    file.write_bytes(whole)
    assert "2 tensors" in run(target, "import", file, "--resume")


def records(header: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A key without bytes, as another program would write it."""
    yield {"header": header}
    none = int.from_bytes(xxhash.xxh3_64_digest(b""), "big", signed=True)
    yield {"end": {"key": header["key"], "chunks": 0, "nbytes": 0, "xxh3": none}}


def test_specs_are_held_against_their_hashes(sira: sira_store.Client, target: Server, tmp_path: Path) -> None:
    text = '{"model": "m", "block_tokens": 1, "parts": [{"dtype": "uint8", "axes": ["record"]}]}'
    hash = sira.register_spec(KvSpec.from_json(json.loads(text)))
    file = tmp_path / "x.avro"

    def given(shape: list[int], **spec: str) -> None:
        part = {"dtype": "uint8", "shape": shape, "nbytes": 0}
        headers = [{"key": "t/w", "parts": [part]}, {"key": "t/x", "parts": [part], "kv_spec": spec}]
        with file.open("wb") as stream:
            fastavro.writer(stream, SCHEMA, [record for header in headers for record in records(header)])

    for spec, reason in [
        (
            {"hash": hash[::-1], "json": text},
            f"tensor t/x: its KV spec: the header says that its hash is {hash[::-1]!r}",
        ),
        ({"hash": hash, "json": text.replace("m", "n", 1)}, "tensor t/x: its KV spec: "),
        ({"hash": hash, "json": "{"}, "tensor t/x: its KV spec: "),
    ]:
        given([0], **spec)
        for how in ([], ["--resume"]):
            said = run(target, "import", file, *how, code=1)
            assert reason.replace("'", '"') in said
            assert said.rstrip().endswith("; 1 tensor before it imported: go on with --resume")
    given([0, 1], hash=hash, json=text)
    assert "tensor t/x: SIRA_BAD_TENSOR" in run(target, "import", file, code=1)
    with sira_store.connect(target.url, lookup_deadline=None) as there:
        assert [info.key for info in there.scan()] == ["t/w"]
        given([0], hash=hash, json=text)
        assert "2 tensors" in run(target, "import", file)
        assert (there.info("t/x").kv_spec, there.info("t/x").axes) == (hash, ("record",))


def test_json(server: Server, sira: sira_store.Client, ns: str, target: Server, tmp_path: Path) -> None:
    for i in range(3):
        sira.put(f"{ns}/{i}", {"k": samples.array("uint8", (5,)), "v": samples.array("int16", (5,))})
    file = tmp_path / "x.avro"
    said = run(server, "export", f"{ns}/", file, "--json")
    counts = {"resumed": 0, "changed": 0, "vanished": 0}
    size = file.stat().st_size
    assert json.loads(said) == {"file": str(file), "tensors": 3, "nbytes": 45, "file_bytes": size, **counts}
    assert said.count("\n") == 1
    for tensors, present in ((3, 0), (0, 3)):
        said = run(target, "import", file, "--json", "--if-absent")
        counts = {"tensors": tensors, "nbytes": 15 * tensors, "resumed": 0, "present": present, "expired": 0}
        assert json.loads(said) == {"file": str(file), **counts}
    assert run(target, "import", tmp_path / "none", "--json", code=1).startswith("sira: ")
