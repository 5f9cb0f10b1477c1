"""Attacks beside a well-behaved client: all its calls succeed, and the server's memory stays where it was.

Short by default; for the full figures: SIRA_ABUSE=10000 (half-open handshakes), SIRA_ABUSE_SECONDS=20. How
much slower the client's calls get is printed, not asserted: attackers and server share the processors here.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from test_limits import Watch, resident

import sira_store
from abuse import ATTACKS
from certificates import Authority, authority
from server import Server

HALF_OPEN = int(os.environ.get("SIRA_ABUSE", "500"))
SECONDS = float(os.environ.get("SIRA_ABUSE_SECONDS", "4"))
TOKEN = "a-token-that-nobody-guesses"
GROWTH = 200 << 20
SIZES = {
    "half_open": HALF_OPEN,
    "silent": 200,
    "resets": 4,
    "paced_resets": 4,
    "pings": 2,
    "headers": 2,
    "slow": 4,
    "stalled": 5,
    "begun": 33,
}


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory, ca: Authority) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("attacked")
    tokens = folder / "tokens"
    tokens.touch(mode=0o600)
    tokens.write_text(f"{TOKEN}\n")
    cert, key = ca.sign("server")
    flags = ["--tls-cert", str(cert), "--tls-key", str(key), "--token-file", str(tokens)]
    with Server(folder / "data", config='[memory]\nlimit = "512 MiB"\n', flags=flags) as server:
        with sira_store.connect(server.url, token=TOKEN, ca=ca.cert) as client:
            client.put("abuse/large", np.zeros(32 << 20, np.uint8))
            client.put("abuse/good", GOOD)
            client.get("abuse/large")
        yield server
        assert server.terminate() == 0


GOOD = np.arange(1 << 14, dtype=np.float32)  # 64 KiB


class Behaved:
    """A client that does nothing special, and how long each of its calls takes. It is connected already when
    an attack begins; how long another one takes to connect and make a call is measured beside it."""

    def __init__(self, server: Server, ca: Authority) -> None:
        self.server, self.ca = server, ca
        self.client = self.connect()

    def run(self, seconds: float) -> dict[str, float]:
        """Milliseconds of the calls of so many seconds."""
        kept: list[float] = []
        fresh: list[float] = []
        end = time.monotonic() + seconds

        def come_anew() -> None:
            while (begin := time.monotonic()) < end:
                with self.connect() as new:
                    assert new.exists("abuse/good")
                fresh.append(time.monotonic() - begin)
                time.sleep(0.1)

        thread = threading.Thread(target=come_anew)
        thread.start()
        while (begin := time.monotonic()) < end:
            assert (self.client.get("abuse/good") == GOOD).all()
            kept.append(time.monotonic() - begin)
            if len(kept) % 50 == 0:
                self.client.put("abuse/good", GOOD)
        thread.join()
        assert fresh
        at = [("p50", kept, 50), ("p99", kept, 99), ("new p50", fresh, 50), ("new max", fresh, 100)]
        return {name: round(1000 * float(np.percentile(times, q)), 2) for name, times, q in at}

    def connect(self) -> sira_store.Client:
        # Newcomers wait long while others shake hands: longer than a lookup waits by default.
        return sira_store.connect(
            self.server.url, token=TOKEN, ca=self.ca.cert, timeout=60, lookup_deadline=60
        )


@pytest.mark.parametrize("token", ["", TOKEN], ids=["stranger", "insider"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_hurts_nobody_else(attacked: Server, ca: Authority, attack: str, token: str) -> None:
    if (attack in ("slow", "stalled", "begun") and not token) or (
        attack in ("half_open", "silent") and token
    ):
        pytest.skip("a token makes no difference, or all of it")
    behaved = Behaved(attacked, ca)
    behaved.run(0.5)
    quiet = behaved.run(SECONDS / 2)
    before = resident(attacked.pid)
    command = [sys.executable, str(Path(__file__).with_name("abuse.py")), attack, attacked.url, str(ca.cert)]
    command += [token, str(SIZES[attack]), str(SECONDS + 1)]
    with Watch(attacked) as watch, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        time.sleep(1)
        under = behaved.run(SECONDS)
        said, _ = process.communicate(timeout=60)
    behaved.client.close()
    done = json.loads(said)
    growth = watch.most - before
    print(f"\n{attack}: quiet {quiet}, under attack {under}, memory +{growth >> 20} MiB\n  {done}")
    assert growth < GROWTH
    check(attack, done)


def check(attack: str, done: dict[str, int]) -> None:
    """That it was an attack, and that the server did about it what it should."""
    assert done["connections"] >= SIZES[attack]
    match attack:
        case "half_open":
            assert done["most at once"] >= min(SIZES[attack], 1000)
        case "silent":
            assert done["most at once"] == SIZES[attack]
        case "resets":
            assert done["resets"] > 1000
            assert done["closed by the server"] > 4
        case "paced_resets" | "pings":
            assert done[attack.removeprefix("paced_")] > 100
        case "headers":
            assert done["bytes"] > 1 << 20
        case "stalled":
            assert done["calls"] > 60
        case "begun":
            assert done["calls"] == 64 * SIZES[attack]
        case "slow":
            assert done["gets"] == 60 * SIZES[attack]


def test_when_all_seats_are_taken_idle_connections_make_room(tmp_path: Path) -> None:
    """Twelve clients where eight connections may be: each works, and works again after it had to leave."""
    with Server(tmp_path / "data", config="[server]\nmax_connections = 8\n") as server:
        before = sockets(server)
        clients = [sira_store.connect(server.url) for _ in range(12)]
        healthy: list[int] = []

        def ask(number: int) -> None:
            # A call that is on its way when its idle connection is closed is to be tried again.
            for last in (False, False, True):
                try:
                    if clients[number].health()["status"] == "healthy":
                        healthy.append(number)
                    return
                except sira_store.UnavailableError:
                    if last:
                        raise

        for _ in range(2):
            threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(healthy) == list(range(12))
            healthy.clear()
            # A client that had to leave may be on its way back, and is closed again after a few seconds.
            end = time.monotonic() + 20
            while sockets(server) > before + 8:
                assert time.monotonic() < end
                time.sleep(0.1)
        for client in clients:
            client.close()
        assert server.terminate() == 0


def sockets(server: Server) -> int:
    """How many sockets the server has open."""
    links = (os.readlink(link) for link in Path(f"/proc/{server.pid}/fd").iterdir())
    return sum(link.startswith("socket:") for link in links)


def test_what_is_not_http2_is_closed_at_once(server: Server) -> None:
    host, port = server.url.removeprefix("grpc://").split(":")
    # The second never sends the rest, and is closed after 5 seconds.
    for first in (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"PRI * HTTP/2.0\r\n"):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(first)
            with suppress(ConnectionResetError):
                assert connection.recv(100) == b""
