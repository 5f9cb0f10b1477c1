"""A large tensor in several streams: the endpoints of a FlightInfo, and `get(..., streams=)` over them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import flight

import sira_store

WHOLE = np.random.default_rng(4).standard_normal((40, 3, 50_000), np.float32)


@pytest.fixture
def key(sira: sira_store.Client, ns: str) -> str:
    sira.put(f"{ns}/x", WHOLE, axes=["layer", "kv", "place"])
    return f"{ns}/x"


def ask(plain: flight.FlightClient, key: str, **fields: Any) -> flight.FlightInfo:
    command = json.dumps({"v": 1, "key": key, **fields})
    return plain.get_flight_info(flight.FlightDescriptor.for_command(command))


def array(table: pa.Table, shape: tuple[int, ...]) -> NDArray[Any]:
    column = table.column(0).combine_chunks()
    return np.asarray(column.storage.flatten()).reshape(shape)


class TestEndpoints:
    # A chunk reaches over three of the forty layers.
    @pytest.mark.parametrize("count, given", [(1, 1), (2, 2), (7, 7), (64, 14)])
    def test_they_make_the_whole(self, plain: flight.FlightClient, key: str, count: int, given: int) -> None:
        info = ask(plain, key, endpoints=count)
        assert len(info.endpoints) == given
        assert info.ordered
        tables = [plain.do_get(endpoint.ticket).read_all() for endpoint in info.endpoints]
        assert np.array_equal(array(pa.concat_tables(tables), WHOLE.shape), WHOLE)
        said = [json.loads(endpoint.app_metadata) for endpoint in info.endpoints]
        assert [portion["rows"] for portion in said] == [len(table) for table in tables]
        ends = np.cumsum([portion["bytes"] for portion in said])
        assert [portion["offset"] for portion in said] == [0, *ends[:-1]]
        assert (ends[-1], sum(map(len, tables))) == (info.total_bytes, info.total_records)

    def test_by_threads(self, plain: flight.FlightClient, server: Any, key: str) -> None:
        def read(endpoint: flight.FlightEndpoint) -> pa.Table:
            with flight.FlightClient(server.url) as own:
                return own.do_get(endpoint.ticket).read_all()

        with ThreadPoolExecutor(4) as pool:
            tables = list(pool.map(read, ask(plain, key, endpoints=4).endpoints))
        assert np.array_equal(array(pa.concat_tables(tables), WHOLE.shape), WHOLE)

    def test_of_a_slice(self, plain: flight.FlightClient, key: str) -> None:
        info = ask(plain, key, endpoints=3, slice={"0": [5, 36], "place": [7, 1000]})
        tables = [plain.do_get(endpoint.ticket).read_all() for endpoint in info.endpoints]
        expected = WHOLE[5:36, :, 7:1000]
        assert len(tables) == 3
        assert np.array_equal(array(pa.concat_tables(tables), expected.shape), expected)

    def test_no_chunk_is_in_two(self, plain: flight.FlightClient, sira: sira_store.Client, ns: str) -> None:
        # Chunks of a few tokens reach over many layers.
        sira.put(f"{ns}/kv", WHOLE, axes=["layer", "kv", "token"])
        info = ask(plain, f"{ns}/kv", endpoints=8)
        assert 1 < len(info.endpoints) < 8
        assert np.array_equal(sira.get(f"{ns}/kv", streams=8), WHOLE)

    def test_they_are_of_one_version(
        self, plain: flight.FlightClient, sira: sira_store.Client, key: str
    ) -> None:
        info = ask(plain, key, endpoints=4)
        sira.put(key, WHOLE)
        with pytest.raises(pa.ArrowInvalid, match="SIRA_STALE"):
            plain.do_get(info.endpoints[3].ticket).read_all()

    def test_what_may_be_asked_for(self, plain: flight.FlightClient, key: str) -> None:
        for wrong in (0, 65, -1, "2"):
            with pytest.raises(pa.ArrowInvalid, match="SIRA_BAD_REQUEST"):
                ask(plain, key, endpoints=wrong)
        ticket = flight.Ticket(json.dumps({"v": 1, "key": key, "endpoints": 2}))
        with pytest.raises(pa.ArrowInvalid, match=r"SIRA_BAD_REQUEST.*get_flight_info"):
            plain.do_get(ticket).read_all()

    def test_what_cannot_be_cut_is_one(
        self, plain: flight.FlightClient, sira: sira_store.Client, ns: str
    ) -> None:
        for i, odd in enumerate([np.float32(3), np.zeros((0, 3)), np.zeros((1, 100)), np.zeros((3, 0))]):
            sira.put(f"{ns}/{i}", np.asarray(odd))
            assert len(ask(plain, f"{ns}/{i}", endpoints=4).endpoints) == 1
        sira.put(f"{ns}/parts", {"k": np.zeros((8, 8)), "v": np.ones((8, 8))})
        assert len(ask(plain, f"{ns}/parts", endpoints=4).endpoints) == 1
        assert len(ask(plain, f"{ns}/parts", endpoints=4, part="k").endpoints) == 4


class TestStreams:
    @pytest.mark.parametrize("streams", [1, 2, 5, 64])
    def test_get(self, sira: sira_store.Client, key: str, streams: int) -> None:
        assert np.array_equal(sira.get(key, streams=streams), WHOLE)
        out = np.empty_like(WHOLE)
        assert sira.get(key, out, streams=streams) is out
        assert np.array_equal(out, WHOLE)
        turned = np.empty(WHOLE.shape[::-1], np.float32).T
        assert np.array_equal(sira.get(key, turned, streams=streams), WHOLE)
        part = sira.get(key, ranges={"layer": (3, 30)}, streams=streams)
        assert np.array_equal(part, WHOLE[3:30])

    def test_of_little_and_of_parts(self, sira: sira_store.Client, ns: str) -> None:
        sira.put(f"{ns}/scalar", np.asarray(7))
        assert sira.get(f"{ns}/scalar", streams=4) == 7
        sira.put(f"{ns}/parts", {"k": np.zeros((8, 8)), "v": np.ones((8, 8))})
        assert list(sira.get(f"{ns}/parts", streams=4)) == ["k", "v"]
        with pytest.raises(sira_store.NotFoundError):
            sira.get(f"{ns}/none", streams=4)

    @pytest.mark.parametrize("streams", [0, 65, 1.5, True])
    def test_how_many(self, sira: sira_store.Client, key: str, streams: Any) -> None:
        with pytest.raises(sira_store.InvalidError, match="streams"):
            sira.get(key, streams=streams)

    def test_another_version_meanwhile(
        self, sira: sira_store.Client, key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        take, times = sira._connections.take, 1

        def put_first(count: int) -> list[flight.FlightClient]:
            nonlocal times
            if times:
                times -= 1
                sira.put(key, WHOLE + 1)
            return take(count)

        monkeypatch.setattr(sira._connections, "take", put_first)
        assert np.array_equal(sira.get(key, streams=4), WHOLE + 1)
        times = 2
        with pytest.raises(sira_store.StaleVersionError):
            sira.get(key, streams=4)
        version = sira.info(key).version
        times = 1
        with pytest.raises(sira_store.StaleVersionError):
            sira.get(key, streams=4, version=version)

    def test_one_stream_that_breaks_off_is_an_error_of_all(
        self, sira: sira_store.Client, key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connections = sira._connections.take(4)

        class Broken:
            def do_get(self, ticket: flight.Ticket, options: Any) -> Any:
                reader = connections[2].do_get(ticket, options)
                reader.cancel()
                return reader

        broken = [*connections[:2], Broken(), connections[3]]
        monkeypatch.setattr(sira._connections, "take", lambda count: broken[:count])
        with pytest.raises(sira_store.SiraError):
            sira.get(key, streams=4)
        monkeypatch.undo()
        assert np.array_equal(sira.get(key, streams=4), WHOLE)
