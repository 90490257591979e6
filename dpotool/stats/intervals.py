"""Numbers with intervals, and how every table and sentence writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dpotool.wording import count

FEW = 50
"""Pairs, or prompts, below which a bootstrap interval is visibly too narrow: at 25 it covers 88 to 91 %."""
Summary = Mapping[str, float | None]
"""{mean or value, ci_low, ci_high}, as files hold it."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval; the ends are NaN for fewer than two pairs."""

    value: float
    ci_low: float
    ci_high: float

    @classmethod
    def read(cls, summary: Summary) -> Interval:
        """Reads what `to_dict` made; what is not known is NaN."""
        value, *ends = summary.get("mean", summary.get("value")), summary.get("ci_low"), summary.get("ci_high")
        return cls(*(math.nan if number is None else number for number in (value, *ends)))

    def to_dict(self, key: str = "value") -> dict[str, float]:
        """Returns the form of every summary: `{"mean" or "value": ..., "ci_low": ..., "ci_high": ...}`."""
        return {key: self.value, "ci_low": self.ci_low, "ci_high": self.ci_high}

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.ci_low > 0 or self.ci_high < 0

    def scale(self, factor: float) -> Interval:
        """Returns the interval in another unit; the factor is above 0."""
        return Interval(factor * self.value, factor * self.ci_low, factor * self.ci_high)

    def exponentiate(self) -> Interval:
        """Returns the interval of exp(it); BCa intervals carry over to whatever rises with the estimate."""
        return Interval(*(_exp(number) for number in (self.value, self.ci_low, self.ci_high)))

    def to_perplexity(self) -> Interval:
        """Converts log-probability per token (nats) to perplexity exp(-it), whose ends are swapped."""
        return Interval(-self.value, -self.ci_high, -self.ci_low).exponentiate()


def _exp(number: float) -> float:
    try:
        return math.exp(number)
    except OverflowError:
        return math.inf


def format_interval(
    interval: Interval | Summary | None, form: str = "+z.2f", scale: float = 1.0, unit: str = ""
) -> str:
    """Returns "+1.23 [+1.10, +1.36]": the value alone where its ends are not known, "-" where it is not; ∞ likewise.

    Args:
        unit: what stands behind the value, with the space before it.
    """
    found = _read(interval)
    value = _scale(found.get("mean", found.get("value")), scale)
    return "-" if value is None else _format(value, form) + unit + format_ends(found, form, scale)


def format_ends(interval: Interval | Summary, form: str = "+z.2f", scale: float = 1.0) -> str:
    """Returns " [+1.10, +1.36]", or nothing where an end is not known, as with a single pair."""
    found = _read(interval)
    low, high = (_scale(found.get(name), scale) for name in ("ci_low", "ci_high"))
    return "" if low is None or high is None else f" [{_format(low, form)}, {_format(high, form)}]"


def say_if_few(n_pairs: int, n_prompts: int | None = None) -> str:
    """Returns " With only 12 pairs, ...", or nothing from FEW on; where pairs share prompts, prompts count."""
    n, what = (n_pairs, "pair") if n_prompts is None or n_prompts == n_pairs else (n_prompts, "prompt")
    if n >= FEW:
        return ""
    return f" With only {count(n, what)}, these intervals are too narrow."


def _read(interval: Interval | Summary | None) -> Summary:
    return interval.to_dict() if isinstance(interval, Interval) else interval or {}


def _scale(number: float | None, scale: float) -> float | None:
    return None if number is None or math.isnan(number) else number * scale


def _format(number: float, form: str) -> str:
    return ("-" if number < 0 else "") + "\N{INFINITY}" if math.isinf(number) else f"{number:{form}}"
