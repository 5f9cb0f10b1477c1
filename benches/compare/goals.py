"""What the project wants to show, beside what a run shows."""

from __future__ import annotations

from typing import Any, NamedTuple

from compare.measure import Cell, binary
from compare.stats import Spread, ratios, spread

K, M = 1 << 10, 1 << 20


class Goal(NamedTuple):
    """A goal, what was measured, and whether that is enough."""

    what: str
    measured: str
    met: str


class Figures:
    """What each peer did in each cell of a run."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._cells = {
            (found["peer"], Cell(found["size"], found["clients"], found["operation"], found["memory"])): found
            for found in document["cells"]
            if "error" not in found
        }

    def times(self, ours: str, theirs: str, cell: Cell) -> Spread | None:
        """Our speed against theirs, round by round."""
        first, second = self._cells.get((ours, cell)), self._cells.get((theirs, cell))
        return None if first is None or second is None else ratios(first["gb_per_s"], second["gb_per_s"])

    def number(self, peer: str, cell: Cell, name: str) -> float | None:
        found = self._cells.get((peer, cell))
        return None if found is None else found[name]


class Speed(NamedTuple):
    """A goal for the speed of one peer against that of others, in each of some cells."""

    what: str
    least: float
    ours: str
    theirs: tuple[str, ...]
    cells: tuple[Cell, ...]
    limit: str = ""
    """The peer that no server can be faster than, with this client: its ratio is shown too."""


def usual(operation: str, *sizes: int, clients: int = 1, memory: str = "") -> tuple[Cell, ...]:
    """Puts from warm memory, gets into new memory, unless it is said."""
    memory = memory or {"put": "warm", "get": "fresh"}[operation]
    return tuple(Cell(size, clients, operation, memory) for size in sizes)


def warm(operation: str, *sizes: int) -> tuple[Cell, ...]:
    return usual(operation, *sizes, memory="warm")


BOTH_LARGE = (*warm("put", 16 * M, 64 * M), *warm("get", 16 * M, 64 * M))
OVER_TCP = ("sira", "sira-native")

SPEEDS = (
    Speed(
        "pyarrow put, 16 and 64 MiB, against C++ Flight: at least 2x",
        *(2.0, "sira", ("arrow",), usual("put", 16 * M, 64 * M), "canned"),
    ),
    Speed(
        "pyarrow get, 16 and 64 MiB, against the pyarrow client's ceiling: at least 0.95x",
        *(0.95, "sira", ("canned",), usual("get", 16 * M, 64 * M)),
    ),
    Speed(
        "pyarrow put and get, 1 MiB, against C++ Flight: at least 1.5x",
        *(1.5, "sira", ("arrow",), (*usual("put", M), *usual("get", M)), "canned"),
    ),
    Speed(
        "Rust client, warm buffers, 16 and 64 MiB, against raw TCP: at least 0.9x",
        *(0.9, "sira-rust", ("raw-rust",), BOTH_LARGE),
    ),
    Speed(
        "Python with the extension, warm buffers, 16 and 64 MiB, against raw TCP: at least 0.9x",
        *(0.9, "sira-native", ("raw",), BOTH_LARGE),
    ),
    Speed(
        "64 KiB operations/s, pyarrow, against C++ Flight: at least 2x",
        *(2.0, "sira", ("arrow",), (*usual("put", 64 * K), *usual("get", 64 * K)), "canned"),
    ),
    Speed(
        "64 KiB operations/s, Rust client, against Redis with redis-py: at least 1x",
        *(1.0, "sira-rust", ("redis",), (*warm("put", 64 * K), *warm("get", 64 * K))),
    ),
    Speed(
        "64 KiB operations/s, Rust client, against Redis with a bare client in Rust: at least 1x",
        *(1.0, "sira-rust", ("redis-rust",), (*warm("put", 64 * K), *warm("get", 64 * K)), "raw-rust"),
    ),
    Speed(
        "same host, 64 MiB into a warm buffer, against Sira over TCP: at least 3x",
        *(3.0, "sira-host", OVER_TCP, warm("get", 64 * M)),
    ),
    Speed(
        "same host, 64 MiB mapped without a copy, against Sira over TCP: at least 20x",
        *(20.0, "sira-map", OVER_TCP, warm("get", 64 * M)),
    ),
    Speed(
        "16 clients, 1 MiB, total GB/s against C++ Flight: at least 1.5x",
        *(1.5, "sira", ("arrow",), (*usual("put", M, clients=16), *usual("get", M, clients=16)), "canned"),
    ),
)


def judged(document: dict[str, Any]) -> list[Goal]:
    """All goals. One that the run did not measure says so."""
    figures = Figures(document)
    goals = [speed(figures, goal) for goal in SPEEDS]
    goals.insert(-1, user_cpu(figures))
    return [*goals, while_others_work(document), strong_puts(document)]


def speed(figures: Figures, goal: Speed) -> Goal:
    """Ours against theirs, by their medians."""
    shown, values, wanted = [], [], 0
    for theirs in goal.theirs:
        for cell in goal.cells:
            wanted += 1
            against = figures.times(goal.ours, theirs, cell)
            if against is None:
                continue
            limit = figures.times(goal.limit, theirs, cell) if goal.limit else None
            possible = f" (limit {limit.median:.2f}x)" if limit else ""
            name = f"{cell.operation} {binary(cell.size)}" + (f" {theirs}" if len(goal.theirs) > 1 else "")
            shown.append(f"{name} {against.median:.2f}x{possible}")
            values.append(against.median)
    if not values:
        return Goal(goal.what, "not measured", "")
    met = all(value >= goal.least for value in values)
    return Goal(
        goal.what, ", ".join(shown), "no" if not met else "yes" if len(values) == wanted else "so far"
    )


def user_cpu(figures: Figures) -> Goal:
    what = "server CPU seconds per GB, user part, pyarrow, 16 MiB: at most a third of C++ Flight's"
    found = []
    for cell in (*usual("put", 16 * M), *usual("get", 16 * M)):
        ours, theirs = (figures.number(peer, cell, "server_user_s_per_gb") for peer in ("sira", "arrow"))
        if ours is not None and theirs:
            found.append((cell.operation, ours / theirs))
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
        return Goal(what, "not measured here: make bench does", "")
    median = spread(rounds).median
    return Goal(what, f"{median:.2f}x", "yes" if median >= 0.9 else "no")
