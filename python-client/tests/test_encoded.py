"""Encoded chunks through the client: coded here with the extension, and refused without it."""

from __future__ import annotations

import numpy as np
import pytest

import sira_store
from server import Server
from sira_store import _native
from slow_link import SlowLink

AXES = ["layer", "kv", "token", "head", "dim"]


def kv_cache(layers: int = 4) -> np.ndarray:
    """The bits of a KV cache in bfloat16: mantissas are noise, exponents are not."""
    random = np.random.default_rng(layers)
    values = random.standard_normal((layers, 2, 768, 2, 64), np.float32)
    array: np.ndarray = (values.view(np.uint32) >> 16).astype(np.uint16)
    return array


def native(client: sira_store.Client) -> _native.sira_native.Client:
    """The extension's client, which must be there."""
    assert client._native is not None
    return client._native


@pytest.fixture
def only_native(way: str) -> None:
    if way != "native":
        pytest.skip("only the extension decodes")


def comes_encoded(client: sira_store.Client, key: str) -> bool:
    """Whether a get that asks for encoded chunks is answered with them."""
    tensor = native(client).get(sira_store._wire.wanted(key, encoded=_native.stages()))
    try:
        return tensor.encoded
    finally:
        tensor.close()


def test_without_the_extension_it_is_refused_and_all_else_works(
    sira: sira_store.Client, ns: str, way: str
) -> None:
    if way != "pyarrow":
        pytest.skip("of the client without the extension")
    array = kv_cache()
    with pytest.raises(sira_store.InvalidError, match="encode= needs the extension sira-native"):
        sira.put(f"{ns}/a", array, encode="planes+zstd")
    sira.put(f"{ns}/a", array, codec="planes+zstd")
    with pytest.raises(sira_store.InvalidError, match="encoded=True needs the extension sira-native"):
        sira.get(f"{ns}/a", encoded=True)
    for encoded in (None, False):
        assert np.array_equal(sira.get(f"{ns}/a", encoded=encoded), array)


@pytest.mark.usefixtures("only_native")
def test_what_the_server_encoded_is_decoded_here(sira: sira_store.Client, ns: str) -> None:
    array = kv_cache()
    sira.put(f"{ns}/a", array, axes=AXES, codec="planes+zstd")
    assert comes_encoded(sira, f"{ns}/a")
    got = sira.get(f"{ns}/a", encoded=True)
    assert got.flags.writeable
    assert np.array_equal(got, array)
    out = np.zeros((2, *array.shape), np.uint16)
    assert sira.get(f"{ns}/a", out[1], encoded=True) is not None
    assert np.array_equal(out[1], array)
    assert not out[0].any()
    ranges = {"layer": (1, 3), "token": (100, 700)}
    assert np.array_equal(sira.get(f"{ns}/a", ranges=ranges, encoded=True), array[1:3, :, 100:700])
    strided = np.zeros((*array.shape[:-1], 128), np.uint16)[..., ::2]
    assert sira.get(f"{ns}/a", strided, encoded=True) is strided
    assert np.array_equal(strided, array)
    # What lies in its record, or is kept raw, comes as it is.
    sira.put(f"{ns}/small", array[0, 0, :10])
    assert np.array_equal(sira.get(f"{ns}/small", encoded=True), array[0, 0, :10])
    assert not comes_encoded(sira, f"{ns}/small")


@pytest.mark.usefixtures("only_native")
@pytest.mark.parametrize("codec", ["planes+zstd", "planes+lz4", "zstd:1", "none"])
def test_what_is_encoded_here_is_stored_as_it_comes(sira: sira_store.Client, ns: str, codec: str) -> None:
    array = kv_cache()
    put = sira.put(f"{ns}/a", array, axes=AXES, attributes={"model": "m"}, ttl=600, encode=codec)
    assert put.created
    info = sira.info(f"{ns}/a")
    assert (info.codec, info.axes, info.attributes) == (codec, tuple(AXES), {"model": "m"})
    assert info.expires_ms is not None
    sira.put(f"{ns}/b", array, axes=AXES, codec=codec)
    assert info.stored_bytes == sira.info(f"{ns}/b").stored_bytes
    for encoded in (True, False, None):
        assert np.array_equal(sira.get(f"{ns}/a", encoded=encoded), array)
    with pytest.raises(sira_store.AlreadyExistsError):
        sira.put(f"{ns}/a", array, encode=codec, if_="absent")
    sira.put(f"{ns}/small", array[0, 0, 0], encode=codec)
    assert np.array_equal(sira.get(f"{ns}/small"), array[0, 0, 0])


@pytest.mark.usefixtures("only_native")
def test_a_kv_spec_names_the_axes_on_both_sides(sira: sira_store.Client, ns: str) -> None:
    part = sira_store.KvPart(dtype="uint16", axes=AXES)
    spec = sira_store.KvSpec(model="m", block_tokens=256, parts=[part])
    array = kv_cache()
    for given in (spec, sira.register_spec(spec)):
        sira.put(f"{ns}/a", array, encode="planes+zstd", spec=given)
        assert sira.info(f"{ns}/a").axes == tuple(AXES)
        assert np.array_equal(sira.get(f"{ns}/a", spec=given, encoded=True), array)


@pytest.mark.usefixtures("only_native")
def test_what_cannot_be(sira: sira_store.Client, ns: str) -> None:
    array = kv_cache(1)
    with pytest.raises(sira_store.InvalidError, match="encode= is of one array"):
        sira.put(f"{ns}/a", {"k": array, "v": array}, encode="zstd")
    with pytest.raises(sira_store.InvalidError, match="takes the place of codec="):
        sira.put(f"{ns}/a", array, encode="zstd", codec="zstd")
    with pytest.raises(sira_store.InvalidError, match='SIRA_UNKNOWN_CODEC: unknown codec "snappy"'):
        sira.put(f"{ns}/a", array, encode="snappy")
    with pytest.raises(sira_store.InvalidError, match="choose one"):
        sira.get(f"{ns}/a", encoded=True, streams=2)
    with pytest.raises(sira_store.NotFoundError):
        sira.get(f"{ns}/none", encoded=True)


@pytest.mark.usefixtures("only_native")
def test_a_slow_connection_is_answered_in_chunks(server: Server, ns: str) -> None:
    array = kv_cache(12)
    with (
        SlowLink(server.url, 20e6) as link,
        sira_store.connect(link.url, lookup_deadline=None) as client,
    ):
        client.put(f"{ns}/a", array, axes=AXES, encode="planes+zstd")
        assert link.sent < 0.85 * array.nbytes
        # Of a server on this machine nothing is known yet: as it is.
        assert not native(client).prefers_encoded()
        out = np.zeros_like(array)
        client.get(f"{ns}/a", out)
        assert np.array_equal(out, array)
        assert link.received > array.nbytes
        # A fiftieth of what two decoders are good for.
        assert native(client).prefers_encoded()
        before = link.received
        out[:] = 0
        client.get(f"{ns}/a", out)
        assert np.array_equal(out, array)
        assert link.received - before < 0.85 * array.nbytes
        before = link.received
        client.get(f"{ns}/a", out, encoded=False)
        assert link.received - before > array.nbytes
        assert np.array_equal(client.open(f"{ns}/a")[3:5], array[3:5])
