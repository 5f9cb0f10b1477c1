"""Tensors of safetensors files, as bits and as numbers, and what their metadata says of a KV cache."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.unsignedinteger[Any]]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}
AXES = ("layer", "kv", "token", "head", "dim")


class FileError(Exception):
    """A file is not what was asked for."""


@dataclass
class Tensor:
    """One tensor, its bits untouched."""

    dtype: str
    """BF16, F16 or F32"""
    shape: tuple[int, ...]
    raw: Bytes
    """Flat, little endian."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Of the whole file."""

    @property
    def width(self) -> int:
        """Bytes of a value."""
        return WIDTHS[self.dtype]

    def numbers(self) -> Floats:
        """All values as float32, which holds each of these types exactly."""
        return floats(self.raw, self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of stored keys: pairs (i, i + dim/2) turned by position * theta ** (-2i/dim)."""

    theta: float
    dim: int
    first: int
    """Position of the first token."""

    def turned(self, keys: Floats, sign: int) -> Floats:
        """Keys [..., token, head, dim] with the rotation added (1) or taken off (-1)."""
        half = self.dim // 2
        positions = np.arange(self.first, self.first + keys.shape[-3], dtype=np.float64)
        angles = np.outer(positions, self.theta ** (-np.arange(half) / half))[:, None, :]
        cos, sin = np.cos(angles).astype(np.float32), (sign * np.sin(angles)).astype(np.float32)
        one, other, rest = keys[..., :half], keys[..., half : self.dim], keys[..., self.dim :]
        return np.concatenate([one * cos - other * sin, other * cos + one * sin, rest], axis=-1)


@dataclass
class Cache:
    """A KV cache as numbers."""

    keys: Floats
    """[layer, token, head, dim], after RoPE"""
    values: Floats
    rope: Rope | None
    """None: unknown, keys stay as they are"""

    @property
    def tokens(self) -> int:
        return int(self.keys.shape[1])

    @property
    def count(self) -> int:
        """How many numbers."""
        return self.keys.size + self.values.size

    def joined(self) -> Floats:
        """[layer, kv, token, head, dim]"""
        return np.stack([self.keys, self.values], axis=1)


def read(path: Path, name: str | None = None) -> Tensor:
    """The tensor of that name, or the largest of the file."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > len(content) - 8:
        raise FileError(f"{path}: a safetensors file has an 8-byte length and then so much JSON")
    try:
        entries: dict[str, Any] = json.loads(content[8 : 8 + size])
    except ValueError as error:
        raise FileError(f"{path}: its header is no JSON: {error}") from None
    metadata = entries.pop("__metadata__", {})
    known = {key: e for key, e in entries.items() if e["dtype"] in WIDTHS and name in (None, key)}
    if not known:
        have = ", ".join(f"{key} ({e['dtype']})" for key, e in entries.items())
        raise FileError(f"{path}: no tensor {name or ''} of {', '.join(WIDTHS)}; there is {have or 'none'}")
    entry = max(known.values(), key=lambda e: math.prod(e["shape"]))
    begin, end = entry["data_offsets"]
    raw = np.frombuffer(content, np.uint8)[8 + size + begin : 8 + size + end]
    if raw.size != math.prod(entry["shape"]) * WIDTHS[entry["dtype"]]:
        raise FileError(f"{path}: {raw.size} bytes of data do not make a {entry['dtype']} {entry['shape']}")
    return Tensor(entry["dtype"], tuple(entry["shape"]), raw, metadata)


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file."""
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, tensor in tensors.items():
        offsets = [at, at + tensor.raw.size]
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        at += tensor.raw.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.raw.tobytes())


def floats(raw: Bytes, dtype: str) -> Floats:
    """Flat values of these bytes."""
    if dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return raw.view({"F16": np.float16, "F32": np.float32}[dtype]).astype(np.float32)


def rounded(values: Floats, dtype: str, metadata: dict[str, str] | None = None) -> Tensor:
    """The tensor of the nearest numbers of this type, ties to even."""
    kind: Any = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}[dtype]
    raw = np.ascontiguousarray(values).astype(kind).reshape(-1).view(np.uint8)
    return Tensor(dtype, values.shape, raw, metadata or {})


def cache(tensor: Tensor) -> Cache:
    """What the axes and RoPE of the metadata make of a tensor."""
    axes = [axis.strip() for axis in tensor.metadata.get("axes", "").split(",")]
    if sorted(axes) != sorted(AXES) or len(tensor.shape) != len(AXES):
        raise FileError(f"a KV cache wants the axes {','.join(AXES)} in its metadata, not {','.join(axes)!r}")
    ordered = tensor.numbers().transpose([axes.index(axis) for axis in AXES])
    if ordered.shape[1] != 2:
        raise FileError(f"the axis kv has keys and values, not {ordered.shape[1]} of them")
    return Cache(ordered[:, 0], ordered[:, 1], rope(tensor.metadata, ordered.shape[-1]))


def rope(metadata: dict[str, str], dim: int) -> Rope | None:
    """What a file says of its keys' rotation, where it says all that is needed."""
    if metadata.get("rope") != "half" or "rope_theta" not in metadata:
        return None
    first = int(metadata.get("first_position", "0"))
    return Rope(float(metadata["rope_theta"]), int(metadata.get("rope_dim", dim)), first)


def joined(tensors: list[Tensor], limit: int, far: int) -> Tensor:
    """These tensors one after the other along their first axis, as many whole rows as `limit` bytes hold.

    Repeated to fill it where they are at least `far` bytes: a repetition that is nearer would flatter what
    looks back that far.
    """
    first = tensors[0]
    if any((t.dtype, t.shape[1:]) != (first.dtype, first.shape[1:]) for t in tensors):
        raise FileError(
            "files that are measured together have one dtype and one shape but for the first axis"
        )
    raw = np.concatenate([t.raw for t in tensors])
    row = math.prod(first.shape[1:]) * first.width
    if raw.size >= far:
        raw = np.resize(raw, max(limit // row, 1) * row)
    raw = raw[: max(limit // row, 1) * row]
    return Tensor(first.dtype, (raw.size // row, *first.shape[1:]), raw, first.metadata)
