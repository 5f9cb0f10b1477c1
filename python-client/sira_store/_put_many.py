"""Puts of many keys, or of keys of several parts, as one stream of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike
from pyarrow import flight

from . import _arrays, _wire
from ._dtypes import Bytes
from ._errors import InvalidError, SiraError, UnknownKvSpecError, by_text, has_code, translate
from ._kvspec import KvSpec
from ._namespaces import Namespaces
from ._types import PutResult

if TYPE_CHECKING:
    import torch

COMMAND = flight.FlightDescriptor.for_command(_wire.dumps({"v": 1, "put_many": True}))

# Bytes from which a tensor is sent from where it lies, in messages of its own. Smaller ones are gathered in
# one message: a copy of each costs less than a message of each.
ALONE = 512 << 10

# Bytes of announcements in one message: the server takes 1 MiB.
MAX_ANNOUNCED = 1_000_000

Tensor: TypeAlias = "ArrayLike | torch.Tensor"
Tensors: TypeAlias = "Tensor | Mapping[str, Tensor]"


@dataclass(frozen=True)
class Item:
    """What `put_many` puts under one key, with options of its own: those not given are the call's."""

    tensors: Tensors
    """An array or torch tensor, or several by the name of their part."""
    axes: Sequence[str] | Mapping[str, Sequence[str]] | None = None
    """One name an axis; of parts, by their names."""
    codec: str | Mapping[str, str] | None = None
    """How lower tiers keep it; of parts, one for all of them, or by their names."""
    ttl: int | None = None
    """Whole seconds until it expires."""
    consistency: Literal["strong", "eventual", "weak"] | None = None
    """What an acknowledged put survives."""
    if_: Literal["absent"] | int | None = None
    """"absent", or the version that must be the present one."""
    attributes: Mapping[str, str] | Mapping[str, Mapping[str, str]] | None = None
    """Texts to keep with it; of parts, by their names."""
    spec: KvSpec | str | None = None
    """The kv spec that it follows, or its hash."""
    derived_from_lossy: bool | None = None
    """Whether it was computed from what a lossy codec gave back."""

    def of_one(self) -> tuple[Sequence[str] | None, str | None, Any]:
        """Axes, codec and attributes of a tensor that has no parts."""
        axes, codec = self.axes, self.codec
        if isinstance(axes, Mapping) or not (codec is None or isinstance(codec, str)):
            raise _bad("axes or codec by the names of parts, and a tensor that has none")
        return axes, codec, self.attributes

    def or_else(self, defaults: Item) -> Item:
        """Options that are not given, as they are in `defaults`."""
        missing = {name: getattr(defaults, name) for name in _OPTIONS if getattr(self, name) is None}
        return replace(self, **missing)


_OPTIONS = [name for name in Item.__dataclass_fields__ if name != "tensors"]
Items: TypeAlias = "Mapping[str, Tensors | Item] | Iterable[tuple[str, Tensors | Item]]"


def announce(key: str, item: Item, kv_spec: str | None) -> tuple[bytes, list[Bytes]]:
    """What is said of one key, and its bytes: those of its parts, one after another."""
    tensors = item.tensors
    if isinstance(tensors, Mapping):
        named = {name: _arrays.outgoing(array) for name, array in tensors.items()}
        codec = dict.fromkeys(named, item.codec) if isinstance(item.codec, str) else item.codec
        axes = _by_part("axes", item.axes, named)
        codecs = _by_part("codec", codec, named)
        attributes = _by_part("attributes", item.attributes, named)
        parts = [
            _part(name, tensor, axes.get(name), codecs.get(name), attributes.get(name))
            for name, tensor in named.items()
        ]
    else:
        named = {"data": _arrays.outgoing(tensors)}
        parts = [_part("data", named["data"], *item.of_one())]
    said: dict[str, Any] = {"key": key, "parts": parts}
    if item.ttl is not None:
        said["ttl"] = _wire.seconds(item.ttl)
    if item.consistency is not None:
        said["consistency"] = item.consistency
    if item.if_ is not None:
        said["if"] = _wire.condition(item.if_)
    if kv_spec is not None:
        said["kv_spec"] = kv_spec
    if item.derived_from_lossy:
        said["derived_from_lossy"] = True
    try:
        text = _wire.dumps(said)
    except (TypeError, ValueError) as error:
        raise _bad(f"{key}: {error}") from error
    if len(text) > MAX_ANNOUNCED:
        raise _bad(f"{key}: names and attributes of {len(text)} bytes; a message takes {MAX_ANNOUNCED}")
    return text, [tensor.data for tensor in named.values()]


