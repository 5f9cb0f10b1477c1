"""Policies of namespaces, kv specs and routes: what the server is told once, not with every tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from numpy.typing import DTypeLike

from . import _wire
from ._base import Base, Deadline
from ._errors import UnknownKvSpecError
from ._kvspec import KvSpec
from ._same_host import element_type

_T = TypeVar("_T")


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Policy:
    """What holds for all keys of a namespace."""

    mode: Literal["store", "cache"] = "store"
    """`store` keeps what it acknowledged; `cache` evicts at its limits, and damage in it is a miss."""
    read_only: bool = False
    """Puts and deletes raise ReadOnlyError."""
    exact: bool = False
    """Lossy codecs are refused; gets that do not say otherwise want exact bytes."""
    consistency: Literal["strong", "eventual", "weak"] | None = None
    """Of puts that do not say. None: the server's; of a cache, weak."""
    ttl: int | None = None
    """Seconds to live of puts that do not say. None: the server's; of a cache, for ever."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Bytes in a tier: `memory`, or a backend's name."""
    codecs: Mapping[str, str] = field(default_factory=dict)
    """Codec chain of puts that do not say, by the backend that becomes their home."""
    tiers: Mapping[str, str] | None = None
    """`warm` and `cold`: two backends, from the first of which what is used least moves to the second when
    room is needed. None: the server's."""
    copies: Sequence[str] = ()
    """Backends each of which has a copy of every tensor of more than 32 KiB."""


@dataclass(frozen=True)
class Namespace:
    """What the server knows of a namespace."""

    name: str
    policy: Policy
    origin: Literal["default", "configuration", "action"]
    """Where its policy comes from."""
    keys: int
    nbytes: int
    """Bytes of its tensors."""
    bytes: Mapping[str, int]
    """Bytes they take in each tier."""
    operations: Mapping[str, int]
    """What was done in it since the server's start: `puts`, `hits`, `evictions`, ..."""

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Namespace:
        """From an entry of `namespaces`. Fields of a newer server are left out."""
        known = Policy.__dataclass_fields__
        return cls(
            name=entry["namespace"],
            policy=Policy(
                **{name: _frozen(value) for name, value in entry["policy"].items() if name in known}
            ),
            origin=entry["origin"],
            keys=entry["keys"],
            nbytes=entry["nbytes"],
            bytes=dict(entry["bytes"]),
            operations=dict(entry["operations"]),
        )


@dataclass(frozen=True)
class RouteStep:
    """One strategy's word on where a tensor goes."""

    strategy: str
    """What it goes by."""
    backend: str | None
    """The backend it chose, if any."""
    reason: str
    """Why, in words; may be empty."""


