"""Medians, ratios, tables and goals, of figures whose answer is known."""

from __future__ import annotations

from typing import Any

import pytest

from compare.goals import judged
from compare.report import merged, text
from compare.stats import percentiles, quantile, ratios, spread

M = 1 << 20


def test_quartiles_lie_between_neighbours() -> None:
    assert spread([4, 1, 3, 2, 5]) == (2, 3, 4)
    assert spread([1, 2]) == (1.25, 1.5, 1.75)
    assert spread([7]) == (7, 7, 7)
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_a_percentile_needs_ten_operations_beyond_it() -> None:
    took = [i / 1000 for i in range(1000)]
    assert percentiles(took) == {"p50": pytest.approx(0.4995), "p99": pytest.approx(0.98901), "p99.9": None}
    assert percentiles(took[:999])["p99"] is None
    assert percentiles(took[:19])["p50"] is None


def test_ratios_are_of_the_same_round() -> None:
    # The machine was slow in the second round; the ratio was the same all the time.
    assert ratios([2.0, 0.2, 4.0], [1.0, 0.1, 2.0]) == (2, 2, 2)
    assert ratios([1.0], [0.0]) is None


def cell(peer: str, operation: str, size: int, rates: list[float], **more: Any) -> dict[str, Any]:
    return {
        "size": size,
        "clients": 1,
        "operation": operation,
        "peer": peer,
        "gb_per_s": rates,
        "memory": "warm" if operation == "put" else "fresh",
        "operations": 100,
        "seconds": {"p50": 0.001, "p99": None, "p99.9": None},
        "client_s_per_gb": 1.0,
        "server_user_s_per_gb": 0.1,
        "server_kernel_s_per_gb": 0.2,
        "server_minor_faults_per_gb": 3.0,
        "server_major_faults_per_gb": 0.0,
        **more,
    }


def document(*cells: dict[str, Any], **more: Any) -> dict[str, Any]:
    machine = {"cpus": "2 x Test", "kernel": "6", "python": "3"}
    return {
        "machine": machine,
        "rounds": 2,
        "slice_s": 0.1,
        "peers": {"sira": "Sira"},
        "missing": {"mooncake": "no such module"},
        "cells": list(cells),
        **more,
    }


def test_the_report_has_medians_ratios_and_names_who_is_missing() -> None:
    report = text(
        document(
            cell("sira", "put", 16 * M, [2.0, 2.2, 2.4]),
            cell("arrow", "put", 16 * M, [1.0, 1.1, 1.2]),
            {**cell("redis", "put", 16 * M, []), "error": "it fell over"},
        )
    )
    assert "**mooncake did not take part**: no such module" in report
    assert "2.20 (2.10-2.30); 2.00x (2.00-2.00)" in report
    assert "it fell over" in report


@pytest.mark.parametrize(("rate", "met"), [(2.0, "yes"), (1.9, "no")])
def test_a_goal_is_met_by_every_part_of_it(rate: float, met: str) -> None:
    found = document(
        cell("sira", "put", 16 * M, [2.5]),
        cell("arrow", "put", 16 * M, [1.0]),
        cell("sira", "put", 64 * M, [rate]),
        cell("arrow", "put", 64 * M, [1.0]),
    )
    goal = judged(found)[0]
    assert (goal.measured, goal.met) == (f"put 16 MiB 2.50x, put 64 MiB {rate:.2f}x", met)


def test_what_was_not_measured_is_not_met() -> None:
    for goal in judged(document()):
        assert goal.measured.startswith("not measured")
        assert goal.met == ""
    half = document(cell("sira", "put", 16 * M, [2.5]), cell("arrow", "put", 16 * M, [1.0]))
    assert judged(half)[0].met == "so far"


def test_a_goal_names_the_limit_that_no_server_passes() -> None:
    found = [
        cell(peer, "put", 16 * M, [rate]) for peer, rate in (("sira", 1.2), ("arrow", 1.0), ("canned", 1.5))
    ]
    assert judged(document(*found))[0].measured == "put 16 MiB 1.20x (limit 1.50x)"


def test_gets_beside_puts_are_judged_by_their_p99() -> None:
    loads = {
        "quiet": {"p50_s": [0.001, 0.001], "p99_s": [0.002, 0.004], "meanwhile": "nothing"},
        "beside puts": {"p50_s": [0.002, 0.002], "p99_s": [0.008, 0.016], "meanwhile": "puts"},
    }
    found = document(mixed={"sira": loads})
    goal = next(goal for goal in judged(found) if goal.what.startswith("p99"))
    assert (goal.measured, goal.met) == ("beside puts 4.00x", "no")
    assert "4.00x (4.00-4.00)" in text(found)


def test_runs_over_different_cells_become_one() -> None:
    one = document(cell("sira", "put", M, [1.0]), cell("sira", "put", 16 * M, [1.0]), took_s=10)
    other = document(cell("sira", "put", M, [2.0]), took_s=5)
    whole = merged([one, other])
    assert [(c["size"], c["gb_per_s"]) for c in whole["cells"]] == [(M, [2.0]), (16 * M, [1.0])]
    assert whole["took_s"] == 15
