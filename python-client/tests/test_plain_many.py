"""Many keys as a plain Arrow Flight user has them: pyarrow, docs/wire.md, and no package of Sira's."""

from __future__ import annotations

import base64
import itertools
import json
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import flight

import samples

SCHEMA = pa.schema([pa.field("tensor", pa.uint8())])
COMMAND = flight.FlightDescriptor.for_command(b'{"v":1,"put_many":true}')


def act(client: flight.FlightClient, name: str, **body: Any) -> dict[str, Any]:
    (result,) = client.do_action(flight.Action(name, json.dumps({"v": 1, **body}).encode()))
    return json.loads(result.body.to_pybytes())


def put_many(
    client: flight.FlightClient, messages: Iterable[tuple[dict[str, Any] | bytes | None, bytes | None]]
) -> list[dict[str, Any]]:
    """Sends messages, each of metadata and bytes, either of which may be None; gives the results."""
    writer, reader = client.do_put(COMMAND, SCHEMA)
    try:
        for metadata, data in messages:
            if isinstance(metadata, dict):
                metadata = json.dumps(metadata).encode()
            if data is None:
                writer.write_metadata(metadata)
                continue
            batch = pa.record_batch([pa.array(np.frombuffer(data, np.uint8))], schema=SCHEMA)
            if metadata is None:
                writer.write_batch(batch)
            else:
                writer.write_with_metadata(batch, metadata)
        writer.done_writing()
        answer = reader.read()
    finally:
        writer.close()
    return json.loads(answer.to_pybytes())["results"]


def get_many(client: flight.FlightClient, **ticket: Any) -> tuple[list[dict[str, bytes]], dict[int, Any]]:
    """The bytes of each key's parts, and what was said of keys: headers of parts, or errors."""
    reader = client.do_get(flight.Ticket(json.dumps({"v": 1, **ticket})))
    found: list[dict[str, bytes]] = [{} for _ in ticket["keys"]]
    heard: dict[int, Any] = {}
    name = ""
    for chunk in reader:
        column = chunk.data.column(0) if chunk.data is not None else pa.array([], pa.uint8())
        body = column.to_numpy().tobytes()
        end = 0
        for segment in json.loads(chunk.app_metadata.to_pybytes())["segments"]:
            index = segment["index"]
            if "error" in segment:
                heard[index] = segment["error"]
                continue
            if "key" in segment:
                heard[index] = {**segment["key"], "headers": []}
            if "part" in segment:
                name = segment["part"].get("name", "data")
                found[index][name] = b""
                heard[index]["headers"].append(segment["part"])
            offset, size = segment["offset"], segment["bytes"]
            assert offset % 64 == 0
            assert end <= offset <= offset + size <= len(body)
            found[index][name] += body[offset : offset + size]
            end = offset + size
    return found, heard


def item(key: str, shape: list[int], **fields: Any) -> dict[str, Any]:
    return {"key": key, "parts": [{"dtype": "uint8", "shape": shape}], **fields}


