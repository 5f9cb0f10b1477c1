"""The wheel with the server: what is in it, and that a machine without Rust can use it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import sira_store
from server import REPOSITORY, Server, program

PUT_AND_GET = """
import sys, numpy as np, sira_store
assert sira_store.__file__.startswith(sys.prefix), sira_store.__file__
array = np.arange(24, dtype="float16").reshape(2, 3, 4)
with sira_store.connect(sys.argv[1]) as sira:
    sira.put("wheel/kv", array, axes=["layer", "token", "dim"])
    assert np.array_equal(sira.get("wheel/kv"), array)
    assert np.array_equal(sira.open("wheel/kv")[1:, :2], array[1:, :2])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel` makes of the program under test."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([REPOSITORY / "scripts" / "wheel.sh", program().resolve(), folder], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_it_holds_program_client_and_licences(wheel: Path) -> None:
    assert re.fullmatch(
        rf"sira_store-{re.escape(sira_store.__version__)}-py3-none-manylinux_2_\d+_[a-z0-9_]+\.whl",
        wheel.name,
    )
    with zipfile.ZipFile(wheel) as archive:
        sizes = {
            re.sub(r"^sira_store-[^/]+\.", "", info.filename): info.file_size for info in archive.infolist()
        }
        licences = archive.read(next(name for name in archive.namelist() if "THIRD-PARTY" in name)).decode()
    assert {"data/scripts/sira", "sira_store/_client.py", "sira_store/py.typed"} < sizes.keys()
    assert "dist-info/licenses/LICENSE" in sizes
    assert re.search(r"^librocksdb-sys .+rocksdb/LICENSE.Apache$", licences, re.MULTILINE)
    assert re.search(r"^tokio [0-9.]+: MIT$", licences, re.MULTILINE)
    assert not re.search(r"^criterion ", licences, re.MULTILINE), "it is not in the program"


def test_it_serves_without_rust(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([home / "bin" / "python", *install, wheel], check=True)
    # Its dependencies are borrowed from this environment, so that nothing is downloaded; what was just
    # installed comes first.
    (site,) = home.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{home / 'bin'}:/usr/bin:/bin")
    installed = shutil.which("sira")
    assert installed == str(home / "bin" / "sira")
    monkeypatch.setenv("SIRA_BIN", installed)
    with Server(tmp_path / "data") as server:
        subprocess.run([home / "bin" / "python", "-I", "-c", PUT_AND_GET, server.url], check=True)
        listed = subprocess.run(
            ["sira", "--url", server.url, "ls"], check=True, capture_output=True, text=True
        )
        assert "wheel/kv" in listed.stdout
        assert server.terminate() == 0


def test_without_a_program_it_is_the_client_for_any_platform(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "-w", str(tmp_path), str(REPOSITORY / "python-client")]
    environment = {name: value for name, value in os.environ.items() if name != "SIRA_PROGRAM"}
    subprocess.run(command, check=True, env=environment)
    (client,) = tmp_path.glob("*.whl")
    assert client.name == f"sira_store-{sira_store.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(client) as archive:
        assert not [name for name in archive.namelist() if ".data/" in name or "THIRD-PARTY" in name]
