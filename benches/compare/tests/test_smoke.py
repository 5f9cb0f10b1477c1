"""The measurement itself, at one small size: every server that needs nothing but this repository."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

BENCHES = Path(__file__).resolve().parents[2]
PEERS = {"sira", "sira-rust", "sira-unix", "sira-host", "sira-map", "arrow", "canned", "raw", "raw-rust"}
if importlib.util.find_spec("sira_native") is not None:
    PEERS |= {"sira-native"}


def test_every_peer_of_the_repository_takes_part(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "compare", "--peers", ",".join(sorted(PEERS)), "--sizes", "64K"]
    command += [
        "--clients",
        "1,2",
        "--rounds",
        "1",
        "--seconds",
        "0.02",
        "--only",
        "cells",
        "--json",
        str(figures),
    ]
    environment = {**os.environ, "PYTHONPATH": str(BENCHES)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(figures.read_text())
    assert document["missing"] == {}
    assert set(document["peers"]) == PEERS
    # One client with warm and with fresh memory, two clients with one kind of it, and puts and gets. What is
    # mapped is only got.
    assert len(document["cells"]) == (len(PEERS) - 1) * 6 + 3
    for cell in document["cells"]:
        assert "error" not in cell, cell
        assert all(rate > 0 for rate in cell["gb_per_s"])
    for peer in PEERS:
        assert f"| {peer} " in done.stdout


def test_a_peer_that_cannot_start_is_named(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "compare", "--peers", "sira,arrow", "--sizes", "4K", "--clients", "1"]
    command += ["--rounds", "1", "--seconds", "0.01", "--only", "cells", "--json", str(figures)]
    environment = {**os.environ, "PYTHONPATH": str(BENCHES), "SIRA_BIN": str(tmp_path / "nothing")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(figures.read_text())
    assert list(document["missing"]) == ["sira"]
    assert {cell["peer"] for cell in document["cells"]} == {"arrow"}
    assert "sira did not take part" in done.stdout
