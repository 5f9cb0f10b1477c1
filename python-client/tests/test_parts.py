"""Keys of several parts, against a server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import samples
import sira_store
from sira_store import Item, PutResult


def parts() -> dict[str, Any]:
    """fp8 values with their scales, and more."""
    return {
        "k": samples.array("float8_e4m3fn", (16, 8, 128), seed=1),
        "v": samples.array("float8_e4m3fn", (16, 8, 128), seed=2),
        "k_scale": samples.array("float32", (8,), seed=3),
        "count": np.array(7, np.int32),
        "none": np.empty((0, 3), np.float16),
    }


def all_same(left: Any, right: Any) -> bool:
    return left.keys() == right.keys() and all(samples.same(left[name], right[name]) for name in right)


def test_parts_go_and_come_together(sira: sira_store.Client, ns: str) -> None:
    key, given = f"{ns}/x", parts()
    put = sira.put(key, given)
    assert (put.key, put.created) == (key, True)
    assert all_same(sira.get(key), given)
    assert list(sira.get(key, parts=["v", "k_scale"])) == ["v", "k_scale"]
    assert all_same(sira.get(key, parts=["v"]), {"v": given["v"]})
    (many,) = sira.get_many([key])
    assert all_same(many, given)
    (many,) = sira.get_many([key], parts=["count"])
    assert all_same(many, {"count": given["count"]})
    with pytest.raises(KeyError, match="SIRA_NOT_FOUND"):
        sira.get(key, parts=["k", "w"])
    assert sira.get_many([key], parts=["w"]) == [None]


def test_parts_into_memory_of_the_caller(sira: sira_store.Client, ns: str) -> None:
    key, given = f"{ns}/x", parts()
    sira.put(key, given)
    out = {name: np.empty_like(array) for name, array in given.items()}
    got = sira.get(key, out)
    assert all(got[name] is out[name] for name in out)
    assert all_same(out, given)
    # Of some parts only; the others are new.
    some = {"v": np.empty_like(given["v"])}
    got = sira.get(key, some)
    assert got["v"] is some["v"]
    assert all_same(got, given)
    got = sira.get(key, some, parts=["v", "k"])
    assert got["v"] is some["v"]
    assert list(got) == ["v", "k"]
    for wrong in ({"w": some["v"]}, {"k": np.empty(3)}, some["v"]):
        with pytest.raises(sira_store.InvalidError):
            sira.get(key, wrong)


def test_each_part_has_options_of_its_own(sira: sira_store.Client, ns: str) -> None:
    key, given = f"{ns}/x", parts()
    sira.put(
        key,
        given,
        axes={"k": ["token", "head", "dim"], "k_scale": ["head"]},
        codec={"k": "none", "v": "zstd:3"},
        attributes={"k_scale": {"of": "k"}},
        ttl=60,
    )
    info = sira.info(key)
    assert (info.dtype, info.shape, info.axes) == ("parts", (), ())
    assert info.nbytes == sum(array.nbytes for array in given.values())
    assert [part.name for part in info.parts] == list(given)
    k, v, scale = info.parts[:3]
    assert (k.dtype, k.shape, k.axes) == ("float8_e4m3fn", (16, 8, 128), ("token", "head", "dim"))
    assert (k.nbytes, k.attributes) == (16384, {})
    assert (v.axes, scale.axes, scale.attributes) == (("", "", ""), ("head",), {"of": "k"})
    assert info.expires_ms is not None
    assert next(sira.scan(key)) == info
    sira.put(key, given, codec="lz4")
    for wrong in ({"axes": ["token"]}, {"axes": {"w": ["token"]}}, {"codec": {"w": "lz4"}}):
        with pytest.raises(sira_store.InvalidError):
            sira.put(key, given, **wrong)
    for wrong in ({"axes": {"data": ["a"]}}, {"codec": {"data": "lz4"}}):
        with pytest.raises(sira_store.InvalidError):
            sira.put(key, given["k_scale"], **wrong)


def test_all_or_none(sira: sira_store.Client, ns: str) -> None:
    key, given = f"{ns}/x", parts()
    first = sira.put(key, {"k": given["k"]})
    with pytest.raises(sira_store.AlreadyExistsError):
        sira.put(key, given, if_="absent")
    with pytest.raises(sira_store.StaleVersionError):
        sira.put(key, given, if_=first.version + 5)
    with pytest.raises(sira_store.InvalidError):
        sira.put(key, {**given, "bad/name": np.zeros(1)})
    with pytest.raises(sira_store.InvalidError):
        sira.put(key, {})
    with pytest.raises(sira_store.InvalidError):
        sira.put(key, {str(i): np.zeros(1) for i in range(65)})
    assert samples.same(sira.get(key), given["k"])
    sira.put(key, given, if_=first.version)
    assert all_same(sira.get(key), given)


def test_one_tensor_is_the_part_data(sira: sira_store.Client, ns: str) -> None:
    key, array = f"{ns}/x", samples.array("float16", (4, 6))
    sira.put(key, array)
    assert all_same(sira.get(key, parts=["data"]), {"data": array})
    assert samples.same(sira.open(key, part="data")[1:3], array[1:3])
    # One part of another name is given as the tensor it is.
    sira.put(key, {"k": array})
    assert samples.same(sira.get(key), array)
    assert samples.same(sira.get_many([key])[0], array)
    assert all_same(sira.get_many([key], [{"k": np.empty_like(array)}])[0], {"k": array})
    # And the other way round: parts replaced by a tensor.
    sira.put(key, {"k": array, "v": array})
    sira.put(key, array)
    assert samples.same(sira.get(key), array)
    assert sira.info(key).parts == ()


def test_versions(sira: sira_store.Client, ns: str) -> None:
    key, given = f"{ns}/x", parts()
    put = sira.put(key, given)
    assert all_same(sira.get(key, version=put.version), given)
    for ask in ({}, {"parts": ["k"]}):
        with pytest.raises(sira_store.StaleVersionError):
            sira.get(key, version=put.version + 1, **ask)


def test_ranges_of_a_part(sira: sira_store.Client, ns: str) -> None:
    key, given = f"{ns}/x", parts()
    sira.put(key, given, axes={"k": ["token", "head", "dim"]})
    lazy = sira.open(key, part="k")
    assert (lazy.part, lazy.shape, lazy.axes) == ("k", (16, 8, 128), ("token", "head", "dim"))
    assert lazy.nbytes == 16384
    assert samples.same(lazy[2:5, 1, ::-1], np.ascontiguousarray(given["k"][2:5, 1, ::-1]))
    assert samples.same(lazy.numpy(), given["k"])
    assert samples.same(sira.open(key, part="v")[-1], given["v"][-1])
    with pytest.raises(sira_store.HasPartsError, match="k, v, k_scale"):
        sira.open(key)
    with pytest.raises(KeyError, match="no part 'w'"):
        sira.open(key, part="w")
    with pytest.raises(sira_store.HasPartsError):
        sira.get(key, ranges={"token": (0, 1)})
    with pytest.raises(sira_store.InvalidError):
        sira.get(key, ranges={"token": (0, 1)}, parts=["k"])  # type: ignore[call-overload]
    sira.put(key, given)
    with pytest.raises(sira_store.StaleVersionError):
        lazy.numpy()


def test_parts_larger_than_a_message_among_many_keys(sira: sira_store.Client, ns: str) -> None:
    items: dict[str, Any] = {}
    for i in range(6):
        items[f"{ns}/{i}"] = {
            "small": samples.array("int16", (i,), seed=i),
            "large": samples.array("uint8", (1_500_000 * i,), seed=i),
            "medium": samples.array("bfloat16", (100, 1000), seed=i),
        }
        items[f"{ns}/one-{i}"] = Item(samples.array("float64", (10,), seed=i), axes=["a"])
    results = sira.put_many(items, codec="none")
    assert all(isinstance(result, PutResult) for result in results)
    for (key, item), got in zip(items.items(), sira.get_many(items), strict=True):
        if isinstance(item, Item):
            assert samples.same(got, item.tensors), key
        else:
            assert all_same(got, item), key


@pytest.mark.parametrize("dtype", samples.DTYPES)
def test_every_type_as_a_part(sira: sira_store.Client, ns: str, dtype: str) -> None:
    given = {
        str(i): samples.array(dtype, shape if samples.fits(dtype, shape) else (*shape, 4), seed=i)
        for i, shape in enumerate(samples.SHAPES)
    }
    sira.put(f"{ns}/x", given)
    assert all_same(sira.get(f"{ns}/x"), given)


def test_torch(sira: sira_store.Client, ns: str) -> None:
    torch = pytest.importorskip("torch")
    given = {"k": torch.ones(3, 4, dtype=torch.bfloat16), "v": torch.zeros(2)}
    sira.put(f"{ns}/x", given)
    back = sira.get(f"{ns}/x", framework="torch")
    assert all(torch.equal(back[name], given[name]) for name in given)
    out = {name: torch.empty_like(tensor) for name, tensor in given.items()}
    got = sira.get(f"{ns}/x", out)
    assert all(got[name] is out[name] and torch.equal(out[name], given[name]) for name in given)
    assert torch.equal(sira.open(f"{ns}/x", part="k", framework="torch")[1:], given["k"][1:])
