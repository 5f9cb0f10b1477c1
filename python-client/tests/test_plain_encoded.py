"""Encoded chunks as a plain Arrow Flight user has them: pyarrow, docs/wire.md, and no package of Sira's."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import flight

SHAPE = (3, 1000, 1000)
CHUNK = (1, 700, 1000)
ZSTD = pa.Codec("zstd")


def boxes(shape: Iterable[int], chunk: Iterable[int]) -> list[tuple[slice, ...]]:
    """The boxes of a grid, in row-major order."""
    cuts = [
        [slice(at, min(at + step, extent)) for at in range(0, extent, step)]
        for extent, step in zip(shape, chunk, strict=True)
    ]
    return list(itertools.product(*cuts))


def sparse(seed: int = 0) -> np.ndarray:
    """Values that compress, all but the last chunk, which is noise."""
    random = np.random.default_rng(seed)
    array = random.integers(0, 4, SHAPE).astype(np.int16)
    array[2, 700:] = random.integers(-(2**15), 2**15, (300, 1000))
    return array


def get(client: flight.FlightClient, **ticket: Any) -> tuple[np.ndarray, dict[str, Any] | None]:
    """The box that a ticket asks for, and what was said of its chunks, if it came in chunks."""
    reader = client.do_get(flight.Ticket(json.dumps({"v": 1, **ticket})))
    metadata = reader.schema.metadata
    shape = json.loads(metadata[b"sira.shape"])
    assert metadata[b"sira.dtype"] == b"int16"
    if b"sira.encoded" not in metadata:
        table = reader.read_all().column("tensor").combine_chunks()
        return table.to_numpy_ndarray().reshape(shape), None
    layout = json.loads(metadata[b"sira.encoded"])
    heads: dict[int, dict[str, Any]] = {}
    chunks: dict[int, bytes] = {}
    for message in reader:
        rows = message.data.column(0).buffers()[1]
        for segment in json.loads(message.app_metadata.to_pybytes())["segments"]:
            assert segment["offset"] % 64 == 0
            if "chunk" in segment:
                heads[segment["cell"]] = segment["chunk"]
            part = rows.slice(segment["offset"], segment["bytes"]).to_pybytes()
            chunks[segment["cell"]] = chunks.get(segment["cell"], b"") + part
    whole = np.zeros(layout["shape"], np.int16)
    grid = boxes(layout["shape"], layout["chunk_shape"])
    assert list(chunks) == sorted(chunks)
    for cell, data in chunks.items():
        assert len(data) == heads[cell]["bytes"]
        assert len(heads[cell]["checksum"]) == 16
        box = whole[grid[cell]]
        if layout["chains"][heads[cell]["chain"]] == "zstd":
            data = ZSTD.decompress(data, box.nbytes).to_pybytes()
        box[...] = np.frombuffer(data, np.int16).reshape(box.shape)
    box = tuple(slice(*bounds) for bounds in layout.get("slice", [[0, extent] for extent in layout["shape"]]))
    assert list(whole[box].shape) == shape
    return whole[box], layout


def test_chunks_are_read_with_pyarrow_alone(plain: flight.FlightClient, ns: str) -> None:
    array = sparse()
    metadata = {"sira.shape": json.dumps(SHAPE), "sira.dtype": "int16", "sira.codec": "zstd"}
    schema = pa.schema([pa.field("tensor", pa.int16())], metadata)
    writer, answer = plain.do_put(flight.FlightDescriptor.for_path(f"{ns}/a"), schema)
    with writer:
        writer.write_batch(pa.record_batch([pa.array(array.reshape(-1))], schema=schema))
        writer.done_writing()
        answer.read()
    got, layout = get(plain, key=f"{ns}/a", encoded=["zstd"])
    assert layout is not None
    assert (layout["chains"], layout["version"], layout["part"]) == (["none", "zstd"], 1, "data")
    assert np.array_equal(got, array)
    got, layout = get(plain, key=f"{ns}/a", encoded=["zstd"], slice={"0": [1, 3], "1": [5, 990]}, version=1)
    assert layout is not None
    assert layout["slice"] == [[1, 3], [5, 990], [0, 1000]]
    assert np.array_equal(got, array[1:3, 5:990])
    for options in (
        {},
        {"encoded": []},
        {"encoded": ["planes"]},
        {"encoded": ["zstd"], "slice": {"1": [0, 2]}},
    ):
        got, layout = get(plain, key=f"{ns}/a", **options)
        assert layout is None
        assert np.array_equal(got, array if "slice" not in options else array[:, 0:2])


def put(
    client: flight.FlightClient, descriptor: flight.FlightDescriptor, options: dict[str, str], messages: Any
) -> dict[str, Any]:
    schema = pa.schema([pa.field("tensor", pa.uint8())], options)
    writer, answer = client.do_put(descriptor, schema)
    try:
        for said, rows in messages:
            if said is not None and not rows:
                writer.write_metadata(said)
                continue
            batch = pa.record_batch([pa.array(np.frombuffer(rows, np.uint8))], schema=schema)
            writer.write_batch(batch) if said is None else writer.write_with_metadata(batch, said)
        writer.done_writing()
        result = answer.read()
    finally:
        writer.close()
    return json.loads(result.to_pybytes())


def encoded(array: np.ndarray) -> tuple[list[dict[str, int]], list[bytes]]:
    """Chunks: what is said of each, and their bytes; those that do not compress are raw."""
    heads, chunks = [], []
    for box in boxes(SHAPE, CHUNK):
        raw = np.ascontiguousarray(array[box]).tobytes()
        small = ZSTD.compress(raw, asbytes=True)
        chunks.append(small if len(small) < len(raw) else raw)
        heads.append({"chain": int(len(small) < len(raw)), "bytes": len(chunks[-1])})
    return heads, chunks


@pytest.mark.parametrize("how", ["one message", "a message each", "announced before", "command"])
def test_chunks_are_put_with_pyarrow_alone(plain: flight.FlightClient, ns: str, how: str) -> None:
    array = sparse(1)
    heads, chunks = encoded(array)
    assert {head["chain"] for head in heads} == {0, 1}
    encoding = {"chunk_shape": CHUNK, "chains": ["none", "zstd"]}
    options = {"sira.shape": json.dumps(SHAPE), "sira.dtype": "int16", "sira.encoded": json.dumps(encoding)}
    descriptor = flight.FlightDescriptor.for_path(f"{ns}/a")
    if how == "command":
        command = {"v": 1, "key": f"{ns}/a", "shape": SHAPE, "dtype": "int16", "encoded": encoding}
        descriptor, options = flight.FlightDescriptor.for_command(json.dumps(command)), {}
    said = json.dumps({"chunks": heads}).encode()
    messages: list[tuple[bytes | None, bytes]] = [(said, b"".join(chunks))]
    if how == "a message each":
        messages = [
            (json.dumps({"chunks": [head]}).encode(), chunk)
            for head, chunk in zip(heads, chunks, strict=True)
        ]
    elif how == "announced before":
        data = b"".join(chunks)
        messages = [(said, b""), (None, data[:100_003]), (None, data[100_003:])]
    assert put(plain, descriptor, options, messages)["created"]
    (result,) = plain.do_action(flight.Action("info", json.dumps({"v": 1, "key": f"{ns}/a"}).encode()))
    info = json.loads(result.body.to_pybytes())
    assert (info["codec"], info["stored_bytes"]) == ("zstd", sum(map(len, chunks)))
    assert np.array_equal(get(plain, key=f"{ns}/a")[0], array)
    got, layout = get(plain, key=f"{ns}/a", encoded=["zstd"])
    assert layout is None or layout["chunk_shape"] == list(CHUNK)
    assert np.array_equal(got, array)


def test_chunks_that_are_wrong_are_refused(plain: flight.FlightClient, ns: str) -> None:
    array = sparse(2)
    heads, chunks = encoded(array)
    encoding = {"chunk_shape": CHUNK, "chains": ["none", "zstd"]}
    options = {"sira.shape": json.dumps(SHAPE), "sira.dtype": "int16", "sira.encoded": json.dumps(encoding)}
    descriptor = flight.FlightDescriptor.for_path(f"{ns}/a")
    damaged = bytes([255]) * 50 + chunks[0][50:]
    wrong = [{**heads[0], "checksum": "0" * 16}, *heads[1:]]
    for said, data, error in (
        (heads, chunks[:-1], "SIRA_INCOMPLETE"),
        (heads[:-1], chunks[:-1], "SIRA_INCOMPLETE: the tensor has 6 chunks; 5 came"),
        (heads, [damaged, *chunks[1:]], "SIRA_BAD_TENSOR: chunk 0: it does not decode with zstd"),
        (wrong, chunks, "SIRA_BAD_TENSOR: chunk 0: its checksum is"),
        ([{**heads[0], "bytes": math.prod(SHAPE) * 2}], chunks, "SIRA_BAD_TENSOR: chunk 0 of chain zstd"),
    ):
        message = (json.dumps({"chunks": said}).encode(), b"".join(data))
        with pytest.raises(pa.ArrowInvalid, match=error):
            put(plain, descriptor, options, [message])
    with pytest.raises(pa.ArrowKeyError, match="SIRA_NOT_FOUND"):
        get(plain, key=f"{ns}/a")
