"""Plain data that the server answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PutResult:
    """What a put has done."""

    key: str
    version: int
    """Counts the contents of this key."""
    created: bool
    """Whether the key was absent before."""


@dataclass(frozen=True)
class TensorInfo:
    """What the server knows of a key."""

    key: str
    version: int
    """Counts the contents of this key."""
    generation: int
    """Counts physical changes too: moved, recoded."""
    dtype: str
    """Name of the element type, as numpy and ml_dtypes spell it."""
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    """One name an axis, `""` for an unnamed one."""
    nbytes: int
    """Bytes of the tensor."""
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
        )
