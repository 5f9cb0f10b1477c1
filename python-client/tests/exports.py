"""Runs `sira export` and `sira import`, and reads their files with nothing but fastavro and numpy."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import fastavro
import numpy as np

import samples
from server import REPOSITORY, Server, program

SCHEMA = fastavro.parse_schema(json.loads((REPOSITORY / "schemas" / "export.avsc").read_text()))
MIB = 1 << 20


def command(server: Server, *arguments: object) -> list[str]:
    return [str(program()), "--url", server.url, *map(str, arguments)]


def run(server: Server, *arguments: object, code: int = 0) -> str:
    """Runs a command to its end; what it says, on the one stream or the other."""
    done = subprocess.run(command(server, *arguments), capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done
    assert bool(done.stderr) == (code != 0), "no progress is shown where nobody looks"
    return done.stdout if code == 0 else done.stderr


def unpacked(dtype: str, data: bytes, count: int) -> bytes:
    """Packed elements as numpy has them, one a byte."""
    if dtype not in samples.BITS:
        return data
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").reshape(count, samples.BITS[dtype])
    return np.packbits(bits, axis=1, bitorder="little").tobytes()


def with_fastavro(file: Path) -> dict[str, Any]:
    """Every key of an export: a tensor, or its parts by name."""
    tensors: dict[str, Any] = {}
    data: list[bytearray] = []
    with file.open("rb") as stream:
        for record in fastavro.reader(stream):
            if record["header"]:
                header = record["header"]
                data = [bytearray() for _ in header["parts"]]
            elif chunk := record["chunk"]:
                assert chunk["key"] == header["key"]
                assert chunk["offset"] == len(data[chunk["part"]])
                data[chunk["part"]] += chunk["data"]
            elif end := record["end"]:
                assert end["nbytes"] == sum(map(len, data))
                parts = {}
                for part, content in zip(header["parts"], data, strict=True):
                    assert part["nbytes"] == len(content)
                    shape = tuple(part["shape"])
                    flat = unpacked(part["dtype"], bytes(content), int(np.prod(shape, dtype=int)))
                    parts[part["name"]] = np.frombuffer(flat, samples.DTYPES[part["dtype"]]).reshape(shape)
                tensors[header["key"]] = parts["data"] if list(parts) == ["data"] else parts
    return tensors


def same(left: Any, right: Any) -> bool:
    """Whether tensors, or parts by name, are equal in every bit."""
    if isinstance(right, dict):
        return list(left) == list(right) and all(samples.same(left[name], right[name]) for name in right)
    return samples.same(left, right)
