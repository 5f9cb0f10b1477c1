"""Tensors of a server of the same machine as memory: `map` and `create`."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import _arrays, _wire
from ._base import Base
from ._dtypes import DTYPES, PACKED_BITS, Bytes, name_of, nbytes
from ._errors import InvalidError, UnavailableError, UnsupportedError
from ._line import Answer, Line, Lines, mapped
from ._line import Mapping as Memory
from ._types import PutResult

# What a server answers that gives no memory now, or never, and what a connection that broke is: the same is
# then asked over the socket.
_NO_MEMORY = (UnavailableError, UnsupportedError, OSError)


class Created:
    """A tensor that is being made: fill `array`, then `commit`. As a context manager it commits at the end of
    the block, and gives everything up where the block raises."""

    def __init__(
        self, array: NDArray[Any], commit: Callable[[], PutResult], abandon: Callable[[], None]
    ) -> None:
        self._array: NDArray[Any] | None = array
        self._commit = commit
        self._abandon = abandon
        self.result: PutResult | None = None
        """What the commit has done."""

    @property
    def array(self) -> NDArray[Any]:
        """The memory to fill, of zeros or anything else at first. Not after the commit."""
        if self._array is None:
            raise InvalidError("SIRA_BAD_REQUEST: it is committed, or given up", "SIRA_BAD_REQUEST")
        return self._array

    def commit(self) -> PutResult:
        """Stores what `array` has now. Views of it that are kept see nothing of the store any more, and make
        the server copy: without them nothing is copied."""
        if self._array is None:
            raise InvalidError("SIRA_BAD_REQUEST: it is committed, or given up", "SIRA_BAD_REQUEST")
        self._array = None
        self.result = self._commit()
        return self.result

    def abandon(self) -> None:
        """Gives it up: nothing is stored."""
        self._array = None
        self._abandon()

    def __enter__(self) -> Created:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._array is not None:
            if error is None:
                self.commit()
            else:
                self.abandon()


class _Filling:
    """Memory of the server that is being filled."""

    def __init__(self, line: Line, number: int, memory: Memory, release: weakref.finalize[..., Any]) -> None:
        self._line = line
        self._number = number
        self._memory: Memory | None = memory
        self._release = release

    def commit(self) -> PutResult:
        memory, self._memory = self._memory, None
        assert memory is not None
        with contextlib.suppress(BufferError):  # somebody has a view of it: it goes with that
            memory.close()
        said = self._line.ask(b"P", {"v": 1, "id": self._number}).said
        if not said["copied"]:
            self._release.detach()  # nothing is held any more
        return PutResult(said["key"], said["version"], said["created"])

    def abandon(self) -> None:
        self._memory = None
        self._release()


class SameHost(Base):
    """The methods of a client that share memory with the server, where both are on one machine."""

    _lines: Lines | None

    def _shared(self, key: str, fields: Mapping[str, Any]) -> NDArray[Any] | None:
        """A tensor as memory of the server; None where that gives none."""
        if self._lines is None:
            return None
        try:
            line, answer = self._lines.ask(b"M", {"v": 1, "key": key, **fields})
            data = _received(line, answer)
        except _NO_MEMORY:
            return None
        name, shape = answer.said["dtype"], tuple(answer.said["shape"])
        return _read_only(_arrays.incoming(name, shape, None, "numpy").finish(data))

    def _copied(self, key: str, out: Any, framework: _arrays.Framework, fields: Mapping[str, Any]) -> Any:
        """A tensor copied from memory of the server to where it is wanted; None where that
        gives none, or the connection waits for something else."""
        if self._lines is None:
            return None
        try:
            line = self._lines.get()
            answer = line.ask_now(b"M", {"v": 1, "key": key, **fields})
            if answer is None:
                return None
            data = _received(line, answer)
        except _NO_MEMORY:
            return None
        said = answer.said
        target = _arrays.incoming(said["dtype"], tuple(said["shape"]), out, framework)
        if target.buffer is None:
            return target.finish(data.copy())
        target.buffer[:] = data
        return target.finish(target.buffer)

    def _created(self, name: str, shape: tuple[int, ...], command: dict[str, Any]) -> Created | None:
        """Memory of the server for a tensor; None where that gives none."""
        size = nbytes(name, shape)
        if self._lines is None or name in PACKED_BITS:
            return None
        try:
            if size <= self._lines.get().inline:
                return None
            line, answer = self._lines.ask(b"C", command)
            memory, release = mapped(answer, line, size, writable=True)
        except _NO_MEMORY:
            return None
        filling = _Filling(line, answer.said["id"], memory, release)
        array = np.frombuffer(memory, np.uint8).view(DTYPES[name]).reshape(shape)
        return Created(array, filling.commit, filling.abandon)


def element_type(dtype: DTypeLike) -> str:
    """The wire's name of a type, of numpy or by its name."""
    if isinstance(dtype, str) and dtype in DTYPES:
        return dtype
    return name_of(np.dtype(dtype))


def extents(shape: int | Sequence[int]) -> tuple[int, ...]:
    """A shape as numpy takes it."""
    given = (shape,) if isinstance(shape, int) else tuple(int(extent) for extent in shape)
    if any(extent < 0 for extent in given) or math.prod(given) >= 1 << 62:
        raise InvalidError(f"SIRA_BAD_TENSOR: shape {list(given)} is none", "SIRA_BAD_TENSOR")
    return given


def command(
    key: str,
    name: str,
    shape: tuple[int, ...],
    *,
    axes: Sequence[str] | None,
    codec: str | None,
    ttl: int | None,
    consistency: Literal["strong", "eventual", "weak"] | None,
    if_: Literal["absent"] | int | None,
    attributes: Mapping[str, str] | None,
    kv_spec: str | None,
    derived_from_lossy: bool | None,
) -> dict[str, Any]:
    """The command of a put."""
    fields = _wire.given(
        axes=None if axes is None else _wire.axis_names(axes),
        codec=codec,
        ttl=None if ttl is None else _wire.seconds(ttl),
        consistency=consistency,
        kv_spec=kv_spec,
        derived_from_lossy=derived_from_lossy or None,
        attributes=None if attributes is None else dict(attributes),
    )
    if if_ is not None:
        fields["if"] = _wire.condition(if_)
    return {"v": 1, "key": key, "dtype": name, "shape": list(shape), **fields}


def _received(line: Line, answer: Answer) -> Bytes:
    """The bytes of a tensor: those that came, or a view of the memory that did."""
    if answer.said["inline"]:
        return np.frombuffer(answer.inline, np.uint8)
    memory, _ = mapped(answer, line, answer.said["nbytes"], writable=False)
    return np.frombuffer(memory, np.uint8)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
