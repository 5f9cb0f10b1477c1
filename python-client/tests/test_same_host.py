"""Memory that client and server share: `map`, `create`, and what hostile neighbours try."""

from __future__ import annotations

import fcntl
import gc
import json
import mmap
import os
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import sira_store
from server import Server

TOKEN = "a-token-of-many-letters"
PREFACE = b"SIRA-SAME-HOST/1\r\n\r\n\r\n\r\n"
LARGE = 4 << 20
CONFIG = '[memory]\nlimit = "256MiB"\n'


def on_socket(folder: Path, config: str = CONFIG, *flags: str) -> Server:
    return Server(folder / "data", config, ["--unix-socket", str(folder / "sira.sock"), *flags])


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Server]:
    with on_socket(tmp_path) as server:
        yield server


@pytest.fixture
def near(local: Server) -> Iterator[sira_store.Client]:
    with sira_store.connect(local.socket, lookup_deadline=None) as client:
        yield client


class Raw:
    """A neighbour that says what it likes."""

    def __init__(self, server: Server, hello: bool = True, token: str | None = None) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(server.socket.removeprefix("grpc+unix://"))
        self.socket.sendall(PREFACE)
        if hello:
            assert self.ask(b"H", {"v": 1} if token is None else {"v": 1, "token": token})[0] == b"A"

    def send(self, kind: bytes, body: object) -> None:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.socket.sendall(struct.pack(">cI", kind, len(text)) + text)

    def receive(self) -> tuple[bytes, Any, int | None]:
        data, passed, _, _ = socket.recv_fds(self.socket, 1 << 16, 1)
        assert data, "closed"
        while len(data) < 5 or len(data) < 5 + struct.unpack(">cI", data[:5])[1]:
            data += self.socket.recv(1 << 16)
        kind, length = struct.unpack(">cI", data[:5])
        text = data[5 : 5 + length]
        return kind, json.loads(text) if kind == b"A" else text.decode(), passed[0] if passed else None

    def ask(self, kind: bytes, body: object) -> tuple[bytes, Any, int | None]:
        self.send(kind, body)
        return self.receive()

    def is_closed(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


def inode(array: np.ndarray[Any, Any]) -> int:
    """The inode of the memory that an array lies in; 0 for memory of this process alone."""
    address = array.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return int(line.split()[4])
    raise AssertionError("an array that lies nowhere")


def until(holds: Callable[[], bool]) -> None:
    """Waits for what the server does by itself, for far too long a time."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def random(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 255, shape, np.uint8)


def test_what_is_mapped_is_the_same_memory_each_time(near: sira_store.Client) -> None:
    array = np.arange(LARGE // 4, dtype=np.float32).reshape(4, -1)
    near.put("ns/a", array)
    first, second = near.map("ns/a"), near.map("ns/a")
    assert np.array_equal(first, array)
    assert not first.flags.writeable
    assert inode(first) == inode(second) != 0
    assert first.ctypes.data != second.ctypes.data
    with pytest.raises(ValueError):
        first.flags.writeable = True
    assert np.array_equal(near.get("ns/a"), array)
    out = np.zeros_like(array)
    assert near.get("ns/a", out) is out
    assert np.array_equal(out, array)


@pytest.mark.parametrize("level", ["weak", "eventual", "strong"])
def test_what_is_created_is_stored_without_a_copy(near: sira_store.Client, local: Server, level: Any) -> None:
    data = np.random.default_rng(0).standard_normal((8, LARGE // 16)).astype(ml_dtypes.bfloat16)
    options: dict[str, Any] = {
        "axes": ["layer", "dim"],
        "ttl": 60,
        "attributes": {"of": "me"},
        "codec": "zstd",
    }
    with near.create("ns/a", data.shape, "bfloat16", consistency=level, if_="absent", **options) as made:
        made.array[:] = data
        memory = inode(made.array)
    assert made.result == sira_store.PutResult("ns/a", 1, True)
    assert inode(near.map("ns/a")) == memory, "the very memory that was filled"
    info = near.info("ns/a")
    assert (info.dtype, info.shape, info.axes) == ("bfloat16", data.shape, ("layer", "dim"))
    assert info.attributes == {"of": "me"}
    assert info.codec == "zstd" or level == "weak"
    assert info.expires_ms is not None
    with sira_store.connect(local.url, lookup_deadline=None) as far:
        assert np.array_equal(far.get("ns/a"), data)
    with pytest.raises(sira_store.AlreadyExistsError):
        near.create("ns/a", data.shape, "bfloat16", if_="absent")
    if level != "weak":
        local.kill()
        local.restart()
        with sira_store.connect(local.socket, lookup_deadline=None) as after:
            assert np.array_equal(after.map("ns/a"), data)


def test_mapped_memory_survives_whatever_happens_to_the_key(near: sira_store.Client) -> None:
    array = random(2, LARGE)
    near.put("ns/a", array)
    mapped = near.map("ns/a")
    near.put("ns/a", array + 1)
    assert np.array_equal(near.map("ns/a"), array + 1)
    assert near.delete("ns/a")
    for i in range(16):  # more than the hot tier has room for
        near.put(f"ns/other-{i}", array)
    assert np.array_equal(mapped, array)


def test_small_tensors_and_odd_ones_come_too(near: sira_store.Client) -> None:
    for dtype in (np.bool_, np.complex64, ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn):
        for size in (0, 8, 1 << 18):
            array = (np.arange(size) % 2).astype(dtype)
            with near.create("ns/a", size, dtype) as made:
                made.array[:] = array
            for got in (near.map("ns/a"), near.get("ns/a")):
                assert got.dtype == array.dtype
                assert np.array_equal(got.view(np.uint8), array.view(np.uint8)), (dtype, size)
    near.put("ns/parts", {"k": random(LARGE), "v": random(10)})
    assert np.array_equal(near.map("ns/parts", part="k"), random(LARGE))
    with pytest.raises(sira_store.HasPartsError):
        near.map("ns/parts")
    with pytest.raises(sira_store.NotFoundError):
        near.map("ns/none")
    with pytest.raises(sira_store.StaleVersionError):
        near.map("ns/a", version=1)
    assert near.get("ns/a", ranges={"0": (0, 2)}).shape == (2,)


def test_elsewhere_both_fall_back_to_the_socket(local: Server) -> None:
    with sira_store.connect(local.url, lookup_deadline=None) as far:
        with far.create("ns/a", LARGE, np.uint8) as made:
            made.array[:] = 7
        mapped = far.map("ns/a")
        assert (mapped == 7).all()
        assert not mapped.flags.writeable
        assert inode(mapped) == 0


def test_beyond_the_cap_tensors_come_over_the_socket(near: sira_store.Client, local: Server) -> None:
    limit = Raw(local).ask(b"H", {"v": 1})[1]["limit"]
    near.put("ns/a", random(LARGE))
    held = [near.map("ns/a") for _ in range(3)]
    assert len({inode(array) for array in held}) == 1
    count = limit // (8 * LARGE) + 2
    for i in range(count):
        near.put(f"ns/{i}", random(8, LARGE))
    more = [near.map(f"ns/{i}") for i in range(count)]
    assert all(np.array_equal(array, random(8, LARGE)) for array in more)
    assert inode(more[0]) != 0
    assert inode(more[-1]) == 0
    del more
    gc.collect()
    assert inode(near.map(f"ns/{count - 1}")) != 0, "what is released makes room"
    for kind in (b"M", b"C"):
        body: dict[str, Any] = {"v": 1, "key": "ns/x", "dtype": "uint8", "shape": [limit + 1]}
        answer = Raw(local).ask(kind, body if kind == b"C" else {"v": 1, "key": "ns/a"})
        assert answer[0] == (b"E" if kind == b"C" else b"A")
    assert near.create("ns/x", limit + 1, np.uint8).array.shape == (limit + 1,)


def used(client: sira_store.Client) -> int:
    used: int = client.stats()["memory"]["used"]
    return used


def test_a_connection_that_ends_gives_back_what_it_held(near: sira_store.Client, local: Server) -> None:
    before = used(near)
    code = """
        import sys, time, sira_store
        sira = sira_store.connect(sys.argv[1], lookup_deadline=None)
        made = sira.create("ns/a", 16 << 20, "uint8")
        print("made", flush=True)
        time.sleep(600)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), local.socket], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "made\n"
    assert used(near) >= before + (16 << 20)
    child.kill()
    child.wait()
    until(lambda: used(near) <= before)
    assert not near.exists("ns/a")
    made = near.create("ns/a", 16 << 20, "uint8")
    assert used(near) >= before + (16 << 20)
    made.abandon()
    until(lambda: used(near) <= before)
    with pytest.raises(RuntimeError), near.create("ns/a", LARGE, "uint8"):
        raise RuntimeError
    assert not near.exists("ns/a")
    with pytest.raises(sira_store.InvalidError):
        made.commit()