@dataclass(frozen=True)
class RouteCandidate:
    """A backend as strategies see it. Speeds are of calls with about as many bytes as a chunk of the tensor
    has; what is a minute old counts half. None where too few were made lately."""

    backend: str
    state: str
    """`fit`, or why it is degraded or out."""
    keeps: Literal["strong", "eventual", "weak"]
    """The strongest level that it keeps."""
    against: str | None
    """What speaks against choosing it at all, if something does."""
    put_ms: float | None
    """Milliseconds of a put."""
    put_bytes_per_second: float | None
    """Bytes that one put moves in a second."""
    get_ms: float | None
    """Milliseconds of a get."""
    get_bytes_per_second: float | None
    """Bytes that one get moves in a second."""
    calls_under_way: int
    """Calls under way right now."""
    put_bytes_under_way: int
    """Bytes of puts under way whose home it is."""

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> RouteCandidate:
        """From an entry of a route's `candidates`. Fields of a newer server are left out."""
        return cls(**{name: entry[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Route:
    """Where a tensor would go."""

    backend: str
    """Its home."""
    steps: tuple[RouteStep, ...]
    """Each strategy that was asked; the last one decided."""
    candidates: tuple[RouteCandidate, ...]
    """Each backend as the strategies saw it."""
    inline: bool
    """Whether it would lie in its record, for being small."""
    memory: bool
    """Whether memory would keep it, room permitting."""
    codec: str
    """Codec chain of its home."""
    consistency: str
    """The level it would be put with."""


class Namespaces(Base):
    """Actions on namespaces and kv specs."""

    _kv_specs: dict[bytes, str]

    def namespaces(self) -> list[Namespace]:
        """Every namespace that has a policy or keys, in byte order of their names."""
        return [self._learnt(entry) for entry in self._action("namespaces")["namespaces"]]

    def set_namespace(
        self,
        name: str,
        *,
        mode: Literal["store", "cache"] = "store",
        read_only: bool = False,
        exact: bool = False,
        consistency: Literal["strong", "eventual", "weak"] | None = None,
        ttl: int | None = None,
        limits: Mapping[str, int] | None = None,
        codecs: Mapping[str, str] | None = None,
        tiers: Mapping[str, str] | None = None,
        copies: Sequence[str] | None = None,
    ) -> Namespace:
        """Sets the whole policy of a namespace: see `Policy` for what the arguments mean. What is not given
        has its default again. Raises InvalidError where the server's configuration sets it."""
        policy = _wire.given(
            mode=mode,
            read_only=read_only,
            exact=exact,
            consistency=consistency,
            ttl=None if ttl is None else _wire.seconds(ttl),
            limits=limits and dict(limits),
            codecs=codecs and dict(codecs),
            tiers=tiers and dict(tiers),
            copies=copies and list(copies),
        )
        return self._learnt(self._action("namespace_set", namespace=name, policy=policy))

    def reset_namespace(self, name: str) -> Namespace:
        """Gives a namespace the server's defaults again."""
        return self._learnt(self._action("namespace_reset", namespace=name))

    def route(
        self,
        key: str,
        nbytes: int,
        *,
        dtype: DTypeLike | None = None,
        axes: Sequence[str] | None = None,
        spec: KvSpec | str | None = None,
        ttl: int | None = None,
        consistency: Literal["strong", "eventual", "weak"] | None = None,
    ) -> Route:
        """Where a tensor of `nbytes` bytes would go under this key, and why. Arguments are as in `put`.
        Stores no tensor; a spec is registered as `put` does it."""
        options = _wire.given(
            dtype=None if dtype is None else element_type(dtype),
            axes=None if axes is None else list(axes),
            ttl=None if ttl is None else _wire.seconds(ttl),
            consistency=consistency,
        )

        def ask(hash: str | None) -> dict[str, Any]:
            return self._action("route", key=key, nbytes=nbytes, **options, **_wire.given(kv_spec=hash))

        answer = self._with_spec(spec, ask)
        return Route(
            backend=answer["backend"],
            steps=tuple(
                RouteStep(step["strategy"], step.get("backend"), step.get("reason", ""))
                for step in answer["steps"]
            ),
            candidates=tuple(RouteCandidate.from_json(entry) for entry in answer.get("candidates", [])),
            inline=answer["inline"],
            memory=answer["memory"],
            codec=answer["codec"],
            consistency=answer["consistency"],
        )

    def register_spec(self, spec: KvSpec) -> str:
        """Makes a kv spec known to the server; gives its hash, by which puts and gets name it. The same spec
        again is no error."""
        return self._register(spec, None)

    def kv_spec(self, hash: str) -> KvSpec:
        """The kv spec of this hash. Raises UnknownKvSpecError where there is none."""
        return KvSpec.from_json(self._action("kv_spec_get", hash=hash)["spec"])

    def _with_spec(
        self, spec: KvSpec | str | None, call: Callable[[str | None], _T], deadline: Deadline | None = None
    ) -> _T:
        """Calls with the hash of a spec, registered first where this client has not done so. Once more, where
        the server has lost it since."""
        if not isinstance(spec, KvSpec):
            return call(spec)
        known = self._kv_specs.get(_wire.dumps(spec.to_json()))
        if known is not None:
            try:
                return call(known)
            except UnknownKvSpecError:
                pass
        return call(self._register(spec, deadline))

    def _register(self, spec: KvSpec, deadline: Deadline | None) -> str:
        text = spec.to_json()
        hash: str = self._action("kv_spec_put", deadline, spec=text)["hash"]
        self._kv_specs[_wire.dumps(text)] = hash
        return hash

    def _learnt(self, entry: Mapping[str, Any]) -> Namespace:
        namespace = Namespace.from_json(entry)
        self._caches.learn([namespace.name], namespace.policy.mode == "cache")
        return namespace
