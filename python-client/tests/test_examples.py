"""The examples do what they say, each in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from server import REPOSITORY, Server, program

EXAMPLES = REPOSITORY / "examples"


def run(example: str, **environment: str) -> str:
    """What an example prints; its own words where it fails. It gets none of the tests' SIRA_ variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SIRA_")}
    # As the tests do: the package of this checkout, whether or not it is installed.
    package = str(REPOSITORY / "python-client")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / example)],
        env={**inherited, "PYTHONPATH": package, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_plain_pyarrow(server: Server) -> None:
    out = run("plain_pyarrow.py", SIRA_URL=server.url)
    assert '"key":"example/plain"' in out
    assert out.endswith("float32 (2, 3, 4) the same\n")


def test_plain_pyarrow_has_about_ten_lines() -> None:
    code = (EXAMPLES / "plain_pyarrow.py").read_text().partition("client = ")[2]
    assert len(code.splitlines()) <= 12


# Whether torch is there is asked without importing it, which takes seconds.
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


@needs_torch
def test_past_key_values(server: Server) -> None:
    out = run("past_key_values.py", SIRA_URL=server.url)
    assert f"server {server.url}, " in out
    assert "fetched it, torch.bfloat16: bit for bit the same, and the model says the same" in out
    assert "of 31 blocks of the new prompt, the first 25 are known" in out
    assert "read 25 blocks into pages: bit for bit the same" in out
    assert out.endswith("done: all of it deleted\n")


@needs_torch
def test_past_key_values_starts_a_server_of_its_own() -> None:
    out = run("past_key_values.py", SIRA_BIN=str(program()))
    assert out.endswith("done: all of it deleted\n")


def test_every_example_is_in_the_table() -> None:
    table = (EXAMPLES / "README.md").read_text()
    rust = REPOSITORY / "crates" / "client" / "examples"
    for example in [*EXAMPLES.glob("*.py"), *rust.glob("*.rs")]:
        assert f"{example.name})" in table, f"examples/README.md lacks {example.name}"
