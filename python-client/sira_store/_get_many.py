"""Gets of many keys, or of keys of several parts, as one stream of bytes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pyarrow import flight

from . import _arrays, _native, _wire
from ._base import Deadline, listed, namespace_of
from ._dtypes import Bytes, nbytes
from ._errors import (
    InvalidError,
    NotFoundError,
    SiraError,
    TimedOutError,
    UnavailableError,
    by_code,
    by_text,
    translated,
)
from ._kvspec import KvSpec
from ._namespaces import Namespaces

# Parts of a key, and axes of a tensor, at most.
_MAX_PARTS = _MAX_AXES = 64


class _Part(NamedTuple):
    """A part that is coming."""

    name: str
    target: _arrays.Incoming
    bytes: _wire.Gathering


class Collector:
    """Puts together what the messages of a stream bring. What was asked for bounds what is kept: one part is
    in the making at any time, and memory for it is taken when the first of its bytes is there."""

    def __init__(
        self,
        keys: Sequence[str],
        out: Sequence[Any] | None,
        *,
        parts: Sequence[str] | None,
        framework: _arrays.Framework,
        version: int | None = None,
    ) -> None:
        self._keys = keys
        self._out = out
        self._wanted = parts
        self._framework = framework
        self._version = version
        self.results: list[Any] = []
        """Of each key that is through: an array, arrays by the names of their parts, or a SiraError."""
        # Of the key that is coming, which is the one after those: parts expected and there, and why what
        # comes of it is thrown away.
        self._expected: int | None = None
        self._there: dict[str, Any] = {}
        self._part: _Part | None = None
        self._void: SiraError | None = None

    def message(self, metadata: bytes | None, body: Bytes | _native.Body) -> None:
        """One message: what its metadata says, and its bytes or where to read them."""
        try:
            segments = json.loads(metadata or b"")["segments"]
            for segment in segments:
                self._segment(segment, body)
        except SiraError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise InvalidError(
                f"SIRA_BAD_REQUEST: the answer is not that of a get of many keys: {error!r}",
                "SIRA_BAD_REQUEST",
            ) from error

    def end(self) -> None:
        """The stream has ended, which it may when all keys are through."""
        self._next(len(self._keys))

    def _segment(self, segment: Mapping[str, Any], body: Bytes | _native.Body) -> None:
        index = segment["index"]
        if index != len(self.results):
            self._next(index)
        if index >= len(self._keys):
            raise _wire.incomplete(f"the stream went on after the {len(self._keys)} keys asked for")
        if "error" in segment:
            self._drop()
            self.results.append(by_text(segment["error"]))
            return
        if "key" in segment:
            self._begin_key(segment["key"])
        if self._expected is None:
            raise ValueError(f"key {index} without its header")
        if "part" in segment and self._void is None:
            self._begin_part(segment["part"])
        self._take(segment, body)

    def _next(self, index: int) -> None:
        """The key that was coming is through: it must be whole, and `index` the one behind it."""
        at = len(self.results)
        if self._expected is not None and self._void is not None:
            self.results.append(self._void)
            self._drop()
        elif self._expected is not None:
            raise _wire.incomplete(f"{self._keys[at]}: {len(self._there)} of {self._expected} parts came")
        if index != len(self.results):
            raise _wire.incomplete(f"an answer for key {index}, where that for {len(self.results)} was due")

    def _begin_key(self, header: Mapping[str, Any]) -> None:
        expected = header["parts"]
        if self._expected is not None or not 1 <= expected <= _MAX_PARTS:
            raise ValueError(f"a header of {expected} parts")
        self._expected = expected
        if self._version not in (None, header["version"]):
            self._void = by_code(
                "SIRA_STALE",
                f"SIRA_STALE: {self._keys[len(self.results)]} has version {header['version']}, not "
                f"{self._version}",
            )

    def _begin_part(self, header: Mapping[str, Any]) -> None:
        if self._part is not None:
            raise _wire.incomplete(f"part {self._part.name!r} ended before its bytes had come")
        name = header.get("name", "data")
        dtype, shape = header["dtype"], tuple(header["shape"])
        if len(shape) > _MAX_AXES or not all(type(extent) is int and extent >= 0 for extent in shape):
            raise ValueError(f"shape {shape}")
        if name in self._there or len(self._there) == self._expected:
            raise ValueError(f"part {name!r} once more than expected")
        try:
            size = nbytes(dtype, shape)
            target = _arrays.incoming(dtype, shape, self._place(name), self._framework)
        except SiraError as error:
            self._void = error  # of this key alone
            return
        self._part = _Part(name, target, _wire.Gathering(size, target.buffer))

    def _place(self, name: str) -> Any:
        """Where the caller wants this part, if that was said."""
        out = self._out[len(self.results)] if self._out is not None else None
        if isinstance(out, Mapping):
            return out.get(name)
        if out is not None and (self._expected != 1 or self._wanted is not None):
            raise InvalidError(
                f"SIRA_BAD_TENSOR: {self._keys[len(self.results)]}: out is one array, of parts it is a "
                "mapping of arrays by their names",
                "SIRA_BAD_TENSOR",
            )
        return out

    def _take(self, segment: Mapping[str, Any], body: Bytes | _native.Body) -> None:
        offset, size = segment.get("offset", 0), segment.get("bytes", 0)
        if not 0 <= offset <= offset + size <= body.size:
            raise ValueError(f"a segment of bytes {offset} to {offset + size} in a message of {body.size}")
        if self._void is not None:
            return
        if self._part is None:
            raise ValueError("bytes of no part")
        if isinstance(body, _native.Body):
            body.read_into(offset, self._part.bytes.room(size))
        else:
            self._part.bytes.add(body[offset : offset + size])
        if self._part.bytes.filled == self._part.bytes.size:
            self._there[self._part.name] = self._part.target.finish(self._part.bytes.finish())
            self._part = None
            if len(self._there) == self._expected:
                self._finish_key()

    def _finish_key(self) -> None:
        there, at = self._there, len(self.results)
        out = self._out[at] if self._out is not None else None
        if self._wanted is not None and set(self._wanted) != there.keys():
            raise _wire.incomplete(f"{self._keys[at]}: parts {', '.join(there)} came")
        if isinstance(out, Mapping) and (unknown := [name for name in out if name not in there]):
            self._void = InvalidError(
                f"SIRA_BAD_TENSOR: {self._keys[at]}: out has {unknown[0]!r}, the parts are "
                f"{', '.join(there)}",
                "SIRA_BAD_TENSOR",
            )
            self.results.append(self._void)
        elif self._wanted is None and self._expected == 1 and not isinstance(out, Mapping):
            self.results.extend(there.values())
        else:
            self.results.append(there)
        self._drop()

    def _drop(self) -> None:
        self._expected, self._there, self._part, self._void = None, {}, None, None


class Gets(Namespaces):
    """Gets as one stream."""

    def get_many(
        self,
        keys: Iterable[str],
        out: Sequence[Any] | None = None,
        *,
        parts: Sequence[str] | None = None,
        spec: KvSpec | str | None = None,
        exact: bool | None = None,
        framework: _arrays.Framework = "numpy",
        return_errors: bool = False,
        deadline: float | None = None,
    ) -> list[Any]:
        """Reads many tensors as one stream (65,536 keys each). Gives for each key its array, arrays by name
        where it has several parts or `parts` chooses some, and None for a miss.

        out: one entry a key, an array or tensor that is filled in place (of parts, a mapping of them by
        name) or None for a new one; its type and shape must be right. Without it, a numpy array that came
        whole in one message is the memory of that message, up to 4 MiB which it keeps alive, and read-only.
        spec: a kv spec or its hash; a key that does not follow it is a miss. exact: whether a copy that a
        lossy codec made is a miss; by default what the namespace says. framework: of new arrays.
        return_errors: other errors of single keys are put into the list; else the first of them is raised
        once everything was read, and what else came is lost. deadline: seconds for the whole call; where it
        passes, or no server is there, what had not come is a miss if all keys are those of caches (see
        `connect`), else raises, as does a call without a deadline. Of a key that is no array in the answer,
        `out` may be partly filled.
        """
        keys, end = listed(keys), Deadline(deadline)

        def read(hash: str | None) -> list[Any]:
            return self._get_all(keys, out, parts, hash, exact, framework, end)

        try:
            results = self._with_spec(spec, read, end)
        except (TimedOutError, UnavailableError):
            if not self._may_miss(keys, end):
                raise
            results = [None] * len(keys)
        for at, result in enumerate(results):
            if isinstance(result, NotFoundError):
                results[at] = None
            elif isinstance(result, SiraError) and not return_errors:
                raise result
        return results

    def _get_all(
        self,
        keys: list[str],
        out: Sequence[Any] | None,
        parts: Sequence[str] | None,
        kv_spec: str | None,
        exact: bool | None,
        framework: _arrays.Framework,
        deadline: Deadline,
        version: int | None = None,
    ) -> list[Any]:
        """An array, arrays by name or an error for each key."""
        _arrays.check_framework(framework)
        if out is not None and len(out) != len(keys):
            raise InvalidError(
                f"SIRA_BAD_REQUEST: out has {len(out)} entries for {len(keys)} keys", "SIRA_BAD_REQUEST"
            )
        fields = _wire.given(parts=None if parts is None else listed(parts), kv_spec=kv_spec, exact=exact)
        results: list[Any] = []
        for count, body in _wire.requests(keys, **fields):
            page = slice(len(results), len(results) + count)
            collector = Collector(
                keys[page],
                None if out is None else out[page],
                parts=parts,
                framework=framework,
                version=version,
            )
            try:
                self._collect(body, collector, deadline)
            except (TimedOutError, UnavailableError) as error:
                if not self._may_miss(keys, deadline):
                    raise
                misses = [NotFoundError(f"SIRA_NOT_FOUND: no answer: {error}", "SIRA_NOT_FOUND")]
                results += collector.results
                return results + misses * (len(keys) - len(results))
            results += collector.results
        return results

    def _may_miss(self, keys: Iterable[str], deadline: Deadline) -> bool:
        """Whether a server that does not answer is a miss: a deadline was set, and the keys are of caches."""
        return deadline.given and self._caches.have({namespace_of(key) for key in keys})

    def _collect(self, ticket: bytes, collector: Collector, deadline: Deadline) -> None:
        if self._native is not None:
            unread = _native.messages(self._native, ticket, self._within(deadline))
            with _native.translated(self.url), contextlib.closing(unread):
                for metadata, coming in unread:
                    collector.message(metadata, coming)
            collector.end()
            return
        with translated(self.url):
            reader = self._flight.do_get(flight.Ticket(ticket), self._options(deadline))
            try:
                if len(reader.schema) != 1:
                    raise _wire.incomplete(f"a stream of {len(reader.schema)} columns, not one")
                while True:
                    # To the very end, even when all keys are through: the status comes behind them.
                    try:
                        chunk = reader.read_chunk()
                    except StopIteration:
                        break
                    empty = chunk.data is None
                    body = np.empty(0, np.uint8) if empty else _wire.column_bytes(chunk.data)
                    said = chunk.app_metadata
                    collector.message(None if said is None else said.to_pybytes(), body)
                collector.end()
            except BaseException:
                reader.cancel()  # or the server would go on sending what nobody reads
                raise
