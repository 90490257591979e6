"""The effect size of a paired share: the matched odds ratio, which model is right where only one of two is.

McNemar's test looks at the pairs that only one of two models gets right. Of those, b speak for the model and c for the
baseline: their odds b / c estimate the odds ratio of a correct answer within a pair, and the exact (Clopper-Pearson)
interval of the share b / (b + c), turned into odds, is the interval that belongs to the test.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv

from dpotool.stats.bootstrap import CONFIDENCE, N_RESAMPLES, bca_interval, has_repeats, resample_sums, sum_clusters
from dpotool.stats.intervals import Interval


def estimate_matched_odds(
    only_model: ArrayLike,
    only_baseline: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    n_resamples: int = N_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Returns the odds b / c with their interval; no unit, above 1 where the model is right more often.

    NaN without a discordant pair; infinite where all of them speak for the model. Where prompts repeat, pairs are no
    independent draws: the interval then also covers a bootstrap over prompts.

    Args:
        only_model, only_baseline: for each pair, whether it is true of this one alone.
        clusters: which prompt each pair belongs to.
    """
    ours, theirs = np.asarray(only_model, dtype=np.float64), np.asarray(only_baseline, dtype=np.float64)
    n_ours, n_discordant = int(ours.sum()), int((ours + theirs).sum())
    if n_discordant == 0:
        return Interval(math.nan, math.nan, math.nan)
    low, high = find_exact_interval(n_ours, n_discordant, confidence)
    if has_repeats(clusters):
        drawn = _bootstrap_share(np.column_stack([ours, ours + theirs]), clusters, n_resamples, confidence, seed)
        low, high = np.fmin(low, drawn.ci_low), np.fmax(high, drawn.ci_high)
    n_theirs = n_discordant - n_ours
    return Interval(n_ours / n_theirs if n_theirs else math.inf, _to_odds(low), _to_odds(high))


def find_exact_interval(n_true: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Returns the Clopper-Pearson interval of a share, of n > 0.

    From quantiles of the beta distribution (Clopper and Pearson 1934); `scipy.stats.binomtest` searches for the same
    ends a thousand times as long (tests/stats/test_odds.py checks the two against each other).
    """
    tail = (1 - confidence) / 2
    low = float(betaincinv(n_true, n - n_true + 1, tail)) if n_true else 0.0
    high = float(betaincinv(n_true + 1, n - n_true, 1 - tail)) if n_true < n else 1.0
    return low, high


def _bootstrap_share(
    columns: np.ndarray, clusters: ArrayLike | None, n_resamples: int, confidence: float, seed: int
) -> Interval:
    """Of (b, b + c) per pair, the interval of sum b / sum (b + c) over prompts; NaN without any such pair."""
    sums = sum_clusters(columns, clusters)
    with np.errstate(invalid="ignore", divide="ignore"):
        replicates, jackknife = (
            top / bottom for top, bottom in (resample_sums(sums, n_resamples, seed).T, (sums.sum(axis=0) - sums).T)
        )
    replicates, jackknife = (values[np.isfinite(values)] for values in (replicates, jackknife))
    if not len(replicates) or not len(jackknife):
        return Interval(math.nan, math.nan, math.nan)
    return bca_interval(float(columns[:, 0].sum() / columns[:, 1].sum()), replicates, jackknife, confidence)


def _to_odds(share: float) -> float:
    return math.inf if share >= 1 else float(share / (1 - share))
