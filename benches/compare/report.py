"""Figures as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compare.goals import judged
from compare.measure import binary
from compare.stats import ratios, spread
from compare.tables import short, table

Document = dict[str, Any]
Figures = dict[str, Any]

BASE = "arrow"
"""The peer that ratios are against."""


def merged(documents: Sequence[Document]) -> Document:
    """Runs over different cells as one; of a cell that several have, the last one's."""
    known: dict[tuple[Any, ...], Figures] = {}
    for document in documents:
        for cell in document["cells"]:
            known[(*place(cell), cell["size"], cell["peer"])] = cell
    whole = dict(documents[-1])
    whole["cells"] = list(known.values())
    whole["took_s"] = sum(document.get("took_s", 0) for document in documents)
    for part in ("peers", "missing", "mixed"):
        together: dict[str, Any] = {}
        for document in documents:
            together |= document.get(part, {})
        whole[part] = together
    return whole


def text(document: Document) -> str:
    """Everything, in Markdown."""
    machine = document["machine"]
    where = f"{machine['cpus']}, Linux {machine['kernel']}"
    rounds = f"{document['rounds']} rounds of {document['slice_s']} s a peer and cell, interleaved"
    others = f"other processes had {document.get('others', 0):.0%} of the machine meanwhile"
    parts = [f"{where}; {rounds}; {others}. GB are 10^9 bytes."]
    parts.append(table(["peer", "what it is"], [[name, about] for name, about in document["peers"].items()]))
    parts += [f"**{name} did not take part**: {why}" for name, why in document["missing"].items()]
    for key in dict.fromkeys(map(place, document["cells"])):
        here = [cell for cell in document["cells"] if place(cell) == key]
        operation, clients, memory = key
        parts.append(f"## {operation}, {clients} client{'s' if clients > 1 else ''}, {memory} buffers")
        parts.append(f"GB/s: median (quartiles), and how many times {BASE}'s of the same round (quartiles).")
        parts.append(speeds(here))
        parts.append(costs(here))
    if document.get("mixed"):
        parts.append(mixed(document["mixed"]))
    parts += ["## Goals", goals(document)]
    return "\n\n".join(parts) + "\n"


def place(cell: Figures) -> tuple[str, int, str]:
    """The table that a cell belongs to."""
    return cell["operation"], cell["clients"], cell["memory"]


def speeds(cells: list[Figures]) -> str:
    sizes = sorted({cell["size"] for cell in cells})
    by = {(cell["peer"], cell["size"]): cell for cell in cells}

    def shown(peer: str, size: int) -> str:
        cell = by.get((peer, size))
        if cell is None:
            return ""
        if "error" in cell:
            return "failed"
        rate = spread(cell["gb_per_s"])
        base = by.get((BASE, size))
        against = (
            ratios(cell["gb_per_s"], base["gb_per_s"])
            if base and "error" not in base and peer != BASE
            else None
        )
        times = f"; {against.median:.2f}x ({against.low:.2f}-{against.high:.2f})" if against else ""
        return f"{short(rate.median)} ({short(rate.low)}-{short(rate.high)}){times}"

    peers = dict.fromkeys(cell["peer"] for cell in cells)
    return table(
        ["peer", *map(binary, sizes)], [[peer, *(shown(peer, size) for size in sizes)] for peer in peers]
    )


def costs(cells: list[Figures]) -> str:
    """Latencies, and what the server uses for a GB."""
    heads = ["peer", "size", "ops/s", "p50 ms", "p99 ms", "p99.9 ms"]
    heads += ["server user s/GB", "kernel s/GB", "client s/GB", "minor faults/GB", "major"]
    rows = []
    for cell in sorted(cells, key=lambda cell: cell["size"]):
        if "error" in cell:
            rows.append([cell["peer"], binary(cell["size"]), cell["error"], *[""] * (len(heads) - 3)])
            continue
        rate = spread(cell["gb_per_s"]).median * 1e9 / cell["size"]
        took = [f"{value * 1e3:.3f}" if value else "" for value in cell["seconds"].values()]
        used = [cell[f"server_{name}_s_per_gb"] for name in ("user", "kernel")] + [cell["client_s_per_gb"]]
        faults = [f"{cell[f'server_{name}_faults_per_gb']:.0f}" for name in ("minor", "major")]
        rows.append(
            [cell["peer"], binary(cell["size"]), f"{rate:.0f}", *took, *(f"{s:.2f}" for s in used), *faults]
        )
    return table(heads, rows)


def mixed(figures: dict[str, Any]) -> str:
    """Gets while something else goes on."""
    heads = ["server", "1 MiB gets while", "p50 ms", "p99 ms", "against quiet, round by round", "other work"]
    rows = []
    for name, loads in figures.items():
        quiet = loads["quiet"]["p99_s"]
        for load, found in loads.items():
            against = ratios(found["p99_s"], quiet) if load != "quiet" else None
            times = f"{against.median:.2f}x ({against.low:.2f}-{against.high:.2f})" if against else ""
            millis = [f"{spread(found[part]).median * 1e3:.2f}" for part in ("p50_s", "p99_s")]
            rows.append([name, load, *millis, times, found["meanwhile"]])
    return "## Gets while other work goes on\n\n" + table(heads, rows)


def goals(document: Document) -> str:
    rows = [[goal.what, goal.measured, goal.met] for goal in judged(document)]
    return table(["goal", "measured", "met?"], rows)
