"""The package against a server."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

import samples
import sira_store
from server import Server


@pytest.mark.parametrize("dtype", samples.DTYPES)
def test_every_type_and_shape_round_trips(sira: sira_store.Client, ns: str, dtype: str) -> None:
    for shape in samples.SHAPES:
        if not samples.fits(dtype, shape):
            shape = (*shape, 4)
        array = samples.array(dtype, shape)
        put = sira.put(f"{ns}/x", array)
        assert samples.same(sira.get(f"{ns}/x"), array), shape
        out = np.empty_like(array)
        assert sira.get(f"{ns}/x", out) is out
        assert samples.same(out, array), shape
        info = sira.info(f"{ns}/x")
        assert (info.dtype, info.shape, info.version) == (dtype, shape, put.version)
        assert info.nbytes == array.size * samples.bits(dtype) // 8
        assert samples.same(sira.open(f"{ns}/x").numpy(), array), shape


def test_layouts_that_are_not_contiguous(sira: sira_store.Client, ns: str) -> None:
    array = samples.array("bfloat16", (6, 8, 10))
    for other in (array.transpose(2, 0, 1), array[::2, ::-1, 3:], np.asfortranarray(array)):
        sira.put(f"{ns}/x", other)
        assert samples.same(sira.get(f"{ns}/x"), np.ascontiguousarray(other))
        out = np.empty(other.shape[::-1], other.dtype).T
        sira.get(f"{ns}/x", out=out)
        assert samples.same(out, np.ascontiguousarray(other))
    sira.put(f"{ns}/x", np.arange(5, dtype=">f8"))
    assert samples.same(sira.get(f"{ns}/x"), np.arange(5, dtype="<f8"))


def test_a_tensor_of_many_messages(sira: sira_store.Client, ns: str) -> None:
    # One row of the first axis is larger than a message may be, and the size is no multiple of anything.
    array = samples.array("uint16", (3, 5, 1_048_583))
    sira.put(f"{ns}/x", array)
    assert samples.same(sira.get(f"{ns}/x"), array)
    out = np.zeros_like(array)
    sira.get(f"{ns}/x", out=out)
    assert samples.same(out, array)
    lazy = sira.open(f"{ns}/x")
    assert samples.same(lazy[1, 2:4, 700_001:], array[1, 2:4, 700_001:].copy())


def test_put_says_what_it_did(sira: sira_store.Client, ns: str) -> None:
    key = f"{ns}/a/b@c:d=e"
    first = sira.put(key, np.zeros(3))
    assert (first.key, first.created) == (key, True)
    second = sira.put(key, np.ones(3))
    assert not second.created
    assert second.version > first.version
    assert np.array_equal(sira.get(key), np.ones(3))


def test_conditions(sira: sira_store.Client, ns: str) -> None:
    key = f"{ns}/x"
    first = sira.put(key, np.zeros(3), if_="absent")
    with pytest.raises(sira_store.AlreadyExistsError) as caught:
        sira.put(key, np.ones(3), if_="absent")
    assert caught.value.code == "SIRA_EXISTS"
    # A body larger than any buffer on the way, so that the refusal comes while it is being written.
    with pytest.raises(sira_store.AlreadyExistsError):
        sira.put(key, np.ones(8 << 20), if_="absent")
    second = sira.put(key, np.full(3, 2.0), if_=first.version)
    with pytest.raises(sira_store.StaleVersionError):
        sira.put(key, np.ones(3), if_=first.version)
    assert np.array_equal(sira.get(key), np.full(3, 2.0))
    with pytest.raises(sira_store.StaleVersionError):
        sira.delete(key, if_version=first.version)
    assert sira.delete(key, if_version=second.version)


def test_axes_attributes_and_codec_are_kept(sira: sira_store.Client, ns: str) -> None:
    array = samples.array("float16", (4, 6, 8))
    attributes = {"model": "SmolLM2-135M", "größe": "135 M", "empty": ""}
    sira.put(f"{ns}/x", array, axes=["layer", "", "dim,x"], attributes=attributes, codec="zstd:9")
    info = sira.info(f"{ns}/x")
    assert info.axes == ("layer", "", "dim,x")
    assert info.attributes == attributes
    lazy = sira.open(f"{ns}/x")
    assert lazy.attributes == attributes
    assert samples.same(lazy[1:3, 5, ::2], np.ascontiguousarray(array[1:3, 5, ::2]))
    assert samples.same(sira.get(f"{ns}/x", ranges={"layer": (1, 3), "1": slice(0, 2)}), array[1:3, :2])


def test_a_lazy_tensor(sira: sira_store.Client, ns: str) -> None:
    array = samples.array("int32", (4, 5, 6))
    put = sira.put(f"{ns}/x", array, axes=["a", "b", "c"])
    lazy = sira.open(f"{ns}/x")
    assert (lazy.key, lazy.version) == (f"{ns}/x", put.version)
    assert (lazy.shape, lazy.ndim, lazy.dtype, lazy.nbytes) == ((4, 5, 6), 3, array.dtype, array.nbytes)
    assert lazy.axes == ("a", "b", "c")
    assert len(lazy) == 4
    for index in [
        ...,
        0,
        -1,
        (slice(1, 3), ..., slice(None, None, 2)),
        (slice(None, None, -1), 2),
        (..., slice(4, 1, -2)),
        (1, 2, 3),
        (slice(3, 1), 0),
    ]:
        got, expected = lazy[index], array[index]
        assert np.shape(got) == expected.shape
        assert got.dtype == array.dtype
        assert np.array_equal(got, expected), index
    assert np.array_equal(np.asarray(lazy), array)
    for bad in (4, (0, 0, 0, 0), None, [0], array > 0):
        with pytest.raises(IndexError):
            lazy[bad]
    with pytest.raises(TypeError):
        list(lazy)


def test_a_lazy_tensor_keeps_to_its_version(sira: sira_store.Client, ns: str) -> None:
    sira.put(f"{ns}/x", np.zeros((4, 4)))
    lazy = sira.open(f"{ns}/x")
    assert np.array_equal(lazy[0], np.zeros(4))
    sira.put(f"{ns}/x", np.ones((4, 4)))
    for read in (lambda: lazy[0], lazy.numpy):
        with pytest.raises(sira_store.StaleVersionError):
            read()
    sira.delete(f"{ns}/x")
    with pytest.raises((sira_store.StaleVersionError, sira_store.NotFoundError)):
        lazy[0]


@pytest.mark.parametrize("dtype", samples.DTYPES)
def test_lazy_parts_of_every_type(sira: sira_store.Client, ns: str, dtype: str) -> None:
    array = samples.array(dtype, (4, 8, 12))
    sira.put(f"{ns}/x", array)
    lazy = sira.open(f"{ns}/x")
    assert samples.same(lazy[1:3, ::3, 4:], np.ascontiguousarray(array[1:3, ::3, 4:]))
    assert lazy[3, 7, 11].tobytes() == array[3, 7, 11].tobytes()


def test_what_is_not_there_is_a_key_error(sira: sira_store.Client, ns: str) -> None:
    for ask in (sira.get, sira.open, sira.info):
        with pytest.raises(KeyError) as caught:
            ask(f"{ns}/none")
        assert isinstance(caught.value, sira_store.NotFoundError)
        assert caught.value.code == "SIRA_NOT_FOUND"
        assert "none" in str(caught.value)
    assert not sira.exists(f"{ns}/none")
    assert not sira.delete(f"{ns}/none")


def test_delete(sira: sira_store.Client, ns: str) -> None:
    sira.put(f"{ns}/x", np.zeros(3))
    assert sira.exists(f"{ns}/x")
    assert sira.delete(f"{ns}/x")
    assert not sira.exists(f"{ns}/x")
    assert list(sira.scan(f"{ns}/")) == []
    assert sira.put(f"{ns}/x", np.ones(3)).created
    assert np.array_equal(sira.get(f"{ns}/x"), np.ones(3))


def test_scan_goes_through_all_pages_in_byte_order(sira: sira_store.Client, ns: str) -> None:
    names = [f"{ns}/{i:02}" for i in range(23)] + [f"{ns}/a", f"{ns}/a/b", f"{ns}/a-", f"{ns}/é", f"{ns}/模"]
    for i, name in enumerate(names):
        sira.put(name, np.full(i, i))
    sira.put(f"{ns}x/other", np.zeros(1))
    ordered = sorted(names, key=str.encode)
    for page in (1, 7, len(names), 10_000):
        found = list(sira.scan(f"{ns}/", page=page))
        assert [info.key for info in found] == ordered, page
    assert [info.shape for info in sira.scan(f"{ns}/0")] == [(i,) for i in range(10)]
    assert [info.key for info in sira.scan(f"{ns}/", after=f"{ns}/a", page=2)] == ordered[
        ordered.index(f"{ns}/a") + 1 :
    ]
    assert {info.key for info in sira.scan()} >= set(names)
    with pytest.raises(sira_store.InvalidError):
        list(sira.scan(page=0))


def test_expiry(sira: sira_store.Client, ns: str) -> None:
    sira.put(f"{ns}/x", np.zeros(3), ttl=1)
    sira.put(f"{ns}/y", np.zeros(3), ttl=3600)
    info = sira.info(f"{ns}/y")
    assert info.expires_ms is not None
    assert info.expires_ms - info.created_ms == 3_600_000
    while sira.exists(f"{ns}/x"):
        time.sleep(0.02)
    with pytest.raises(KeyError):
        sira.get(f"{ns}/x")
    assert [info.key for info in sira.scan(f"{ns}/")] == [f"{ns}/y"]
    assert sira.put(f"{ns}/x", np.ones(3), if_="absent").created


@pytest.mark.parametrize(
    "options, code",
    [
        ({"codec": "zip"}, "SIRA_UNKNOWN_CODEC"),
        ({"ttl": 0}, "SIRA_BAD_REQUEST"),
        ({"ttl": -1}, "SIRA_BAD_REQUEST"),
        ({"ttl": 0.5}, "SIRA_BAD_REQUEST"),
        ({"consistency": "maybe"}, "SIRA_BAD_REQUEST"),
        ({"if_": "present"}, "SIRA_BAD_REQUEST"),
        ({"axes": ["one"]}, "SIRA_BAD_"),
        ({"axes": "ab"}, "SIRA_BAD_"),
        ({"attributes": {str(i): "" for i in range(65)}}, "SIRA_BAD_"),
        ({"attributes": {"n": "x" * 4097}}, "SIRA_BAD_"),
    ],
    ids=str,
)
def test_bad_options_are_refused(
    sira: sira_store.Client, ns: str, options: dict[str, Any], code: str
) -> None:
    with pytest.raises(ValueError, match=code):
        sira.put(f"{ns}/x", np.zeros((2, 3)), **options)
    assert not sira.exists(f"{ns}/x")


def test_bad_ranges_are_refused(sira: sira_store.Client, ns: str) -> None:
    sira.put(f"{ns}/x", np.zeros((2, 3)), axes=["a", ""])
    for ranges in ({"b": (0, 1)}, {"a": (0, 3)}, {"1": (2, 1)}, {"a": (-1, 1)}, {"a": slice(0, 2, 2)}):
        with pytest.raises(ValueError, match="SIRA_BAD_"):
            sira.get(f"{ns}/x", ranges=ranges)


def test_an_out_that_does_not_fit(sira: sira_store.Client, ns: str) -> None:
    sira.put(f"{ns}/x", np.zeros((2, 3), "float32"))
    for out in (np.zeros((3, 2), "float32"), np.zeros((2, 3), "float64")):
        with pytest.raises(ValueError, match="out is"):
            sira.get(f"{ns}/x", out=out)
    with pytest.raises(ValueError, match="framework"):
        sira.get(f"{ns}/x", framework="jax")  # type: ignore[call-overload]


def test_stats_and_health(sira: sira_store.Client) -> None:
    assert isinstance(sira.stats(), dict)
    health = sira.health()
    assert health["status"] == "healthy"
    assert isinstance(health["version"], str)


def test_readers_see_one_whole_version_while_a_writer_replaces_it(server: Server, ns: str) -> None:
    key, shape, rounds = f"{ns}/x", (3, 700_001), 12
    stop = threading.Event()
    torn: list[Any] = []
    reads = [0, 0]

    def read(me: int) -> None:
        with sira_store.connect(server.url) as sira:
            while not stop.is_set():
                array = sira.get(key)
                if array.shape != shape or (array != array[0, 0]).any():
                    torn.append(array)
                reads[me] += 1

    with sira_store.connect(server.url) as sira:
        sira.put(key, np.zeros(shape, np.uint16))
        readers = [threading.Thread(target=read, args=(me,)) for me in range(2)]
        for reader in readers:
            reader.start()
        for value in range(1, rounds):
            sira.put(key, np.full(shape, value, np.uint16))
        while not all(reads):
            time.sleep(0.01)
        stop.set()
        for reader in readers:
            reader.join()
        assert not torn
        assert np.array_equal(sira.get(key), np.full(shape, rounds - 1, np.uint16))


def test_one_client_serves_many_threads(sira: sira_store.Client, ns: str) -> None:
    failures: list[BaseException] = []

    def work(me: int) -> None:
        try:
            for i in range(20):
                array = samples.array("float32", (me + 1, 1000 + i), seed=me * 100 + i)
                sira.put(f"{ns}/{me}", array)
                assert samples.same(sira.get(f"{ns}/{me}"), array)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


class TestTorch:
    """torch is optional, and so are its newest types."""

    @pytest.mark.parametrize("dtype", [name for name in samples.DTYPES if not name.startswith("float6")])
    def test_every_type_and_shape_round_trips(self, sira: sira_store.Client, ns: str, dtype: str) -> None:
        torch = pytest.importorskip("torch")
        kind = getattr(torch, "float4_e2m1fn_x2" if dtype == "float4_e2m1fn" else dtype, None)
        if kind is None:
            pytest.skip(f"torch {torch.__version__} has no {dtype}")

        def memory(tensor: Any) -> Any:
            return tensor.reshape(-1).view(torch.uint8)

        for shape in samples.SHAPES:
            if dtype == "float4_e2m1fn":
                shape = (*shape, 2)
            array = samples.array(dtype, shape)
            data = array.reshape(-1).view(np.uint8)
            if dtype == "float4_e2m1fn":
                data = data[0::2] | (data[1::2] << 4)
                tensor = torch.empty(*shape[:-1], 1, dtype=kind)
            else:
                tensor = torch.empty(shape, dtype=kind)
            memory(tensor).copy_(torch.from_numpy(data.copy()))
            sira.put(f"{ns}/x", tensor)
            assert samples.same(sira.get(f"{ns}/x"), array), shape
            back = sira.get(f"{ns}/x", framework="torch")
            assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(memory(back), memory(tensor)), shape
            out = torch.empty_like(tensor)
            assert sira.get(f"{ns}/x", out=out) is out
            assert torch.equal(memory(out), memory(tensor)), shape

    def test_layouts(self, sira: sira_store.Client, ns: str) -> None:
        torch = pytest.importorskip("torch")
        base = torch.arange(4 * 6 * 8, dtype=torch.bfloat16).reshape(4, 6, 8)
        for tensor in (base.permute(2, 0, 1), base[::2, 1:, ::3], base[1], base.clone().requires_grad_()):
            sira.put(f"{ns}/x", tensor)
            assert torch.equal(sira.get(f"{ns}/x", framework="torch"), tensor.detach())
            out = torch.empty(tuple(reversed(tensor.shape)), dtype=tensor.dtype)
            view = out.permute(*reversed(range(out.ndim)))
            sira.get(f"{ns}/x", out=view)
            assert torch.equal(view, tensor.detach())
        sira.put(f"{ns}/x", torch.from_numpy(np.empty((0, 3), "float32")))
        assert sira.get(f"{ns}/x").shape == (0, 3)
        conjugate = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64).conj()
        sira.put(f"{ns}/x", conjugate)
        assert np.array_equal(sira.get(f"{ns}/x"), np.array([1 - 2j, 3 + 4j], np.complex64))

    def test_contiguous_memory_is_neither_copied_out_nor_in(self) -> None:
        torch = pytest.importorskip("torch")
        tensor = torch.zeros(4, 5, dtype=torch.bfloat16)
        assert sira_store._client._arrays.outgoing(tensor).data.ctypes.data == tensor.data_ptr()
        target = sira_store._client._arrays.incoming("bfloat16", (4, 5), tensor, "numpy")
        assert target.buffer is not None
        assert target.buffer.ctypes.data == tensor.data_ptr()

    def test_lazy(self, sira: sira_store.Client, ns: str) -> None:
        torch = pytest.importorskip("torch")
        tensor = torch.arange(4 * 5 * 6, dtype=torch.float32).reshape(4, 5, 6)
        sira.put(f"{ns}/x", tensor, axes=["a", "", "c"])
        lazy = sira.open(f"{ns}/x", framework="torch")
        assert torch.equal(lazy[1:3, 2, ::2], tensor[1:3, 2, ::2])
        assert torch.equal(lazy[3, 4::-2, 1:], tensor[3, [4, 2, 0], 1:])
        assert torch.equal(lazy[1, ::-1, 0], tensor[1].flip(0)[:, 0])
        assert lazy[2:2].shape == (0, 5, 6)
        assert torch.equal(lazy.torch(), tensor)

    def test_what_torch_cannot_hold(self, sira: sira_store.Client, ns: str) -> None:
        torch = pytest.importorskip("torch")
        sira.put(f"{ns}/x", samples.array("float6_e2m3fn", (4,)))
        with pytest.raises(ValueError, match="float6_e2m3fn"):
            sira.get(f"{ns}/x", framework="torch")
        sira.put(f"{ns}/x", samples.array("float4_e2m1fn", (2, 3)))
        with pytest.raises(ValueError, match="pairs"):
            sira.get(f"{ns}/x", framework="torch")
        sira.put(f"{ns}/x", np.zeros((2, 3), "float32"))
        for out in (torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.float64)):
            with pytest.raises(ValueError, match="out is"):
                sira.get(f"{ns}/x", out=out)
        for tensor in (torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.complex128)):
            with pytest.raises(ValueError, match="SIRA_BAD_TENSOR"):
                sira.put(f"{ns}/x", tensor)
