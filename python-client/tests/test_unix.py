"""The Unix socket: all that the port does, for the processes of one user on one machine."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pyarrow import flight

import sira_store
from server import Server, program

TOKEN = "a-token-of-many-letters"


def on_socket(folder: Path, *flags: str) -> Server:
    """A server that also listens on a socket in `folder`."""
    return Server(folder / "data", flags=["--unix-socket", str(folder / "sira.sock"), *flags])


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Server]:
    with on_socket(tmp_path) as server:
        yield server


def test_every_client_speaks_over_it(local: Server, tmp_path: Path) -> None:
    path = tmp_path / "sira.sock"
    assert local.socket == f"grpc+unix://{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    array = np.arange(3 << 20, dtype=np.float32).reshape(3, 1 << 20)
    for url in (local.socket, f"unix://{path}"):
        with sira_store.connect(url, lookup_deadline=None) as sira:
            sira.put("unix/a", array, axes=["layer", "dim"])
            assert np.array_equal(sira.get("unix/a"), array)
            assert sira.exists("unix/a")
    # Without it, gRPC's C++ names the server by the path, percent-encoded, which h2 takes for malformed.
    named = [("grpc.default_authority", "localhost")]
    with flight.FlightClient(local.socket, generic_options=named) as plain:
        table = plain.do_get(flight.Ticket(b"unix/a")).read_all()
        assert table.num_rows > 0
        assert [info.descriptor.path for info in plain.list_flights()] == [[b"unix/a"]]
    said = subprocess.run(
        [program(), "--url", local.socket, "ls", "--json"], capture_output=True, text=True, check=True
    )
    assert '"unix/a"' in said.stdout
    with sira_store.connect(local.url, lookup_deadline=None) as tcp:
        assert np.array_equal(tcp.get("unix/a"), array), "the port is open as well"


def test_tokens_are_asked_for_as_on_the_port(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    tokens.chmod(0o600)
    with on_socket(tmp_path, "--token-file", str(tokens)) as server:
        nobody = sira_store.connect(server.socket, lookup_deadline=None)
        with nobody, pytest.raises(sira_store.UnauthenticatedError):
            nobody.exists("ns/a")
        with sira_store.connect(server.socket, token=TOKEN, lookup_deadline=None) as sira:
            assert not sira.exists("ns/a")


def test_the_file_goes_with_the_server_and_is_replaced_where_it_was_left(tmp_path: Path) -> None:
    path = tmp_path / "sira.sock"
    server = on_socket(tmp_path).start()
    second = subprocess.run(
        [program(), "serve", "--data", tmp_path / "other", "--listen", "127.0.0.1:0", "--unix-socket", path],
        capture_output=True,
        text=True,
    )
    assert second.returncode == 1
    assert "another server listens there" in second.stderr
    assert str(path) in second.stderr
    server.kill()
    assert path.exists()
    server.restart()
    with sira_store.connect(server.socket, lookup_deadline=None) as sira:
        assert not sira.exists("ns/a")
    assert server.terminate() == 0
    assert not path.exists()


def test_a_connection_that_says_something_else_is_closed(local: Server) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(10)
        raw.connect(local.socket.removeprefix("grpc+unix://"))
        raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert raw.recv(100) == b""


def test_a_socket_is_configured_in_the_environment_too(tmp_path: Path) -> None:
    path = tmp_path / "sira.sock"
    environment = {**os.environ, "SIRA_SERVER__UNIX_SOCKET": str(path)}
    said = subprocess.run([program(), "config", "check"], env=environment, capture_output=True, text=True)
    assert f'unix_socket = "{path}"' in said.stdout
