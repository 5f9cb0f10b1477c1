"""The element types of the wire, and the packing of those that are smaller than a byte."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ._errors import InvalidError

Bytes = NDArray[np.uint8]

_WHOLE = (
    *("bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz"),
    *("float16", "bfloat16", "float32", "float64", "complex64"),
)

PACKED_BITS = {"float4_e2m1fn": 4, "float6_e2m3fn": 6, "float6_e3m2fn": 6}
"""Types that the wire packs; numpy keeps one element a byte, in the low bits."""


def _numpy_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name) if hasattr(ml_dtypes, name) else name)


DTYPES: dict[str, np.dtype[Any]] = {name: _numpy_dtype(name) for name in [*_WHOLE, *PACKED_BITS]}
"""numpy's type for every name of the wire."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def name_of(dtype: np.dtype[Any]) -> str:
    """The wire's name of a numpy type, whatever its byte order."""
    name = _NAMES.get(dtype.newbyteorder("="))
    if name is None:
        raise InvalidError(
            f"SIRA_BAD_TENSOR: elements of type {dtype} cannot be stored; there are {', '.join(DTYPES)}",
            "SIRA_BAD_TENSOR",
        )
    return name


def numpy_dtype(name: str) -> np.dtype[Any]:
    """numpy's type for a name of the wire."""
    if name not in DTYPES:
        raise InvalidError(
            f"SIRA_BAD_TENSOR: this version of the client knows no dtype {name!r}", "SIRA_BAD_TENSOR"
        )
    return DTYPES[name]


def nbytes(name: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor on the wire."""
    count = math.prod(shape)
    bits = PACKED_BITS.get(name)
    if bits is None:
        return count * numpy_dtype(name).itemsize
    if count * bits % 8:
        raise InvalidError(
            f"SIRA_BAD_TENSOR: {count} elements of {name} do not fill whole bytes", "SIRA_BAD_TENSOR"
        )
    return count * bits // 8


def pack(name: str, elements: Bytes) -> Bytes:
    """One element a byte to the wire's packing: from the low bit of the first byte on."""
    nbytes(name, elements.shape)  # refuses a tensor that would end inside a byte
    if PACKED_BITS[name] == 4:
        pairs: Bytes = (elements[0::2] & np.uint8(0x0F)) | (elements[1::2] << np.uint8(4))
        return pairs
    first, second, third, fourth = (elements[i::4] & 0x3F for i in range(4))
    packed = np.empty((first.size, 3), np.uint8)
    packed[:, 0] = first | (second << 6)
    packed[:, 1] = (second >> 2) | (third << 4)
    packed[:, 2] = (third >> 4) | (fourth << 2)
    return packed.reshape(-1)


def unpack(name: str, packed: Bytes) -> Bytes:
    """The wire's packing to one element a byte."""
    if PACKED_BITS[name] == 4:
        elements = np.empty((packed.size, 2), np.uint8)
        elements[:, 0] = packed & 0x0F
        elements[:, 1] = packed >> 4
        return elements.reshape(-1)
    first, second, third = (packed[i::3] for i in range(3))
    elements = np.empty((first.size, 4), np.uint8)
    elements[:, 0] = first & 0x3F
    elements[:, 1] = (first >> 6) | ((second & 0x0F) << 2)
    elements[:, 2] = (second >> 4) | ((third & 0x03) << 4)
    elements[:, 3] = third >> 2
    return elements.reshape(-1)
