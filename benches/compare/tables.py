"""Tables, and the machine that they are of."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from pathlib import Path


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown that is one without it too."""
    lines = [list(heads), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]

    def pad(line: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([pad(lines[0]), rule, *map(pad, lines[1:])])


def short(rate: float) -> str:
    """Two digits that matter."""
    return f"{rate:.2f}" if rate >= 0.1 else f"{rate:.3f}"


def cpus() -> str:
    """How many, and of which kind."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0] if models else platform.machine()}"
