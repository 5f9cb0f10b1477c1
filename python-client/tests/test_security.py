"""Beyond loopback: TLS, mTLS and tokens, as plain pyarrow, this package and the program meet them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import flight

import sira_store
from certificates import Authority, authority
from server import Server, program

TOKEN = "a-token-that-nobody-guesses"
OTHER = "another-token-that-nobody-guesses"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.touch(mode=0o600)
    path.write_text(f"# for tests\n\n{TOKEN}\n")
    return path


def tls_flags(ca: Authority, *more: object) -> list[str]:
    cert, key = ca.sign("server")
    return ["--tls-cert", str(cert), "--tls-key", str(key), *map(str, more)]


@pytest.fixture
def guarded(tmp_path: Path, ca: Authority, tokens: Path) -> Iterator[Server]:
    """A server with TLS that asks for a token."""
    with Server(tmp_path / "data", flags=tls_flags(ca, "--token-file", tokens)) as server:
        yield server
        assert server.terminate() == 0


def plain(server: Server, ca: Authority | None) -> flight.FlightClient:
    return flight.FlightClient(server.url, tls_root_certs=ca.cert.read_bytes() if ca else None)


def bearer(token: str) -> flight.FlightCallOptions:
    return flight.FlightCallOptions(timeout=20, headers=[(b"authorization", f"Bearer {token}".encode())])


def put(client: flight.FlightClient, options: flight.FlightCallOptions) -> None:
    batch = pa.record_batch([pa.array([1, 2, 3], pa.int32())], names=["tensor"])
    writer, answer = client.do_put(flight.FlightDescriptor.for_path("t/k"), batch.schema, options)
    try:
        writer.write_batch(batch)
        writer.done_writing()
        answer.read()
    finally:
        writer.close()


KEY = flight.FlightDescriptor.for_path("t/k")
CALLS: dict[str, Callable[[flight.FlightClient, flight.FlightCallOptions], object]] = {
    "do_put": put,
    "do_get": lambda client, options: client.do_get(flight.Ticket(b"t/k"), options).read_all(),
    "list_flights": lambda client, options: list(client.list_flights(b"", options)),
    "get_flight_info": lambda client, options: client.get_flight_info(KEY, options),
    "get_schema": lambda client, options: client.get_schema(KEY, options),
    "do_action": lambda client, options: list(client.do_action(flight.Action("stats", b""), options)),
    "list_actions": lambda client, options: client.list_actions(options),
    "do_exchange": lambda client, options: client.do_exchange(KEY, options)[1].read_chunk(),
    "handshake": lambda client, options: client.authenticate_basic_token("me", "wrong", options),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_call_needs_a_token(guarded: Server, ca: Authority, name: str) -> None:
    with plain(guarded, ca) as client:
        put(client, bearer(TOKEN))
        refused = [flight.FlightCallOptions(timeout=20)]
        if name != "handshake":
            refused += [bearer(""), bearer(TOKEN[:-1]), bearer(f"{TOKEN}x"), bearer("# for tests")]
        for options in refused:
            # pyarrow's get_schema raises every error of Flight as an OSError.
            kind = OSError if name == "get_schema" else flight.FlightUnauthenticatedError
            with pytest.raises(kind, match="SIRA_UNAUTHENTICATED"):
                CALLS[name](client, options)
        if name == "do_exchange":
            with pytest.raises(pa.ArrowNotImplementedError, match="SIRA_UNSUPPORTED"):
                CALLS[name](client, bearer(TOKEN))
        elif name != "handshake":
            CALLS[name](client, bearer(TOKEN))


def test_name_and_token_give_the_header_that_other_calls_need(guarded: Server, ca: Authority) -> None:
    with plain(guarded, ca) as client:
        pair = client.authenticate_basic_token("anybody", TOKEN)
        assert pair == (b"authorization", f"Bearer {TOKEN}".encode())
        put(client, flight.FlightCallOptions(headers=[pair]))
        for name, password in [("anybody", "wrong"), (TOKEN, ""), ("", "")]:
            with pytest.raises(flight.FlightUnauthenticatedError, match="SIRA_UNAUTHENTICATED"):
                client.authenticate_basic_token(name, password)
        basic = flight.FlightCallOptions(headers=[(b"authorization", b"Basic eDph")])
        with pytest.raises(flight.FlightUnauthenticatedError, match="for the handshake alone"):
            put(client, basic)


def test_a_server_without_tokens_says_so(server: Server) -> None:
    with plain(server, None) as client, pytest.raises(pa.ArrowNotImplementedError, match="asks for no token"):
        client.authenticate_basic_token("me", TOKEN)


def test_the_package_takes_token_and_authority(
    guarded: Server, ca: Authority, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.arange(1 << 20, dtype=np.float32)
    assert guarded.url.startswith("grpc+tls://127.0.0.1:")
    with sira_store.connect(guarded.url, token=TOKEN, ca=ca.cert) as client:
        client.put("t/large", array)
        np.testing.assert_array_equal(client.get("t/large"), array)
        np.testing.assert_array_equal(client.open("t/large")[5:9], array[5:9])
        assert client.health()["status"] == "healthy"
    pem = ca.cert.read_bytes()
    with sira_store.connect(guarded.url.replace("grpc+tls", "grpcs"), token=TOKEN, ca=pem) as client:
        assert client.exists("t/large")
    for token in (None, "wrong"):
        with (
            sira_store.connect(guarded.url, token=token, ca=ca.cert) as client,
            pytest.raises(sira_store.UnauthenticatedError, match="SIRA_UNAUTHENTICATED") as caught,
        ):
            client.put("t/large", array)
        assert isinstance(caught.value, PermissionError)
    monkeypatch.setenv("SIRA_CA", str(ca.cert))
    monkeypatch.setenv("SIRA_TOKEN_FILE", str(tokens))
    with sira_store.connect(guarded.url) as client:
        assert client.exists("t/large")
    monkeypatch.setenv("SIRA_TOKEN", "wrong")
    with sira_store.connect(guarded.url) as client, pytest.raises(sira_store.UnauthenticatedError):
        client.stats()
    for wrong in ({"token": "two\nlines"}, {"cert": pem}, {"ca": "/nowhere/ca.pem"}):
        with pytest.raises(sira_store.InvalidError):
            sira_store.connect(guarded.url, **wrong)


def test_only_the_right_authority_is_trusted(guarded: Server, ca: Authority, tmp_path: Path) -> None:
    stranger = authority(tmp_path, "stranger")
    for trusted in (stranger, None):
        with plain(guarded, trusted) as client, pytest.raises(flight.FlightUnavailableError):
            client.list_actions(bearer(TOKEN))
    with (
        flight.FlightClient(guarded.url.replace("+tls", "")) as client,
        pytest.raises((flight.FlightUnavailableError, flight.FlightTimedOutError)),
    ):
        client.list_actions(bearer(TOKEN))
    with plain(guarded, ca) as client:
        client.list_actions(bearer(TOKEN))


def test_mutual_tls_refuses_clients_without_a_certificate(tmp_path: Path, ca: Authority) -> None:
    mine, stranger = ca.sign("client"), authority(tmp_path, "stranger").sign("client")
    with Server(tmp_path / "data", flags=tls_flags(ca, "--tls-client-ca", ca.cert)) as server:
        cert, key = mine
        with sira_store.connect(server.url, ca=ca.cert, cert=cert, key=key) as client:
            client.put("t/k", np.arange(4))
        for credentials in (None, stranger):
            cert, key = credentials or (None, None)
            with (
                sira_store.connect(server.url, ca=ca.cert, cert=cert, key=key, timeout=20) as client,
                pytest.raises(sira_store.UnavailableError),
            ):
                client.stats()
        assert cli(server, "ls", "--ca", ca.cert, "--cert", mine[0], "--key", mine[1])[0] == 0
        assert cli(server, "ls", "--ca", ca.cert)[0] == 1
        assert cli(server, "ls", "--ca", ca.cert, "--cert", stranger[0], "--key", stranger[1])[0] == 1
        assert server.terminate() == 0


def eventually(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


def accepted(server: Server, ca: Authority, token: str) -> bool:
    with plain(server, ca) as client:
        try:
            client.list_actions(bearer(token))
        except flight.FlightError:
            return False
        return True


def test_tokens_rotate_without_a_restart(guarded: Server, ca: Authority, tokens: Path) -> None:
    assert accepted(guarded, ca, TOKEN)
    assert not accepted(guarded, ca, OTHER)
    tokens.write_text(f"{TOKEN}\n{OTHER}\n")
    eventually(lambda: accepted(guarded, ca, OTHER))
    assert accepted(guarded, ca, TOKEN)
    tokens.with_name("next").write_text(f"{OTHER}\n")
    tokens.with_name("next").rename(tokens)
    eventually(lambda: not accepted(guarded, ca, TOKEN))
    assert accepted(guarded, ca, OTHER)
    tokens.write_text("short\n")  # a mistake locks nobody out, and is in the log
    eventually(
        lambda: accepted(guarded, ca, OTHER) and "line 1: a token has at least" in guarded.log.read_text()
    )
    assert not accepted(guarded, ca, "short")
    tokens.write_text("# nobody any more\n")
    eventually(lambda: not accepted(guarded, ca, OTHER))


def test_certificates_rotate_without_a_restart(tmp_path: Path, ca: Authority, tokens: Path) -> None:
    own = authority(tmp_path, "own")
    cert, key = own.sign("server")
    flags = ["--tls-cert", str(cert), "--tls-key", str(key), "--token-file", str(tokens)]
    with Server(tmp_path / "data", flags=flags) as server:
        with plain(server, own) as client:
            client.list_actions(bearer(TOKEN))
            for new, old in zip(ca.sign("next"), (cert, key), strict=True):
                shutil.copy(new, old)
            eventually(lambda: accepted(server, ca, TOKEN))
            client.list_actions(bearer(TOKEN))  # a connection goes on as it began
        assert not accepted(server, own, TOKEN)
        cert.write_text("no certificate")
        eventually(lambda: accepted(server, ca, TOKEN) and "no certificate in PEM" in server.log.read_text())


def run(*arguments: object, **environment: str) -> tuple[int, str, str]:
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("SIRA_") or k == "SIRA_LOG"},
        **environment,
    }
    done = subprocess.run(
        [str(program()), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def cli(server: Server, *arguments: object, **environment: str) -> tuple[int, str, str]:
    return run(*arguments, SIRA_URL=server.url, **environment)


def test_the_program_takes_token_and_authority(
    guarded: Server, ca: Authority, tokens: Path, tmp_path: Path
) -> None:
    array = np.arange(12, dtype=np.int16).reshape(3, 4)
    np.save(tmp_path / "a.npy", array)
    trust = ("--ca", ca.cert, "--token-file", tokens)
    assert cli(guarded, "put", tmp_path / "a.npy", "t/a", *trust)[0] == 0
    variables = {"SIRA_CA": str(ca.cert), "SIRA_TOKEN_FILE": str(tokens)}
    assert cli(guarded, "get", "t/a", tmp_path / "b.npy", **variables)[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), array)
    for name in ("ls", "stats"):
        assert cli(guarded, name, SIRA_CA=str(ca.cert), SIRA_TOKEN=TOKEN)[0] == 0
    assert cli(guarded, "info", "t/a", *trust)[0] == cli(guarded, "rm", "t/a", *trust)[0] == 0

    code, _, stderr = cli(guarded, "ls", "--ca", ca.cert)
    assert code == 1
    assert stderr.startswith("sira: SIRA_UNAUTHENTICATED: ")
    code, _, stderr = cli(guarded, "ls", "--token-file", tokens)
    assert code == 1
    assert stderr.startswith(f"sira: no connection to {guarded.url}: ")
    assert "certificate" in stderr
    code, _, stderr = cli(guarded, "ls", "--ca", tokens, "--token-file", tokens)
    assert code == 2
    assert "no certificate in PEM" in stderr


def test_beyond_loopback_a_server_is_safe_or_says_that_it_is_not(tmp_path: Path, ca: Authority) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch(mode=0o600)
    tokens.write_text(f"{TOKEN}\n")
    tls, anywhere = tls_flags(ca), ["--listen", "0.0.0.0:0"]
    for flags, part in [
        (anywhere, "without TLS, everybody on the way"),
        ([*anywhere, "--token-file", str(tokens)], "without TLS, everybody on the way"),
        ([*anywhere, *tls], "without a token file or a client_ca, everybody"),
    ]:
        code, stdout, stderr = run("serve", "--data", tmp_path / "data", *flags)
        assert (code, stdout) == (1, "")
        assert stderr.startswith("--listen: 0.0.0.0:0 is not a loopback address: " + part)
        assert "--insecure" in stderr
        with Server(tmp_path / "data", flags=[*flags, "--insecure"]) as server:
            banner = server.log.read_text()[-2000:]
            assert "** WARNING: INSECURE. This server listens on 0.0.0.0:0, beyond loopback:" in banner
            assert part in banner
            assert server.terminate() == 0
        server.log.unlink()
    safe = [*anywhere, *tls, "--token-file", str(tokens)]
    with Server(tmp_path / "data", flags=safe) as server:
        assert "INSECURE" not in server.log.read_text()
        server.url = server.url.replace("0.0.0.0", "127.0.0.1")
        assert accepted(server, ca, TOKEN)


def test_files_that_are_wrong_are_named_at_the_start(tmp_path: Path, ca: Authority) -> None:
    cert, key = ca.sign("server")
    _, other_key = ca.sign("other")
    open_tokens = tmp_path / "tokens"
    open_tokens.write_text(f"{TOKEN}\n")
    open_tokens.chmod(0o644)
    for flags, part in [
        (["--tls-cert", "/nowhere.pem", "--tls-key", key], "/nowhere.pem: No such file"),
        (["--tls-cert", key, "--tls-key", key], f"{key}: holds no certificate in PEM"),
        (["--tls-cert", cert, "--tls-key", cert], f"{cert}: no private key in PEM"),
        (["--tls-cert", cert, "--tls-key", other_key], f"{cert} and {other_key} do not go together"),
        (["--tls-cert", cert], "--tls-cert: `server.tls` needs both `cert` and `key`"),
        (["--tls-cert", cert, "--tls-key", key, "--tls-client-ca", key], f"{key}: holds no certificate"),
        (["--token-file", key.with_name("none")], "none: No such file"),
        (["--cert", cert], "--cert is for client commands"),
    ]:
        code, _, stderr = run("serve", "--listen", "127.0.0.1:0", "--data", tmp_path / "data", *flags)
        assert code != 0
        assert part in stderr
    with Server(tmp_path / "data", flags=["--token-file", str(open_tokens)]) as server:
        assert "others than its owner may read it" in server.log.read_text()
        # On loopback, tokens work without TLS.
        with sira_store.connect(server.url, token=TOKEN) as client:
            assert client.health()["status"] == "healthy"
