"""A tensor that stays on the server until parts of it are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _arrays
from ._dtypes import PACKED_BITS, numpy_dtype
from ._errors import HasPartsError, NotFoundError
from ._types import TensorInfo

if TYPE_CHECKING:
    from ._client import Client


class LazyTensor:
    """A stored tensor: what it is, and `[...]` to read parts of it.

    Indexing takes integers, slices and `...`, as numpy does, and reads from the server only the range it
    covers. It always reads the version that was there when the tensor was opened: once that is replaced,
    reading raises.
    """

    def __init__(
        self, client: Client, info: TensorInfo, framework: _arrays.Framework, part: str | None = None
    ) -> None:
        self._client = client
        self._framework = framework
        self._part = part
        self.info = _of_part(info, part) if info.parts else info
        """What the server said when the tensor was opened; of a part, what it said of that."""

    @property
    def key(self) -> str:
        """`namespace/key`."""
        return self.info.key

    @property
    def part(self) -> str | None:
        """The part that was chosen."""
        return self._part

    @property
    def version(self) -> int:
        """The version that is read."""
        return self.info.version

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents."""
        return self.info.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.info.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type, as numpy's."""
        return numpy_dtype(self.info.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.info.nbytes

    @property
    def axes(self) -> tuple[str, ...]:
        """One name an axis, `""` for an unnamed one."""
        return self.info.axes

    @property
    def attributes(self) -> Mapping[str, str]:
        """What the writer attached."""
        return self.info.attributes

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a tensor without axes")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"LazyTensor({self.key!r}, version={self.version}, {self.info.dtype} {list(self.shape)})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if copy is False:
            raise ValueError("the tensor lies on a server: it cannot be had without a copy")
        array = self.numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    def numpy(self) -> Any:
        """All of it, as a numpy array."""
        return self._read("numpy")

    def torch(self) -> Any:
        """All of it, as a torch tensor."""
        return self._read("torch")

    def _read(self, framework: _arrays.Framework, **options: Any) -> Any:
        return self._client._get_one(
            self.key, None, framework, version=self.version, part=self._part, **options
        )

    def __iter__(self) -> Any:
        # Without this, Python would fall back to one request a row.
        raise TypeError("iterating would ask the server for each row: read it with numpy() or a slice first")

    def __getitem__(self, index: Any) -> Any:
        if self.info.dtype in PACKED_BITS:
            # Ranges of these need not begin at a byte, so the whole is read; torch's pairs are not what is
            # indexed.
            if self._framework == "torch":
                raise TypeError(f"{self.info.dtype} is indexed through numpy only")
            return self.numpy()[index]
        ranges, local, shape = plan(index, self.shape)
        if 0 in shape:
            part = _arrays.empty(self.info.dtype, shape, self._framework)
        else:
            names = [name or str(axis) for axis, name in enumerate(self.axes)]
            part = self._read(
                self._framework, ranges={names[axis]: bounds for axis, bounds in ranges.items()}
            )
        if self._framework == "torch":
            # torch slices forwards only.
            for axis, step in enumerate(local):
                if isinstance(step, slice) and step.step is not None and step.step < 0:
                    part = part.flip(axis)
            local = tuple(
                slice(None, None, -step.step)
                if isinstance(step, slice) and step.step is not None and step.step < 0
                else step
                for step in local
            )
        return part[local]


def _of_part(info: TensorInfo, name: str | None) -> TensorInfo:
    names = ", ".join(part.name for part in info.parts)
    if name is None:
        raise HasPartsError(
            f"SIRA_HAS_PARTS: {info.key}: it has several parts, choose one: {names}", "SIRA_HAS_PARTS"
        )
    for part in info.parts:
        if part.name == name:
            return replace(
                info,
                dtype=part.dtype,
                shape=part.shape,
                axes=part.axes,
                nbytes=part.nbytes,
                stored_bytes=part.stored_bytes,
                codec=part.codec,
                lossy=part.lossy,
                relative_rmse=part.relative_rmse,
                attributes=part.attributes,
                parts=(),
            )
    raise NotFoundError(f"SIRA_NOT_FOUND: {info.key} has no part {name!r}, only {names}", "SIRA_NOT_FOUND")


def plan(
    index: Any, shape: tuple[int, ...]
) -> tuple[dict[int, tuple[int, int]], tuple[int | slice, ...], tuple[int, ...]]:
    """What to ask of the server and what is left to do here: the ranges of the axes that are not taken whole,
    an index into what comes back, and its shape."""
    parts = list(index) if isinstance(index, tuple) else [index]
    dots = [i for i, part in enumerate(parts) if part is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index may have one ellipsis")
    given = len(parts) - len(dots)
    if given > len(shape):
        raise IndexError(f"too many indices: {given} for {len(shape)} axes")
    whole = [slice(None)] * (len(shape) - given)
    at = dots[0] if dots else len(parts)
    parts[at : at + 1] = whole

    ranges: dict[int, tuple[int, int]] = {}
    local: list[int | slice] = []
    extents: list[int] = []
    for axis, (part, extent) in enumerate(zip(parts, shape, strict=True)):
        if isinstance(part, slice):
            start, stop, step = part.indices(extent)
            count = len(range(start, stop, step))
            if step < 0 and count:
                # The range that covers it, read forwards from its last element; turned round here.
                start, stop = start + (count - 1) * step, start + 1
            elif count:
                stop = start + (count - 1) * step + 1
            else:
                start = stop = 0
            local.append(slice(None) if step == 1 else slice(None, None, step))
        else:
            start = _integer(part, axis, extent)
            stop = start + 1
            local.append(0)
        extents.append(stop - start)
        if (start, stop) != (0, extent):
            ranges[axis] = (start, stop)
    return ranges, tuple(local), tuple(extents)


def _integer(part: Any, axis: int, extent: int) -> int:
    if part is None:
        raise IndexError("newaxis is not taken here: index what comes back with it")
    if isinstance(part, (bool, np.bool_)) or not hasattr(part, "__index__"):
        raise IndexError(f"integers, slices and ... only, not {type(part).__name__}")
    try:
        index = int(part.__index__())
    except TypeError as error:  # an array of more than one element has the method too
        raise IndexError("integers, slices and ... only, not arrays of indices") from error
    if not -extent <= index < extent:
        raise IndexError(f"index {index} is outside axis {axis}, which has {extent}")
    return index % extent
