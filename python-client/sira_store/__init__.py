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
    HasPartsError,
    IncompleteError,
    InternalError,
    InUseError,
    InvalidError,
    NotFoundError,
    OutOfSpaceError,
    ReadOnlyError,
    SiraError,
    StaleVersionError,
    TimedOutError,
    UnauthenticatedError,
    UnavailableError,
    UnknownCalibrationError,
    UnknownKvSpecError,
    UnsupportedError,
)
from ._jobs import Finding, Job
from ._kvspec import KvField, KvPart, KvSpec, Rope
from ._lazy import LazyTensor
from ._namespaces import Namespace, Policy, Route, RouteCandidate, RouteStep
from ._put_many import Item
from ._same_host import Created
from ._types import DeleteManyResult, DeletePrefixResult, Lookup, PartInfo, PutResult, TensorInfo

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_URL",
    "AlreadyExistsError",
    "Client",
    "CorruptError",
    "Created",
    "DeleteManyResult",
    "DeletePrefixResult",
    "Finding",
    "HasPartsError",
    "InUseError",
    "IncompleteError",
    "InternalError",
    "InvalidError",
    "Item",
    "Job",
    "KvField",
    "KvPart",
    "KvSpec",
    "LazyTensor",
    "Lookup",
    "Namespace",
    "NotFoundError",
    "OutOfSpaceError",
    "PartInfo",
    "Policy",
    "PutResult",
    "ReadOnlyError",
    "Rope",
    "Route",
    "RouteCandidate",
    "RouteStep",
    "SiraError",
    "StaleVersionError",
    "TensorInfo",
    "TimedOutError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnknownCalibrationError",
    "UnknownKvSpecError",
    "UnsupportedError",
    "__version__",
    "connect",
]
