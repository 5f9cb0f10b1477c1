"""What only the extension does: it fills memory that is there already, with the interpreter free."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import sira_store
from server import Server
from sira_store import _native

pytestmark = pytest.mark.skipif(
    _native.module is None, reason="the extension is not installed: make native, then pip install its wheel"
)


@pytest.fixture(scope="module")
def way() -> str:
    """Only this one."""
    return "native"


def native(client: sira_store.Client) -> _native.sira_native.Client:
    """The extension's client, which must be there, or the test would be one of pyarrow."""
    assert client._native is not None
    return client._native


def test_a_get_goes_straight_into_out(sira: sira_store.Client, ns: str) -> None:
    array = np.arange(5_000_003, dtype=np.int32)
    assert native(sira)
    sira.put(f"{ns}/a", array)
    out = np.zeros_like(array)
    assert sira.get(f"{ns}/a", out) is out
    assert np.array_equal(out, array)
    whole = np.zeros((2, array.size), np.int32)
    sira.get(f"{ns}/a", whole[1])
    assert np.array_equal(whole[1], array)
    assert not whole[0].any()
    new = sira.get(f"{ns}/a")
    assert new.flags.writeable
    assert np.array_equal(new, array)


def test_any_writable_buffer_of_the_size_will_do(sira: sira_store.Client, ns: str) -> None:
    sira.put(f"{ns}/a", np.arange(100, dtype=np.uint8))
    ticket = sira_store._wire.ticket(f"{ns}/a").ticket
    for out in (bytearray(100), memoryview(bytearray(100)), np.empty((10, 5), np.int16)):
        native(sira).get(ticket).read_into(out)
        assert bytes(out) == bytes(range(100))


@pytest.mark.parametrize(
    "out, error",
    [
        (np.zeros(99, np.uint8), "the tensor has 100 bytes, the buffer for it 99"),
        (np.zeros(101, np.uint8), "the tensor has 100 bytes, the buffer for it 101"),
        (bytes(100), "not writable"),
        (np.zeros((100, 2), np.uint8)[:, 0], "not C-contiguous"),
        (np.zeros((20, 10), np.uint8)[::2], "not C-contiguous"),
        ("text", "bytes-like"),
    ],
)
def test_a_buffer_that_will_not_do(sira: sira_store.Client, ns: str, out: object, error: str) -> None:
    sira.put(f"{ns}/a", np.ones(100, np.uint8))
    before = bytes(out) if isinstance(out, (bytes, np.ndarray)) else b""
    ticket = sira_store._wire.ticket(f"{ns}/a").ticket
    with pytest.raises(Exception, match=error):
        native(sira).get(ticket).read_into(out)
    assert not isinstance(out, (bytes, np.ndarray)) or bytes(out) == before
    assert sira.get(f"{ns}/a").sum() == 100


def test_an_out_that_does_not_fit_is_said_as_without_the_extension(sira: sira_store.Client, ns: str) -> None:
    array = np.ones((4, 6), np.float32)
    sira.put(f"{ns}/a", array)
    read_only = np.zeros_like(array)
    read_only.flags.writeable = False
    for out, error in (
        (
            np.zeros((6, 4), np.float32),
            r"out is float32 of shape \[6, 4\], the tensor is .* \[4, 6\]",
        ),
        (np.zeros((4, 6), np.int32), "out is int32"),
        (read_only, "out is read-only"),
    ):
        with pytest.raises(sira_store.InvalidError, match=error):
            sira.get(f"{ns}/a", out)
    strided = np.zeros((4, 12), np.float32)[:, ::2]
    assert sira.get(f"{ns}/a", strided) is strided
    assert np.array_equal(strided, array)


def test_many_keys_go_straight_into_out(sira: sira_store.Client, ns: str) -> None:
    sizes = [1, 100, 70_000, 6_000_000, 0, 4096]
    arrays = {f"{ns}/{i}": np.full(size, i + 1, np.uint8) for i, size in enumerate(sizes)}
    sira.put_many(arrays)
    out = [np.zeros_like(array) for array in arrays.values()]
    found = sira.get_many([*arrays, f"{ns}/none"], out=[*out, None])
    assert found[-1] is None
    for got, given, expected in zip(found, out, arrays.values(), strict=False):
        assert got is given
        assert np.array_equal(got, expected)
    out[2] = np.zeros(1, np.uint8)
    found = sira.get_many(list(arrays), out=out, return_errors=True)
    assert isinstance(found[2], sira_store.InvalidError)
    assert all(
        np.array_equal(a, b) for i, (a, b) in enumerate(zip(found, arrays.values(), strict=True)) if i != 2
    )