def test_by_hand(plain: flight.FlightClient, ns: str) -> None:
    block = samples.array("bfloat16", (16, 8, 128), seed=1).tobytes()
    k = samples.array("float8_e4m3fn", (16, 8, 128), seed=2).tobytes()
    scale = samples.array("float32", (8,), seed=3).tobytes()
    announced = {
        "items": [
            {
                "key": f"{ns}/a",
                "parts": [
                    {"dtype": "bfloat16", "shape": [16, 8, 128], "axes": ["token", "head", "dim"]},
                ],
            },
            {
                "key": f"{ns}/b",
                "parts": [
                    {"name": "k", "dtype": "float8_e4m3fn", "shape": [16, 8, 128]},
                    {
                        "name": "k_scale",
                        "dtype": "float32",
                        "shape": [8],
                        "codec": "none",
                        "attributes": {"of": "k"},
                    },
                ],
                "ttl": 60,
                "consistency": "weak",
                "if": "absent",
            },
        ]
    }
    results = put_many(plain, [(announced, block + k + scale)])
    assert results == [{"key": f"{ns}/{n}", "version": 1, "created": True} for n in "ab"]
    found, heard = get_many(plain, keys=[f"{ns}/a", f"{ns}/b", f"{ns}/none"])
    assert found == [{"data": block}, {"k": k, "k_scale": scale}, {}]
    assert heard[0]["version"] == 1
    assert heard[0]["headers"] == announced["items"][0]["parts"]
    assert [(part["name"], part["dtype"], part["shape"]) for part in heard[1]["headers"]] == [
        ("k", "float8_e4m3fn", [16, 8, 128]),
        ("k_scale", "float32", [8]),
    ]
    assert heard[1]["headers"][1]["attributes"] == {"of": "k"}
    assert heard[2].startswith("SIRA_NOT_FOUND: ")
    found, heard = get_many(plain, keys=[f"{ns}/b", f"{ns}/a"], parts=["k_scale"])
    assert found[0] == {"k_scale": scale}
    assert "SIRA_" in heard[1]
    # One of them, plainly.
    reader = plain.do_get(flight.Ticket(json.dumps({"v": 1, "key": f"{ns}/b", "part": "k_scale"})))
    assert reader.read_all()["tensor"].to_numpy().tobytes() == scale
    with pytest.raises(pa.ArrowInvalid, match="SIRA_HAS_PARTS"):
        plain.do_get(flight.Ticket(f"{ns}/b")).read_all()
    # A FlightInfo's ticket is that of a get of many.
    info = plain.get_flight_info(flight.FlightDescriptor.for_path(f"{ns}/b"))
    entry = json.loads(info.app_metadata)
    assert (entry["dtype"], entry["shape"], len(entry["parts"])) == ("parts", [], 2)
    assert info.schema == SCHEMA or info.schema.field(0).type == pa.uint8()
    chunks = list(plain.do_get(info.endpoints[0].ticket))
    assert sum(len(chunk.data) for chunk in chunks if chunk.data is not None) >= len(k) + len(scale)
    # It demands what the descriptor does.
    descriptor = flight.FlightDescriptor.for_command(json.dumps({"v": 1, "key": f"{ns}/b", "exact": True}))
    ticket = json.loads(plain.get_flight_info(descriptor).endpoints[0].ticket.ticket)
    assert ticket == {"v": 1, "keys": [f"{ns}/b"], "exact": True}
    descriptor = flight.FlightDescriptor.for_command(
        json.dumps({"v": 1, "key": f"{ns}/b", "kv_spec": "0" * 64})
    )
    with pytest.raises(pa.ArrowKeyError, match="SIRA_NOT_FOUND"):
        plain.get_flight_info(descriptor)


def test_bytes_and_messages_are_cut_anywhere(plain: flight.FlightClient, ns: str) -> None:
    data = samples.array("uint8", (1000,)).tobytes()
    items = [item(f"{ns}/{i}", [size]) for i, size in enumerate((10, 0, 700, 90, 0, 200, 0))]
    # All announced before any byte; bytes cut where they happen to be; nothing behind the last.
    cuts = [0, 1, 5, 11, 11, 400, 799, 801, 1000]
    messages: list[Any] = [({"items": items}, None)]
    messages += [(None, data[start:end]) for start, end in itertools.pairwise(cuts)]
    assert len(put_many(plain, messages)) == 7
    found, _ = get_many(plain, keys=[entry["key"] for entry in items])
    assert b"".join(parts["data"] for parts in found) == data
    # Each announced with its own bytes, some in one message.
    messages = [({"items": items[:3]}, data[:500]), ({"items": items[3:]}, data[500:])]
    assert all(result["version"] == 2 for result in put_many(plain, messages))
    assert get_many(plain, keys=[entry["key"] for entry in items])[0] == found


