"""Compressors that give every bit back, each with the buffers that its library lets it write into."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import numpy as np

from codecbench.tensors import Bytes, Tensor


class Peer:
    """One compressor over one tensor: its library is imported, and its buffers are filled once, when it is
    made."""

    name: str
    about: str
    fresh = ""
    """What its library will not write into the caller's memory."""

    def __init__(self, tensor: Tensor) -> None:
        self.raw = tensor.raw
        self.back = np.zeros_like(tensor.raw)
        """Where decoded bytes go."""

    def prepare(self) -> None:
        """What goes before an encode and is not counted."""

    def encode(self) -> int:
        """Encodes all; bytes stored."""
        raise NotImplementedError

    def decode(self) -> Bytes:
        """Decodes what was encoded last."""
        raise NotImplementedError


class Copy(Peer):
    """The yardstick."""

    name = "copy"
    about = "memcpy, as a yardstick"

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor)
        self.stored = np.zeros_like(tensor.raw)

    def encode(self) -> int:
        np.copyto(self.stored, self.raw)
        return self.stored.size

    def decode(self) -> Bytes:
        np.copyto(self.back, self.stored)
        return self.back


class Library(Peer):
    """Compressors of imagecodecs, which all encode and decode into given memory."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor)
        self.library: Any = importlib.import_module("imagecodecs")
        self.room = np.zeros(tensor.raw.size + tensor.raw.size // 128 + 4096, np.uint8)
        self.stored: Any = None

    def encode(self) -> int:
        self.stored = self.compress()
        return len(self.stored)

    def compress(self) -> Any:
        """The part of the room that was written."""
        raise NotImplementedError


class Zstd(Library):
    """zstd over the bytes as they lie."""

    level = 1
    name, about = "zstd-1", "zstd, level 1"

    def compress(self) -> Any:
        return self.library.zstd_encode(self.raw, self.level, out=self.room)

    def decode(self) -> Bytes:
        self.library.zstd_decode(self.stored, out=self.back)
        return self.back


class Zstd3(Zstd):
    """zstd at the level that is its default."""

    level = 3
    name, about = "zstd-3", "zstd, level 3"


class Lz4(Library):
    """LZ4 over the bytes as they lie."""

    name, about = "lz4", "LZ4 block, default acceleration"

    def compress(self) -> Any:
        return self.library.lz4_encode(self.raw, out=self.room)

    def decode(self) -> Bytes:
        self.library.lz4_decode(self.stored, out=self.back)
        return self.back


class Blosc(Library):
    """Blosc2, which shuffles and compresses block by block."""

    name, about = "blosc2", "Blosc2, byte shuffle, zstd level 1, one thread"

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor)
        self.width = tensor.width

    def compress(self) -> Any:
        how = {"compressor": "zstd", "shuffle": "shuffle", "typesize": self.width, "numthreads": 1}
        return self.library.blosc2_encode(self.raw, 1, out=self.room, **how)

    def decode(self) -> Bytes:
        self.library.blosc2_decode(self.stored, numthreads=1, out=self.back)
        return self.back


class Split(Peer):
    """Each byte of the values by itself, then zstd: what a few lines reach.

    numpy's narrowing casts and strided stores are the fastest split and join that were found from Python.
    """

    name, about = "split+zstd-1", "bytes of the values apart (numpy), zstd level 1 on each part"

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor)
        self.library: Any = importlib.import_module("imagecodecs")
        self.width = tensor.width
        self.values = self.raw.view(np.uint16 if self.width == 2 else np.uint32)
        self.parts = np.zeros((self.width, self.values.size), np.uint8)
        self.room = np.zeros((self.width, self.values.size + self.values.size // 128 + 4096), np.uint8)
        self.stored: list[Any] = []

    def encode(self) -> int:
        for at, part in enumerate(self.parts):
            np.right_shift(self.values, 8 * at, out=part, casting="unsafe")
        self.stored = [
            self.library.zstd_encode(part, 1, out=room)
            for part, room in zip(self.parts, self.room, strict=True)
        ]
        return sum(map(len, self.stored))

    def decode(self) -> Bytes:
        columns = self.back.reshape(-1, self.width)
        for at, (part, stored) in enumerate(zip(self.parts, self.stored, strict=True)):
            self.library.zstd_decode(stored, out=part)
            np.copyto(columns[:, at], part)
        return self.back


class ZipNN(Peer):
    """ZipNN changes what it is given, so each encode gets a copy, which is made beforehand."""

    name, about = "zipnn", "ZipNN, its defaults for this type, one thread"
    fresh = "encodes and decodes into new memory"
    types = types.MappingProxyType({"BF16": "bfloat16", "F16": "float16", "F32": "float32"})

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor)
        with_stand_ins("torch", "safetensors.torch")
        module: Any = importlib.import_module("zipnn")
        self.coder = module.ZipNN(input_format="byte", bytearray_dtype=self.types[tensor.dtype], threads=1)
        self.copy = bytearray(tensor.raw.size)
        self.stored = b""

    def prepare(self) -> None:
        self.copy[:] = self.raw.data

    def encode(self) -> int:
        self.stored = self.coder.compress(self.copy)
        return len(self.stored)

    def decode(self) -> Bytes:
        return np.frombuffer(self.coder.decompress(self.stored), np.uint8)


class Pcodec(Peer):
    """pcodec; bfloat16, which it does not know, as 16-bit integers."""

    name, about = "pcodec", "pcodec, its defaults; bfloat16 as 16-bit integers"
    fresh = "encodes into new memory"
    types = types.MappingProxyType({"BF16": np.uint16, "F16": np.float16, "F32": np.float32})

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor)
        self.library: Any = importlib.import_module("pcodec")
        self.values = self.raw.view(self.types[tensor.dtype])
        self.target = self.back.view(self.types[tensor.dtype])
        self.stored = b""

    def encode(self) -> int:
        self.stored = self.library.standalone.simple_compress(self.values, self.library.ChunkConfig())
        return len(self.stored)

    def decode(self) -> Bytes:
        self.library.standalone.simple_decompress_into(self.stored, self.target)
        return self.back


PEERS: tuple[type[Peer], ...] = (Copy, Zstd, Zstd3, Lz4, Split, Blosc, ZipNN, Pcodec)


class StandIn(types.ModuleType):
    """A module whose every name is another one of these."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(name)

    def __call__(self, *arguments: Any) -> Any:
        # As a decorator: what it decorates.
        return arguments[0] if arguments else None


def with_stand_ins(*names: str) -> None:
    """ZipNN imports torch, gigabytes of it, for tensors; bytes never touch it."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = StandIn(name)
