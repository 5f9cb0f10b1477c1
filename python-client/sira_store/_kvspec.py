"""What a block of a KV cache is, as docs/wire.md has it under "KV specs"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ._dtypes import numpy_dtype


@dataclass(frozen=True)
class Rope:
    """The rotary embedding that K was multiplied with."""

    theta: float
    """Base of the frequencies."""
    dim: int
    """Dimensions of a head that are rotated; even."""
    style: Literal["half", "interleaved"] = "half"
    """Which dimensions are pairs: `i` and `i + dim/2` (GPT-NeoX, Llama), or `2i` and `2i + 1` (GPT-J)."""
    first_position: int = 0
    """Position of a block's first token; a tensor's attribute `kv.first_position` overrides it."""
    scaling: Mapping[str, Any] = field(default_factory=dict)
    """Scaling of the frequencies, as the model's configuration has it."""


@dataclass(frozen=True)
class KvField:
    """A range of an axis that has a meaning of its own."""

    name: str
    """`k`, `v`, `latent`, `rope`, `scale`, ..."""
    axis: str
    offset: int
    """Where it begins, in elements of the axis."""
    extent: int
    """How long it is, in elements of the axis."""
    dtype: str | None = None
    """In a part of bytes (`uint8`): the element type of what lies there; opaque without."""


@dataclass(frozen=True)
class KvPart:
    """The layout of one part of a block."""

    dtype: str
    """Name of the element type."""
    axes: tuple[str, ...]
    """Names of the axes in physical order, the one that runs fastest last."""
    shape: tuple[int | None, ...] | None = None
    """Extents, None for one that varies; as a whole None where all do."""
    fields: tuple[KvField, ...] = ()
    name: str = "data"

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(self.axes))
        object.__setattr__(self, "shape", None if self.shape is None else tuple(self.shape))
        object.__setattr__(self, "fields", tuple(self.fields))


