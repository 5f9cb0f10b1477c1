"""What all methods of the client share: calls, deadlines, and which namespaces are caches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import flight

from . import _wire
from ._errors import InvalidError, by_code, has_code, translated

if TYPE_CHECKING:
    import sira_native


class Deadline:
    """An end that all requests of one call share, `seconds` from now; None: there is none."""

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not 0 < seconds < float("inf"):
            raise InvalidError(
                f"SIRA_BAD_REQUEST: deadline={seconds!r}: it is seconds, more than 0, or None",
                "SIRA_BAD_REQUEST",
            )
        self.given = seconds is not None
        """Whether there is one."""
        self._end = None if seconds is None else time.monotonic() + seconds

    def within(self, timeout: float | None) -> float | None:
        """Seconds that a request may take which begins now and has this timeout of its own."""
        if self._end is None:
            return timeout
        left = max(self._end - time.monotonic(), 0.0)
        return left if timeout is None else min(left, timeout)


class Caches:
    """The namespaces that are known to be caches. Sets are replaced, never changed: threads share this."""

    def __init__(self, named: Iterable[str]) -> None:
        if isinstance(named, str):
            raise InvalidError(
                f"SIRA_BAD_REQUEST: cache_namespaces={named!r}: a list of names", "SIRA_BAD_REQUEST"
            )
        self._named = frozenset(named)
        self._learnt: frozenset[str] = frozenset()

    def learn(self, namespaces: Iterable[str], cache: bool) -> None:
        """What the server says of them."""
        found = frozenset(namespaces)
        if cache and not found <= self._learnt:
            self._learnt |= found
        elif not cache and not found.isdisjoint(self._learnt):
            self._learnt -= found

    @property
    def none_learnt(self) -> bool:
        """Whether the server has not called any namespace a cache yet."""
        return not self._learnt

    def have(self, namespaces: Iterable[str]) -> bool:
        """Whether all of them are caches: named as such by the user, or by the server."""
        return (self._named | self._learnt).issuperset(namespaces)


class Base:
    """A connection, as far as its methods need it."""

    url: str
    _flight: flight.FlightClient
    _native: sira_native.Client | None
    _headers: list[tuple[bytes, bytes]]
    _timeout: float | None
    _caches: Caches

    def _within(self, deadline: Deadline | None = None) -> float | None:
        """Seconds that a request may take that begins now."""
        return self._timeout if deadline is None else deadline.within(self._timeout)

    def _options(self, deadline: Deadline | None = None) -> flight.FlightCallOptions:
        return flight.FlightCallOptions(timeout=self._within(deadline), headers=self._headers)

    def _action(self, name: str, deadline: Deadline | None = None, /, **body: Any) -> dict[str, Any]:
        return self._act(name, _wire.dumps({"v": 1, **body}), deadline)

    def _act(self, name: str, body: bytes, deadline: Deadline | None = None) -> dict[str, Any]:
        with translated(self.url):
            results = list(self._flight.do_action(flight.Action(name, body), self._options(deadline)))
        if len(results) != 1:
            raise by_code("SIRA_INTERNAL", f"SIRA_INTERNAL: {name}: {len(results)} results, not one")
        return _wire.answer(name, results[0].body)


def namespace_of(key: str) -> str:
    """What stands before the first slash."""
    return key.partition("/")[0]


def listed(keys: Iterable[str]) -> list[str]:
    """Keys as a list; one text is refused, whose characters would be taken for keys."""
    if isinstance(keys, str):
        raise InvalidError(f"SIRA_BAD_REQUEST: keys={keys!r}: a list of keys", "SIRA_BAD_REQUEST")
    return list(keys)


@contextmanager
def closing(close: Callable[[], None]) -> Iterator[None]:
    """Ends a stream. An error of ending it is raised where there was none before, or where only it has the
    server's words: a failed write says no more than that it failed."""
    try:
        yield
    except BaseException as error:
        try:
            close()
        except (pa.ArrowException, OSError) as ending:
            if isinstance(error, Exception) and has_code(ending) and not has_code(error):
                raise ending from None
        raise
    close()
