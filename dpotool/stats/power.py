"""Sample sizes by normal approximation: questions to settle a win rate, pairs to rule out a loss."""

from __future__ import annotations

import math

from scipy.stats import norm

ALPHA = 0.05
"""Two-sided level of the tests."""
POWER = 0.8
"""Wanted chance that a test finds what is there."""


def count_questions_needed(without_ties: float, tie_share: float) -> float:
    """Returns the questions at which a two-sided sign test finds a win rate with the wanted power; inf for one half.

    It wants m = ((z_(1 - alpha / 2) / 2 + z_power sqrt(p (1 - p))) / (p - 1/2))^2 decided questions, corrected for
    counts being whole, m / 4 (1 + sqrt(1 + 2 / (m |p - 1/2|)))^2 (Fleiss, Levin and Paik, Statistical Methods for Rates
    and Proportions, chapter 2); ties come on top.

    Args:
        without_ties: the true win rate p among decided questions.
        tie_share: share of questions that end in a tie.
    """
    distance = abs(without_ties - 0.5)
    if math.isnan(without_ties) or math.isnan(tie_share):
        return math.nan
    if distance == 0 or tie_share >= 1:
        return math.inf
    spread = math.sqrt(without_ties * (1 - without_ties))
    decided = ((norm.ppf(1 - ALPHA / 2) / 2 + norm.ppf(POWER) * spread) / distance) ** 2
    decided *= (1 + math.sqrt(1 + 2 / (decided * distance))) ** 2 / 4
    return math.ceil(decided / (1 - tie_share))


def find_detectable_rate(n: int, tie_share: float) -> float:
    """Returns the least win rate without ties (above one half) that so many questions would find; NaN for none.

    The inverse of `count_questions_needed`, by bisection: more questions are needed the nearer a rate is to one half.
    """
    if n < 1 or tie_share >= 1 or count_questions_needed(1.0, tie_share) > n:
        return math.nan
    low, high = 0.5, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if count_questions_needed(middle, tie_share) <= n else (middle, high)
    return high


def count_pairs_needed(discordant_share: float, delta: float) -> float:
    """Returns the pairs at which a loss of delta in a paired share would be ruled out if there were none.

    The difference of two paired shares without true difference has variance d / n, d being the share of discordant
    pairs, so its two-sided interval lies above -delta with the wanted power at n = (z_(1 - alpha / 2) + z_power)^2 d /
    delta^2, 7.85 d / delta^2 by default (the Wald test of paired non-inferiority, at no difference).
    Without a discordant pair it is the n at which 1 - (alpha / 2)^(1 / n), the most that could be missed, is delta.

    Args:
        discordant_share: of pairs that only one of the two models ranks right.
        delta: the loss to be ruled out, a share between 0 and 1.
    """
    if math.isnan(discordant_share) or not 0 < delta < 1:
        return math.nan
    without = math.log(ALPHA / 2) / math.log1p(-delta)
    quantiles = float(norm.ppf(1 - ALPHA / 2) + norm.ppf(POWER))
    return math.ceil(max(without if discordant_share == 0 else 0.0, quantiles**2 * discordant_share / delta**2))
