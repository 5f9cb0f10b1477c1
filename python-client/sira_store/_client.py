"""The client: one connection, one method for each thing that a server can do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from pyarrow import flight

from . import _arrays, _connect, _wire
from ._connect import Pem
from ._errors import IncompleteError, InvalidError, by_code, has_code, translated
from ._lazy import LazyTensor
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
    token: str | None = None,
    ca: Pem | None = None,
    cert: Pem | None = None,
    key: Pem | None = None,
    timeout: float | None = None,
) -> Client:
    """A client of the server at `url`: `grpc://host:port`, `host:port`, or with TLS `grpc+tls://host:port`.
    Without one, the environment's SIRA_URL, or else `grpc://127.0.0.1:9095`. Nothing is sent yet: the first
    call finds out whether a server is there.

    `token`: sent with every call; by default the environment's SIRA_TOKEN, or the first one in the file
    SIRA_TOKEN_FILE. `ca`: the authority of the server's certificate, where it is not a public one. `cert` and
    `key`: the client's own certificate, where the server asks for one. These are paths of PEM files or their
    bytes; by default the environment's SIRA_CA, SIRA_CERT, SIRA_KEY.
    `timeout`: seconds that any one call may take; no limit by default.
    """
    url = url or os.environ.get("SIRA_URL") or DEFAULT_URL
    return Client(url, token=token, ca=ca, cert=cert, key=key, timeout=timeout)


class Client:
    """A connection to a Sira server. May be shared by threads; a context manager that closes itself."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca: Pem | None = None,
        cert: Pem | None = None,
        key: Pem | None = None,
        timeout: float | None = None,
    ) -> None:
        self.url = url if "://" in url else f"grpc://{url}"
        """Where the server is."""
        self._flight, self._options = _connect.connect(
            self.url, token=token, ca=ca, cert=cert, key=key, timeout=timeout
        )

    def close(self) -> None:
        """Ends the connection."""
        self._flight.close()

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
        array: ArrayLike | torch.Tensor,
        *,
        axes: Sequence[str] | None = None,
        codec: str | None = None,
        ttl: int | None = None,
        consistency: Literal["strong", "eventual", "weak"] | None = None,
        if_: Literal["absent"] | int | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> PutResult:
        """Stores a numpy array or a torch tensor under `key` (`namespace/key`), replacing what is there.

        Once this returns, every reader of the server sees the tensor; when it raises, nothing of it is
        visible. Contiguous memory is sent from where it lies.

        axes: one name an axis. codec: how lower tiers keep it (`planes+zstd`). ttl: whole seconds until it
        expires. consistency: what an acknowledged put survives. if_: "absent" raises AlreadyExistsError where
        the key exists; a version raises StaleVersionError where the key has another. attributes: texts to
        keep with it.
        """
        tensor = _arrays.outgoing(array)
        schema = _wire.schema(
            tensor,
            axes=axes,
            codec=codec,
            ttl=ttl,
            consistency=consistency,
            if_=if_,
            attributes=attributes,
        )
        with translated(self.url):
            descriptor = flight.FlightDescriptor.for_path(key)
            writer, reader = self._flight.do_put(descriptor, schema, self._options)
            with _closing(writer.close):
                for batch in _wire.batches(tensor.data, schema):
                    writer.write_batch(batch)
                writer.done_writing()
                answer = reader.read()
        if answer is None:
            raise IncompleteError(
                f"SIRA_INCOMPLETE: {key}: the server ended the put without an answer", "SIRA_INCOMPLETE"
            )
        result = json.loads(answer.to_pybytes())
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
    ) -> torch.Tensor: ...

    @overload
    def get(
        self,
        key: str,
        out: _Out,
        *,
        ranges: _Ranges | None = None,
        version: int | None = None,
    ) -> _Out: ...

    def get(
        self,
        key: str,
        out: Any = None,
        *,
        framework: _arrays.Framework = "numpy",
        ranges: _Ranges | None = None,
        version: int | None = None,
    ) -> Any:
        """Reads a tensor, or a part of it.

        out: a numpy array or torch tensor of the same type and shape, filled in place and returned. Without
        it, a new array, or with framework="torch" a new tensor. A numpy array that came in one message is
        that message's memory and read-only: give `out`, or copy it, to write to it.
        ranges: half-open ranges of the axes by name, or by position for those without one (`{"token": (0,
        512)}`). version: raise StaleVersionError unless the key has this version.

        Raises when the stream breaks off; `out` may then be partly filled.
        """
        _arrays.check_framework(framework)
        ticket = _wire.ticket(key, version, _bounds(ranges))
        with translated(self.url):
            reader = self._flight.do_get(ticket, self._options)
            try:
                spec = _wire.spec_of(reader.schema)
                target = _arrays.incoming(spec.dtype, spec.shape, out, framework)
                data = _wire.receive(reader, spec.nbytes, target.buffer)
            except BaseException:
                reader.cancel()  # or the server would go on sending what nobody reads
                raise
        return target.finish(data)

    def open(self, key: str, *, framework: _arrays.Framework = "numpy") -> LazyTensor:
        """A tensor that is read in parts: `client.open(key)[0, 512:1024]`. Asks only what it is."""
        _arrays.check_framework(framework)
        return LazyTensor(self, self.info(key), framework)

    def exists(self, key: str) -> bool:
        """Whether there is such a key."""
        return bool(self._action("exists", key=key)["exists"])

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

    def _action(self, name: str, **body: Any) -> dict[str, Any]:
        with translated(self.url):
            action = flight.Action(name, _wire.dumps({"v": 1, **body}))
            results = list(self._flight.do_action(action, self._options))
        if len(results) != 1:
            raise by_code("SIRA_INTERNAL", f"SIRA_INTERNAL: {name}: {len(results)} results, not one")
        answer: dict[str, Any] = json.loads(results[0].body.to_pybytes())
        return answer


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


@contextmanager
def _closing(close: Callable[[], None]) -> Iterator[None]:
    """Ends a stream. An error of ending it is raised where there was none before, or where only it has the
    server's words: a failed write says no more than that it failed."""
    try:
        yield
    except BaseException as error:
        try:
            close()
        except (pa.ArrowException, OSError) as closing:
            if isinstance(error, Exception) and has_code(closing) and not has_code(error):
                raise closing from None
        raise
    close()