def _part(
    name: str,
    tensor: _arrays.Outgoing,
    axes: Sequence[str] | None,
    codec: str | None,
    attributes: Mapping[str, str] | None,
) -> dict[str, Any]:
    part: dict[str, Any] = {"name": name, "dtype": tensor.dtype, "shape": tensor.shape}
    if axes is not None:
        part["axes"] = _wire.axis_names(axes)
    if attributes:
        part["attributes"] = dict(attributes)
    if codec is not None:
        part["codec"] = codec
    return part


class Sender:
    """One stream of a put of many keys. Opened with its first message; a context manager that ends it."""

    def __init__(self, client: flight.FlightClient, options: flight.FlightCallOptions, url: str) -> None:
        self._client = client
        self._options = options
        self._url = url
        self._stream: tuple[Any, Any] | None = None
        self._said: list[bytes] = []
        self._said_bytes = 0
        self._data: list[Bytes] = []
        self._data_bytes = 0

    def add(self, said: bytes, data: list[Bytes]) -> None:
        """Sends a key, or keeps it for a message with others."""
        if self._said_bytes + len(said) > MAX_ANNOUNCED:
            self._flush()
        self._said.append(said)
        self._said_bytes += len(said) + 1
        for tensor in data:
            if self._data and (tensor.size >= ALONE or self._data_bytes + tensor.size > _wire.BATCH_BYTES):
                self._flush()
            if tensor.size >= ALONE:
                for batch in _wire.batches(tensor, _wire.BYTES):
                    self._write(batch)
            elif tensor.size:
                self._data.append(tensor)
                self._data_bytes += tensor.size

    def finish(self) -> list[Any]:
        """Sends what is left, and gives the server's results, one a key."""
        if self._said or self._data:
            self._flush()
        if self._stream is None:
            return []
        writer, reader = self._stream
        try:
            writer.done_writing()
            answer = reader.read()
            writer.close()
        except (pa.ArrowException, OSError) as error:
            raise self._reason(error) from error
        results: list[Any] = _wire.answer("put_many", answer).get("results", [])
        return results

    def _flush(self) -> None:
        """Sends what was gathered as one message, if there is any of it."""
        data, self._data, self._data_bytes = self._data, [], 0
        if data:
            whole = data[0] if len(data) == 1 else np.concatenate(data)
            for batch in _wire.batches(whole, _wire.BYTES):
                self._write(batch)
        elif self._said:
            self._write(None)

    def _write(self, batch: pa.RecordBatch | None) -> None:
        said, self._said, self._said_bytes = self._said, [], 0
        metadata = pa.py_buffer(b'{"items":[' + b",".join(said) + b"]}") if said else None
        try:
            if self._stream is None:
                self._stream = self._client.do_put(COMMAND, _wire.BYTES, self._options)
            writer = self._stream[0]
            if batch is None:
                writer.write_metadata(metadata)
            elif metadata is None:
                writer.write_batch(batch)
            else:
                writer.write_with_metadata(batch, metadata)
        except (pa.ArrowException, OSError) as error:
            raise self._reason(error) from error

    def _reason(self, error: Exception) -> SiraError:
        """Why a call failed: where only the stream's end has the server's words, these."""
        if self._stream is not None:
            try:
                self._stream[0].close()
            except (pa.ArrowException, OSError) as ending:
                if has_code(ending) and not has_code(error):
                    error = ending
        return translate(error, self._url)

    def __enter__(self) -> Sender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._stream is not None:
            # Its own error would hide what went wrong first.
            with suppress(pa.ArrowException, OSError):
                self._stream[0].close()


