"""Win rates over questions: three ways to count ties, each with its name; sign test; what the order of answers did.

An outcome is +1 where the model's answer was preferred, 0 for a tie, -1 where the baseline's was. Questions are drawn
in the bootstrap, never single judgments: where a question has several (samples, repeated prompts), they are drawn
together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpotool.stats.bootstrap import N_RESAMPLES, bootstrap_ratios, bootstrap_shares
from dpotool.stats.intervals import Interval
from dpotool.stats.paired import compare_shares

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often a model's answers were preferred to the baseline's; shares from 0 to 1."""

    wins: int
    ties: int
    losses: int
    ties_half: Interval
    """(wins + ties / 2) / n: one half for two models that cannot be told apart. The win rate where none is named."""
    without_ties: Interval
    """wins / (wins + losses); the interval takes the number of decided questions as given."""
    ties_as_wins: Interval
    """(wins + ties) / n: above one half for any two models that tie often, the better and the worse alike."""
    p_value: float
    """Two-sided: the exact sign test on the decided questions; where prompts repeat, sign flips over prompts."""
    test: str

    @property
    def n(self) -> int:
        return self.wins + self.ties + self.losses


def estimate_win_rate(
    outcomes: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> WinRate:
    """Counts outcomes (+1, 0, -1; one a question) and gives the three win rates with intervals, and the sign test.

    The sign test is McNemar's on "only the model won" against "only the baseline won", and ties-as-half is
    (1 + P(win) - P(loss)) / 2, so both come from the paired comparison of these two shares, with its exact interval
    where few questions were decided.

    Args:
        clusters: which prompt each question belongs to.
    """
    values = np.asarray(outcomes, dtype=np.float64)
    wins, losses = values > 0, values < 0
    options: dict[str, Any] = {"n_resamples": n_resamples, "seed": seed}
    if len(values) == 0:
        nothing = Interval(math.nan, math.nan, math.nan)
        return WinRate(0, 0, 0, nothing, nothing, nothing, math.nan, "none")
    paired = compare_shares(wins, losses, clusters=clusters, **options)
    decided = wins | losses
    groups = None if clusters is None else np.asarray(clusters)
    shares = {"kept": wins[decided]} if decided.any() else {}
    without = bootstrap_shares(shares, clusters=None if groups is None else groups[decided], **options)
    as_wins = bootstrap_shares({"": ~losses}, clusters=groups, **options)[""]
    return WinRate(
        wins=int(wins.sum()),
        ties=int(len(values) - decided.sum()),
        losses=int(losses.sum()),
        ties_half=_from_difference(paired.difference),
        without_ties=without.get("kept", Interval(math.nan, math.nan, math.nan)),
        ties_as_wins=as_wins,
        p_value=paired.p_value,
        test="sign-flip permutation test" if paired.test.startswith("sign") else "exact sign test",
    )


def _from_difference(difference: Interval) -> Interval:
    """From P(win) - P(loss) to the win rate with ties as half."""
    low, high = (min(1.0, max(0.0, (1 + end) / 2)) for end in (difference.ci_low, difference.ci_high))
    known = not math.isnan(difference.ci_low)
    return Interval((1 + difference.value) / 2, low if known else math.nan, high if known else math.nan)


@dataclass(frozen=True, slots=True)
class OrderEffect:
    """What a judge's verdicts owe to the place of an answer; both orders of the same questions."""

    n: int
    """Questions with a verdict in both orders."""
    agreement: Interval
    """Share of them with the same verdict in both orders."""
    position_bias: Interval
    """(verdicts for the first answer - for the second) / (their sum), over both orders: 1 for a judge that always takes
    the first, 0 for one that ignores the order, -1 for one that always takes the second."""


def estimate_order_effect(
    forward: ArrayLike,
    reverse: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    seed: int = 0,
) -> OrderEffect:
    """Compares the outcomes (+1, 0, -1, for the model) of the same questions with the model's answer first and second.

    Args:
        forward: outcomes with the model's answer in the first place.
        reverse: outcomes with it in the second.
    """
    first, second = np.asarray(forward, dtype=np.float64), np.asarray(reverse, dtype=np.float64)
    options: dict[str, Any] = {"clusters": clusters, "seed": seed}
    if len(first) == 0:
        nothing = Interval(math.nan, math.nan, math.nan)
        return OrderEffect(0, nothing, nothing)
    agreement = bootstrap_shares({"": first == second}, **options)[""]
    n_first = (first > 0).astype(float) + (second < 0)
    n_second = (first < 0).astype(float) + (second > 0)
    return OrderEffect(len(first), agreement, _estimate_bias(n_first, n_second, options))


def _estimate_bias(n_first: Floats, n_second: Floats, options: dict[str, Any]) -> Interval:
    """The bias over questions with a decided verdict: a question of two ties has none, and no part in the ratio."""
    decided = n_first + n_second > 0
    if not decided.any():
        return Interval(math.nan, math.nan, math.nan)
    clusters = options["clusters"]
    groups = None if clusters is None else np.asarray(clusters)[decided]
    ratio = {"": ((n_first - n_second)[decided], (n_first + n_second)[decided])}
    return bootstrap_ratios(ratio, **(options | {"clusters": groups}))[""]
