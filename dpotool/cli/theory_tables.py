"""Columns and rows of the tables that `dpotool theory-gap` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dpotool.cli.console import format_interval

Table = tuple[list[str], list[list[str]]]
TEXT_WIDTH = 48


def tabulate_theory(summary: dict[str, Any]) -> list[list[str]]:
    """Returns the rows of the main table: here, and in the paper."""
    band = summary["band"]
    return [
        ["pairs with u > 0, %", format_interval(summary["u_positive_share"], 1, 100), "71.4"],
        ["pairs with v < 0, %", format_interval(summary["v_negative_share"], 1, 100), "81.7"],
        ["mean u", format_interval(summary["u"], 1), "4.84e+08"],
        ["mean v", format_interval(summary["v"], 1), "-4.28e+09"],
        ["pairs with <W,L> > 0, %", format_interval(band["bounded_share"], 1, 100), "-"],
        ["median band of f, lower end", format_interval(band["low_median"], 3), "-"],
        ["median band of f, upper end", format_interval(band["high_median"], 3), "-"],
        ["median of its centre |W|/|L|", format_interval(band["centre_median"], 3), "-"],
        ["pairs left out", str(sum(summary["n_excluded"].values())), "-"],
    ]


def tabulate_cases(summary: dict[str, Any]) -> Table:
    """Returns the table of entanglement cases."""
    rows = [
        [case.replace("_", " "), str(share["n"]), format_interval(share, 1, 100)]
        for case, share in summary["entanglement"].items()
    ]
    return ["case", "pairs", "share, %"], rows


def tabulate_gaps(summary: dict[str, Any]) -> Table:
    """Returns the table of gaps: a row per shift factor and kind, with the share of signs that the paper has wrong."""
    rows = []
    for f, kinds in summary["gaps"].items():
        for kind, gaps in kinds.items():
            signs = summary["sign_disagreements"][f].get(kind)
            wrong = [format_interval(signs[gap], 1, 100) if signs else "-" for gap in ("g1", "g2")]
            rows.append(
                [f, kind.replace("_", "-"), format_significant(gaps["g1"]), format_significant(gaps["g2"]), *wrong]
            )
    return ["f", "gap", "g1", "g2", "pairs where the paper's g1 has another sign, %", "g2, %"], rows


def tabulate_verification(proof: dict[str, Any]) -> Table:
    """Returns the table of measured beside predicted gaps, at the smallest learning rate."""
    rows = []
    for optimizer, by_shift in proof["optimizers"].items():
        for f, gaps in by_shift.items():
            for name, gap in gaps.items():
                last = gap["ladder"][-1]
                slope = "-" if gap["slope"] is None else f"{gap['slope']:.2f}"
                rates = f"{gap['ladder'][0]['rate']:.1e} to {last['rate']:.1e}"
                rows.append([optimizer, f, name, f"{gap['predicted']:.5g}", f"{last['measured']:.5g}", slope, rates])
    return ["optimizer", "f", "gap", "predicted", "measured", "slope of what is left", "learning rates"], rows


def tabulate_forecast(advice: dict[str, Any]) -> Table:
    """Returns the table of what a step would do, a row per lambda; the recommended one is marked."""
    rows = []
    for f, cell in advice["grid"].items():
        mark = " *" if float(f) == advice["recommended_lambda"] else ""
        rows.append(
            [
                f"{f}{mark}",
                format_interval(cell["chosen_change"], 2),
                format_interval(cell["rejected_change"], 2),
                format_interval(cell["margin_change"], 1, 100),
                format_interval(cell["accuracy"], 1, 100),
                format_interval(cell["self_step_admissible_share"], 1, 100),
            ]
        )
    columns = [
        "lambda",
        "chosen",
        "rejected",
        "margin, % of DPO's",
        "reward accuracy, %",
        "pairs whose band holds it, %",
    ]
    return columns, rows


def tabulate_drivers(drivers: list[dict[str, Any]]) -> Table:
    """Returns the table of the pairs that push the chosen answers down most."""
    rows = [
        [
            str(pair["pair_id"]),
            *(f"{pair[name]:+.3f}" for name in ("push", "own_push")),
            *(_shorten(pair[name]) for name in ("chosen", "rejected")),
        ]
        for pair in drivers
    ]
    return ["pair", "on the others", "on itself", "chosen", "rejected"], rows


def format_significant(value: Mapping[str, float | None]) -> str:
    """Returns '1.23e+04 [1.1e+04, 1.4e+04]': gaps span many powers of ten."""
    mean, low, high = value["mean"], value["ci_low"], value["ci_high"]
    if mean is None:
        return "-"
    if low is None or high is None or math.isnan(low):
        return f"{mean:.4g}"
    return f"{mean:.4g} [{low:.3g}, {high:.3g}]"


def _shorten(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= TEXT_WIDTH else flat[: TEXT_WIDTH - 3] + "..."
