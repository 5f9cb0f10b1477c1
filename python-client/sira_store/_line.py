"""A connection over which a server of the same machine passes memory: docs/wire.md, "The same host".

Requests are answered one after another. What is released is said when nobody else is talking: whoever lets
the last array go may be any thread, in the middle of anything, this module included.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import socket
import struct
import sys
import threading
import weakref
from collections import deque
from typing import Any, NamedTuple

from ._errors import InternalError, SiraError, UnavailableError, by_text

_PREFACE = b"SIRA-SAME-HOST/1\r\n\r\n\r\n\r\n"
_HEAD = struct.Struct(">cI")

# Longer ones are not sent.
_MAX_ANSWER = 16 << 20

# F_SEAL_SHRINK and F_SEAL_WRITE of Linux, which Python's fcntl names only there.
_CANNOT_SHRINK = 0x2
_CANNOT_CHANGE = 0x8

# The array and the server have the memory; this process needs no descriptor beside the mapping.
_MAPPING: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


class Mapping(mmap.mmap):
    """Memory that was passed."""


class Answer(NamedTuple):
    """What a server says, with what came beside it."""

    said: dict[str, Any]
    inline: bytes
    descriptor: int | None

    def close(self) -> None:
        """Closes the descriptor."""
        if self.descriptor is not None:
            os.close(self.descriptor)


class Line:
    """A connection to the server at a Unix socket. May be shared by threads, not by processes: a fork of this
    one has the arrays it mapped before, and needs a connection of its own for others."""

    def __init__(self, path: str, token: str | None, timeout: float | None) -> None:
        self.pid = os.getpid()
        self.broken = False
        self._path = path
        self._lock = threading.Lock()
        self._released: deque[int] = deque()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Closed with the last array that is mapped over it.
        weakref.finalize(self, self._socket.close)
        try:
            self._socket.settimeout(10 if timeout is None else timeout)
            self._socket.connect(path)
            self._socket.sendall(_PREFACE)
            hello = {"v": 1} if token is None else {"v": 1, "token": token}
            self.inline: int = self.ask(b"H", hello).said["inline"]
            self._socket.settimeout(timeout)
        except OSError as error:
            self._socket.close()
            raise self._lost(error) from error

    def ask(self, kind: bytes, body: dict[str, Any]) -> Answer:
        """Sends a request and waits for its answer, after those of other threads."""
        with self._lock:
            answer = self._ask(kind, body)
        self._flush()
        return answer

    def ask_now(self, kind: bytes, body: dict[str, Any]) -> Answer | None:
        """The same, but None where another thread is waiting for an answer."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            answer = self._ask(kind, body)
        finally:
            self._lock.release()
        self._flush()
        return answer

    def release(self, number: int) -> None:
        """Says that memory is not used any more, now or as soon as the connection is free."""
        if os.getpid() == self.pid:  # in a fork the parent may use it still
            self._released.append(number)
            self._flush()

    def _flush(self) -> None:
        while self._released and self._lock.acquire(blocking=False):
            try:
                while self._released:
                    self._send(b"R", {"v": 1, "id": self._released.popleft()})
            except BaseException as error:
                self.broken = True  # with it, everything is released
                self._released.clear()
                if not isinstance(error, OSError):
                    raise
            finally:
                self._lock.release()

    def _ask(self, kind: bytes, body: dict[str, Any]) -> Answer:
        try:
            self._send(kind, body)
            answer = self._receive()
        except OSError as error:
            raise self._lost(error) from error
        except BaseException:
            self.broken = True  # an answer may still be on its way
            raise
        if isinstance(answer, SiraError):
            raise answer
        return answer

    def _lost(self, error: OSError) -> UnavailableError:
        self.broken = True
        return UnavailableError(
            f"SIRA_UNAVAILABLE: no answer from the Unix socket {self._path}: {error}", "SIRA_UNAVAILABLE"
        )

    def _send(self, kind: bytes, body: dict[str, Any]) -> None:
        text = json.dumps(body, separators=(",", ":")).encode()
        self._socket.sendall(_HEAD.pack(kind, len(text)) + text)

    def _receive(self) -> Answer | SiraError:
        cloexec = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        first, descriptors, _, _ = socket.recv_fds(self._socket, 128 << 10, 1, cloexec)
        try:
            data = bytearray(first)
            self._fill(data, _HEAD.size)
            kind, length = _HEAD.unpack_from(data)
            if kind not in (b"A", b"E") or length > _MAX_ANSWER:
                raise ConnectionError("what answers there is no Sira server that passes memory")
            end = _HEAD.size + length
            self._fill(data, end)
            text = bytes(data[_HEAD.size : end])
            if kind == b"E":
                return by_text(text.decode(errors="replace"))
            try:
                said: dict[str, Any] = json.loads(text)
            except ValueError as error:
                raise ConnectionError(f"the answer is no JSON: {error}") from error
            size = said["nbytes"] if said.get("inline") is True else 0
            self._fill(data, end + size)
            answer = Answer(said, bytes(data[end : end + size]), descriptors.pop() if descriptors else None)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return answer

    def _fill(self, data: bytearray, size: int) -> None:
        while len(data) < size:
            more = self._socket.recv(max(size - len(data), 4096))
            if not more:
                raise ConnectionError("the server closed the connection")
            data += more


def mapped(
    answer: Answer, line: Line, size: int, writable: bool
) -> tuple[Mapping, weakref.finalize[..., Any]]:
    """Maps what was passed, and closes its descriptor; the memory is released with the mapping."""
    number = answer.said["id"]
    try:
        if answer.descriptor is None:
            raise OSError("no memory was passed")
        seals = fcntl.fcntl(answer.descriptor, fcntl.F_GET_SEALS)
        needed = _CANNOT_SHRINK if writable else _CANNOT_SHRINK | _CANNOT_CHANGE
        if seals & needed != needed or os.fstat(answer.descriptor).st_size < size:
            # Whoever reads beyond the end of mapped memory is killed.
            raise InternalError("SIRA_INTERNAL: the memory that was passed may change", "SIRA_INTERNAL")
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        mapping = Mapping(answer.descriptor, size, mmap.MAP_SHARED, protection, **_MAPPING)
    except BaseException:
        line.release(number)
        raise
    finally:
        answer.close()
    release = weakref.finalize(mapping, line.release, number)
    release.atexit = False  # the end of the process releases everything
    return mapping, release


class Lines:
    """The connection of one client, made when it is first needed and again when it broke."""

    def __init__(self, path: str, token: str | None, timeout: float | None) -> None:
        self._made = (path, token, timeout)
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._line: Line | None = None

    def get(self) -> Line:
        """The connection, which the server may have closed since."""
        line = self._line
        if line is not None and not line.broken and line.pid == os.getpid():
            return line
        if self._pid != os.getpid():
            # Another thread of the parent may have held it when this process was forked.
            self._lock, self._pid = threading.Lock(), os.getpid()
        with self._lock:
            line = self._line
            if line is None or line.broken or line.pid != os.getpid():
                line = self._line = Line(*self._made)
            return line

    def ask(self, kind: bytes, body: dict[str, Any]) -> tuple[Line, Answer]:
        """Asks what may be asked twice: over a new connection, where the old one turns out closed."""
        known = self._line
        line = self.get()
        try:
            return line, line.ask(kind, body)
        except UnavailableError:
            if line is not known or not line.broken:
                raise
        line = self.get()
        return line, line.ask(kind, body)

    def close(self) -> None:
        """Lets it go: it ends with the last array that is mapped over it."""
        self._line = None