class Silent:
    """Whoever connects hears nothing, or what is said and then nothing."""

    def __init__(self, words: bytes = b"", end: bool = False) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"grpc://127.0.0.1:{self.socket.getsockname()[1]}"
        self.accepted: list[socket.socket] = []
        self.thread = threading.Thread(target=self._serve, args=(words, end), daemon=True)
        self.thread.start()

    def _serve(self, words: bytes, end: bool) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.accepted.append(connection)
            connection.sendall(words)
            if end:
                connection.recv(1 << 16)
                connection.close()

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        # A thread that is in accept keeps the socket open until it is shut down.
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        for connection in self.accepted:
            connection.close()


def test_other_threads_go_on_while_one_waits() -> None:
    with Silent() as server, sira_store.connect(server.url, timeout=1.0) as client:
        steps = 0
        done = threading.Event()

        def wait() -> None:
            with pytest.raises(sira_store.TimedOutError):
                client.get("ns/a")
            done.set()

        thread = threading.Thread(target=wait)
        thread.start()
        while not done.is_set():
            steps += 1
            time.sleep(0.001)
        thread.join()
        assert steps > 10


def test_a_signal_breaks_in(ns: str) -> None:
    with Silent() as server, sira_store.connect(server.url) as client:
        timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            client.get(f"{ns}/a")
        timer.join()


def test_a_server_that_closes_is_unavailable(ns: str) -> None:
    settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    with (
        Silent(settings, end=True) as server,
        sira_store.connect(server.url) as client,
        pytest.raises(sira_store.UnavailableError, match=f"no answer from {server.url}.*(closed|reset)"),
    ):
        client.get(f"{ns}/a")


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "mortal") as server:
        yield server


def test_a_server_that_dies_midway_and_comes_back(mortal: Server, ns: str) -> None:
    array = np.arange(16 << 20, dtype=np.uint8)
    with sira_store.connect(mortal.url) as client:
        client.put(f"{ns}/a", array, consistency="strong")
        ticket = sira_store._wire.ticket(f"{ns}/a").ticket
        tensor = native(client).get(ticket)
        mortal.kill()
        with pytest.raises(_native.module.NativeError) as error:  # type: ignore[union-attr]
            tensor.read_into(np.empty_like(array))
        assert error.value.args[0] == "SIRA_UNAVAILABLE"
        with pytest.raises(sira_store.UnavailableError):
            client.get(f"{ns}/a")
        port = mortal.url.rpartition(":")[2]
        mortal.flags = ["--listen", f"127.0.0.1:{port}"]
        mortal.start()
        assert np.array_equal(client.get(f"{ns}/a"), array)


def test_an_old_connection_that_the_server_closed_is_replaced(mortal: Server, ns: str) -> None:
    with sira_store.connect(mortal.url) as client:
        client.put(f"{ns}/a", np.ones(3), consistency="strong")
        port = mortal.url.rpartition(":")[2]
        assert mortal.terminate() == 0
        mortal.flags = ["--listen", f"127.0.0.1:{port}"]
        mortal.start()
        assert client.get(f"{ns}/a").sum() == 3
        client.put(f"{ns}/a", np.ones(4))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_has_connections_of_its_own(sira: sira_store.Client, ns: str) -> None:
    array = np.arange(1 << 20, dtype=np.int64)
    sira.put(f"{ns}/a", array)
    out = np.zeros_like(array)
    assert sira.get(f"{ns}/a", out) is out
    child = os.fork()
    if child == 0:
        try:
            # Only what needs no pyarrow: its library must not be used in a child.
            for _ in range(5):
                ticket = sira_store._wire.ticket(f"{ns}/a").ticket
                native(sira).get(ticket).read_into(out)
            os._exit(0 if np.array_equal(out, array) else 1)
        except BaseException:
            os._exit(2)
    for _ in range(20):
        assert sira.get(f"{ns}/a")[-1] == array[-1]
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
