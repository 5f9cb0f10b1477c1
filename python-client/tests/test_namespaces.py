"""Policies of namespaces, against a server."""

from __future__ import annotations

import numpy as np
import pytest

import samples
import sira_store


def test_a_policy_is_set_seen_and_reset(sira: sira_store.Client, ns: str) -> None:
    assert ns not in [namespace.name for namespace in sira.namespaces()]
    sira.put(f"{ns}/x", np.zeros(1000, np.uint8))
    (before,) = [namespace for namespace in sira.namespaces() if namespace.name == ns]
    assert (before.policy, before.origin) == (sira_store.Policy(), "default")
    assert (before.keys, before.nbytes) == (1, 1000)
    assert before.operations["puts"] == 1

    policy = sira_store.Policy(
        "cache", exact=True, consistency="eventual", ttl=60, limits={"memory": 1 << 20}
    )
    now = sira.set_namespace(
        ns, mode="cache", exact=True, consistency="eventual", ttl=60, limits={"memory": 1 << 20}
    )
    assert (now.name, now.policy, now.origin, now.keys) == (ns, policy, "action", 1)
    assert [found.policy for found in sira.namespaces() if found.name == ns] == [policy]
    info = sira.put(f"{ns}/y", np.zeros(3)) and sira.info(f"{ns}/y")
    assert info.consistency == "eventual"
    assert (info.expires_ms or 0) - info.created_ms == 60_000

    # The whole policy is replaced.
    assert sira.set_namespace(ns).policy == sira_store.Policy()
    assert sira.reset_namespace(ns).origin == "default"


def test_read_only(sira: sira_store.Client, ns: str) -> None:
    array = samples.array("float32", (4,))
    sira.put(f"{ns}/x", array)
    sira.set_namespace(ns, read_only=True)
    for change in (
        lambda: sira.put(f"{ns}/x", np.zeros(3)),
        lambda: sira.put(f"{ns}/x", {"k": np.zeros(3), "v": np.zeros(3)}),
        lambda: sira.delete(f"{ns}/x"),
    ):
        with pytest.raises(sira_store.ReadOnlyError) as caught:
            change()
        assert isinstance(caught.value, PermissionError)
        assert caught.value.code == "SIRA_READ_ONLY"
    (result,) = sira.put_many({f"{ns}/x": np.zeros(3)})
    assert isinstance(result, sira_store.ReadOnlyError)
    assert isinstance(sira.delete_many([f"{ns}/x"]).failed[f"{ns}/x"], sira_store.ReadOnlyError)
    assert samples.same(sira.get(f"{ns}/x"), array)
    sira.reset_namespace(ns)
    assert sira.delete(f"{ns}/x")


def test_wrong_policies_are_refused(sira: sira_store.Client, ns: str) -> None:
    for wrong in (
        {"mode": "both"},
        {"ttl": 0},
        {"ttl": 0.5},
        {"limits": {"memory": 0}},
        {"limits": {"nowhere": 1}},
        {"codecs": {"rocksdb": "zip"}},
        {"consistency": "maybe"},
    ):
        with pytest.raises(sira_store.InvalidError):
            sira.set_namespace(ns, **wrong)  # type: ignore[arg-type]
    for name in ("", "a/b", "x" * 65):
        with pytest.raises(sira_store.InvalidError):
            sira.set_namespace(name)
    assert ns not in [namespace.name for namespace in sira.namespaces()]


def test_a_cache_evicts(sira: sira_store.Client, ns: str) -> None:
    # Not weak, as puts of a cache else are: what is not written yet cannot be evicted.
    sira.set_namespace(ns, mode="cache", limits={"rocksdb": 4 << 20}, consistency="eventual")
    for i in range(16):
        sira.put(f"{ns}/{i}", samples.array("uint8", (1 << 20,), seed=i), codec="none")
    (now,) = [namespace for namespace in sira.namespaces() if namespace.name == ns]
    left = sira.exists_many([f"{ns}/{i}" for i in range(16)])
    assert 1 <= sum(left) <= 4
    assert left[15]
    assert now.operations["evictions"] >= 12
    assert now.keys == sum(left)
    assert now.bytes["rocksdb"] <= 4 << 20


def test_route(sira: sira_store.Client, ns: str) -> None:
    small, large = sira.route(f"{ns}/x", 100), sira.route(f"{ns}/x", 64 << 20, consistency="strong")
    assert small.inline
    assert not large.inline
    assert large.consistency == "strong"
    assert large.steps[-1].backend == large.backend
    array = samples.array("uint8", (100_000,))
    sira.put(f"{ns}/x", array)
    info, route = sira.info(f"{ns}/x"), sira.route(f"{ns}/x", array.nbytes)
    assert (info.backend, info.consistency) == (route.backend, route.consistency)
    # By default it goes by the element type, if a route is told it.
    assert (route.codec, info.codec) == ("auto", "planes+zstd")
    told = sira.route(f"{ns}/x", array.nbytes, dtype=array.dtype, axes=["n"], ttl=60)
    assert told.codec == "planes+zstd"


def test_a_route_is_explained(sira: sira_store.Client, ns: str) -> None:
    part = sira_store.KvPart(dtype="bfloat16", axes=("token", "dim"))
    spec = sira_store.KvSpec(model="m", block_tokens=16, parts=(part,))
    route = sira.route(f"{ns}/x", 1 << 20, dtype="bfloat16", axes=["token", "dim"], spec=spec)
    assert [step.backend for step in route.steps] == [None, "rocksdb"]
    assert "size" in route.steps[0].reason
    candidates = {candidate.backend: candidate for candidate in route.candidates}
    assert set(candidates) == {"object", "rocksdb"}
    assert candidates["rocksdb"].state == "fit"
    assert candidates["rocksdb"].keeps == "strong"
    assert candidates["rocksdb"].against is None
    assert candidates["rocksdb"].calls_under_way >= 0
    for wrong in ({"dtype": "float64"}, {"axes": ["a", "a"]}, {"spec": "x"}, {"ttl": 0}):
        with pytest.raises(sira_store.InvalidError):
            sira.route(f"{ns}/x", 1001, **wrong)  # type: ignore[arg-type]
