"""Whether keys are there, within a deadline, and deletes of many."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from types import EllipsisType
from typing import Any

import numpy as np

from . import _wire
from ._base import Deadline, listed, namespace_of
from ._errors import SiraError, TimedOutError, UnavailableError, by_code, by_text
from ._kvspec import KvSpec
from ._namespaces import Namespaces
from ._types import DeleteManyResult, DeletePrefixResult, Lookup


class Lookups(Namespaces):
    """Lookups and deletes."""

    _lookup_deadline: float | None

    def exists(
        self,
        key: str,
        *,
        spec: KvSpec | str | None = None,
        deadline: float | EllipsisType | None = ...,
    ) -> bool:
        """Whether there is such a key.

        spec: a kv spec or its hash; a key that does not follow it is a miss. deadline: seconds that this may
        take, None for no limit, by default the client's `lookup_deadline`. Where no answer comes in time, or
        no server is there, a key of a cache (see `connect`) is a miss; else TimedOutError or UnavailableError
        is raised.
        """
        end = self._lookup_end(deadline)
        found = False

        def ask(hash: str | None) -> None:
            nonlocal found
            answer = self._action("exists", end, key=key, **_wire.given(kv_spec=hash))
            found = bool(answer["exists"])
            self._caches.learn([namespace_of(key)], answer.get("cache") is True)

        self._miss_without_answer(lambda: [key], lambda: self._with_spec(spec, ask, end))
        return found

    def exists_many(
        self,
        keys: Iterable[str],
        *,
        spec: KvSpec | str | None = None,
        deadline: float | EllipsisType | None = ...,
    ) -> Lookup:
        """Which of many keys exist, and how many from the first one on, in one round trip (65,536 keys each).

        spec, deadline: as of `exists`. Without an answer all are misses where all are keys of caches.
        """
        keys = listed(keys)
        end = self._lookup_end(deadline)
        exists = np.zeros(len(keys), np.bool_)

        def ask(hash: str | None) -> None:
            at = 0
            for count, body in _wire.key_lists(keys, hash):
                answer = self._act("exists_many", body, end)
                exists[at : at + count] = _bits(answer, count)
                self._learn_of(keys[at : at + count], answer.get("cache") is True)
                at += count

        self._miss_without_answer(lambda: keys, lambda: self._with_spec(spec, ask, end))
        return Lookup(exists)

    def delete_many(self, keys: Iterable[str]) -> DeleteManyResult:
        """Deletes many keys in one round trip (65,536 keys each). What fails with one does not stop the
        others."""
        deleted = 0
        missing: list[str] = []
        failed: dict[str, SiraError] = {}
        for _, body in _wire.key_lists(listed(keys)):
            answer = self._act("delete_many", body)
            deleted += answer["deleted"]
            missing += answer["missing"]
            failed |= _failures(answer)
        return DeleteManyResult(deleted, tuple(missing), failed)

    def delete_prefix(self, prefix: str, *, dry_run: bool = False) -> DeletePrefixResult:
        """Deletes every key that begins with `prefix`, which names a namespace (`ns/`, `ns/session-1/`).
        dry_run: only counts. Keys put meanwhile may or may not be deleted."""
        keys = nbytes = 0
        failed: dict[str, SiraError] = {}
        after: str | None = None
        while True:
            answer = self._action("delete_prefix", prefix=prefix, dry_run=dry_run, **_wire.given(after=after))
            keys += answer["keys"]
            nbytes += answer["bytes"]
            failed |= _failures(answer)
            after = answer.get("next")
            if after is None:
                return DeletePrefixResult(keys, nbytes, failed)

    def _lookup_end(self, deadline: float | EllipsisType | None) -> Deadline:
        return Deadline(self._lookup_deadline if isinstance(deadline, EllipsisType) else deadline)

    def _miss_without_answer(self, keys: Callable[[], Iterable[str]], ask: Callable[[], None]) -> None:
        """Takes a server that does not answer for a miss where all keys are those of caches."""
        try:
            ask()
        except (TimedOutError, UnavailableError):
            if not self._caches.have({namespace_of(key) for key in keys()}):
                raise

    def _learn_of(self, keys: list[str], cache: bool) -> None:
        if not cache and self._caches.none_learnt:
            return
        first, last = namespace_of(min(keys)), namespace_of(max(keys))
        # Between two keys of one namespace lie only keys of it.
        namespaces = {first} if first == last else {namespace_of(key) for key in keys}
        # "Not all of them are caches" says nothing of one among several.
        if cache or len(namespaces) == 1:
            self._caches.learn(namespaces, cache)


def _bits(answer: Mapping[str, Any], count: int) -> Any:
    try:
        bitmap = base64.b64decode(answer["bitmap"], validate=True)
    except (KeyError, TypeError, binascii.Error) as error:
        raise by_code("SIRA_INTERNAL", f"SIRA_INTERNAL: exists_many: no bitmap: {error!r}") from error
    if len(bitmap) != (count + 7) // 8:
        raise by_code(
            "SIRA_INTERNAL", f"SIRA_INTERNAL: exists_many: a bitmap of {len(bitmap)} bytes for {count} keys"
        )
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), count=count, bitorder="little")
    return bits.view(np.bool_)


def _failures(answer: Mapping[str, Any]) -> dict[str, SiraError]:
    return {failed["key"]: by_text(failed["error"]) for failed in answer["failed"]}
