"""The extension, where it is installed: gets and puts straight between socket and memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ._arrays import Incoming
from ._dtypes import Bytes, nbytes
from ._errors import InvalidError, by_code

if TYPE_CHECKING:
    import sira_native

try:
    import sira_native as module
except ImportError:
    module = None

# What it connects to; everything else is pyarrow's.
_SCHEMES = ("grpc", "grpc+tcp", "http", "grpc+tls", "grpcs", "https")


def client(
    url: str, token: str | None, ca: bytes | None, cert: bytes | None, key: bytes | None
) -> sira_native.Client | None:
    """A client of the same server, with the same credentials; None where it cannot be one."""
    if module is None or url.partition("://")[0] not in _SCHEMES:
        return None
    with translated(url):
        return module.Client(url, token, ca, cert, key)


def needed(client: sira_native.Client | None, what: str) -> sira_native.Client:
    """The extension's client, for what only it can do."""
    if client is None:
        raise InvalidError(
            f"SIRA_BAD_REQUEST: {what} needs the extension sira-native, and a server at grpc://host:port",
            "SIRA_BAD_REQUEST",
        )
    return client


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Raises what the extension raises inside as one of ours."""
    if module is None:
        yield
        return
    try:
        yield
    except module.NativeError as error:
        code, message = error.args
        if code == "SIRA_UNAVAILABLE":
            message = f"no answer from {url}: {message}"
        elif not message.startswith(code):
            message = f"{url}: {message}"
        raise by_code(code, message) from error


def stages() -> list[str]:
    """Stages of codecs that the extension decodes."""
    return [] if module is None else module.stages


class Body:
    """The bytes of a message that have not been read yet. They can be read once, in their order."""

    def __init__(self, many: sira_native.Many, size: int) -> None:
        self.size = size
        self._many = many

    def read_into(self, offset: int, into: Bytes) -> None:
        """Fills `into` with those from `offset` on."""
        self._many.read_into(offset, into)


def receive(
    client: sira_native.Client,
    ticket: bytes,
    timeout: float | None,
    place: Callable[[str, tuple[int, ...]], Incoming],
) -> Any:
    """Gets a tensor to where `place` says, when it knows what it is."""
    tensor = client.get(ticket, timeout)
    try:
        target = place(tensor.dtype, tuple(tensor.shape))
        buffer = target.buffer
        if buffer is None:
            buffer = np.empty(nbytes(tensor.dtype, tuple(tensor.shape)), np.uint8)
        tensor.read_into(buffer)
    finally:
        tensor.close()  # or the server would go on sending what nobody reads
    return target.finish(buffer)


def texts(metadata: dict[bytes, bytes]) -> dict[str, str]:
    """A schema's metadata."""
    return {name.decode(): value.decode() for name, value in metadata.items()}


def messages(
    client: sira_native.Client, ticket: bytes, timeout: float | None
) -> Generator[tuple[bytes, Body], None, None]:
    """The messages of a get of many keys: what each says of its bytes, and where to read them."""
    many = client.get_many(ticket, timeout)
    try:
        while (message := many.next()) is not None:
            metadata, size = message
            yield metadata, Body(many, size)
    finally:
        many.close()  # or the server would go on sending what nobody reads
