"""Lossy codecs through a server: one answer however it is asked, exact when asked for, and told by `info`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import run, with_fastavro
from numpy.typing import NDArray

import samples
import sira_store
from server import REPOSITORY, Server
from sira_store import connect

AXES = ("layer", "kv", "token", "head", "dim")


def values() -> NDArray[Any]:
    random = np.random.default_rng(1)
    return random.standard_normal((4, 2, 300, 2, 64), np.float32).astype(samples.DTYPES["bfloat16"])


def error(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    wanted32 = wanted.astype(np.float32)
    return float(np.sqrt(np.mean((found.astype(np.float32) - wanted32) ** 2) / np.mean(wanted32**2)))


def test_every_way_of_asking_gives_the_same_and_info_tells_how_good_it_is(
    sira: sira_store.Client, ns: str
) -> None:
    array = values()
    sira.put(f"{ns}/one", array, axes=AXES, codec="fp8")
    sira.put_many({f"{ns}/many": array}, axes=AXES, codec="fp8", consistency="weak")
    with sira.create(f"{ns}/made", array.shape, "bfloat16", axes=AXES, codec="fp8") as made:
        made.array[:] = array
    found = [sira.get(f"{ns}/{name}") for name in ("one", "one", "many", "made")]
    found += sira.get_many([f"{ns}/one", f"{ns}/many"])
    found += [sira.map(f"{ns}/made")]
    assert all(samples.same(other, found[0]) for other in found)
    assert not samples.same(found[0], array)
    info = sira.info(f"{ns}/one")
    assert (info.codec, info.lossy, info.derived_from_lossy) == ("fp8", True, False)
    for index, name in enumerate(("k", "v")):
        measured = error(found[0][:, index], array[:, index])
        assert info.relative_rmse[name] == pytest.approx(measured, rel=1e-3)
    assert info in list(sira.scan(f"{ns}/one"))


def test_exact_gets_miss_lossy_copies_until_an_exact_put(sira: sira_store.Client, ns: str) -> None:
    array, key = values(), f"{ns}/k"
    sira.put(key, array, codec="fp8")
    with pytest.raises(sira_store.NotFoundError):
        sira.get(key, exact=True)
    assert sira.get_many([key], exact=True) == [None]
    with pytest.raises(sira_store.AlreadyExistsError):
        sira.put(key, array, codec="fp8", if_="absent")
    assert not sira.put(key, array, if_="absent").created
    assert samples.same(sira.get(key, exact=True), array)
    # Kept as it is, but computed from lossy data.
    sira.put(key, array, derived_from_lossy=True)
    sira.put_many({f"{ns}/many": sira_store.Item({"k": array}, derived_from_lossy=True)})
    for marked in (key, f"{ns}/many"):
        assert sira.info(marked).derived_from_lossy
        assert sira.get_many([marked], exact=True) == [None]
    assert samples.same(sira.get(key), array)
    sira.set_namespace(ns, exact=True)
    assert not sira.exists(key)
    with pytest.raises(sira_store.UnsupportedError):
        sira.put(key, array, codec="fp8")
    sira.reset_namespace(ns)


def test_an_export_says_that_its_bytes_are_not_the_first_ones(
    server: Server, sira: sira_store.Client, ns: str, target: Server, tmp_path: Path
) -> None:
    array = values()
    sira.put(f"{ns}/exact", array)
    sira.put(f"{ns}/lossy", array, codec="fp8")
    file = tmp_path / "x.avro"
    run(server, "export", f"{ns}/", file)
    lossy = sira.get(f"{ns}/lossy")
    assert samples.same(with_fastavro(file)[f"{ns}/lossy"], lossy)
    run(target, "import", file)
    with connect(target.url) as there:
        assert samples.same(there.get(f"{ns}/exact", exact=True), array)
        with pytest.raises(sira_store.NotFoundError):
            there.get(f"{ns}/lossy", exact=True)
        info = there.info(f"{ns}/lossy")
        assert (info.codec, info.derived_from_lossy) == ("fp8", True)
        # What the codec had made of it once, it leaves as it is.
        assert samples.same(there.get(f"{ns}/lossy"), lossy)


def test_an_export_carries_the_calibrations_without_which_it_could_not_be_read(
    server: Server, sira: sira_store.Client, ns: str, target: Server, tmp_path: Path
) -> None:
    artefacts, codecs = {}, {}
    for stage, name in (
        ("kvtc:step=0.05", "store/golden/tiny.calib"),
        ("kvq:step=0.05", "codec/golden/kvq.calib"),
    ):
        content = np.fromfile(REPOSITORY / "crates" / name, np.uint8)
        digest = hashlib.sha256(content.tobytes()).hexdigest()
        artefacts[f"calibration/{digest}"] = content
        codecs[f"{ns}/{stage[:4]}1"] = codecs[f"{ns}/{stage[:4]}2"] = f"{stage}@{digest}"
        sira.put(f"calibration/{digest}", content)
    # A cache of the artefacts' model: two layers, two heads of eight values.
    array = np.random.default_rng(3).standard_normal((2, 2, 600, 2, 8), np.float32)
    array = array.astype(samples.DTYPES["bfloat16"])
    facts = {"rope": "half", "rope_theta": "10000", "rope_dim": "8"}
    for key, codec in codecs.items():
        sira.put(key, array, axes=AXES, attributes=facts, codec=codec)
    file = tmp_path / "x.avro"
    assert f"{len(codecs) + len(artefacts)} tensors" in run(server, "export", f"{ns}/", file)
    found = with_fastavro(file)
    assert set(found) == codecs.keys() | artefacts.keys()
    run(target, "import", file, "--prefix", "moved/")
    for key in codecs:
        sira.delete(key)
    # Nothing but the file is left of them, and a start that has read nothing yet.
    assert target.terminate() == 0
    with connect(target.restart().url) as there:
        for key, content in artefacts.items():
            assert samples.same(there.get(key), content)
            with pytest.raises(sira_store.InUseError):
                there.delete(key)
        for key, codec in codecs.items():
            moved = key.replace(f"{ns}/", "moved/")
            info = there.info(moved)
            assert (info.codec, info.lossy, info.derived_from_lossy) == (codec, True, True)
            got = there.get(moved)
            # The codec has been at it a second time. kvtc keeps of noise what its model could have made.
            assert error(got, found[key]) < 0.1
            assert error(got, array) < (0.1 if "kvq" in codec else 0.9)
            assert samples.same(there.get(moved), got)


def test_calibrations_lie_under_their_hash(sira: sira_store.Client) -> None:
    with pytest.raises(sira_store.InvalidError, match="SHA-256"):
        sira.put("calibration/mine", np.zeros(100, np.uint8))
    with pytest.raises(sira_store.InvalidError, match="SHA-256 of its bytes is"):
        sira.put(f"calibration/{'5f' * 32}", np.zeros(100, np.uint8))


def test_metrics_tell_of_codecs(sira: sira_store.Client, ns: str) -> None:
    sira.put(f"{ns}/x", values(), codec="planes+lz4")
    stats = sira.stats()
    assert stats["codecs"]["planes+lz4"]["encode"]["raw_bytes"] >= values().nbytes
    assert stats["coding"]["limit"] >= 1
