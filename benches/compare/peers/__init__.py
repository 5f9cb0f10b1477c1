"""Everyone who takes part, in the order of the report."""

from __future__ import annotations

from compare.peers.base import Peer
from compare.peers.flight import ArrowFlight, Canned
from compare.peers.mooncake_peer import Mooncake
from compare.peers.raw import Raw, RawRust
from compare.peers.redis_peer import Redis, RedisRust
from compare.peers.sira import Sira, SiraHost, SiraMap, SiraNative, SiraRust, SiraUnix


def everyone() -> list[Peer]:
    """All peers. Those that are another way to a server come after it."""
    sira, raw, redis = Sira(), Raw(), Redis()
    return [
        *(sira, SiraRust(sira), SiraNative(sira), SiraUnix(sira), SiraHost(sira), SiraMap(sira)),
        *(ArrowFlight(), Canned()),
        *(raw, RawRust(raw)),
        *(redis, RedisRust(redis)),
        Mooncake(),
    ]