def test_views_that_outlive_a_commit_change_nothing(near: sira_store.Client) -> None:
    made = near.create("ns/a", (4, LARGE), np.uint8)
    view = made.array[1:]
    made.array[:] = 7
    before = used(near)
    made.commit()
    view[:] = 8
    assert (near.map("ns/a") == 7).all()
    assert (near.get("ns/a") == 7).all()
    del view
    gc.collect()
    until(lambda: used(near) <= before + (1 << 20))


def test_a_neighbour_can_neither_change_nor_shorten_what_is_stored(
    near: sira_store.Client, local: Server
) -> None:
    raw = Raw(local)
    body = {"v": 1, "key": "ns/a", "dtype": "uint8", "shape": [LARGE], "consistency": "weak"}
    kind, said, passed = raw.ask(b"C", body)
    assert (kind, said["nbytes"]) == (b"A", LARGE)
    assert passed is not None
    for size in (0, 10, LARGE - 1, LARGE + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(passed, size)
    kept = mmap.mmap(passed, LARGE)
    kept[:] = b"a" * LARGE
    committed = raw.ask(b"P", {"v": 1, "id": said["id"]})[1]
    assert committed["copied"] is True
    kept[:] = b"b" * LARGE
    assert (near.get("ns/a") == ord("a")).all()
    assert raw.ask(b"P", {"v": 1, "id": said["id"]})[0] == b"E", "it is over"

    # Without a mapping it is the very memory, and writing to it is over.
    _, said, passed = raw.ask(b"C", body)
    assert passed is not None
    os.pwrite(passed, b"c" * LARGE, 0)
    assert raw.ask(b"P", {"v": 1, "id": said["id"]})[1]["copied"] is False
    for attempt in (
        lambda: os.pwrite(passed, b"d", 0),
        lambda: os.ftruncate(passed, 0),
        lambda: mmap.mmap(passed, LARGE),
        lambda: os.pwrite(os.open(f"/proc/self/fd/{passed}", os.O_RDWR), b"d", 0),
    ):
        with pytest.raises(PermissionError):
            attempt()
    assert (near.map("ns/a") == ord("c")).all()

    # One that seals it against the server's seal gets a copy.
    _, said, passed = raw.ask(b"C", body)
    assert passed is not None
    fcntl.fcntl(passed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
    os.pwrite(passed, b"e" * LARGE, 0)
    assert raw.ask(b"P", {"v": 1, "id": said["id"]})[1]["copied"] is True
    os.pwrite(passed, b"f" * LARGE, 0)
    assert (near.map("ns/a") == ord("e")).all()

    _, said, passed = raw.ask(b"M", {"v": 1, "key": "ns/a"})
    assert passed is not None
    assert fcntl.fcntl(passed, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    assert fcntl.fcntl(passed, fcntl.F_GET_SEALS) & wanted == wanted
    for attempt in (lambda: os.ftruncate(passed, 0), lambda: os.pwrite(passed, b"x", 0)):
        with pytest.raises(OSError):
            attempt()


@pytest.mark.parametrize(
    "kind, body, code",
    [
        (b"M", b"{", "SIRA_BAD_REQUEST"),
        (b"M", {"v": 2, "key": "ns/a"}, "SIRA_BAD_REQUEST"),
        (b"M", {"v": 1, "key": "nokey"}, "SIRA_BAD_KEY"),
        (b"M", {"v": 1, "key": "ns/a", "slice": {"0": [0, 1]}}, "SIRA_BAD_REQUEST"),
        (b"M", {"v": 1, "key": "ns/none"}, "SIRA_NOT_FOUND"),
        (b"C", {"v": 1, "key": "ns/a"}, "SIRA_BAD_REQUEST"),
        (b"C", {"v": 1, "key": "ns/a", "dtype": "uint8", "shape": [0]}, "SIRA_BAD_REQUEST"),
        (b"C", {"v": 1, "key": "ns/a", "dtype": "uint8", "shape": [1 << 62]}, None),
        (b"C", {"v": 1, "key": "ns/a", "dtype": "uint8", "shape": [1 << 40, 1 << 40]}, "SIRA_BAD_TENSOR"),
        (b"C", {"v": 1, "key": "ns/a", "dtype": "uint8", "shape": [1 << 16]}, "SIRA_BAD_REQUEST"),
        (
            b"C",
            {"v": 1, "key": "ns/a", "dtype": "uint8", "shape": [1 << 20], "codec": "x"},
            "SIRA_UNKNOWN_CODEC",
        ),
        (b"P", {"v": 1, "id": 1}, "SIRA_BAD_REQUEST"),
        (b"P", {"v": 1, "id": -1}, "SIRA_BAD_REQUEST"),
        (b"R", {"v": 1}, "SIRA_BAD_REQUEST"),
        (b"A", {"v": 1}, "SIRA_BAD_REQUEST"),
    ],
)
def test_what_is_wrong_is_refused_and_the_connection_goes_on(
    local: Server, kind: bytes, body: object, code: str | None
) -> None:
    raw = Raw(local)
    kind, text, passed = raw.ask(kind, body)
    assert kind == b"E"
    assert text.startswith("SIRA_" if code is None else f"{code}: "), text
    assert passed is None
    raw.send(b"R", {"v": 1, "id": 99})
    assert raw.ask(b"H", {"v": 1})[0] == b"A"


def test_what_is_no_message_ends_the_connection(local: Server, near: sira_store.Client) -> None:
    for junk in (b"\0" * 100, b"M\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096)):
        raw = Raw(local)
        raw.socket.sendall(junk)
        assert raw.is_closed()
    unknown = Raw(local, hello=False)
    assert unknown.ask(b"M", {"v": 1, "key": "ns/a"})[1].startswith("SIRA_BAD_REQUEST: the first message")
    assert unknown.is_closed()
    # Descriptors that nobody asked for are closed, not kept.
    folder = Path(f"/proc/{local.pid}/fd")
    before, raw = len(list(folder.iterdir())), Raw(local)
    for _ in range(50):
        text = b'{"v":1}'
        socket.send_fds(raw.socket, [struct.pack(">cI", b"H", len(text)) + text], [0, 1, 2])
        assert raw.receive()[0] == b"A"
    assert len(list(folder.iterdir())) <= before + 5
    # Stalled half-way, then gone.
    half = Raw(local)
    half.socket.sendall(b"M\0\0\0\x10{")
    half.socket.close()
    assert not near.exists("ns/a")
    with socket.create_connection(local.url.removeprefix("grpc://").split(":")) as port:  # type: ignore[arg-type]
        port.sendall(PREFACE)
        port.settimeout(20)
        assert port.recv(1) == b"", "memory cannot be passed over TCP"


def test_tokens_are_asked_for(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    tokens.chmod(0o600)
    with on_socket(tmp_path, CONFIG, "--token-file", str(tokens)) as server:
        for given in (None, "another-token-of-letters"):
            raw = Raw(server, hello=False)
            hello = {"v": 1} if given is None else {"v": 1, "token": given}
            assert raw.ask(b"H", hello)[1].startswith("SIRA_UNAUTHENTICATED: ")
            assert raw.is_closed()
            with sira_store.connect(server.socket, token=given, lookup_deadline=None) as sira:
                with pytest.raises(sira_store.UnauthenticatedError):
                    sira.map("ns/a")
                with pytest.raises(sira_store.UnauthenticatedError):
                    sira.create("ns/a", LARGE, np.uint8).commit()
        with sira_store.connect(server.socket, token=TOKEN, lookup_deadline=None) as sira:
            sira.put("ns/a", random(LARGE))
            assert inode(sira.map("ns/a")) != 0


def test_a_server_that_dies_is_a_clear_error_and_arrays_stay(tmp_path: Path) -> None:
    server = on_socket(tmp_path).start()
    sira = sira_store.connect(server.socket, lookup_deadline=None)
    sira.put("ns/a", random(LARGE))
    mapped, made = sira.map("ns/a"), sira.create("ns/b", LARGE, np.uint8)
    server.kill()
    assert np.array_equal(mapped, random(LARGE))
    with pytest.raises(sira_store.UnavailableError, match="no answer"):
        made.commit()
    with pytest.raises(sira_store.UnavailableError):
        sira.map("ns/a")
    with pytest.raises(sira_store.UnavailableError):
        sira.create("ns/c", LARGE, np.uint8).commit()
    server.restart()
    try:
        until(lambda: _maps(sira, "ns/a"))
        assert np.array_equal(mapped, random(LARGE))
    finally:
        server.kill()


def _maps(sira: sira_store.Client, key: str) -> bool:
    try:
        return inode(sira.map(key)) != 0
    except sira_store.UnavailableError:
        return False


def test_a_server_that_is_told_to_stop_lets_go_of_idle_neighbours(tmp_path: Path) -> None:
    server = on_socket(tmp_path).start()
    with sira_store.connect(server.socket, lookup_deadline=None) as sira:
        sira.put("ns/a", random(LARGE))
        mapped = sira.map("ns/a")
        assert server.terminate() == 0
        assert np.array_equal(mapped, random(LARGE))


def test_threads_share_a_client_and_a_fork_keeps_its_arrays(near: sira_store.Client, local: Server) -> None:
    for i in range(8):
        near.put(f"ns/{i}", np.full(LARGE, i, np.uint8))
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            if not (near.map(f"ns/{i}") == i).all() or near.get(f"ns/{i}")[-1] != i:
                wrong.append(i)
            with near.create(f"ns/made-{i}", LARGE, np.uint8) as made:
                made.array[:] = i

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    code = """
        import os, sys, sira_store, numpy as np
        sira = sira_store.connect(sys.argv[1], lookup_deadline=None)
        first = sira.map("ns/1")
        line = sira._lines.get()
        if os.fork() == 0:
            assert (first == 1).all()
            second = sira._lines.get()
            assert second is not line and second.pid == os.getpid()
            del first
            os._exit(0)
        assert os.wait()[1] == 0
        assert (first == 1).all() and (sira.map("ns/2") == 2).all() and sira._lines.get() is line
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), local.socket], check=True)
