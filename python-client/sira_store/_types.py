"""Plain data that the server answers with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ._errors import SiraError


@dataclass(frozen=True)
class PutResult:
    """What a put has done."""

    key: str
    version: int
    """Counts the contents of this key."""
    created: bool
    """Whether the key was absent before."""


@dataclass(frozen=True)
class DeleteManyResult:
    """What a delete of many keys has done."""

    deleted: int
    """Keys deleted."""
    missing: tuple[str, ...]
    """Keys that were not there."""
    failed: Mapping[str, SiraError]
    """Keys that are still there, and why."""


@dataclass(frozen=True)
class DeletePrefixResult:
    """What a delete by prefix has done, or would do."""

    keys: int
    """Keys deleted, or counted."""
    nbytes: int
    """Bytes of their tensors."""
    failed: Mapping[str, SiraError]
    """Keys that are still there, and why."""


class Lookup(Sequence[bool]):
    """Which of many keys exist: a sequence of bools, one a key."""

    def __init__(self, exists: NDArray[np.bool_]) -> None:
        self.exists = exists
        """One a key, in the order asked."""
        self.leading = len(exists) if exists.all() else int(exists.argmin())
        """How many keys exist, from the first one on, before the first that does not."""

    def __len__(self) -> int:
        return len(self.exists)

    @overload
    def __getitem__(self, index: int) -> bool: ...

    @overload
    def __getitem__(self, index: slice) -> list[bool]: ...

    def __getitem__(self, index: int | slice) -> bool | list[bool]:
        found: bool | list[bool] = self.exists[index].tolist()
        return found

    def __iter__(self) -> Iterator[bool]:
        return iter(self.exists.tolist())

    def __repr__(self) -> str:
        return f"Lookup({int(self.exists.sum())} of {len(self)}, leading={self.leading})"


@dataclass(frozen=True)
class PartInfo:
    """What the server knows of one part of a key that has several."""

    name: str
    dtype: str
    """Name of the element type, as numpy and ml_dtypes spell it."""
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    """One name an axis, `""` for an unnamed one."""
    nbytes: int
    """Bytes of the part."""
    stored_bytes: int
    """Bytes it takes where it is kept."""
    codec: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    lossy: bool = False
    """Whether a get gives what a lossy codec made of it."""
    relative_rmse: Mapping[str, float] = field(default_factory=dict)
    """Of a lossy copy: as in `TensorInfo`."""

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> PartInfo:
        """From an entry's `parts`."""
        shape = tuple(entry["shape"])
        return cls(
            name=entry["name"],
            dtype=entry["dtype"],
            shape=shape,
            axes=tuple(entry.get("axes") or [""] * len(shape)),
            nbytes=entry["nbytes"],
            stored_bytes=entry["stored_bytes"],
            codec=entry["codec"],
            attributes=dict(entry.get("attributes") or {}),
            lossy=entry.get("lossy", False),
            relative_rmse=dict(entry.get("relative_rmse") or {}),
        )


@dataclass(frozen=True)
class TensorInfo:
    """What the server knows of a key."""

    key: str
    version: int
    """Counts the contents of this key."""
    generation: int
    """Counts physical changes too: moved, recoded."""
    dtype: str
    """Name of the element type, as numpy and ml_dtypes spell it; `parts` of a key that has several."""
    shape: tuple[int, ...]
    """Extents; empty, as `axes` is, of a key that has several parts."""
    axes: tuple[str, ...]
    """One name an axis, `""` for an unnamed one."""
    nbytes: int
    """Bytes of the tensor, or of all parts."""
    stored_bytes: int
    """Bytes it takes where it is kept."""
    backend: str
    """Where it lives."""
    tiers: tuple[str, ...]
    """Every tier that holds it now."""
    codec: str
    consistency: str
    created_ms: int
    """Milliseconds since 1970, by the server's clock."""
    expires_ms: int | None
    attributes: Mapping[str, str] = field(default_factory=dict)
    kv_spec: str | None = None
    """Hash of the kv spec that it follows."""
    parts: tuple[PartInfo, ...] = ()
    """Of a key that has several."""
    lossy: bool = False
    """Whether a get gives what a lossy codec made of it."""
    relative_rmse: Mapping[str, float] = field(default_factory=dict)
    """Of a lossy copy, as it was measured when it was made: the root of the mean square of the errors for
    that of the values, of `all`, and of `k` and `v` where they are known."""
    derived_from_lossy: bool = False
    """Whether its writer said that it was computed from what a lossy codec gave back."""

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> TensorInfo:
        """From an entry of `info` or `list`. Fields of a newer server are left out."""
        shape = tuple(entry["shape"])
        return cls(
            key=entry["key"],
            version=entry["version"],
            generation=entry["generation"],
            dtype=entry["dtype"],
            shape=shape,
            axes=tuple(entry.get("axes") or [""] * len(shape)),
            nbytes=entry["nbytes"],
            stored_bytes=entry["stored_bytes"],
            backend=entry["backend"],
            tiers=tuple(entry["tiers"]),
            codec=entry["codec"],
            consistency=entry["consistency"],
            created_ms=entry["created_ms"],
            expires_ms=entry.get("expires_ms"),
            attributes=dict(entry.get("attributes") or {}),
            kv_spec=entry.get("kv_spec"),
            parts=tuple(PartInfo.from_json(part) for part in entry.get("parts") or ()),
            lossy=entry.get("lossy", False),
            relative_rmse=dict(entry.get("relative_rmse") or {}),
            derived_from_lossy=entry.get("derived_from_lossy", False),
        )