class Puts(Namespaces):
    """Puts as one stream."""

    def put_many(
        self,
        items: Items,
        *,
        axes: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        codec: str | Mapping[str, str] | None = None,
        ttl: int | None = None,
        consistency: Literal["strong", "eventual", "weak"] | None = None,
        if_: Literal["absent"] | int | None = None,
        spec: KvSpec | str | None = None,
        derived_from_lossy: bool | None = None,
    ) -> list[PutResult | SiraError]:
        """Stores many tensors as one stream (65,536 keys each); gives for each what was done, or the error.

        items: a mapping, or pairs, of keys and what to put under them: an array, several by the names of
        parts, or an `Item` with options of its own. Pairs are taken one at a time, so a generator of any
        length costs the memory of a few messages. Contiguous memory is sent from where it lies: nothing
        given may change before this returns. The options are those of `put`, for items that have none.

        Each key is committed by itself and what fails with one does not stop the others; of a key that comes
        twice the later one counts. Raises only where the stream as a whole fails: keys sent before may have
        been committed then.
        """
        defaults = Item(
            (),
            axes=axes,
            codec=codec,
            ttl=ttl,
            consistency=consistency,
            if_=if_,
            spec=spec,
            derived_from_lossy=derived_from_lossy,
        )
        results = self._put_all(iter(items.items() if isinstance(items, Mapping) else items), defaults)
        lost = [at for at, result in enumerate(results) if isinstance(result, UnknownKvSpecError)]
        if lost:
            self._kv_specs.clear()  # the server has lost what this client registered
            if isinstance(items, (Mapping, Sequence)):
                pairs = list(items.items() if isinstance(items, Mapping) else items)
                again = self._put_all((pairs[at] for at in lost), defaults)
                for at, result in zip(lost, again, strict=True):
                    results[at] = result
        return results

    def _put_all(
        self, pairs: Iterator[tuple[str, Tensors | Item]], defaults: Item
    ) -> list[PutResult | SiraError]:
        results: list[PutResult | SiraError] = []
        for first in pairs:
            results += self._put_stream(chain((first,), islice(pairs, _wire.MAX_KEYS - 1)), defaults)
        return results

    def _put_stream(
        self, pairs: Iterable[tuple[str, Tensors | Item]], defaults: Item
    ) -> list[PutResult | SiraError]:
        results: list[PutResult | SiraError | None] = []
        latest: tuple[KvSpec, str] | None = None
        with Sender(self._flight, self._options(), self.url) as sender:
            for key, value in pairs:
                if isinstance(value, Item):
                    item = value.or_else(defaults)
                else:
                    item = replace(defaults, tensors=value)
                try:
                    hash = item.spec
                    if isinstance(hash, KvSpec):
                        # Most often that of the item before, which need not be spelt out to be looked up.
                        if latest is None or latest[0] is not hash:
                            latest = (hash, self._with_spec(hash, str))
                        hash = latest[1]
                    said, data = announce(key, item, hash)
                except SiraError as error:
                    results.append(error)
                    continue
                results.append(None)
                sender.add(said, data)
            answers = sender.finish()
        if len(answers) != results.count(None):
            raise _wire.incomplete(f"{len(answers)} results of {results.count(None)} keys")
        done = map(_result, answers)
        return [result or next(done) for result in results]

    def _put_parts(self, key: str, item: Item, kv_spec: str | None) -> PutResult:
        with Sender(self._flight, self._options(), self.url) as sender:
            sender.add(*announce(key, item, kv_spec))
            answers = sender.finish()
        if len(answers) != 1:
            raise _wire.incomplete(f"{len(answers)} results of one key")
        result = _result(answers[0])
        if isinstance(result, SiraError):
            raise result
        return result


def _result(answer: Mapping[str, Any]) -> PutResult | SiraError:
    if "error" in answer:
        return by_text(answer["error"])
    return PutResult(answer["key"], answer["version"], answer["created"])


def _by_part(what: str, given: Any, parts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options of parts, by their names."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise _bad(f"{what}={given!r}: of several parts it is given by their names")
    if unknown := [name for name in given if name not in parts]:
        raise _bad(f"{what}: there is no part {unknown[0]!r}, only {', '.join(parts)}")
    return given


def _bad(message: str) -> InvalidError:
    return InvalidError(f"SIRA_BAD_REQUEST: {message}", "SIRA_BAD_REQUEST")
