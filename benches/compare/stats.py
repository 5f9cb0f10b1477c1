"""Medians, quartiles and percentiles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """Where the middle half of some values lies."""

    low: float
    median: float
    high: float


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the sorted values do not exceed; between two of them, the way between."""
    if not values:
        raise ValueError("no values")
    at = share * (len(values) - 1)
    below = int(at)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (at - below)


def spread(values: Iterable[float]) -> Spread:
    """Quartiles."""
    ordered = sorted(values)
    return Spread(quantile(ordered, 0.25), quantile(ordered, 0.5), quantile(ordered, 0.75))


def percentiles(took: Sequence[float]) -> dict[str, float | None]:
    """p50, p99 and p99.9; None for one that fewer than ten operations lie beyond, for chance would set it."""
    ordered = sorted(took)
    known: dict[str, float | None] = {}
    for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)):
        known[name] = quantile(ordered, share) if len(ordered) * (1 - share) >= 10 - 1e-6 else None
    return known


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread | None:
    """Ours against theirs, round by round: what slows the machine for a while slows both."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=False) if b > 0]
    return spread(pairs) if pairs else None
