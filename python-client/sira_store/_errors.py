"""What can go wrong, as exceptions that also are the built-in ones a Python programmer would catch."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from pyarrow import flight


class SiraError(Exception):
    """Any error of a Sira server, or of a request to it. `code` is the stable code, `SIRA_NOT_FOUND` for
    one."""

    def __init__(self, message: str, code: str = "SIRA_INTERNAL") -> None:
        super().__init__(message)
        self.message = message
        self.code = code

    # KeyError shows the repr of its message and OSError its errno; here the message is what there is to say.
    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message, self.code))


class InvalidError(SiraError, ValueError):
    """The request is wrong: key, options, tensor, slice or codec."""


class IncompleteError(SiraError, EOFError):
    """A stream ended before the tensor was whole, or went on after it."""


class NotFoundError(SiraError, KeyError):
    """There is no such key, or it has expired."""


class AlreadyExistsError(SiraError):
    """`if_="absent"` was asked for and the key exists."""


class StaleVersionError(SiraError):
    """A version was asked for and the key has another one."""


class HasPartsError(SiraError):
    """The key has several parts, and one tensor was asked for."""


class UnknownKvSpecError(SiraError, KeyError):
    """No such kv spec is registered."""


class UnknownCalibrationError(SiraError, KeyError):
    """A codec names a calibration artefact that the server does not have."""


class InUseError(SiraError):
    """A calibration artefact that records or policies need is not deleted."""


class ReadOnlyError(SiraError, PermissionError):
    """The namespace is read-only. `errno` is EROFS."""

    def __init__(self, message: str, code: str = "SIRA_READ_ONLY") -> None:
        super().__init__(message, code)
        self.errno = errno.EROFS


class OutOfSpaceError(SiraError, OSError):
    """A tier is full. `errno` is ENOSPC."""

    def __init__(self, message: str, code: str = "SIRA_OUT_OF_SPACE") -> None:
        super().__init__(message, code)
        self.errno = errno.ENOSPC


class UnavailableError(SiraError, ConnectionError):
    """No server answers, or it is busy, draining, or one of its backends failed. Trying again may help."""


class TimedOutError(SiraError, TimeoutError):
    """The call took longer than the client's `timeout`, or than its deadline."""


class CorruptError(SiraError):
    """Stored bytes fail their checksum. The message names tensor, chunk and backend."""


class UnsupportedError(SiraError, NotImplementedError):
    """The server knows what was asked for, but does not offer it."""


class UnauthenticatedError(SiraError, PermissionError):
    """The server asks for a token, and none was given, or not one that it accepts."""


class InternalError(SiraError):
    """A defect of the server: please report it."""


_BY_CODE: dict[str, type[SiraError]] = {
    "SIRA_BAD_KEY": InvalidError,
    "SIRA_BAD_REQUEST": InvalidError,
    "SIRA_BAD_TENSOR": InvalidError,
    "SIRA_UNKNOWN_CODEC": InvalidError,
    "SIRA_INCOMPLETE": IncompleteError,
    "SIRA_NOT_FOUND": NotFoundError,
    "SIRA_EXISTS": AlreadyExistsError,
    "SIRA_STALE": StaleVersionError,
    "SIRA_HAS_PARTS": HasPartsError,
    "SIRA_UNKNOWN_KV_SPEC": UnknownKvSpecError,
    "SIRA_UNKNOWN_CALIBRATION": UnknownCalibrationError,
    "SIRA_IN_USE": InUseError,
    "SIRA_READ_ONLY": ReadOnlyError,
    "SIRA_OUT_OF_SPACE": OutOfSpaceError,
    "SIRA_BUSY": UnavailableError,
    "SIRA_SHUTTING_DOWN": UnavailableError,
    "SIRA_BACKEND": UnavailableError,
    "SIRA_UNAVAILABLE": UnavailableError,
    "SIRA_TIMED_OUT": TimedOutError,
    "SIRA_CORRUPT": CorruptError,
    "SIRA_UNSUPPORTED": UnsupportedError,
    "SIRA_INTERNAL": InternalError,
    "SIRA_UNAUTHENTICATED": UnauthenticatedError,
}

_CODE = re.compile(r"\b(SIRA_[A-Z0-9_]+):\s*(.*)", re.DOTALL)
# What Arrow's C++ adds behind the server's words.
_TAIL = re.compile(r"\.? *(Client context: |gRPC client debug context: |Detail: )")


def by_code(code: str, message: str) -> SiraError:
    """The exception for a stable code; `SiraError` itself for a code this version does not know."""
    return _BY_CODE.get(code, SiraError)(message, code)


def by_text(text: str) -> SiraError:
    """The exception for what the server says of one key: a stable code, a colon, the reason."""
    return by_code(text.partition(":")[0], text)


def has_code(error: BaseException) -> bool:
    """Whether the error carries the server's own words."""
    return _CODE.search(str(error)) is not None


def translate(error: BaseException, url: str) -> SiraError:
    """What pyarrow raised, as one of ours. The code is looked for anywhere in the text, since pyarrow folds
    several gRPC statuses into one exception and wraps the message."""
    text = str(error)
    if found := _CODE.search(text):
        code, message = found.groups()
        return by_code(code, f"{code}: {_TAIL.split(message)[0].strip()}")
    text = _TAIL.split(text)[0]
    # Without a code it is not Sira that speaks: there is no server, it went away, or something else listens
    # there.
    if isinstance(error, flight.FlightTimedOutError):
        return by_code("SIRA_TIMED_OUT", f"{url}: {text}")
    if isinstance(error, (flight.FlightUnavailableError, flight.FlightCancelledError, OSError)):
        return by_code("SIRA_UNAVAILABLE", f"no answer from {url}: {text}")
    return SiraError(f"{url}: {text}")


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Raises what pyarrow raises inside as one of ours."""
    try:
        yield
    except (SiraError, MemoryError):
        raise
    except (pa.ArrowException, OSError) as error:
        raise translate(error, url) from error
