"""The admin port: health, readiness through a drain, and metrics that a parser of Prometheus accepts."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from pyarrow import flight

import sira_store
from server import REPOSITORY, Server, program

# The first tensor beyond 8 MiB finds no room.
SMALL = """
[storage.backends.rocksdb]
max_size = "8 MiB"
"""

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data", SMALL) as server:
        yield server


def ask(server: Server, path: str, method: str = "GET") -> tuple[int, str, Message]:
    request = urllib.request.Request(server.admin + path, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def ready(server: Server) -> tuple[int, dict[str, Any]]:
    status, body, _ = ask(server, "/readyz")
    return status, json.loads(body)


def metrics(server: Server) -> Samples:
    status, body, headers = ask(server, "/metrics")
    assert status == 200
    assert headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    families = text_string_to_metric_families(body)
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples), "a series twice"
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_three_paths_and_get_alone(own: Server) -> None:
    assert ask(own, "/healthz")[:2] == (200, "ok\n")
    assert ready(own) == (200, {"ready": True, "state": "serving", "backends": {"rocksdb": "healthy"}})
    for path in ("/", "/metrics/x", "/keys"):
        assert ask(own, path)[0] == 404
    for method in ("POST", "DELETE", "HEAD", "OPTIONS"):
        status, _, headers = ask(own, "/metrics", method)
        assert (status, headers["Allow"]) == (405, "GET")
    assert ask(own, "/" + "x" * 100_000)[0] in (414, 431)


def test_what_is_done_is_counted(own: Server) -> None:
    before = metrics(own)
    array = np.random.default_rng(0).standard_normal((1024, 1024), np.float32)
    with sira_store.connect(own.url) as sira:
        sira.put("secret/key", array, codec="zstd")
        for _ in range(3):
            assert np.array_equal(sira.get("secret/key"), array)
        assert sira.exists("secret/key")
        with pytest.raises(Exception, match="SIRA_NOT_FOUND"):
            sira.get("secret/none")
        with pytest.raises(Exception, match="SIRA_OUT_OF_SPACE"):
            sira.put("secret/large", np.random.default_rng(1).integers(0, 256, 16 << 20, np.uint8))
        assert len(list(sira.scan("secret/"))) == 1
        assert sira.delete("secret/key")
        stats = sira.stats()
    after = metrics(own)

    def grew(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert grew("sira_requests_total", operation="put", outcome="ok") == 1
    assert grew("sira_requests_total", operation="put", outcome="SIRA_OUT_OF_SPACE") == 1
    assert grew("sira_requests_total", operation="get", outcome="ok") == 3
    assert grew("sira_requests_total", operation="delete", outcome="ok") == 1
    assert grew("sira_request_seconds_count", operation="get", outcome="ok") == 3
    assert grew("sira_request_bytes_total", operation="put") == array.nbytes
    assert grew("sira_request_bytes_total", operation="get") == 3 * array.nbytes
    missed = [
        dict(labels)["operation"]
        for (name, labels), count in after.items()
        if name == "sira_requests_total" and ("outcome", "SIRA_NOT_FOUND") in labels and count
    ]
    assert missed in (["get"], ["lookup"]), "the client may look before it gets"
    assert grew("sira_backend_operations_total", backend="rocksdb", operation="put", outcome="ok") >= 2
    assert (
        grew("sira_backend_operations_total", backend="rocksdb", operation="put", outcome="out_of_space") >= 1
    )
    assert grew("sira_backend_bytes_total", backend="rocksdb", direction="in") > 0
    assert grew("sira_hot_hits_total", backend="rocksdb") == 3
    raw = grew("sira_chunk_raw_bytes_total", backend="rocksdb")
    stored = grew("sira_chunk_stored_bytes_total", backend="rocksdb")
    assert raw >= array.nbytes
    assert value(after, "sira_compression_ratio") == pytest.approx(raw / stored)
    assert value(after, "sira_hit_ratio") == 1
    assert value(after, "sira_tier_limit_bytes", tier="rocksdb", kind="rocksdb") == 8 << 20
    assert value(after, "sira_memory_ledger_limit_bytes") > 0
    assert value(after, "process_resident_memory_bytes") > 1 << 20
    assert value(after, "sira_build_info", version=sira_store.__version__) == 1
    assert "secret" not in ask(own, "/metrics")[1] + ask(own, "/readyz")[1]

    puts = stats["backends"]["rocksdb"]["operations"]["put"]
    assert puts["ok"] >= 2
    assert puts["failed"] >= 1
    assert puts["mean_ms"] > 0
    assert 0 < puts["p95_ms"] <= puts["p99_ms"]
    assert stats["hit_ratio"] == 1
    assert stats["compression_ratio"] == pytest.approx(raw / stored)


def test_every_metric_is_documented_and_nothing_else(own: Server) -> None:
    with sira_store.connect(own.url) as sira:
        sira.put("ns/a", np.zeros(100_000))
        sira.get("ns/a")
    there = {re.sub("_(bucket|count|sum)$", "", name) for name, _ in metrics(own)}
    table = (REPOSITORY / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE))
    assert documented == there


def test_a_draining_server_is_alive_but_not_ready(own: Server) -> None:
    rows = np.arange(2 * 65_536, dtype=np.int32).reshape(2, 65_536)
    schema = pa.schema([("tensor", pa.int32())], metadata={"sira.shape": "[2,65536]", "sira.dtype": "int32"})
    with flight.FlightClient(own.url) as client:
        writer, answer = client.do_put(flight.FlightDescriptor.for_path("ns", "slow"), schema)
        writer.write_batch(pa.record_batch([pa.array(rows[0])], schema=schema))
        deadline = time.monotonic() + 30
        # Memory is set aside once the put has begun; one that comes later is refused.
        while value(metrics(own), "sira_memory_ledger_used_bytes") == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(own.pid, signal.SIGTERM)
        while (state := ready(own))[0] == 200:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert (state[0], state[1]["ready"], state[1]["state"]) == (503, False, "draining")
        assert ask(own, "/healthz")[:2] == (200, "ok\n")
        assert value(metrics(own), "sira_serving") == 0
        writer.write_batch(pa.record_batch([pa.array(rows[1])], schema=schema))
        writer.done_writing()
        assert json.loads(answer.read().to_pybytes())["version"] == 1
        writer.close()
    assert own.wait() == 0


def test_a_backend_that_hangs_is_named_and_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        config = f"""
            [storage]
            default_backend = "bucket"
            record_backend = "rocksdb"
            [storage.backends.rocksdb]
            [storage.backends.bucket]
            kind = "object"
            url = "s3://bucket"
            options = {{ endpoint = "{endpoint}", allow_http = true }}
        """
        with Server(tmp_path / "data", config) as server:
            probe = threading.Thread(target=ready, args=(server,))
            probe.start()
            begun = time.monotonic()
            assert ask(server, "/healthz")[:2] == (200, "ok\n")
            assert time.monotonic() - begun < 1
            probe.join()
            status, state = ready(server)
            assert (status, state["ready"], state["state"]) == (503, False, "serving")
            assert state["backends"]["rocksdb"] == "healthy"
            assert state["backends"]["bucket"].startswith("unhealthy: no answer within")
            assert value(metrics(server), "sira_serving") == 1


def two_ports() -> tuple[int, socket.socket]:
    """A free port, and a socket that holds the one above it."""
    while True:
        taken = socket.create_server(("127.0.0.1", 0))
        below = taken.getsockname()[1] - 1
        try:
            socket.create_server(("127.0.0.1", below)).close()
        except OSError:
            taken.close()
        else:
            return below, taken


def test_the_port_is_chosen_or_off_or_gone_without(tmp_path: Path) -> None:
    with Server(tmp_path / "off", '[admin]\nlisten = "off"\n') as server:
        assert server.admin == ""
        with sira_store.connect(server.url) as sira:
            assert sira.health()
    below, taken = two_ports()
    with taken:
        address = f"127.0.0.1:{below + 1}"
        command = [
            str(program()),
            "serve",
            "--listen",
            f"127.0.0.1:{below}",
            "--data",
            str(tmp_path / "data"),
        ]
        chosen = subprocess.run([*command, "--admin", address], capture_output=True, text=True, timeout=60)
        assert chosen.returncode == 1
        assert f"admin: cannot listen on {address}" in chosen.stderr
        # Nobody chose it: the server goes on without.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
        finally:
            process.terminate()
            _, log = process.communicate(timeout=60)
        assert line == f"sira: listening on grpc://127.0.0.1:{below}\n"
        assert "no admin port" in log


def test_connections_are_few_and_short(own: Server) -> None:
    host, port = own.admin.removeprefix("http://").rsplit(":", 1)
    idle = [socket.create_connection((host, int(port))) for _ in range(80)]
    try:
        # They are cut off after 5 seconds, and who waits behind them is served.
        assert ask(own, "/healthz")[0] == 200
        idle[0].settimeout(30)
        assert b"200 OK" not in idle[0].recv(4096)
    finally:
        for connection in idle:
            connection.close()
