"""What `dpotool theory-gap` prints: its sentences, and the columns and rows of its tables."""

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
    return ["lambda", "gap", "g1", "g2", "pairs whose printed g1 has the wrong sign, %", "g2, %"], rows


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


def say_advice(advice: Mapping[str, Any] | None) -> list[str]:
    """Returns the recommended lambda and why, a sentence a line; nothing without a forecast."""
    if advice is None:
        return []
    if not advice["grid"]:
        return ["No lambda can be recommended.", advice["reason"]]
    f = advice["recommended_lambda"]
    dpo, cell = advice["grid"]["1"], advice["grid"][f"{f:g}"]
    dpo_effect = f"DPO is forecast to {_say_change(dpo['chosen_change']['mean'])} for each nat of margin it gains"
    if advice["basis"] == "dpo":
        lowest = advice["lowest_affordable_lambda"]
        fallback = (
            f", {lowest:g} is the smallest lambda for which a loss of 3 points of accuracy is ruled out"
            if lowest < 1
            else ""
        )
        return [
            "Recommended lambda: 1, which is DPO itself.",
            f"{dpo_effect}, so its first step shows no displacement to prevent.",
            f"Longer training can still displace them: check a short DPO run. If they fall there{fallback}."
            if fallback
            else "Longer training can still displace them: check a short DPO run.",
        ]
    why = {
        "keeps_chosen": "It is the largest lambda at which the chosen answers are not forecast to fall.",
        "limits_cost": "It is the smallest lambda for which these pairs rule out a loss of 3 points of accuracy.",
    }[advice["basis"]]
    if f == 1:
        why = (
            "On these pairs no smaller lambda is shown to lose less than 3 points of accuracy and to keep half of the "
            "margin."
        )
    else:
        change = cell["chosen_change"]["mean"]
        dpo_effect += f", and lambda {f:g} to {'lower' if change < 0 else 'raise'} them by {abs(change):.2f}"
    return [f"Recommended lambda: {f:g}. {why}", f"{dpo_effect}."]


def _say_change(change: float) -> str:
    return f"{'lower' if change < 0 else 'raise'} the chosen answers by {abs(change):.2f} nats"


def say_signs(summary: Mapping[str, Any]) -> str:
    """Returns what Theorem 2.1 says of these pairs, beside what it says of the paper's."""
    share, paper = 100 * summary["u_positive_share"]["value"], 100 * summary["u_positive_share"]["paper"]
    cost, paper_cost = 100 * summary["v_negative_share"]["value"], 100 * summary["v_negative_share"]["paper"]
    return (
        f"By Theorem 2.1 a smaller lambda raises the chosen answer of {share:.1f} % of the pairs "
        f"(paper: {paper:.1f} %) and costs accuracy on {cost:.1f} % (paper: {paper_cost:.1f} %)."
    )


def say_drivers(summary: Mapping[str, Any]) -> list[str]:
    """Returns which pairs push the others down most, where a forecast knows."""
    drivers = summary.get("drivers")
    if drivers is None:
        return []
    if not drivers:
        return ["No pair pushes the chosen answers of the other pairs down."]
    pairs = ", ".join(str(pair["pair_id"]) for pair in drivers)
    return [f"These pairs push the chosen answers of the others down most: {pairs}."]


def tabulate_forecast(advice: Mapping[str, Any]) -> Table:
    """Returns the forecast of the first screen, a row per lambda; the recommended one is marked."""
    rows = [
        [
            _mark(f, advice),
            format_interval(cell["chosen_change"], 2),
            format_interval(cell["margin_change"], 0, 100),
            format_interval(cell["accuracy"], 1, 100),
        ]
        for f, cell in advice["grid"].items()
    ]
    return ["lambda", "chosen", "margin, % of DPO's", "reward accuracy, %"], rows


def tabulate_whole_forecast(advice: Mapping[str, Any]) -> Table:
    """Returns every column of the forecast, a row per lambda."""
    rows = [
        [
            _mark(f, advice),
            format_interval(cell["chosen_change"], 2),
            format_interval(cell["rejected_change"], 2),
            format_interval(cell["margin_change"], 1, 100),
            format_interval(cell["accuracy"], 1, 100),
            format_interval(cell["self_step_admissible_share"], 1, 100),
        ]
        for f, cell in advice["grid"].items()
    ]
    columns = ["lambda", "chosen", "rejected", "margin, % of DPO's", "reward accuracy, %"]
    return [*columns, "pairs whose band includes it, %"], rows


def _mark(f: str, advice: Mapping[str, Any]) -> str:
    return f"{f} *" if float(f) == advice["recommended_lambda"] else f


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
