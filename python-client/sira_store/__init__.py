"""Sira's Python client: tensors by key, over Arrow Flight.

>>> import sira_store
>>> with sira_store.connect("grpc://127.0.0.1:9095") as sira:
...     sira.put("demo/kv", array, axes=["layer", "token", "dim"])
...     array = sira.get("demo/kv")
...     part = sira.open("demo/kv")[:4, 512:1024]
"""

from ._client import DEFAULT_URL, Client, connect
from ._errors import (
    AlreadyExistsError,
    CorruptError,
    IncompleteError,
    InternalError,
    InvalidError,
    NotFoundError,
    OutOfSpaceError,
    SiraError,
    StaleVersionError,
    TimedOutError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)
from ._lazy import LazyTensor
from ._types import PutResult, TensorInfo

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_URL",
    "AlreadyExistsError",
    "Client",
    "CorruptError",
    "IncompleteError",
    "InternalError",
    "InvalidError",
    "LazyTensor",
    "NotFoundError",
    "OutOfSpaceError",
    "PutResult",
    "SiraError",
    "StaleVersionError",
    "TensorInfo",
    "TimedOutError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnsupportedError",
    "__version__",
    "connect",
]
