"""The client: one connection, one method for each thing that a server can do."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray
from pyarrow import flight

from . import _arrays, _connect, _native, _streams, _wire
from ._base import Caches, Deadline, closing
from ._connect import Pem
from ._dtypes import numpy_dtype
from ._errors import (
    HasPartsError,
    InvalidError,
    NotFoundError,
    SiraError,
    StaleVersionError,
    TimedOutError,
    UnavailableError,
    translated,
)
from ._get_many import Gets
from ._jobs import Jobs
from ._kvspec import KvSpec
from ._lazy import LazyTensor
from ._line import Lines
from ._lookup import Lookups
from ._put_many import Item, Puts, Tensors
from ._same_host import Created, SameHost, command, element_type, extents
from ._types import PutResult, TensorInfo

if TYPE_CHECKING:
    import torch

DEFAULT_URL = "grpc://127.0.0.1:9095"
"""Where `connect()` connects to without a URL, unless the environment's SIRA_URL says another."""

_Out = TypeVar("_Out", bound="NDArray[Any] | torch.Tensor")
_Ranges: TypeAlias = Mapping[str, slice | tuple[int, int]]


def connect(
    url: str | None = None,
    *,
    token: str | bytes | None = None,
    ca: Pem | None = None,
    cert: Pem | None = None,
    key: Pem | None = None,
    timeout: float | None = None,
    lookup_deadline: float | None = 0.2,
    cache_namespaces: Iterable[str] = (),
) -> Client:
    """A client of the server at `url`: `grpc://host:port`, `host:port`, or with TLS `grpc+tls://host:port`.
    Without one, the environment's SIRA_URL, or else `grpc://127.0.0.1:9095`. Nothing is sent yet: the first
    call finds out whether a server is there.

    `token`: sent with every call; by default the environment's SIRA_TOKEN, or the first one in the file
    SIRA_TOKEN_FILE. `ca`: the authority of the server's certificate, where it is not a public one. `cert` and
    `key`: the client's own certificate, where the server asks for one. These are paths of PEM files or their
    bytes; by default the environment's SIRA_CA, SIRA_CERT, SIRA_KEY.
    `timeout`: seconds that any one call may take; no limit by default. `lookup_deadline`: seconds that
    `exists` and `exists_many` may take; None for no limit. `cache_namespaces`: namespaces that are caches,
    where a lookup without an answer is a miss. The client learns more of them from answers, but before the
    first one it knows only those named here.
    """
    return Client(
        url or os.environ.get("SIRA_URL") or DEFAULT_URL,
        token=token,
        ca=ca,
        cert=cert,
        key=key,
        timeout=timeout,
        lookup_deadline=lookup_deadline,
        cache_namespaces=cache_namespaces,
    )


