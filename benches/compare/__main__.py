"""`python -m compare`: see --help."""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

from compare import mixed
from compare.measure import Cell, Run
from compare.peers import everyone
from compare.peers.base import Peer, Through
from compare.proc import available
from compare.report import merged, text
from compare.stats import spread
from compare.tables import cpus

SIZES = {"4K": 4 << 10, "64K": 64 << 10, "1M": 1 << 20, "16M": 16 << 20, "64M": 64 << 20}

MIXED_SECONDS = 2.5
"""A slice of the second table: p99 needs many gets."""


def main() -> int:
    arguments = parse()
    # Servers are ended by whoever started them, also then.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if arguments.report:
        document = merged([json.loads(path.read_text()) for path in arguments.report])
    else:
        document = measure(arguments)
        if arguments.json:
            arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    print(text(document))
    if arguments.plot:
        from compare.plot import draw

        draw(document, arguments.plot)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="compare", description="Sira beside its peers, in one run.")
    names = [peer.name for peer in everyone()]
    parser.add_argument("--peers", type=words, default=names, help=f"of {','.join(names)}; default: all")
    parser.add_argument(
        "--sizes", type=words, default=list(SIZES), help=f"of {','.join(SIZES)}; default: all"
    )
    parser.add_argument(
        "--clients", type=numbers, default=[1, 4, 16], help="numbers of clients; default: 1,4,16"
    )
    parser.add_argument("--operations", type=words, default=["put", "get"], help="put,get")
    parser.add_argument(
        "--memory", type=words, default=["warm", "fresh"], help="clients' buffers: warm,fresh"
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds over all peers; default: 7")
    parser.add_argument("--seconds", type=float, default=0.4, help="a peer's slice of a round; default: 0.4")
    parser.add_argument(
        "--quick", action="store_true", help="3 rounds, 64 KiB and more, 1 client (16 at 1 MiB)"
    )
    parser.add_argument(
        "--only", choices=["cells", "mixed"], help="only the first tables, or gets beside puts"
    )
    parser.add_argument("--json", type=Path, help="where all figures go")
    parser.add_argument("--plot", type=Path, help="where the plot goes, .svg or .png")
    parser.add_argument(
        "--report", type=Path, nargs="+", help="measure nothing: show these figures, together"
    )
    arguments = parser.parse_args()
    for given, known, what in ((arguments.peers, names, "peer"), (arguments.sizes, list(SIZES), "size")):
        for name in given:
            if name not in known:
                parser.error(f"no {what} {name}; there are {', '.join(known)}")
    return arguments


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """What is measured: both kinds of memory for one client, for several the kind that libraries give."""
    some = []
    for size in (SIZES[name] for name in arguments.sizes):
        for clients in arguments.clients:
            if arguments.quick and (size == 4 << 10 or (clients > 1 and (clients, size) != (16, 1 << 20))):
                continue
            for operation in arguments.operations:
                both = clients == 1 and not (arguments.quick and operation == "put")
                usual = "warm" if operation == "put" else "fresh"
                some += [Cell(size, clients, operation, m) for m in arguments.memory if both or m == usual]
    return some


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    rounds = min(arguments.rounds, 3) if arguments.quick else arguments.rounds
    todo = cells(arguments) if arguments.only != "mixed" else []
    peers = chosen(arguments.peers) if todo else []
    todo = [cell for cell in todo if fits(cell, len(peers))]
    began = time.time()
    run = Run(peers, max((cell.clients for cell in todo), default=0), say)
    results = []
    try:
        prepared: tuple[int, int] | None = None
        able: dict[str, tuple[str, ...] | str] = {}
        for number, cell in enumerate(todo, 1):
            if prepared != (cell.size, cell.clients):
                able, prepared = run.size(cell.size, cell.clients), (cell.size, cell.clients)
            say(f"[{number}/{len(todo)}] {cell}")
            results += [result.as_json() for result in run.cell(cell, able, rounds, arguments.seconds)]
    finally:
        run.stop()
    beside = {}
    if arguments.only != "cells":
        beside = mixed.measure(arguments.peers, rounds, MIXED_SECONDS, say)
    return {
        "machine": {"cpus": cpus(), "kernel": platform.release(), "python": platform.python_version()},
        "peers": {peer.name: peer.about for peer in peers if peer.name not in run.missing},
        "missing": run.missing,
        "rounds": rounds,
        "slice_s": arguments.seconds,
        "others": round(spread(run.others or [0.0]).median, 3),
        "took_s": round(time.time() - began),
        "cells": results,
        "mixed": beside,
    }


def fits(cell: Cell, peers: int) -> bool:
    """Whether there is memory for a cell: servers and clients hold a tensor each for every peer and
    client, and without room for them the kernel kills one."""
    need = 2 * cell.size * cell.clients * peers
    if need <= available():
        return True
    say(f"{cell}: left out, since {peers} peers would need about {need >> 30} GiB of memory")
    return False


def chosen(names: list[str]) -> list[Peer]:
    """The peers of these names, and the servers that they stand on."""
    some = [peer for peer in everyone() if peer.name in names]
    for peer in list(some):
        if isinstance(peer, Through) and peer.server not in some:
            some.insert(some.index(peer), peer.server)
    return some


def words(value: str) -> list[str]:
    return value.split(",")


def numbers(value: str) -> list[int]:
    return [int(word) for word in value.split(",")]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
