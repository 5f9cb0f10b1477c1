"""What the project wants to show, beside what a run shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from compare.stats import Spread, ratios, spread

K, M = 1 << 10, 1 << 20


class Goal(NamedTuple):
    """A goal, what was measured, and whether that is enough."""

    what: str
    measured: str
    met: str


class Figures:
    """The cells of a run, by what they are."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._cells = {
            (cell["peer"], cell["operation"], cell["size"], cell["clients"], cell["memory"]): cell
            for cell in document["cells"]
            if "error" not in cell
        }

    def times(
        self, ours: str, theirs: str, operation: str, size: int, memory: str, clients: int = 1
    ) -> Spread | None:
        """Our speed against theirs, round by round."""
        cells = [self._cells.get((peer, operation, size, clients, memory)) for peer in (ours, theirs)]
        if cells[0] is None or cells[1] is None:
            return None
        return ratios(cells[0]["gb_per_s"], cells[1]["gb_per_s"])

    def number(self, peer: str, name: str, operation: str, size: int, memory: str) -> float | None:
        cell = self._cells.get((peer, operation, size, 1, memory))
        return None if cell is None else cell[name]


def judged(document: dict[str, Any]) -> list[Goal]:
    """All goals. One that the run did not measure says so."""
    figures = Figures(document)

    def faster(what: str, least: float, *asked: tuple[str, Spread | None]) -> Goal:
        found = [(name, against) for name, against in asked if against is not None]
        return least_of(what, least, [(name, against.median) for name, against in found], len(asked))

    put, get = ("put", "warm"), ("get", "fresh")
    over_tcp = ("sira", "sira-native")
    of = figures.times
    goals = [
        faster(
            "pyarrow put, 16 and 64 MiB, against C++ Flight: at least 2x",
            2.0,
            *((f"{size // M} MiB", of("sira", "arrow", "put", size, "warm")) for size in (16 * M, 64 * M)),
        ),
        faster(
            "pyarrow get, 16 and 64 MiB, against the pyarrow client's ceiling: at least 0.95x",
            0.95,
            *((f"{size // M} MiB", of("sira", "canned", "get", size, "fresh")) for size in (16 * M, 64 * M)),
        ),
        faster(
            "pyarrow put and get, 1 MiB, against C++ Flight: at least 1.5x",
            1.5,
            *((op, of("sira", "arrow", op, M, memory)) for op, memory in (put, get)),
        ),
    ]
    for peer, base, who in (
        ("sira-rust", "raw-rust", "Rust client"),
        ("sira-native", "raw", "Python with the extension"),
    ):
        asked = [
            (f"{op} {size // M} MiB", of(peer, base, op, size, "warm"))
            for op in ("put", "get")
            for size in (16 * M, 64 * M)
        ]
        goals.append(
            faster(f"{who}, warm buffers, 16 and 64 MiB, against raw TCP: at least 0.9x", 0.9, *asked)
        )
    goals += [
        faster(
            "64 KiB operations/s, pyarrow, against C++ Flight: at least 2x",
            2.0,
            *((op, of("sira", "arrow", op, 64 * K, memory)) for op, memory in (put, get)),
        ),
        faster(
            "64 KiB operations/s, Rust client, against Redis with redis-py: at least 1x",
            1.0,
            *((op, of("sira-rust", "redis", op, 64 * K, "warm")) for op in ("put", "get")),
        ),
        faster(
            "64 KiB operations/s, Rust client, against Redis with a bare client in Rust: at least 1x",
            1.0,
            *((op, of("sira-rust", "redis-rust", op, 64 * K, "warm")) for op in ("put", "get")),
        ),
        user_cpu(figures),
        faster(
            "same host, 64 MiB into a warm buffer, against Sira over TCP: at least 3x",
            3.0,
            *((f"against {peer}", of("sira-host", peer, "get", 64 * M, "warm")) for peer in over_tcp),
        ),
        faster(
            "same host, 64 MiB mapped without a copy, against Sira over TCP: at least 20x",
            20.0,
            *((f"against {peer}", of("sira-map", peer, "get", 64 * M, "warm")) for peer in over_tcp),
        ),
        faster(
            "16 clients, 1 MiB, total GB/s against C++ Flight: at least 1.5x",
            1.5,
            *((op, of("sira", "arrow", op, M, memory, clients=16)) for op, memory in (put, get)),
        ),
        while_others_work(document),
        strong_puts(document),
    ]
    return goals


def least_of(what: str, least: float, found: Sequence[tuple[str, float]], asked: int) -> Goal:
    if not found:
        return Goal(what, "not measured", "")
    measured = ", ".join(f"{name} {value:.2f}x" for name, value in found)
    met = all(value >= least for _, value in found)
    return Goal(what, measured, "no" if not met else "yes" if len(found) == asked else "so far")


def user_cpu(figures: Figures) -> Goal:
    what = "server CPU seconds per GB, user part, pyarrow, 16 MiB: at most a third of C++ Flight's"
    found = []
    for operation, memory in (("put", "warm"), ("get", "fresh")):
        ours, theirs = (
            figures.number(peer, "server_user_s_per_gb", operation, 16 * M, memory)
            for peer in ("sira", "arrow")
        )
        if ours is not None and theirs:
            found.append((operation, ours / theirs))
    if not found:
        return Goal(what, "not measured", "")
    measured = ", ".join(f"{operation} {share:.2f}" for operation, share in found)
    return Goal(what, measured, "yes" if all(share <= 1 / 3 for _, share in found) else "no")


def while_others_work(document: dict[str, Any]) -> Goal:
    what = "p99 of 1 MiB gets while puts, encoding and eviction run: at most 3x its quiet value"
    found = document.get("mixed", {}).get("sira")
    if not found:
        return Goal(what, "not measured", "")
    loads = {
        name: ratios(load["p99_s"], found["quiet"]["p99_s"])
        for name, load in found.items()
        if name != "quiet"
    }
    times = {name: against.median for name, against in loads.items() if against}
    measured = ", ".join(f"{name} {value:.2f}x" for name, value in times.items())
    return Goal(what, measured, "yes" if all(value <= 3 for value in times.values()) else "no")


def strong_puts(document: dict[str, Any]) -> Goal:
    """From a run of another benchmark: `{"strong_put_ratios": [...]}`, one a round."""
    what = "Strong put of 1 MiB at StorageBackend, against the rocksdb crate called directly: at least 0.9x"
    rounds = document.get("strong_put_ratios")
    if not rounds:
        return Goal(what, "not measured here", "")
    return least_of(what, 0.9, [("put", spread(rounds).median)], 1)