def test_a_stream_that_ends_early_or_goes_on(plain: flight.FlightClient, ns: str) -> None:
    announced = {"items": [item(f"{ns}/a", [100]), item(f"{ns}/b", [100])]}
    for data in (b"", bytes(99), bytes(150), bytes(201)):
        with pytest.raises(pa.ArrowInvalid, match="SIRA_INCOMPLETE"):
            put_many(plain, [(announced, data)])
    assert not act(plain, "exists", key=f"{ns}/b")["exists"] or len(data) > 200
    with pytest.raises(pa.ArrowInvalid, match="SIRA_"):
        put_many(plain, [(None, bytes(10))])
    assert put_many(plain, []) == []


@pytest.mark.parametrize(
    "metadata",
    [
        b"{",
        b"[]",
        b'{"item":[]}',
        b'{"items":7}',
        b'{"items":[{"key":"ns/x"}]}',
        b'{"items":[{"key":"ns/x","parts":[{"dtype":"uint8","shape":[-1]}]}]}',
        b'{"items":[{"key":"ns/x","parts":[{"dtype":"uint8","shape":[1],"colour":"red"}]}]}',
        b"[" * 100_000,
        b'{"items":[' + b'{"key":"ns/x","parts":[{"dtype":"uint8","shape":[0]}]},' * 20_000 + b"]}",
    ],
    ids=lambda text: text[:40].decode(),
)
def test_metadata_that_is_not_what_the_page_says(plain: flight.FlightClient, metadata: bytes) -> None:
    with pytest.raises(pa.ArrowException, match="SIRA_"):
        put_many(plain, [(metadata, bytes(16))])


def test_items_that_cannot_be_stored_fail_alone(plain: flight.FlightClient, ns: str) -> None:
    wrong: list[Any] = [
        {"key": f"{ns}/parts", "parts": []},
        {"key": f"{ns}/name", "parts": [{"dtype": "uint8", "shape": [1], "name": "a/b"}]},
        {"key": f"{ns}/axes", "parts": [{"dtype": "uint8", "shape": [1], "axes": ["a", "b"]}]},
        {
            "key": f"{ns}/attributes",
            "parts": [{"dtype": "uint8", "shape": [1], "attributes": {"": "x" * 5000}}],
        },
        item(f"{ns}/spec", [1], kv_spec="xyz"),
        item(f"{ns}/if", [1], **{"if": "present"}),
        item(f"{ns}/ttl", [1], ttl=0),
        item("nokey", [1]),
    ]
    items = [item(f"{ns}/first", [1]), *wrong, item(f"{ns}/last", [1])]
    results = put_many(plain, [({"items": items}, b"f" + bytes(7) + b"l")])
    assert [result.get("error", "")[:5] for result in results] == ["", *["SIRA_"] * 8, ""]
    found = act(plain, "list", prefix=f"{ns}/")["entries"]
    assert [entry["key"] for entry in found] == [f"{ns}/first", f"{ns}/last"]
    assert get_many(plain, keys=[f"{ns}/first", f"{ns}/last"])[0] == [{"data": b"f"}, {"data": b"l"}]


def test_items_that_cannot_be_measured(plain: flight.FlightClient, ns: str) -> None:
    for part in (
        {"dtype": "float12", "shape": [1]},
        {"dtype": "float4_e2m1fn", "shape": [3]},
        {"dtype": "uint8", "shape": [1 << 40, 1 << 40]},
        {"dtype": "uint8", "shape": [1] * 65},
    ):
        with pytest.raises(pa.ArrowInvalid, match=r"SIRA_BAD_(TENSOR|REQUEST)"):
            put_many(plain, [({"items": [{"key": f"{ns}/x", "parts": [part]}]}, b"x")])
    with pytest.raises(pa.ArrowException, match="SIRA_"):
        put_many(plain, [({"items": [item(f"{ns}/x", [1 << 60])]}, b"x")])
    assert not act(plain, "exists", key=f"{ns}/x")["exists"]


