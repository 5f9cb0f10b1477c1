"""Lookups without an answer: they cost their deadline, and are misses in caches. The servers here are absent,
stopped, or accept connections and never say a word."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import sira_store
from server import Server

DEADLINE = 0.2
# What a call may take beyond its deadline on a busy machine. A call that misses its deadline takes for ever.
SLACK = 5.0


@contextmanager
def in_time(deadline: float = DEADLINE) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < deadline + SLACK


@pytest.fixture
def closed() -> str:
    """A port where nobody listens."""
    with socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))
        return f"grpc://127.0.0.1:{gone.getsockname()[1]}"


@pytest.fixture
def wedged() -> Iterator[str]:
    """Accepts connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"grpc://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def unreachable() -> Iterator[str]:
    """Does not even accept: its queue is full, so that connecting is never answered, as where packets are
    dropped."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield f"grpc://127.0.0.1:{listener.getsockname()[1]}"
        for one in waiting:
            one.close()


@pytest.fixture(params=["closed", "wedged", "unreachable"])
def nobody(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


SPEC = sira_store.KvSpec.nhd("m", dtype="uint8", block_tokens=1, kv_heads=1, head_dim=2)


@pytest.mark.parametrize("spec", [None, SPEC, "0" * 64], ids=["no spec", "spec", "hash"])
def test_a_cache_without_a_server_misses(nobody: str, spec: sira_store.KvSpec | str | None) -> None:
    with sira_store.connect(nobody, cache_namespaces=["kv"]) as sira:
        with in_time():
            assert not sira.exists("kv/x", spec=spec)
        with in_time():
            found = sira.exists_many([f"kv/{i}" for i in range(8192)], spec=spec)
        assert (found.leading, len(found), found.exists.any()) == (0, 8192, False)
        with in_time():
            assert sira.get_many(["kv/x", "kv/y"], spec=spec, deadline=DEADLINE) == [None, None]
        with in_time(), pytest.raises(sira_store.NotFoundError, match="no answer"):
            sira.get("kv/x", spec=spec, deadline=DEADLINE)
        with in_time(), pytest.raises(sira_store.NotFoundError, match="no answer"):
            sira.get("kv/x", spec=spec, parts=["k"], deadline=DEADLINE)


def test_others_raise(nobody: str) -> None:
    with sira_store.connect(nobody, cache_namespaces=["kv"]) as sira:
        for ask in (
            lambda: sira.exists("ns/x"),
            lambda: sira.exists_many(["kv/x", "ns/x"]),
            lambda: sira.get_many(["kv/x", "ns/x"], deadline=DEADLINE),
            lambda: sira.get("ns/x", deadline=DEADLINE),
        ):
            with in_time(), pytest.raises((sira_store.TimedOutError, sira_store.UnavailableError)):
                ask()


def test_deadlines_of_client_and_call(wedged: str) -> None:
    for options, call in (
        ({"lookup_deadline": 0.05}, {}),
        ({"lookup_deadline": None}, {"deadline": 0.05}),
        ({"lookup_deadline": 3600}, {"deadline": 0.05}),
        ({"lookup_deadline": None, "timeout": 0.05}, {}),
        ({"lookup_deadline": 3600, "timeout": 0.05}, {"deadline": None}),
    ):
        with sira_store.connect(wedged, **options) as sira:  # type: ignore[arg-type]
            with in_time(), pytest.raises(sira_store.TimedOutError):
                sira.exists("ns/x", **call)
            with in_time(), pytest.raises(sira_store.TimedOutError):
                sira.exists_many(["ns/x"], **call)
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="deadline"):
            sira_store.connect(wedged, lookup_deadline=wrong)
        with sira_store.connect(wedged) as sira, pytest.raises(ValueError, match="deadline"):
            sira.exists("ns/x", deadline=wrong)
    with pytest.raises(ValueError, match="cache_namespaces"):
        sira_store.connect(wedged, cache_namespaces="kv")


def test_a_stopped_server_and_what_was_learnt_of_it(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, sira_store.connect(server.url, lookup_deadline=None) as sira:
        for name in ("set", "seen", "many"):
            with sira_store.connect(server.url) as other:
                other.set_namespace(name, mode="cache")
        sira.set_namespace("set", mode="cache")
        for name in ("set", "seen", "many", "store"):
            sira.put(f"{name}/x", np.zeros(3))
        assert sira.exists("seen/x")
        assert sira.exists("store/x")
        assert sira.exists_many(["many/x", "seen/y"]).leading == 1
        server.suspend()
        try:
            for name in ("set", "seen", "many"):
                with in_time():
                    assert not sira.exists(f"{name}/x", deadline=DEADLINE)
            with in_time():
                assert sira.exists_many(["set/x", "seen/x"], deadline=DEADLINE).leading == 0
            for keys in (["store/x"], ["set/x", "store/x"]):
                with in_time(), pytest.raises(sira_store.TimedOutError):
                    sira.exists_many(keys, deadline=DEADLINE)
            with in_time(), pytest.raises(sira_store.TimedOutError):
                sira.exists("store/x", deadline=DEADLINE)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert sira.exists("set/x")
        # What is no cache any more is not taken for one.
        for name in ("set", "seen", "many"):
            sira.reset_namespace(name)
        with sira_store.connect(server.url, lookup_deadline=None) as fresh:
            fresh.set_namespace("listed", mode="cache")
        sira.namespaces()
        server.kill()
        with in_time(), pytest.raises(sira_store.UnavailableError):
            sira.exists("set/x", deadline=DEADLINE)
        with in_time():
            assert not sira.exists("listed/x", deadline=DEADLINE)


def test_what_came_in_time_is_not_lost(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, sira_store.connect(server.url, cache_namespaces=["kv"]) as sira:
        sira.put("kv/x", np.zeros(3))
        with pytest.raises(sira_store.NotFoundError, match="no tensor"):
            sira.get("kv/y", deadline=60)
        assert np.array_equal(sira.get("kv/x", deadline=60), np.zeros(3))
        assert sira.get_many(["kv/x", "kv/y"], deadline=60)[1] is None
        with pytest.raises(sira_store.InvalidError):
            sira.get_many(["kv/x", "nokey"], deadline=60)
        server.kill()
        # Without a deadline only the server's word is a miss.
        for ask in (lambda: sira.get("kv/x"), lambda: sira.get_many(["kv/x"])):
            with pytest.raises(sira_store.UnavailableError):
                ask()