@dataclass(frozen=True, kw_only=True)
class KvSpec:
    """The layout of the blocks of one engine: one model, one set of ranks, one physical order.

    The constructors `nhd`, `hnd`, `paged`, `packed` and `latent` make those that engines have; whatever other
    field is given to them (`layers`, `rope`, ...) is set too.
    """

    model: str
    """Its name, as its publisher gives it."""
    block_tokens: int
    """Tokens of a block."""
    parts: tuple[KvPart, ...]
    """The parts of a block, each with its layout."""
    revision: str | None = None
    """Of the model: a commit, a tag."""
    adapter: str | None = None
    """The LoRA adapter that was active."""
    block_hash: str | None = None
    """How keys are made from tokens, in the engine's words: `sha256_cbor`."""
    state: Literal["attention", "window", "recurrent"] = "attention"
    window: int | None = None
    """Tokens of a sliding window, of which the state `window` is."""
    layers: tuple[int, int] | None = None
    """Layers of the model that are here, half-open."""
    heads: tuple[int, int] | None = None
    """KV heads of the model that are here, half-open."""
    rope: Rope | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        for name in ("layers", "heads"):
            bounds = getattr(self, name)
            object.__setattr__(self, name, None if bounds is None else tuple(bounds))

    @classmethod
    def nhd(
        cls,
        model: str,
        *,
        dtype: str,
        block_tokens: int,
        kv_heads: int,
        head_dim: int,
        leading: Mapping[str, int | None] | None = None,
        scales: Sequence[str] | None = None,
        **others: Any,
    ) -> KvSpec:
        """Parts `k` and `v` of axes `token, head, dim`.

        leading: axes in front of these with their extents, None for one that varies (`{"layer": 32}`).
        scales: for fp8, the axes that a scale is kept for (`["head"]`; `[]`: one a part): adds the float32
        parts `k_scale` and `v_scale`.
        """
        axes = {**(leading or {}), "token": block_tokens, "head": kv_heads, "dim": head_dim}
        parts = _with_scales([_part(name, dtype, axes) for name in ("k", "v")], scales)
        return cls(model=model, block_tokens=block_tokens, parts=parts, **others)

    @classmethod
    def hnd(
        cls,
        model: str,
        *,
        dtype: str,
        block_tokens: int,
        kv_heads: int,
        head_dim: int,
        leading: Mapping[str, int | None] | None = None,
        scales: Sequence[str] | None = None,
        **others: Any,
    ) -> KvSpec:
        """As `nhd`, of axes `head, token, dim`."""
        axes = {**(leading or {}), "head": kv_heads, "token": block_tokens, "dim": head_dim}
        parts = _with_scales([_part(name, dtype, axes) for name in ("k", "v")], scales)
        return cls(model=model, block_tokens=block_tokens, parts=parts, **others)

    @classmethod
    def paged(
        cls,
        model: str,
        *,
        dtype: str,
        block_tokens: int,
        kv_heads: int,
        head_dim: int,
        blocks: int | None = None,
        scales: Sequence[str] | None = None,
        **others: Any,
    ) -> KvSpec:
        """One tensor of axes `block, kv, token, head, dim`, K before V on the second: pages as paged
        attention keeps them. blocks: how many, where that never varies. scales: as of `nhd`, the part
        `data_scale`."""
        axes = {"block": blocks, "kv": 2, "token": block_tokens, "head": kv_heads, "dim": head_dim}
        parts = _with_scales([_part("data", dtype, axes)], scales)
        return cls(model=model, block_tokens=block_tokens, parts=parts, **others)

    @classmethod
    def packed(
        cls,
        model: str,
        *,
        dtype: str,
        block_tokens: int,
        kv_heads: int,
        head_dim: int,
        leading: Mapping[str, int | None] | None = None,
        scales: Sequence[str] | None = None,
        **others: Any,
    ) -> KvSpec:
        """One tensor of axes `token, head, dim`, K before V on the last, which is twice `head_dim` long.
        leading: as of `nhd`. scales: as of `nhd`, the part `data_scale`."""
        axes = {**(leading or {}), "token": block_tokens, "head": kv_heads, "dim": 2 * head_dim}
        fields = (KvField("k", "dim", 0, head_dim), KvField("v", "dim", head_dim, head_dim))
        parts = _with_scales([_part("data", dtype, axes, fields)], scales)
        return cls(model=model, block_tokens=block_tokens, parts=parts, **others)

    @classmethod
    def latent(
        cls,
        model: str,
        *,
        block_tokens: int,
        fields: Iterable[tuple[str, str | None, int]],
        leading: Mapping[str, int | None] | None = None,
        **others: Any,
    ) -> KvSpec:
        """One tensor of bytes, a record a token, as multi-head latent attention keeps it.

        fields: what follows what in a record, each a name, an element type (None: opaque bytes) and a count
        of elements: `[("latent", "float8_e4m3fn", 512), ("scale", "float32", 4), ("rope", "bfloat16", 64)]`.
        leading: as of `nhd`.
        """
        offset, ranges = 0, []
        for name, dtype, count in fields:
            extent = count * (1 if dtype is None else numpy_dtype(dtype).itemsize)
            ranges.append(KvField(name, "record", offset, extent, dtype))
            offset += extent
        axes = {**(leading or {}), "token": block_tokens, "record": offset}
        parts = (_part("data", "uint8", axes, tuple(ranges)),)
        return cls(model=model, block_tokens=block_tokens, parts=parts, **others)

    def to_json(self) -> dict[str, Any]:
        """The wire's object. The same spec gives the same object, in the same order."""
        rope = self.rope and _given(
            theta=self.rope.theta,
            dim=self.rope.dim,
            style=self.rope.style,
            first_position=self.rope.first_position,
            scaling=dict(sorted(self.rope.scaling.items())),
        )
        return _given(
            model=self.model,
            revision=self.revision,
            adapter=self.adapter,
            block_hash=self.block_hash,
            block_tokens=self.block_tokens,
            state=self.state,
            window=self.window,
            layers=self.layers and list(self.layers),
            heads=self.heads and list(self.heads),
            rope=rope,
            parts=[_part_json(part) for part in self.parts],
        )

    @classmethod
    def from_json(cls, spec: Mapping[str, Any]) -> KvSpec:
        """From the wire's object."""
        fields = dict(spec)
        parts = tuple(
            KvPart(**{**part, "fields": tuple(KvField(**entry) for entry in part.get("fields", ()))})
            for part in fields.pop("parts")
        )
        rope = fields.pop("rope", None)
        return cls(parts=parts, rope=None if rope is None else Rope(**rope), **fields)


def _part(name: str, dtype: str, axes: Mapping[str, int | None], fields: tuple[KvField, ...] = ()) -> KvPart:
    return KvPart(dtype, tuple(axes), tuple(axes.values()), fields, name)


def _with_scales(parts: list[KvPart], scales: Sequence[str] | None) -> tuple[KvPart, ...]:
    if scales is not None:
        extents = dict(zip(parts[0].axes, parts[0].shape or (), strict=True))
        axes = {axis: extents[axis] for axis in scales}
        parts = parts + [_part(f"{part.name}_scale", "float32", axes) for part in parts]
    return tuple(parts)


def _part_json(part: KvPart) -> dict[str, Any]:
    return _given(
        name=part.name,
        dtype=part.dtype,
        axes=list(part.axes),
        shape=None if part.shape is None else list(part.shape),
        fields=[
            _given(name=of.name, axis=of.axis, offset=of.offset, extent=of.extent, dtype=of.dtype)
            for of in part.fields
        ]
        or None,
    )


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None and value != {}}