def test_lookups_and_deletes(plain: flight.FlightClient, ns: str) -> None:
    put_many(plain, [({"items": [item(f"{ns}/{i}", [1]) for i in range(9)]}, bytes(9))])
    keys = [f"{ns}/{i}" for i in (0, 1, 10, 3, 4, 5, 6, 7, 8)]
    answer = act(plain, "exists_many", keys=keys)
    assert (answer["count"], answer["leading"], answer["cache"]) == (9, 2, False)
    assert base64.b64decode(answer["bitmap"]) == bytes([0b11111011, 0b1])
    answer = act(plain, "delete_many", keys=keys[:3])
    assert answer == {"deleted": 2, "missing": [f"{ns}/10"], "failed": []}
    dry = act(plain, "delete_prefix", prefix=f"{ns}/", dry_run=True)
    assert (dry["keys"], dry["bytes"], dry["failed"]) == (7, 7, [])
    assert act(plain, "delete_prefix", prefix=f"{ns}/")["keys"] == 7


def key_list(keys: list[bytes], options: bytes = b"") -> bytes:
    """A list of keys in binary form."""
    lengths = struct.pack(f"<{len(keys)}H", *map(len, keys))
    return struct.pack("<4sII", b"\0SK\1", len(keys), len(options)) + options + b"".join(keys) + lengths


def raw(plain: flight.FlightClient, action: str, body: bytes) -> dict[str, Any]:
    (result,) = plain.do_action(flight.Action(action, body))
    return dict(json.loads(result.body.to_pybytes()))


def test_binary_lists_of_keys(plain: flight.FlightClient, ns: str) -> None:
    put_many(plain, [({"items": [item(f"{ns}/{i}", [1]) for i in ("a", "é")]}, bytes(2))])
    keys = [f"{ns}/{i}" for i in ("a", "b", "é")]
    body = key_list([key.encode() for key in keys])
    assert raw(plain, "exists_many", body) == act(plain, "exists_many", keys=keys)
    demand = b'{"kv_spec":"' + b"0f" * 32 + b'"}'
    assert raw(plain, "exists_many", key_list([keys[0].encode()], demand))["leading"] == 0
    # Large ones go another way through the server.
    many = [f"{ns}/{'x' * 500}{i}".encode() for i in range(2000)] + [keys[0].encode()]
    assert raw(plain, "exists_many", key_list(many))["count"] == 2001
    assert raw(plain, "exists_many", key_list([]))["count"] == 0
    for wrong in (
        body[:-1],
        body + b"x",
        body[:4],
        b"\0XY" + body[3:],
        key_list([b"ns/\xff"]),
        key_list([b"ns"]),
    ):
        with pytest.raises(pa.ArrowInvalid, match="SIRA_BAD_"):
            raw(plain, "exists_many", wrong)
    with pytest.raises(pa.ArrowInvalid, match="a delete takes none"):
        raw(plain, "delete_many", key_list([keys[0].encode()], demand))
    assert raw(plain, "delete_many", body) == {"deleted": 2, "missing": [keys[1]], "failed": []}


def test_bad_tickets(plain: flight.FlightClient, ns: str) -> None:
    for ticket in (
        {"keys": ["nokey"]},
        {"keys": [f"{ns}/a"], "parts": ["a/b"]},
        {"keys": [f"{ns}/a"], "kv_spec": "xyz"},
        {"keys": [f"{ns}/a"], "slice": {"0": [0, 1]}},
        {"keys": f"{ns}/a"},
        {"keys": [f"{ns}/a"] * 65_537},
    ):
        with pytest.raises(pa.ArrowInvalid, match="SIRA_BAD_"):
            plain.do_get(flight.Ticket(json.dumps({"v": 1, **ticket}))).read_all()
    assert plain.do_get(flight.Ticket(b'{"v":1,"keys":[]}')).read_all().num_rows == 0
