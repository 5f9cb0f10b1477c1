"""Redis as a cache: in memory, no snapshots, everything else as it comes."""

from __future__ import annotations

import shutil
import socket
import time

from compare.peers.base import Bytes, Client, Process, Served, Through, UnavailableError
from compare.peers.rust import RustClient


class RedisClient(Client):
    """redis-py with hiredis, which its documentation recommends."""

    def __init__(self, port: int, key: str) -> None:
        import redis

        self._redis = redis.Redis(host="127.0.0.1", port=port)
        self._key = key

    def select(self, key: str) -> None:
        self._key = key

    def put(self, data: Bytes) -> None:
        self._redis.set(self._key, data.tobytes())

    def get_fresh(self, size: int) -> bytes:
        got = self._redis.get(self._key)
        if not isinstance(got, bytes) or len(got) != size:
            raise ValueError("GET: another value than was set")
        return got

    def close(self) -> None:
        self._redis.close()


class Redis(Served):
    name = "redis"
    about = "Redis in memory, its client redis-py with hiredis"

    def start(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise UnavailableError("no redis-server: Debian's package of that name has it")
        try:
            import redis  # noqa: F401
        except ImportError as error:
            raise UnavailableError(f"no redis-py: {error}") from error
        self.port = free_port()
        in_memory = ["--save", "", "--appendonly", "no", "--dir", "{folder}"]
        self._server = Process([program, "--bind", "127.0.0.1", "--port", str(self.port), *in_memory])
        wait_for(self.port, self._server)

    def connect(self, worker: int) -> Client:
        return RedisClient(self.port, f"bench/{worker}")


class RedisRust(Through):
    """The same server and a client without anything in the way, to set beside the clients in Rust."""

    name = "redis-rust"
    about = "Redis, its client a few lines of Rust"

    def start(self) -> None:
        assert isinstance(self.server, Redis)
        self.port = self.server.port

    def connect(self, worker: int) -> Client:
        return RustClient("redis", f"127.0.0.1:{self.port}", f"bench/rust-{worker}")


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int, server: Process, seconds: float = 20) -> None:
    """Waits until `server` listens on `port`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.ended():
            raise UnavailableError(server.why())
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise UnavailableError(f"nobody listens on port {port} after {seconds} seconds")
