"""Migrations, tiers, copies and checks through a real server: from Python, and as commands of the program."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import sira_store
from server import Server, program

MIB = 1 << 20
CONFIG = """
[storage]
default_backend = "rocksdb"

[storage.backends.rocksdb]
max_size = "64 MiB"

[storage.backends.files]
kind = "file"

[storage.tiers]
warm = "rocksdb"
cold = "files"
move_rate = "{rate}"

[storage.compression]
default_algorithm = "none"
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data", CONFIG.format(rate="1 GiB")) as server:
        yield server


def array(seed: int, nbytes: int = MIB) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def run(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program()), "--url", server.url, *arguments], capture_output=True, text=True, timeout=120
    )


def test_a_migration_from_python(own: Server) -> None:
    with sira_store.connect(own.url) as sira:
        for i in range(8):
            sira.put(f"m/{i}", array(i))
        sira.put("m/small", array(9, 100))
        dry = sira.migrate("rocksdb", "files", "m/*", dry_run=True)
        assert (dry.state, dry.keys_total, dry.keys, dry.inline) == ("done", 8, 0, 1)
        assert dry.bytes_total == 8 * MIB
        seen: list[sira_store.Job] = []
        done = sira.migrate("rocksdb", "files", "m/*", progress=seen.append)
        assert (done.state, done.keys, done.bytes, done.failed) == ("done", 8, 8 * MIB, 0)
        assert seen[-1] == done
        for i in range(8):
            assert sira.info(f"m/{i}").backend == "files"
            assert np.array_equal(sira.get(f"m/{i}"), array(i))
        assert [job.id for job in sira.jobs()] == [dry.id, done.id]
        assert sira.stop_job(done.id) == done
        unknown = "there is no backend nowhere; there are files, rocksdb"
        with pytest.raises(sira_store.InvalidError, match=unknown):
            sira.migrate("nowhere", "files", "*")
        with pytest.raises(sira_store.NotFoundError):
            sira.job("nothing")


def test_a_migration_goes_on_after_sigkill(tmp_path: Path) -> None:
    with Server(tmp_path / "data", CONFIG.format(rate="4 MiB")) as server:
        with sira_store.connect(server.url) as sira:
            for i in range(16):
                sira.put(f"m/{i:02}", array(i), consistency="strong")
            started = sira.migrate("rocksdb", "files", "m/*", wait=False)
            while sira.job(started.id).keys < 3:
                time.sleep(0.05)
            with pytest.raises(sira_store.SiraError, match="at this already"):
                sira.migrate("rocksdb", "files", "m/*")
        server.kill()
        server.config = CONFIG.format(rate="1 GiB")
        server.restart()
        with sira_store.connect(server.url) as sira:
            done = sira.wait_job(started.id)
            assert (done.state, done.resumed, done.failed) == ("done", 1, 0)
            for i in range(16):
                assert sira.info(f"m/{i:02}").backend == "files"
                assert np.array_equal(sira.get(f"m/{i:02}"), array(i))


@pytest.mark.parametrize("rate", ["1 GiB", "1 MiB"])
def test_a_full_tier_moves_and_refuses_nothing(tmp_path: Path, rate: str) -> None:
    """At the lower rate, what moves in the background is too late: puts make their room themselves."""
    config = CONFIG.format(rate=rate)
    with Server(tmp_path / "data", config) as server, sira_store.connect(server.url) as sira:
        for i in range(120):
            sira.put(f"t/{i}", array(i))
        homes = {sira.info(f"t/{i}").backend for i in range(120)}
        assert homes == {"rocksdb", "files"}
        stats = sira.stats()
        assert stats["moves"]["demoted"]["tensors"] >= 60
        assert stats["moves"]["failed"] == 0
        assert stats["backends"]["rocksdb"]["used_bytes"] <= 64 * MIB
        for i in range(120):
            assert np.array_equal(sira.get(f"t/{i}"), array(i)), i


def test_commands(own: Server) -> None:
    with sira_store.connect(own.url) as sira:
        for i in range(4):
            sira.put(f"c/{i}", array(i))
        assert run(own, "migrate", "rocksdb", "files", "c/*", "--dry-run").stdout == (
            "would move 4 tensors (4.0 MiB) from rocksdb to files\n"
        )
        moved = run(own, "migrate", "rocksdb", "files", "c/*")
        assert (moved.returncode, moved.stderr) == (0, "")
        assert moved.stdout == (
            "moved 4 tensors of 4 (4.0 MiB) from rocksdb to files, read back and compared: done\n"
        )
        wrong = run(own, "migrate", "files", "files", "c/*")
        assert (wrong.returncode, "they must be two backends" in wrong.stderr) == (1, True)
        shown = run(own, "ns", "set", "c", "--copies", "rocksdb,files").stdout
        assert "copies       rocksdb, files\n" in shown
        (policy,) = [space.policy for space in sira.namespaces() if space.name == "c"]
        assert policy.copies == ("rocksdb", "files")
        while sira.stats()["moves"]["copied"]["tensors"] < 4:
            time.sleep(0.05)
        good = run(own, "check")
        assert (good.returncode, good.stdout) == (
            0,
            "checked 4 tensors (8.0 MiB read), found 0 problems, mended 0: done\n",
        )
        # Behind the server's back: one file is cut, one is gone.
        files = (path for path in (own.data / "files").rglob("*") if path.is_file())
        chunks = sorted(path for path in files if path.stat().st_size > MIB // 2)
        assert len(chunks) == 4
        damaged = bytearray(chunks[0].read_bytes())
        damaged[len(damaged) // 2] ^= 1
        chunks[0].write_bytes(damaged)
        chunks[1].unlink()
        bad = run(own, "check", "c/")
        assert bad.returncode == 1
        assert "missing: " in bad.stderr
        assert "damaged: " in bad.stderr
        assert "2 problems found that are not mended" in bad.stderr
        mended = run(own, "check", "c/", "--mend", "--json")
        job = json.loads(mended.stdout)
        assert (mended.returncode, job["found"], job["mended"]) == (0, 2, 2)
        assert run(own, "check").returncode == 0
        assert chunks[1].exists()
        listed = run(own, "jobs", "ls")
        assert "check c/ --mend" in listed.stdout
        assert "migrate rocksdb files c/*" in listed.stdout
        watched = json.loads(run(own, "jobs", "watch", job["id"], "--json").stdout)
        assert watched == job


def test_ctrl_c_stops_and_the_same_command_goes_on(tmp_path: Path) -> None:
    slow = CONFIG.format(rate="4 MiB")
    with Server(tmp_path / "data", slow) as server, sira_store.connect(server.url) as sira:
        for i in range(16):
            sira.put(f"s/{i:02}", array(i))
        command = [str(program()), "--url", server.url, "migrate", "rocksdb", "files", "s/*"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as migrate:
            while not any(job.keys >= 2 for job in sira.jobs()):
                time.sleep(0.05)
            migrate.send_signal(2)
            stdout, stderr = migrate.communicate(timeout=60)
        assert migrate.returncode == 1, stderr
        assert "goes on where it was" in stderr
        (stopped,) = sira.jobs()
        assert stopped.state == "stopped"
        assert 2 <= stopped.keys < 16
        assert f"moved {stopped.keys} tensors of 16" in stdout
        again = run(server, "migrate", "rocksdb", "files", "s/*")
        assert again.returncode == 0
        assert "moved 16 tensors of 16" in again.stdout
        (done,) = sira.jobs()
        assert (done.id, done.resumed, done.state) == (stopped.id, 1, "done")
        for i in range(16):
            assert np.array_equal(sira.get(f"s/{i:02}"), array(i))
