"""Correlations over pairs with bootstrap intervals: pairs of one prompt are drawn together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, rankdata, spearmanr

from dpotool.stats.bootstrap import Interval

Values = NDArray[np.float64]
Prompts = NDArray[np.str_]
N_RESAMPLES = 2_000
FEWEST_PAIRS = 3


def correlate_ranks(scores: Values, measured: Values, clusters: Prompts | None, seed: int) -> dict[str, float] | None:
    """Returns Spearman's correlation over pairs with its bootstrap interval, pairs of one prompt drawn together.

    None where it has no meaning: fewer than 3 pairs or prompts, or all of one value.
    """
    return over_pairs(rank_correlation, scores, measured, clusters, seed)


def over_pairs(
    statistic: Callable[[Values, Values], float],
    predicted: Values,
    measured: Values,
    clusters: Prompts | None,
    seed: int,
) -> dict[str, float] | None:
    """The statistic with its bootstrap interval; None where it has no meaning (fewer than 3 pairs, or one value)."""
    if len(measured) < FEWEST_PAIRS or np.ptp(predicted) == 0 or np.ptp(measured) == 0:
        return None
    labels = np.arange(len(measured)) if clusters is None else clusters
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def resample(drawn: NDArray[np.int_]) -> float:
        places = np.concatenate([members[number] for number in drawn])
        return statistic(predicted[places], measured[places])

    if len(members) < FEWEST_PAIRS:
        return None
    found = bootstrap(
        (np.arange(len(members)),),
        resample,
        vectorized=False,
        n_resamples=N_RESAMPLES,
        method="percentile",  # BCa would need a resample without each pair in turn, and these are bounded or robust
        rng=np.random.default_rng(seed),
    )
    low, high = (float(end) for end in found.confidence_interval)
    return Interval(float(statistic(predicted, measured)), low, high).to_dict()


def correlate(predicted: Values, measured: Values) -> float:
    """Returns Pearson's correlation; 0 where one of the two does not vary."""
    centred = predicted - predicted.mean(), measured - measured.mean()
    norms = np.linalg.norm(centred[0]) * np.linalg.norm(centred[1])
    return float(centred[0] @ centred[1] / norms) if norms > 0 else 0.0


def rank_correlation(predicted: Values, measured: Values) -> float:
    """Returns Spearman's correlation; 0 where one of the two does not vary."""
    if np.ptp(predicted) == 0 or np.ptp(measured) == 0:
        return 0.0
    return float(spearmanr(predicted, measured).statistic)


def correlate_many(
    scores: Mapping[str, Values], measured: Values, given: Values, clusters: Prompts | None, *, seed: int = 0
) -> dict[str, dict[str, dict[str, float] | None]]:
    """Returns for each column of scores Spearman's correlation with the measurement, and what is left of it given more.

    `rank_correlation`, and `given` = (r_sm - r_sg r_mg) / sqrt((1 - r_sg^2)(1 - r_mg^2)) of the rank correlations of
    scores, measurement and the given column: what is left where neither may lean on the third. Percentile bootstrap
    over pairs, pairs of one prompt together; one set of resamples serves all columns. A column has None where a
    correlation has no meaning: it does not vary, or there are fewer than 3 pairs or prompts.
    """
    table = np.column_stack([*scores.values(), given, measured])
    labels = np.arange(len(table)) if clusters is None else clusters
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if len(members) < FEWEST_PAIRS or np.ptp(measured) == 0:
        return {name: {"rank_correlation": None, "given": None} for name in scores}
    draw = np.random.default_rng(seed)
    resamples = []
    for _ in range(N_RESAMPLES):
        drawn = draw.integers(len(members), size=len(members))
        resamples.append(_correlate_columns(table[np.concatenate([members[number] for number in drawn])]))
    ends = np.quantile(np.stack(resamples), [0.025, 0.975], axis=0)  # (2, columns, 2)
    values = _correlate_columns(table)
    found: dict[str, dict[str, dict[str, float] | None]] = {}
    for place, name in enumerate(scores):
        varies = [np.ptp(scores[name]) > 0, np.ptp(scores[name]) > 0 and np.ptp(given) > 0]
        found[name] = {
            kind: Interval(*(float(each[place, which]) for each in (values, *ends))).to_dict()
            if varies[which]
            else None
            for which, kind in enumerate(("rank_correlation", "given"))
        }
    return found


def _correlate_columns(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns per column of scores its rank correlation with the last column, and the same given the last but one."""
    ranks = rankdata(table, axis=0)
    ranks -= ranks.mean(axis=0)
    norms = np.linalg.norm(ranks, axis=0)
    ranks /= np.where(norms > 0, norms, 1.0)
    s_g, s_m = ranks[:, :-2].T @ ranks[:, -2], ranks[:, :-2].T @ ranks[:, -1]
    m_g = ranks[:, -1] @ ranks[:, -2]
    spread = np.sqrt(np.clip((1 - s_g**2) * (1 - m_g**2), 0, None))
    partial = np.divide(s_m - s_g * m_g, spread, out=np.zeros_like(s_m), where=spread > 1e-6)
    return np.stack([s_m, partial], axis=1)
