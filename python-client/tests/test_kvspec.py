"""KV specs: what constructors make, and what the server makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import samples
import sira_store
from server import Server
from sira_store import Item, KvField, KvPart, KvSpec, PutResult, Rope

SIZES: dict[str, Any] = {"block_tokens": 16, "kv_heads": 8, "head_dim": 128}
NHD = KvSpec.nhd("meta-llama/Llama-3.1-8B", dtype="bfloat16", **SIZES)
LATENT = [("latent", "float8_e4m3fn", 512), ("scale", "float32", 4), ("rope", "bfloat16", 64)]
SPECS = {
    "nhd": NHD,
    "hnd": KvSpec.hnd("m", dtype="float16", leading={"layer": 2}, heads=(0, 8), layers=(4, 6), **SIZES),
    "fp8": KvSpec.nhd("m", dtype="float8_e4m3fn", scales=["head"], **SIZES),
    "paged": KvSpec.paged("m", dtype="bfloat16", revision="d04e592", block_hash="sha256_cbor", **SIZES),
    "paged-fp8": KvSpec.paged("m", dtype="float8_e5m2", scales=[], blocks=3, **SIZES),
    "packed": KvSpec.packed("m", dtype="float16", adapter="größe", **SIZES),
    "latent": KvSpec.latent("deepseek", block_tokens=64, fields=LATENT),
    "window": replace(NHD, state="window", window=4096),
    "rope": replace(NHD, rope=Rope(500000.0, 128, scaling={"rope_type": "llama3", "factor": 8.0})),
    "gpt-j": replace(NHD, rope=Rope(10000.0, 64, style="interleaved", first_position=7)),
    "recurrent": KvSpec(
        model="mamba",
        block_tokens=1,
        state="recurrent",
        layers=(0, 24),
        parts=(KvPart("float32", ("layer", "state")),),
    ),
    "opaque": KvSpec.latent("m", block_tokens=1, fields=[("x", None, 7)], leading={"block": None}),
}


def tensors(spec: KvSpec, seed: int = 0) -> dict[str, Any]:
    """What follows a spec."""
    return {
        part.name: samples.array(
            part.dtype, tuple(extent or 2 for extent in part.shape or [None] * len(part.axes)), seed
        )
        for part in spec.parts
    }


def test_layouts() -> None:
    assert [part.name for part in NHD.parts] == ["k", "v"]
    assert (NHD.parts[0].axes, NHD.parts[0].shape) == (("token", "head", "dim"), (16, 8, 128))
    hnd = SPECS["hnd"].parts[1]
    assert (hnd.axes, hnd.shape) == (("layer", "head", "token", "dim"), (2, 8, 16, 128))
    assert [(part.name, part.dtype, part.shape) for part in SPECS["fp8"].parts[2:]] == [
        ("k_scale", "float32", (8,)),
        ("v_scale", "float32", (8,)),
    ]
    paged = SPECS["paged"].parts[0]
    assert (paged.axes, paged.shape) == (("block", "kv", "token", "head", "dim"), (None, 2, 16, 8, 128))
    assert [(part.name, part.shape) for part in SPECS["paged-fp8"].parts] == [
        ("data", (3, 2, 16, 8, 128)),
        ("data_scale", ()),
    ]
    packed = SPECS["packed"].parts[0]
    assert packed.shape == (16, 8, 256)
    assert packed.fields == (KvField("k", "dim", 0, 128), KvField("v", "dim", 128, 128))
    latent = SPECS["latent"].parts[0]
    assert (latent.dtype, latent.shape) == ("uint8", (64, 656))
    assert latent.fields[1] == KvField("scale", "record", 512, 16, "float32")
    with pytest.raises(KeyError, match="row"):
        KvSpec.nhd("m", dtype="uint8", scales=["row"], **SIZES)
    with pytest.raises(ValueError, match="float12"):
        KvSpec.latent("m", block_tokens=1, fields=[("x", "float12", 1)])


@pytest.mark.parametrize("name", SPECS)
def test_a_registered_spec_comes_back_as_it_was(sira: sira_store.Client, name: str) -> None:
    spec = SPECS[name]
    hash = sira.register_spec(spec)
    assert len(hash) == 64
    assert sira.kv_spec(hash) == spec
    assert sira.register_spec(spec) == hash
    assert KvSpec.from_json(spec.to_json()) == spec


def test_hashes_differ(sira: sira_store.Client) -> None:
    assert len({sira.register_spec(spec) for spec in SPECS.values()}) == len(SPECS)


@pytest.mark.parametrize("name", SPECS)
def test_blocks_follow_their_spec(sira: sira_store.Client, ns: str, name: str) -> None:
    spec = SPECS[name]
    given = tensors(spec)
    one = len(given) == 1
    key, value = f"{ns}/x", given["data"] if one else given
    sira.put(key, value, spec=spec)
    hash = sira.register_spec(spec)
    info = sira.info(key)
    assert info.kv_spec == hash
    assert (info.axes if one else info.parts[0].axes) == spec.parts[0].axes
    other = sira.register_spec(replace(spec, model="other"))
    for demanded in (spec, hash):
        got = sira.get(key, spec=demanded)
        assert all(samples.same({"data": got}[n] if one else got[n], given[n]) for n in given)
        assert sira.exists(key, spec=demanded)
        assert sira.exists_many([key, f"{ns}/none"], spec=demanded).leading == 1
        assert sira.get_many([key], spec=demanded)[0] is not None
    with pytest.raises(sira_store.NotFoundError):
        sira.get(key, spec=other)
    assert not sira.exists(key, spec=other)
    assert sira.exists_many([key], spec=other).leading == 0
    assert sira.get_many([key], spec=other) == [None]
    # A tensor without a spec follows none.
    sira.put(key, value)
    with pytest.raises(sira_store.NotFoundError):
        sira.get(key, spec=spec)
    assert not sira.exists(key, spec=spec)


def test_what_does_not_follow_its_spec_is_refused(sira: sira_store.Client, ns: str) -> None:
    spec = SPECS["fp8"]
    good = tensors(spec)
    for wrong in (
        {name: good[name] for name in ("k", "v", "k_scale")},
        {**good, "w": good["k"]},
        {**good, "k": good["k"].view(np.uint8)},
        {**good, "k": good["k"][:8]},
        {**good, "k": good["k"][0]},
    ):
        with pytest.raises(sira_store.InvalidError, match="SIRA_BAD_TENSOR"):
            sira.put(f"{ns}/x", wrong, spec=spec)
        (result,) = sira.put_many({f"{ns}/x": wrong}, spec=spec)
        assert isinstance(result, sira_store.InvalidError)
    with pytest.raises(sira_store.InvalidError, match="SIRA_BAD_TENSOR"):
        sira.put(f"{ns}/x", good["k"], spec=spec)
    with pytest.raises(sira_store.InvalidError, match="SIRA_BAD_TENSOR"):
        sira.put(f"{ns}/x", good, axes={"k": ["head", "token", "dim"]}, spec=spec)
    assert not sira.exists(f"{ns}/x")


def test_specs_of_many(sira: sira_store.Client, ns: str) -> None:
    spec, other = SPECS["nhd"], SPECS["packed"]
    items: dict[str, Any] = {f"{ns}/{i}": tensors(spec, seed=i) for i in range(20)}
    items[f"{ns}/other"] = Item(tensors(other), spec=other)
    items[f"{ns}/none"] = Item(np.zeros(3), spec="0" * 64)
    results = sira.put_many(items, spec=spec)
    assert all(isinstance(result, PutResult) for result in results[:21])
    assert isinstance(results[21], sira_store.UnknownKvSpecError)
    got = sira.get_many(items, spec=spec)
    assert [block is not None for block in got] == [True] * 20 + [False] * 2
    assert samples.same(got[7]["v"], items[f"{ns}/7"]["v"])


def test_unknown_and_wrong_hashes(sira: sira_store.Client, ns: str) -> None:
    with pytest.raises(sira_store.UnknownKvSpecError) as caught:
        sira.put(f"{ns}/x", np.zeros(3), spec="0" * 64)
    assert caught.value.code == "SIRA_UNKNOWN_KV_SPEC"
    with pytest.raises(sira_store.UnknownKvSpecError):
        sira.kv_spec("0" * 64)
    for ask in (sira.kv_spec, lambda hash: sira.put(f"{ns}/x", np.zeros(3), spec=hash)):
        with pytest.raises(sira_store.InvalidError):
            ask("xyz")
    with pytest.raises(sira_store.InvalidError):
        sira.register_spec(KvSpec(model="", block_tokens=1, parts=()))


def test_a_server_that_lost_a_spec_is_told_again(tmp_path: Path) -> None:
    spec = SPECS["nhd"]
    with Server(tmp_path / "one") as one, Server(tmp_path / "two") as two:
        with sira_store.connect(one.url, lookup_deadline=None) as before:
            hash = before.register_spec(spec)
        with sira_store.connect(two.url, lookup_deadline=None) as sira:
            # As if registered there before the folder was lost.
            sira._kv_specs[sira_store._wire.dumps(spec.to_json())] = hash
            sira.put("ns/x", tensors(spec), spec=spec)
            assert sira.info("ns/x").kv_spec == hash
        (tmp_path / "three").mkdir()
    with Server(tmp_path / "three") as three, sira_store.connect(three.url) as sira:
        sira._kv_specs[sira_store._wire.dumps(spec.to_json())] = hash
        results = sira.put_many({f"ns/{i}": tensors(spec) for i in range(3)}, spec=spec)
        assert [type(result) for result in results] == [PutResult] * 3
        assert sira.exists_many([f"ns/{i}" for i in range(3)], spec=spec, deadline=None).leading == 3


def test_specs_survive_a_restart(tmp_path: Path) -> None:
    spec = SPECS["rope"]
    with Server(tmp_path / "data") as server:
        with sira_store.connect(server.url) as sira:
            sira.put("ns/x", tensors(spec), spec=spec, consistency="strong")
            hash = sira.register_spec(spec)
        server.kill()
        server.restart()
        with sira_store.connect(server.url) as sira:
            assert sira.kv_spec(hash) == spec
            assert samples.same(sira.get("ns/x", spec=hash)["k"], tensors(spec)["k"])
