"""How a connection comes about: URL, certificates, and the token that goes with every call."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import pyarrow as pa
from pyarrow import flight

from . import _native
from ._errors import InvalidError

if TYPE_CHECKING:
    import sira_native

Pem: TypeAlias = "str | os.PathLike[str] | bytes"
"""The path of a PEM file, or what is in it."""

# What pyarrow knows of the schemes that mean TLS, and what people write.
_TLS = ("grpc+tls", "grpcs", "https")

# The same of Unix sockets.
_UNIX = ("grpc+unix", "unix")

# gRPC calls a server by its socket's path, with signs of percent, which HTTP/2 servers written in Rust
# refuse.
_LOCALHOST = ("grpc.default_authority", "localhost")


# How long gRPC waits before it tries again to connect. By default the wait grows to two minutes, in which
# every call fails at once though the server is back.
_RECONNECT = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]


class Connection(NamedTuple):
    """What a client's calls go through."""

    flight: flight.FlightClient
    headers: list[tuple[bytes, bytes]]
    """What each of its calls needs."""
    token: str | None
    native: sira_native.Client | None
    """The extension's client, where it is installed."""


def connect(
    url: str,
    *,
    token: str | bytes | None,
    ca: Pem | None,
    cert: Pem | None,
    key: Pem | None,
) -> Connection:
    """The connection to a server. What is None comes from the environment."""
    token = token or _token_of_environment()
    if isinstance(token, bytes):
        token = token.decode("latin-1")
    ca, cert, key = ca or _variable("SIRA_CA"), cert or _variable("SIRA_CERT"), key or _variable("SIRA_KEY")
    if (cert is None) != (key is None):
        raise _invalid("a certificate and its key go together; one of them is missing")
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise _invalid("a token is made of letters, digits and signs of ASCII")
    scheme, _, rest = url.partition("://")
    files: dict[str, Any] = {}
    options: list[tuple[str, int | str]] = [*_RECONNECT]
    if scheme in _TLS:
        url = f"grpc+tls://{rest}"
        given = {"tls_root_certs": ca, "cert_chain": cert, "private_key": key}
        files = {name: _read(pem) for name, pem in given.items() if pem is not None}
    elif scheme in _UNIX:
        url = f"grpc+unix://{rest}"
        options.append(_LOCALHOST)
    headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
    try:
        client = flight.FlightClient(url, generic_options=options, **files)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise _invalid(
            f"{url!r} is not grpc://host:port, grpc+tls://host:port or grpc+unix:///path: {error}"
        ) from error
    pems = (files.get(name) for name in ("tls_root_certs", "cert_chain", "private_key"))
    return Connection(client, headers, token, _native.client(url, token, *pems))


def socket_path(url: str) -> str | None:
    """The path of a Unix socket, where the URL is of one."""
    scheme, _, rest = url.partition("://")
    return rest if scheme in _UNIX else None


def _variable(name: str) -> str | None:
    return os.environ.get(name) or None


def _token_of_environment() -> str | None:
    if token := _variable("SIRA_TOKEN"):
        return token
    path = _variable("SIRA_TOKEN_FILE")
    if path is None:
        return None
    # The file of a server's tokens serves its clients too: the first one counts.
    lines = (line.strip() for line in _read(path).decode().splitlines())
    token = next((line for line in lines if line and not line.startswith("#")), None)
    if token is None:
        raise _invalid(f"{path}: holds no token")
    return token


def _read(pem: Pem) -> bytes:
    if isinstance(pem, bytes):
        return pem
    try:
        return Path(pem).read_bytes()
    except OSError as error:
        raise _invalid(str(error)) from error


def _invalid(reason: str) -> InvalidError:
    return InvalidError(f"SIRA_BAD_REQUEST: {reason}", "SIRA_BAD_REQUEST")
