"""numpy arrays and torch tensors to the wire's bytes and back, without a copy that can be avoided.

torch is never imported here unless it already is, or the caller asks for torch tensors.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._dtypes import PACKED_BITS, Bytes, name_of, numpy_dtype, pack, unpack
from ._errors import InvalidError

if TYPE_CHECKING:
    import torch

Framework: TypeAlias = Literal["numpy", "torch"]

# Two elements a torch element: the one type whose shape differs between torch and the wire.
_TORCH_FLOAT4 = "float4_e2m1fn_x2"


class Outgoing(NamedTuple):
    """A tensor ready to be sent."""

    dtype: str
    shape: tuple[int, ...]
    data: Bytes
    """Its bytes, flat: a view of the caller's memory wherever that is possible."""


class Incoming(NamedTuple):
    """Where a tensor that arrives goes."""

    buffer: Bytes | None
    """Memory to fill; None: whoever receives may keep the memory that the bytes came in."""
    finish: Callable[[Bytes], Any]
    """What to give the user, made of the filled memory."""


def is_torch(value: object) -> bool:
    """Whether this is a torch tensor. Where torch was never imported, nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def outgoing(array: Any) -> Outgoing:
    """A tensor's type, shape and bytes. Copies only what is not already contiguous and little-endian."""
    if is_torch(array):
        return _from_torch(array)
    if isinstance(array, np.ma.MaskedArray):
        raise _bad("a masked array: fill it first, tensors have no missing elements")
    array = np.asarray(array)
    name = name_of(array.dtype)
    if not array.dtype.isnative and array.dtype.itemsize > 1:
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    # Not ascontiguousarray, which makes a rank of 1 of a rank of 0.
    array = np.asarray(array, order="C")
    data: Bytes = array.reshape(-1).view(np.uint8)
    return Outgoing(name, array.shape, pack(name, data) if name in PACKED_BITS else data)


def incoming(name: str, shape: tuple[int, ...], out: Any, framework: Framework) -> Incoming:
    """Where a tensor of this type and shape goes: into `out`, or into a new array or torch tensor."""
    if out is not None:
        return _into_torch(name, shape, out) if is_torch(out) else _into_numpy(name, shape, out)
    if framework == "torch":
        return _into_torch(name, shape, _new_torch(name, shape))
    dtype = numpy_dtype(name)

    def finish(data: Bytes) -> NDArray[Any]:
        if name in PACKED_BITS:
            data = unpack(name, data)
        elif data.ctypes.data % dtype.alignment:
            # The one message came in at an odd address: numpy would be slow on it ever after.
            data = data.copy()
        return data.view(dtype).reshape(shape)

    return Incoming(None, finish)


def empty(name: str, shape: tuple[int, ...], framework: Framework) -> Any:
    """A tensor without elements, for which nobody needs to be asked."""
    return _new_torch(name, shape) if framework == "torch" else np.empty(shape, numpy_dtype(name))


def check_framework(framework: str) -> None:
    """Refuses a framework that is not one of ours before anything is asked of the server."""
    if framework not in ("numpy", "torch"):
        raise InvalidError(
            f'SIRA_BAD_REQUEST: framework={framework!r}: it is "numpy" or "torch"', "SIRA_BAD_REQUEST"
        )


def _into_numpy(name: str, shape: tuple[int, ...], out: Any) -> Incoming:
    if not isinstance(out, np.ndarray):
        raise _bad(f"out is a {type(out).__name__}, not a numpy array or a torch tensor")
    dtype = numpy_dtype(name)
    if out.dtype != dtype or out.shape != shape:
        raise _bad(
            f"out is {out.dtype} of shape {list(out.shape)}, the tensor is {name} of shape {list(shape)}"
        )
    if not out.flags.writeable:
        raise _bad("out is read-only")
    if out.flags.c_contiguous and name not in PACKED_BITS:
        return Incoming(out.reshape(-1).view(np.uint8), lambda _: out)

    def finish(data: Bytes) -> NDArray[Any]:
        elements = unpack(name, data) if name in PACKED_BITS else data
        np.copyto(out, elements.view(dtype).reshape(shape))
        return out

    return Incoming(None, finish)


def _import_torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise ImportError('torch is not installed: pip install "sira-store[torch]"') from error


def _torch_dtype(name: str) -> Any:
    torch = _import_torch()
    dtype = getattr(torch, _TORCH_FLOAT4 if name == "float4_e2m1fn" else name, None)
    if not isinstance(dtype, torch.dtype):
        raise _bad(f"this torch ({torch.__version__}) has no type for {name}")
    return dtype


def _torch_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if name != "float4_e2m1fn":
        return shape
    if not shape or shape[-1] % 2:
        raise _bad(f"torch keeps pairs of {name}: a last axis of {list(shape)[-1:]} does not split into them")
    return (*shape[:-1], shape[-1] // 2)


def _torch_bytes(tensor: Any) -> Bytes:
    """A contiguous CPU tensor's memory."""
    if not tensor.numel():
        return np.empty(0, np.uint8)  # torch gives some empty tensors a stride that it then cannot view
    torch = sys.modules["torch"]
    data: Bytes = tensor.reshape(-1).view(torch.uint8).numpy()
    return data


def _from_torch(tensor: torch.Tensor) -> Outgoing:
    torch = sys.modules["torch"]
    if tensor.layout != torch.strided:
        raise _bad(f"a torch tensor of layout {tensor.layout}: make it dense first")
    name = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(tensor.shape)
    if name == _TORCH_FLOAT4:
        if not shape:
            raise _bad(f"a single {name} has no shape on the wire: give it an axis")
        name, shape = "float4_e2m1fn", (*shape[:-1], 2 * shape[-1])
    numpy_dtype(name)  # refuses what the wire has no name for
    # Each of these returns the tensor itself where there is nothing to do.
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return Outgoing(name, shape, _torch_bytes(tensor))


def _new_torch(name: str, shape: tuple[int, ...]) -> Any:
    dtype = _torch_dtype(name)
    return _import_torch().empty(_torch_shape(name, shape), dtype=dtype)


def _into_torch(name: str, shape: tuple[int, ...], out: Any) -> Incoming:
    dtype, expected = _torch_dtype(name), _torch_shape(name, shape)
    if out.dtype != dtype or tuple(out.shape) != expected:
        raise _bad(
            f"out is {out.dtype} of shape {list(out.shape)}, the tensor is {dtype} of shape {list(expected)}"
        )
    target = out.detach()
    if (
        target.device.type == "cpu"
        and target.is_contiguous()
        and not target.is_conj()
        and not target.is_neg()
    ):
        return Incoming(_torch_bytes(target), lambda _: out)
    staging = _new_torch(name, shape)

    def finish(_: Bytes) -> Any:
        target.copy_(staging)
        return out

    return Incoming(_torch_bytes(staging), finish)


def _bad(message: str) -> InvalidError:
    return InvalidError(f"SIRA_BAD_TENSOR: {message}", "SIRA_BAD_TENSOR")