class Client(Lookups, Puts, Gets, SameHost, Jobs):
    """A connection to a Sira server. May be shared by threads; a context manager that closes itself."""

    def __init__(
        self,
        url: str,
        *,
        token: str | bytes | None = None,
        ca: Pem | None = None,
        cert: Pem | None = None,
        key: Pem | None = None,
        timeout: float | None = None,
        lookup_deadline: float | None = 0.2,
        cache_namespaces: Iterable[str] = (),
    ) -> None:
        self.url = url if "://" in url else f"grpc://{url}"
        """Where the server is."""
        self._timeout = timeout
        self._lookup_deadline = lookup_deadline
        self._caches = Caches(cache_namespaces)
        self._kv_specs = {}
        Deadline(lookup_deadline)  # refuses what cannot be one

        def connect() -> _connect.Connection:
            return _connect.connect(self.url, token=token, ca=ca, cert=cert, key=key)

        self._flight, self._headers, said, self._native = connect()
        self._connections = _streams.Connections(self._flight, lambda: connect().flight)
        path = _connect.socket_path(self.url)
        self._lines = None if path is None else Lines(path, said, timeout)

    def close(self) -> None:
        """Ends the connection. Arrays that `map` returned stay as they are."""
        if self._lines is not None:
            self._lines.close()
        self._native = None
        self._connections.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def put(
        self,
        key: str,
        array: Tensors,
        *,
        axes: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        codec: str | Mapping[str, str] | None = None,
        ttl: int | None = None,
        consistency: Literal["strong", "eventual", "weak"] | None = None,
        if_: Literal["absent"] | int | None = None,
        attributes: Mapping[str, str] | Mapping[str, Mapping[str, str]] | None = None,
        spec: KvSpec | str | None = None,
        derived_from_lossy: bool | None = None,
        encode: str | None = None,
    ) -> PutResult:
        """Stores a numpy array or a torch tensor under `key` (`namespace/key`), replacing what is there; or
        several by the names of their parts (`{"k": k, "v": v}`), which become visible together.

        Once this returns, every reader of the server sees the tensor; when it raises, nothing of it is
        visible. Contiguous memory is sent from where it lies.

        axes: one name an axis. codec: how lower tiers keep it (`planes+zstd`). ttl: whole seconds until it
        expires. consistency: what an acknowledged put survives. if_: "absent" raises AlreadyExistsError where
        the key exists; a version raises StaleVersionError where the key has another. attributes: texts to
        keep with it. Of several parts axes and attributes are given by the names of parts, and so may codec
        be. spec: a kv spec that it follows, or the hash of a registered one; InvalidError where it does not.
        derived_from_lossy: it was computed from what a lossy codec gave back, so that no get that wants exact
        bytes finds it.
        encode: a codec (`planes+zstd`) with which the array is encoded here, by the extension, so that less
        goes over the network and the server stores it as it comes; not of several parts.
        """
        item = Item(
            array, axes, codec, ttl, consistency, if_, attributes, derived_from_lossy=derived_from_lossy
        )
        if encode is not None:
            return self._with_spec(spec, lambda hash: self._put_encoded(key, item, hash, spec, encode))
        put = self._put_parts if isinstance(array, Mapping) else self._put_one
        return self._with_spec(spec, lambda hash: put(key, item, hash))

    def _put_encoded(
        self, key: str, item: Item, kv_spec: str | None, spec: KvSpec | str | None, codec: str
    ) -> PutResult:
        native = _native.needed(self._native, "encode=")
        if isinstance(item.tensors, Mapping) or item.codec is not None:
            raise InvalidError(
                "SIRA_BAD_REQUEST: encode= is of one array, and takes the place of codec=", "SIRA_BAD_REQUEST"
            )
        if isinstance(spec, str):
            spec = self.kv_spec(spec)
        tensor = _arrays.outgoing(item.tensors)
        metadata = _native.texts(self._schema(tensor, item, kv_spec).metadata)
        text = None if spec is None else _wire.dumps(spec.to_json()).decode()
        with _native.translated(self.url):
            return PutResult(*native.put(key, metadata, tensor.data, self._timeout, codec, text))

    def _schema(self, tensor: _arrays.Outgoing, item: Item, kv_spec: str | None) -> pa.Schema:
        axes, codec, attributes = item.of_one()
        return _wire.schema(
            tensor,
            axes=axes,
            codec=codec,
            ttl=item.ttl,
            consistency=item.consistency,
            if_=item.if_,
            attributes=attributes,
            kv_spec=kv_spec,
            derived_from_lossy=item.derived_from_lossy,
        )

    def _put_one(self, key: str, item: Item, kv_spec: str | None) -> PutResult:
        tensor = _arrays.outgoing(item.tensors)
        schema = self._schema(tensor, item, kv_spec)
        if self._native is not None:
            with _native.translated(self.url):
                metadata = _native.texts(schema.metadata)
                return PutResult(*self._native.put(key, metadata, tensor.data, self._timeout))
        with translated(self.url):
            descriptor = flight.FlightDescriptor.for_path(key)
            writer, reader = self._flight.do_put(descriptor, schema, self._options())
            with closing(writer.close):
                for batch in _wire.batches(tensor.data, schema):
                    writer.write_batch(batch)
                writer.done_writing()
                answer = reader.read()
        result = _wire.answer(key, answer)
        return PutResult(result["key"], result["version"], result["created"])

    @overload
    def get(
        self,
        key: str,
        out: None = None,
        *,
        framework: Literal["numpy"] = "numpy",
        ranges: _Ranges | None = None,
        version: int | None = None,
        spec: KvSpec | str | None = None,
        exact: bool | None = None,
        deadline: float | None = None,
        streams: int = 1,
        encoded: bool | None = None,
    ) -> NDArray[Any]: ...

    @overload
    def get(
        self,
        key: str,
        out: None = None,
        *,
        framework: Literal["torch"],
        ranges: _Ranges | None = None,
        version: int | None = None,
        spec: KvSpec | str | None = None,
        exact: bool | None = None,
        deadline: float | None = None,
        streams: int = 1,
        encoded: bool | None = None,
    ) -> torch.Tensor: ...

    @overload
    def get(
        self,
        key: str,
        out: _Out,
        *,
        ranges: _Ranges | None = None,
        version: int | None = None,
        spec: KvSpec | str | None = None,
        exact: bool | None = None,
        deadline: float | None = None,
        streams: int = 1,
        encoded: bool | None = None,
    ) -> _Out: ...

    @overload
    def get(
        self,
        key: str,
        out: Mapping[str, Any] | None = None,
        *,
        framework: _arrays.Framework = "numpy",
        parts: Sequence[str],
        version: int | None = None,
        spec: KvSpec | str | None = None,
        exact: bool | None = None,
        deadline: float | None = None,
        streams: int = 1,
        encoded: bool | None = None,
    ) -> dict[str, Any]: ...

    def get(
        self,
        key: str,
        out: Any = None,
        *,
        framework: _arrays.Framework = "numpy",
        ranges: _Ranges | None = None,
        version: int | None = None,
        parts: Sequence[str] | None = None,
        spec: KvSpec | str | None = None,
        exact: bool | None = None,
        deadline: float | None = None,
        streams: int = 1,
        encoded: bool | None = None,
    ) -> Any:
        """Reads a tensor, or a range of it. Of a key that has several parts, all of them by their names.

        out: a numpy array or torch tensor of the same type and shape, filled in place and returned. Without
        it, a new array, or with framework="torch" a new tensor. A numpy array that came in one message is
        that message's memory and read-only: give `out`, or copy it, to write to it. Of parts, `out` is a
        mapping of them by name.
        ranges: half-open ranges of the axes by name, or by position for those without one (`{"token": (0,
        512)}`). Of parts only `open` reads ranges. version: raise StaleVersionError unless the key has this
        version. parts: the parts to read; a dict of them is returned, even of one. spec: a kv spec or its
        hash; raise NotFoundError unless the key follows it. exact: whether a copy that a lossy codec made is
        a miss too; by default what the namespace says. deadline: seconds for the whole call; where no answer
        comes in time, or no server is there, a key of a cache (see `connect`) is a miss, NotFoundError.
        Without one, the client's `timeout` holds and nothing but the server's word is a miss. streams: over
        how many connections a large tensor comes at once, at most 64; more than one helps where a connection
        carries less than the network does. Of several parts it is ignored. encoded: whether to take the
        tensor as the encoded chunks that the server keeps, and to decode them here while others come; by
        default where the connection has proved slower than half of what this machine decodes, or leads to
        another machine and nothing is known yet. It needs the extension; of several parts, and with
        `streams`, nothing comes encoded.

        Raises when the stream breaks off; `out` may then be partly filled.
        """
        _arrays.check_framework(framework)
        _streams.check_streams(streams)
        if encoded:
            _native.needed(self._native, "encoded=True")
            if streams > 1:
                raise InvalidError(
                    "SIRA_BAD_REQUEST: encoded=True and streams: choose one", "SIRA_BAD_REQUEST"
                )
        bounds = _bounds(ranges)
        if bounds and parts is not None:
            raise InvalidError(
                "SIRA_BAD_REQUEST: ranges and parts: open(key, part=...) reads ranges of a part",
                "SIRA_BAD_REQUEST",
            )
        end = Deadline(deadline)

        def read(hash: str | None) -> Any:
            if parts is None and not isinstance(out, Mapping):
                options = _wire.given(version=version, kv_spec=hash, exact=exact)
                try:
                    if streams > 1:
                        return self._get_streams(key, out, framework, end, streams, ranges=bounds, **options)
                    return self._get_one(key, out, framework, end, encoded=encoded, ranges=bounds, **options)
                except HasPartsError:
                    if bounds:
                        raise
            outs = None if out is None else [out]
            (found,) = self._get_all([key], outs, parts, hash, exact, framework, end, version)
            if isinstance(found, SiraError):
                raise found
            return found

        try:
            return self._with_spec(spec, read, end)
        except (TimedOutError, UnavailableError) as error:
            if not self._may_miss([key], end):
                raise
            raise NotFoundError(f"SIRA_NOT_FOUND: no answer: {error}", "SIRA_NOT_FOUND") from error

    def _get_one(
        self,
        key: str,
        out: Any,
        framework: _arrays.Framework,
        end: Deadline | None = None,
        encoded: bool | None = None,
        **options: Any,
    ) -> Any:
        if self._lines is not None and not options.get("ranges") and (end is None or not end.given):
            copied = self._copied(key, out, framework, _wire.given(**{**options, "ranges": None}))
            if copied is not None:
                return copied
        if self._native is not None and (self._native.prefers_encoded() if encoded is None else encoded):
            options["encoded"] = _native.stages()
        ticket = _wire.ticket(key, **options)
        if self._native is not None:
            with _native.translated(self.url):
                return _native.receive(
                    self._native,
                    ticket.ticket,
                    self._within(end),
                    lambda dtype, shape: _arrays.incoming(dtype, shape, out, framework),
                )
        with translated(self.url):
            reader = self._flight.do_get(ticket, self._options(end))
            try:
                spec = _wire.spec_of(reader.schema)
                target = _arrays.incoming(spec.dtype, spec.shape, out, framework)
                data = _wire.receive(reader, spec.nbytes, target.buffer)
            except BaseException:
                reader.cancel()  # or the server would go on sending what nobody reads
                raise
        return target.finish(data)

    def _get_streams(
        self, key: str, out: Any, framework: _arrays.Framework, end: Deadline, streams: int, **options: Any
    ) -> Any:
        for last in (False, True):
            command = _wire.wanted(key, endpoints=streams, **options)
            with translated(self.url):
                descriptor = flight.FlightDescriptor.for_command(command)
                info = self._flight.get_flight_info(descriptor, self._options(end))
            if len(info.endpoints) < 2:
                break
            connections = self._connections.take(len(info.endpoints))
            try:
                return _streams.get(connections, info, self._options(end), self.url, out, framework)
            except StaleVersionError:
                # Another version was put between the answer and the streams, and this one is not asked for.
                if last or "version" in options:
                    raise
        return self._get_one(key, out, framework, end, **options)

    def map(
        self,
        key: str,
        *,
        version: int | None = None,
        part: str | None = None,
        spec: KvSpec | str | None = None,
        exact: bool | None = None,
    ) -> NDArray[Any]:
        """Reads a tensor without a copy where the client is connected to the server's Unix socket: the array
        is the server's own memory, read-only, and stays as it is whatever happens to the key. It is counted
        in the server's memory until it is collected: keep it for as long as it is used, and no longer. Small
        tensors, and all of a server that gives no (more) memory or is elsewhere, are got as `get` does.

        version, spec, exact: as of `get`. part: which part, of a key that has several.
        """

        def read(hash: str | None) -> NDArray[Any]:
            options = _wire.given(version=version, part=part, kv_spec=hash, exact=exact)
            array = self._shared(key, options)
            if array is None:
                array = self._get_one(key, None, "numpy", Deadline(None), **options)
                array.flags.writeable = False
            return array

        return self._with_spec(spec, read, Deadline(None))

    def create(
        self,
        key: str,
        shape: int | Sequence[int],
        dtype: DTypeLike,
        *,
        axes: Sequence[str] | None = None,
        codec: str | None = None,
        ttl: int | None = None,
        consistency: Literal["strong", "eventual", "weak"] | None = None,
        if_: Literal["absent"] | int | None = None,
        attributes: Mapping[str, str] | None = None,
        spec: KvSpec | str | None = None,
        derived_from_lossy: bool | None = None,
    ) -> Created:
        """A tensor to be filled in place: where the client is connected to the server's Unix socket, `array`
        of what is returned is memory that becomes the server's at the commit, without a copy. Elsewhere the
        commit puts it as `put` does. Options are those of `put`.

        >>> with sira.create("demo/a", (1024, 1024), "float32") as made:
        ...     made.array[:] = 1
        """
        name, extent = element_type(dtype), extents(shape)
        options: dict[str, Any] = {
            "axes": axes,
            "codec": codec,
            "ttl": ttl,
            "consistency": consistency,
            "if_": if_,
            "attributes": attributes,
            "derived_from_lossy": derived_from_lossy,
        }

        def make(hash: str | None) -> Created | None:
            return self._created(name, extent, command(key, name, extent, kv_spec=hash, **options))

        made = self._with_spec(spec, make, Deadline(None))
        if made is not None:
            return made
        array = np.zeros(extent, numpy_dtype(name))

        def put() -> PutResult:
            return self.put(key, array, spec=spec, **options)

        return Created(array, put, lambda: None)

    def open(
        self,
        key: str,
        *,
        part: str | None = None,
        spec: KvSpec | str | None = None,
        framework: _arrays.Framework = "numpy",
    ) -> LazyTensor:
        """A tensor that is read in ranges: `client.open(key)[0, 512:1024]`. Asks only what it is. part: which
        part, of a key that has several; HasPartsError without it. spec: a kv spec or its hash; NotFoundError
        unless the key follows it."""
        _arrays.check_framework(framework)

        def ask(hash: str | None) -> dict[str, Any]:
            return self._action("info", key=key, **_wire.given(kv_spec=hash))

        return LazyTensor(
            self, TensorInfo.from_json(self._with_spec(spec, ask, Deadline(None))), framework, part
        )

    def info(self, key: str) -> TensorInfo:
        """What the server knows of a key."""
        return TensorInfo.from_json(self._action("info", key=key))

    def scan(self, prefix: str = "", *, after: str | None = None, page: int = 1000) -> Iterator[TensorInfo]:
        """Every key that begins with `prefix`, in byte order, beginning behind `after`. Asks for `page` at a
        time, so a scan of any length costs little memory; keys put or deleted meanwhile may or may not be
        seen."""
        while True:
            body: dict[str, Any] = {"limit": page}
            if prefix:
                body["prefix"] = prefix
            if after is not None:
                body["after"] = after
            answer = self._action("list", **body)
            for entry in answer["entries"]:
                yield TensorInfo.from_json(entry)
            after = answer.get("next")
            if after is None:
                return

    def delete(self, key: str, *, if_version: int | None = None) -> bool:
        """Deletes a key; False where there was none. if_version: raise StaleVersionError unless it has this
        one."""
        body = {"key": key} if if_version is None else {"key": key, "if": _wire.condition(if_version)}
        return bool(self._action("delete", **body)["deleted"])

    def stats(self) -> dict[str, Any]:
        """Counts, bytes and limits of memory and of each backend."""
        return self._action("stats")

    def health(self) -> dict[str, Any]:
        """How the server and its backends are."""
        return self._action("health")


def _bounds(ranges: _Ranges | None) -> dict[str, tuple[int, int]]:
    bounds: dict[str, tuple[int, int]] = {}
    for name, given in (ranges or {}).items():
        if isinstance(given, slice):
            if given.start is None or given.stop is None or given.step not in (None, 1):
                raise InvalidError(
                    f"SIRA_BAD_REQUEST: range of {name!r}: {given} needs a start and a stop, and takes no "
                    "step; what open() returns takes any slice",
                    "SIRA_BAD_REQUEST",
                )
            given = (given.start, given.stop)
        start, stop = given
        bounds[str(name)] = (int(start), int(stop))
    return bounds
