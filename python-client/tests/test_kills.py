"""The server is killed at random moments under load, and what it acknowledged must be there.

SIRA_KILLS says how often (10 by default); SIRA_SEED makes another run of it.
"""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import samples
import sira_store
from server import Server

KILLS = int(os.environ.get("SIRA_KILLS", "10"))
SEED = int(os.environ.get("SIRA_SEED", "1"))
WRITERS = 4
KEYS = 6

# On both sides of every border: inside the record, one chunk, several chunks; in RocksDB and in the object
# store.
SIZES = [0, 1, 100, 4_000, 40_000, 300_000, 1_500_000, 2_500_000]

State = int | None
"""The number of the put that a key's content is of; None: absent."""


def content(key: str, number: int) -> NDArray[np.uint32]:
    """What a put writes, to be had again from its number. Its first element is the number."""
    rng = np.random.default_rng([number, *key.encode()])
    array = rng.integers(0, 2**32, int(rng.choice(SIZES)) + 1, dtype=np.uint32)
    array[0] = number
    return array


class Writer(threading.Thread):
    """Puts and deletes its own keys until the server is gone. The states that each may be in afterwards: the
    one acknowledged last, and that of the one call which never got its answer."""

    def __init__(
        self, name: str, url: str, seed: int, states: dict[str, set[State]], next_number: int
    ) -> None:
        super().__init__(name=name)
        self.url = url
        self.random = random.Random(seed)
        self.states = states
        self.number = next_number
        self.calls = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with sira_store.connect(self.url) as sira:
                while True:
                    self.once(sira)
        except sira_store.UnavailableError as error:
            # The server is gone, as it should be; a server that is there and busy has another code.
            self.failure = None if error.code == "SIRA_UNAVAILABLE" else error
        except BaseException as error:
            self.failure = error

    def once(self, sira: sira_store.Client) -> None:
        key = self.random.choice(sorted(self.states))
        if self.random.random() < 0.15:
            self.states[key].add(None)
            sira.delete(key)
            self.states[key] = {None}
        else:
            self.number += 1
            self.states[key].add(self.number)
            level = self.random.choice(["strong", "eventual"])
            sira.put(key, content(key, self.number), consistency=level)
            self.states[key] = {self.number}
        self.calls += 1


def test_kills_under_load_lose_and_tear_nothing(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    states: list[dict[str, set[State]]] = [
        {f"kills/{writer}/{key}": {None} for key in range(KEYS)} for writer in range(WRITERS)
    ]
    numbers = [0] * WRITERS
    calls = 0
    server = Server(tmp_path / "data")
    for kill in range(KILLS):
        with server:
            writers = [
                Writer(f"writer {i}", server.url, rng.randrange(2**32), states[i], numbers[i])
                for i in range(WRITERS)
            ]
            for writer in writers:
                writer.start()
            time.sleep(rng.uniform(0.05, 0.8))
            server.kill()
            for writer in writers:
                writer.join()
        for i, writer in enumerate(writers):
            assert writer.failure is None, (kill, writer.failure)
            numbers[i] = writer.number
            calls += writer.calls
        with server, sira_store.connect(server.url) as sira:
            present = {info.key for info in sira.scan("kills/")}
            assert present <= {key for of_one in states for key in of_one}
            for of_one in states:
                for key, possible in of_one.items():
                    found = read(sira, key)
                    assert found in possible, f"kill {kill}: {key} is {found}, may be {possible}"
                    assert (found is not None) == (key in present), (
                        f"kill {kill}: {key} is {found} but listed"
                    )
                    of_one[key] = {found}
    assert calls > KILLS


def read(sira: sira_store.Client, key: str) -> State:
    """Which put's content a key holds, every bit of it."""
    try:
        array = sira.get(key)
    except sira_store.NotFoundError:
        return None
    number = int(array[0])
    assert samples.same(array, content(key, number)), f"{key} is torn"
    return number
