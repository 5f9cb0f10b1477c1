"""Tensors for tests: every element type of the wire, in shapes that go wrong easily."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        *("bool", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn", "uint8", "int8", "float8_e5m2"),
        *("float8_e4m3fn", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz", "int16", "uint16"),
        *("float16", "bfloat16", "int32", "uint32", "float32", "complex64", "float64", "int64", "uint64"),
    )
}
SAFETENSORS = dict(
    zip(
        DTYPES,
        (
            *("BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"),
            *("F8_E4M3FNUZ", "F8_E5M2FNUZ", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64"),
            *("F64", "I64", "U64"),
        ),
        strict=True,
    )
)
BITS = {"float4_e2m1fn": 4, "float6_e2m3fn": 6, "float6_e3m2fn": 6}

SHAPES = [
    (),
    (1,),
    (4,),
    (13,),
    (0,),
    (3, 0, 5),
    (0, 4),
    (1, 1),
    (7, 12),
    (2, 3, 5, 4),
    (1, 1, 1, 1, 8),
    (5, 4, 3, 2, 1, 2),
]


def bits(dtype: str) -> int:
    """Bits of an element on the wire."""
    return BITS.get(dtype, DTYPES[dtype].itemsize * 8)


def fits(dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether the tensor fills whole bytes, without which there is none."""
    return math.prod(shape) * bits(dtype) % 8 == 0


def array(dtype: str, shape: tuple[int, ...], seed: int = 0) -> NDArray[Any]:
    """Every bit random, so NaNs of all kinds too. Packed types use the low bits of their byte only."""
    kind = DTYPES[dtype]
    data = np.random.default_rng(seed).integers(0, 256, math.prod(shape) * kind.itemsize, dtype=np.uint8)
    if dtype == "bool":
        data &= 1
    elif dtype in BITS:
        data &= 2 ** BITS[dtype] - 1
    return data.view(kind).reshape(shape)


def same(left: NDArray[Any], right: NDArray[Any]) -> bool:
    """Equal in type, shape and every bit."""
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
