"""What the theory's figures show, in words and numbers, for who cannot see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from dpotool.plots.theory import count_cases, count_signs
from dpotool.theory.summary import split_usable


def describe_signs(frame: pd.DataFrame) -> str:
    """Returns how many pairs of a theory table lie in each quadrant of u and v and in each entanglement case, in %."""
    usable, _ = split_usable(frame)
    n = len(usable)
    if not n:
        return ""
    quadrants, cases = (
        ", ".join(f"{name} {100 * n_pairs / n:.1f} %" for name, n_pairs in counts.items())
        for counts in (count_signs(usable), count_cases(usable))
    )
    return f"Of {n:,} pairs: {quadrants}. One DPO step on the pair alone: {cases}."


def describe_forecast(advice: Mapping[str, Mapping[str, Any]], outcomes: pd.DataFrame | None) -> str:
    """Returns the forecast of each optimizer and what runs measured (`compare.outcomes`), by lambda."""
    parts = []
    for optimizer, forecast in advice.items():
        grid = forecast.get("grid") or {}
        rows = [
            (
                f"λ={key}", grid[key]["chosen_change"]["mean"], grid[key]["rejected_change"]["mean"],
                grid[key]["accuracy"]["value"],
            )
            for key in sorted(grid, key=float)
        ]  # fmt: skip
        if rows:
            parts.append(f"Forecast from {optimizer}'s step: {'; '.join(_describe_row(*row) for row in rows)}.")
    if outcomes is not None and len(outcomes):
        columns = ["label", "chosen_change", "rejected_change", "reward_accuracy"]
        rows = list(outcomes[columns].itertuples(index=False, name=None))
        parts.append(f"Measured: {'; '.join(_describe_row(*row) for row in rows)}.")
    return " ".join(parts)


def _describe_row(what: str, chosen: float, rejected: float, accuracy: float) -> str:
    return f"{what} chosen {chosen:+.2f}, rejected {rejected:+.2f}, accuracy {100 * accuracy:.1f} %"
