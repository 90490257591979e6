"""Numbers with intervals as text, the same in every table and sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping

FEW = 50
"""Pairs, or prompts, below which a bootstrap interval is visibly too narrow: at 25 it covers 88 to 91 %."""
Summary = Mapping[str, float | None]
"""{mean or value, ci_low, ci_high}."""


def format_interval(interval: Summary | None, form: str = "+z.2f", scale: float = 1.0, unit: str = "") -> str:
    """Returns "+1.23 [+1.10, +1.36]": the value alone where its ends are not known, "-" where it is not; ∞ likewise.

    Args:
        unit: what stands behind the value, with the space before it.
    """
    found = interval or {}
    value = _scale(found.get("mean", found.get("value")), scale)
    return "-" if value is None else _format(value, form) + unit + format_ends(found, form, scale)


def format_ends(interval: Summary, form: str = "+z.2f", scale: float = 1.0) -> str:
    """Returns " [+1.10, +1.36]", or nothing where an end is not known, as with a single pair."""
    low, high = (_scale(interval.get(name), scale) for name in ("ci_low", "ci_high"))
    return "" if low is None or high is None else f" [{_format(low, form)}, {_format(high, form)}]"


def capitalize(text: str) -> str:
    """Returns the text with a capital at its beginning, all else as it is."""
    return text[:1].upper() + text[1:]


def say_if_few(n_pairs: int, n_prompts: int | None = None) -> str:
    """Returns " 12 pairs are few: ...", or nothing from FEW on; where pairs share prompts, prompts are what counts."""
    n, what = (n_pairs, "pair") if n_prompts is None or n_prompts == n_pairs else (n_prompts, "prompt")
    if n >= FEW:
        return ""
    return (
        f" {n} {what}{'' if n == 1 else 's'} {'is' if n == 1 else 'are'} few: the intervals themselves are too narrow."
    )


def _scale(number: float | None, scale: float) -> float | None:
    return None if number is None or math.isnan(number) else number * scale


def _format(number: float, form: str) -> str:
    return ("-" if number < 0 else "") + "\N{INFINITY}" if math.isinf(number) else f"{number:{form}}"
