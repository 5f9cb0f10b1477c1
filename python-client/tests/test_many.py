"""Many keys in one round trip, against a server."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import samples
import sira_store
from sira_store import Item, PutResult, _wire


def stored(results: list[PutResult | sira_store.SiraError]) -> list[PutResult]:
    """Results that are all good."""
    errors = [result for result in results if not isinstance(result, PutResult)]
    assert not errors, errors[:3]
    return [result for result in results if isinstance(result, PutResult)]


def tensors(count: int = 200) -> list[Any]:
    """Small ones of all types and shapes."""
    found = []
    for i in range(count):
        dtype = list(samples.DTYPES)[i % len(samples.DTYPES)]
        shape = samples.SHAPES[i % len(samples.SHAPES)]
        found.append(samples.array(dtype, shape if samples.fits(dtype, shape) else (*shape, 4), seed=i))
    return found


class TestPutAndGet:
    def test_every_type_and_shape_round_trips(self, sira: sira_store.Client, ns: str) -> None:
        arrays = [
            samples.array(dtype, shape if samples.fits(dtype, shape) else (*shape, 4), seed=i)
            for dtype in samples.DTYPES
            for i, shape in enumerate(samples.SHAPES)
        ]
        keys = [f"{ns}/{i}" for i in range(len(arrays))]
        results = stored(sira.put_many(zip(keys, arrays, strict=True)))
        assert [(result.key, result.created) for result in results] == [(key, True) for key in keys]
        back = sira.get_many(keys)
        assert all(map(samples.same, back, arrays))
        out = [np.empty_like(array) for array in arrays]
        filled = sira.get_many(keys, out)
        assert all(a is b for a, b in zip(filled, out, strict=True))
        assert all(map(samples.same, out, arrays))
        # What was put as many is a tensor like any other, and the other way round.
        for key, array in zip(keys[::7], arrays[::7], strict=True):
            assert samples.same(sira.get(key), array)
            sira.put(key, array)
        assert all(map(samples.same, sira.get_many(keys), arrays))

    def test_keys_in_any_order_and_more_than_once(self, sira: sira_store.Client, ns: str) -> None:
        arrays = {f"{ns}/{i}": samples.array("float32", (i, 3), seed=i) for i in range(5)}
        stored(sira.put_many(arrays))
        keys = [f"{ns}/{i}" for i in (4, 0, 2, 2, 4, 1)]
        assert all(samples.same(got, arrays[key]) for got, key in zip(sira.get_many(keys), keys, strict=True))
        assert sira.get_many([]) == []
        assert sira.put_many({}) == []
        assert sira.put_many(iter(())) == []

    def test_misses_are_none(self, sira: sira_store.Client, ns: str) -> None:
        stored(sira.put_many({f"{ns}/{i}": np.full(100, i) for i in (1, 3)}))
        got = sira.get_many([f"{ns}/{i}" for i in range(5)])
        assert [None if array is None else int(array[0]) for array in got] == [None, 1, None, 3, None]
        out = [np.zeros(100, np.int64), np.zeros(100, np.int64), None]
        got = sira.get_many([f"{ns}/0", f"{ns}/1", f"{ns}/3"], out)
        assert got[0] is None
        assert got[1] is out[1]
        assert (got[1] == 1).all()
        assert (got[2] == 3).all()

    def test_the_later_of_two_counts(self, sira: sira_store.Client, ns: str) -> None:
        pairs = [(f"{ns}/x", np.full(50, 1)), (f"{ns}/y", np.full(50, 2)), (f"{ns}/x", np.full(7, 3))]
        results = stored(sira.put_many(pairs))
        assert [result.key for result in results] == [key for key, _ in pairs]
        assert np.array_equal(sira.get(f"{ns}/x"), np.full(7, 3))
        # Also where the first is by far the larger and takes longer to store.
        pairs = [(f"{ns}/x", np.zeros(3 << 20, np.uint8)), (f"{ns}/x", np.full(7, 4))]
        stored(sira.put_many(pairs))
        assert np.array_equal(sira.get(f"{ns}/x"), np.full(7, 4))

    def test_tensors_larger_than_a_message_among_small_ones(self, sira: sira_store.Client, ns: str) -> None:
        sizes = [10, 5_000_011, 0, 300_000, 4 << 20, 1, (4 << 20) + 1, 524_287, 524_288, 9_000_001, 3]
        arrays = {f"{ns}/{i}": samples.array("uint8", (size,), seed=i) for i, size in enumerate(sizes)}
        stored(sira.put_many(arrays))
        back = sira.get_many(arrays)
        assert all(map(samples.same, back, arrays.values()))
        out = [np.empty_like(array) for array in arrays.values()]
        sira.get_many(arrays, out)
        assert all(map(samples.same, out, arrays.values()))

    def test_ten_thousand_small_keys(self, sira: sira_store.Client, ns: str) -> None:
        keys = [f"{ns}/{i:05}" for i in range(10_000)]
        stored(sira.put_many(((key, np.array([i], np.int32)) for i, key in enumerate(keys)), ttl=600))
        got = sira.get_many(keys)
        assert [int(array[0]) for array in got] == list(range(10_000))
        found = sira.exists_many([*keys, f"{ns}/none"])
        assert found.leading == 10_000
        assert list(found) == [True] * 10_000 + [False]
        info = sira.info(keys[77])
        assert info.expires_ms is not None
        assert info.expires_ms - info.created_ms == 600_000

    def test_a_generator_is_read_one_at_a_time(self, sira: sira_store.Client, ns: str) -> None:
        living: list[weakref.ref[Any]] = []
        most = 0

        def pairs() -> Iterator[tuple[str, Any]]:
            nonlocal most
            for i in range(64):
                array = np.full(1 << 20, i, np.uint8)
                living.append(weakref.ref(array))
                yield f"{ns}/{i}", array
                del array
                gc.collect()
                most = max(most, sum(ref() is not None for ref in living))

        stored(sira.put_many(pairs()))
        assert most <= 16
        assert [int(array[-1]) for array in sira.get_many([f"{ns}/{i}" for i in range(64)])] == list(
            range(64)
        )

    def test_a_generator_that_raises_is_heard(self, sira: sira_store.Client, ns: str) -> None:
        def pairs() -> Iterator[tuple[str, Any]]:
            yield f"{ns}/0", np.zeros(2 << 20, np.uint8)
            raise FileNotFoundError("weights.bin")

        with pytest.raises(FileNotFoundError, match=r"weights\.bin"):
            sira.put_many(pairs())
        assert np.array_equal(sira.get_many([f"{ns}/1"]), [None])

    def test_layouts_that_are_not_contiguous(self, sira: sira_store.Client, ns: str) -> None:
        base = samples.array("bfloat16", (6, 8, 10))
        arrays = {f"{ns}/{i}": array for i, array in enumerate((base.T, base[::2, ::-1], base[1, 2]))}
        stored(sira.put_many(arrays))
        for got, array in zip(sira.get_many(arrays), arrays.values(), strict=True):
            assert samples.same(got, np.ascontiguousarray(array))
        out = np.empty(base.shape, base.dtype).T
        assert sira.get_many([f"{ns}/0"], [out])[0] is out
        assert samples.same(np.ascontiguousarray(out), np.ascontiguousarray(base.T))

    def test_torch(self, sira: sira_store.Client, ns: str) -> None:
        torch = pytest.importorskip("torch")
        given = {f"{ns}/{i}": torch.full((3, i), i, dtype=torch.bfloat16) for i in range(1, 5)}
        stored(sira.put_many(given))
        back = sira.get_many(given, framework="torch")
        assert all(map(torch.equal, back, given.values()))
        out = [torch.empty_like(tensor) for tensor in given.values()]
        filled = sira.get_many(given, out)
        assert all(a is b for a, b in zip(filled, out, strict=True))
        assert all(map(torch.equal, out, given.values()))


class TestFailures:
    def test_one_that_fails_does_not_stop_the_others(self, sira: sira_store.Client, ns: str) -> None:
        sira.put(f"{ns}/there", np.zeros(3))
        items: list[tuple[str, Any]] = [
            (f"{ns}/0", np.ones(3)),
            (f"{ns}/there", Item(np.ones(3), if_="absent")),
            (f"{ns}/1", np.array(["text"])),
            (f"{ns}/there", Item(np.ones(1 << 20), if_=4711)),
            (f"{ns}/2", Item(np.ones(3), codec="zip")),
            (f"{ns}/3", Item(np.ones(3), ttl=0)),
            (f"{ns}/4", Item(np.ones(3), axes=["a", "b"])),
            ("no-key", np.ones(300_000)),
            (f"{ns}/5", Item(np.ones(3), attributes={str(i): "" for i in range(65)})),
            (f"{ns}/6", Item(np.ones(3), if_="absent")),
        ]
        results = sira.put_many(items)
        codes = [None if isinstance(result, PutResult) else result.code for result in results]
        assert codes == [
            *(None, "SIRA_EXISTS", "SIRA_BAD_TENSOR", "SIRA_STALE", "SIRA_UNKNOWN_CODEC"),
            *("SIRA_BAD_REQUEST", "SIRA_BAD_TENSOR", "SIRA_BAD_KEY", "SIRA_BAD_TENSOR", None),
        ]
        assert isinstance(results[1], sira_store.AlreadyExistsError)
        assert np.array_equal(sira.get(f"{ns}/there"), np.zeros(3))
        assert [info.key for info in sira.scan(f"{ns}/")] == [f"{ns}/0", f"{ns}/6", f"{ns}/there"]

    def test_options_of_all_and_of_one(self, sira: sira_store.Client, ns: str) -> None:
        items = {
            f"{ns}/0": np.zeros((2, 3)),
            f"{ns}/1": Item(np.zeros((2, 3)), axes=["c", "d"], ttl=5, attributes={"n": "größe"}),
        }
        stored(sira.put_many(items, axes=["a", "b"], codec="zstd:3", ttl=60, consistency="strong"))
        zero, one = sira.info(f"{ns}/0"), sira.info(f"{ns}/1")
        assert (zero.axes, one.axes) == (("a", "b"), ("c", "d"))
        assert (zero.consistency, one.consistency) == ("strong", "strong")
        assert (zero.attributes, one.attributes) == ({}, {"n": "größe"})
        lives = [(info.expires_ms or 0) - info.created_ms for info in (zero, one)]
        assert lives == [60_000, 5_000]

    def test_an_out_that_does_not_fit(self, sira: sira_store.Client, ns: str) -> None:
        stored(sira.put_many({f"{ns}/{i}": np.full(4, i, np.float32) for i in range(3)}))
        keys = [f"{ns}/{i}" for i in range(3)]
        out = [np.zeros(4, np.float32), np.zeros(5, np.float32), np.zeros(4, np.float32)]
        with pytest.raises(sira_store.InvalidError, match="out is"):
            sira.get_many(keys, out)
        results = sira.get_many(keys, out, return_errors=True)
        assert isinstance(results[1], sira_store.InvalidError)
        assert not out[1].any()
        assert (out[2] == 2).all()
        read_only = np.zeros(4, np.float32)
        read_only.flags.writeable = False
        for wrong in (np.zeros(4, np.float64), np.zeros((2, 2), np.float32), read_only, {"data": out[1]}):
            with pytest.raises(sira_store.InvalidError):
                sira.get_many(keys[:1], [wrong])
        with pytest.raises(ValueError, match="2 entries for 3 keys"):
            sira.get_many(keys, out[:2])
        with pytest.raises(ValueError, match="list of keys"):
            sira.get_many(keys[0])
        with pytest.raises(ValueError, match="framework"):
            sira.get_many(keys, framework="jax")  # type: ignore[arg-type]

    def test_a_key_that_is_none_names_itself(self, sira: sira_store.Client, ns: str) -> None:
        for ask in (sira.get_many, sira.exists_many, sira.delete_many):
            with pytest.raises(sira_store.InvalidError, match="key 1"):
                ask([f"{ns}/a", "nokey"])


class TestLookups:
    def test_exists_many(self, sira: sira_store.Client, ns: str) -> None:
        stored(sira.put_many({f"{ns}/{i}": np.zeros(1) for i in (0, 1, 2, 4, 9, 17)}))
        found = sira.exists_many(f"{ns}/{i}" for i in range(20))
        assert found.exists.dtype == np.bool_
        assert [i for i, there in enumerate(found) if there] == [0, 1, 2, 4, 9, 17]
        assert (found.leading, len(found), found[4], found[3]) == (3, 20, True, False)
        assert found[:4] == [True, True, True, False]
        assert sira.exists_many([f"{ns}/3"]).leading == 0
        assert sira.exists_many([f"{ns}/1"] * 9).leading == 9
        empty = sira.exists_many([])
        assert (len(empty), empty.leading, list(empty)) == (0, 0, [])

    def test_lists_of_keys_are_packed_as_ever(self) -> None:
        golden = Path(__file__).parents[2] / "crates/wire/tests/golden/keys.hex"
        ((count, body),) = _wire.key_lists(["ns/a", "ns/…", "other/b:c"], "0f" * 32)
        assert (count, body) == (3, bytes.fromhex(golden.read_text()))
        assert list(_wire.key_lists([])) == []

    def test_what_cannot_be_packed_is_refused(self, sira: sira_store.Client, ns: str) -> None:
        for bad in ("x" * 70_000, f"{ns}/{'é' * 40_000}"):
            with pytest.raises(sira_store.InvalidError, match="SIRA_BAD_KEY: key 1"):
                sira.exists_many([f"{ns}/a", bad])
        for bad in (7, None, f"{ns}/\ud800"):
            with pytest.raises(sira_store.InvalidError, match="SIRA_BAD_REQUEST: keys"):
                sira.exists_many([f"{ns}/a", bad])  # type: ignore[list-item]

    @pytest.mark.parametrize("count, pad", [(65_540, ""), (10_000, "long" * 120)], ids=["keys", "bytes"])
    def test_more_than_a_request_takes(self, sira: sira_store.Client, ns: str, count: int, pad: str) -> None:
        sira.put(f"{ns}/x", np.zeros(1))
        keys = [f"{ns}/{pad}{i}" for i in range(count)]
        keys[3], keys[-1] = f"{ns}/x", f"{ns}/x"
        found = sira.exists_many(keys)
        assert np.flatnonzero(found.exists).tolist() == [3, count - 1]
        got = sira.get_many(keys)
        assert [i for i, array in enumerate(got) if array is not None] == [3, count - 1]
        assert sira.delete_many(keys).deleted == 1

    def test_delete_many(self, sira: sira_store.Client, ns: str) -> None:
        stored(sira.put_many({f"{ns}/{i}": np.zeros(1) for i in range(5)}))
        result = sira.delete_many([f"{ns}/1", f"{ns}/none", f"{ns}/3", f"{ns}/1"])
        assert result.deleted == 2
        assert sorted(result.missing) == [f"{ns}/1", f"{ns}/none"]
        assert result.failed == {}
        assert list(sira.exists_many([f"{ns}/{i}" for i in range(5)])) == [True, False, True, False, True]
        assert sira.delete_many([]).deleted == 0

    def test_delete_prefix(self, sira: sira_store.Client, ns: str) -> None:
        stored(sira.put_many({f"{ns}/s-1/{i}": np.zeros(8, np.uint8) for i in range(2500)}))
        stored(sira.put_many({f"{ns}/s-2/{i}": np.zeros(8, np.uint8) for i in range(5)}))
        dry = sira.delete_prefix(f"{ns}/s-1/", dry_run=True)
        assert (dry.keys, dry.nbytes, dry.failed) == (2500, 20_000, {})
        assert sira.exists(f"{ns}/s-1/0")
        assert sira.delete_prefix(f"{ns}/s-1/") == dry
        assert sira.delete_prefix(f"{ns}/s-1/").keys == 0
        assert len(list(sira.scan(f"{ns}/"))) == 5
        assert sira.delete_prefix(f"{ns}/").keys == 5
        for prefix in ("", ns):
            with pytest.raises(sira_store.InvalidError, match="namespace"):
                sira.delete_prefix(prefix)
