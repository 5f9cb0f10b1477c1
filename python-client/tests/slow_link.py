"""A connection that carries no more than so many bytes a second, on a machine whose own are fast."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType

# Bytes passed on at a time: a small part of what passes in the time that is waited for.
_PIECE = 64 << 10


class SlowLink:
    """Passes connections on to the server at `url`, `rate` bytes a second in each direction of each."""

    def __init__(self, url: str, rate: float) -> None:
        host, _, port = url.partition("://")[2].rpartition(":")
        self._target = (host, int(port))
        self._rate = rate
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.url = f"grpc://127.0.0.1:{self._socket.getsockname()[1]}"
        self.received = 0
        """Bytes that came from the server."""
        self.sent = 0
        """Bytes that went to it."""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._socket.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            # What waits in the kernel is not held back: little of it.
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open += [near, far]
            threading.Thread(target=self._pass, args=(near, far, "sent"), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, "received"), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counter: str) -> None:
        free_at = time.monotonic()
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                setattr(self, counter, getattr(self, counter) + len(piece))
                now = time.monotonic()
                free_at = max(free_at, now) + len(piece) / self._rate
                time.sleep(free_at - now)
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)

    def __enter__(self) -> SlowLink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for end in self._open:
            end.close()
