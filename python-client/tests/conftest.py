"""One server for all tests that neither stop nor fill it, and a namespace of its own for each test."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import flight

import sira_store
from server import Server, program
from sira_store import _native


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not program().exists():
        pytest.fail(f"{program()} is not there: build it first, or name it in SIRA_BIN")
    with Server(tmp_path_factory.mktemp("server") / "data") as server:
        yield server
        assert server.terminate() == 0


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Server]:
    """A second server, empty."""
    with Server(tmp_path / "target") as server:
        yield server


@pytest.fixture
def plain(server: Server) -> Iterator[flight.FlightClient]:
    """A plain Flight client, as a user without sira_store has it."""
    with flight.FlightClient(server.url) as client:
        yield client


BOTH_WAYS = (
    "test_arrays",
    "test_broken_many",
    "test_broken_streams",
    "test_client",
    "test_deadline",
    "test_encoded",
    "test_many",
)
"""Tests of gets and puts, which run over pyarrow and over the extension."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__ in BOTH_WAYS:
        metafunc.parametrize("way", ["pyarrow", "native"], indirect=True, scope="module")


@pytest.fixture(autouse=True, scope="module")
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """What clients made by a test send and receive with; pyarrow where the test does not say."""
    way: str = getattr(request, "param", "pyarrow")
    if way == "native" and _native.module is None:
        pytest.skip("the extension is not installed: make native, then pip install its wheel")
    with pytest.MonkeyPatch.context() as patch:
        if way == "pyarrow":
            patch.setattr(_native, "module", None)
        yield way


@pytest.fixture
def sira(server: Server) -> Iterator[sira_store.Client]:
    # Of a busy machine no deadline is asked; tests/test_deadline.py has clients of its own.
    with sira_store.connect(server.url, lookup_deadline=None) as client:
        yield client


@pytest.fixture
def ns(request: pytest.FixtureRequest) -> str:
    """A namespace that no other test uses."""
    return (
        re.sub(r"[^a-z0-9_-]", "-", request.node.name.lower())[:48]
        + f"-{abs(hash(request.node.nodeid)) % 10**6}"
    )
