"""Correlations over pairs with bootstrap intervals: pairs of one prompt are drawn together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpotool.stats.intervals import Interval

Values = NDArray[np.float64]
Prompts = NDArray[np.str_]
Counts = NDArray[np.float64]
"""How often each resample holds each row, (resamples, rows)."""
N_RESAMPLES = 2_000
_CELLS_PER_BLOCK = 131_072  # resamples x pairs whose ranks are in memory at a time
FEWEST_PAIRS = 3


def correlate_ranks(scores: Values, measured: Values, clusters: Prompts | None, seed: int) -> dict[str, float] | None:
    """Returns Spearman's correlation over pairs with its bootstrap interval, pairs of one prompt drawn together.

    None where it has no meaning: fewer than 3 pairs or prompts, or all of one value.
    """
    return over_pairs(rank_correlations, scores, measured, clusters, seed)


def over_pairs(
    statistic: Callable[[Values, Values, Counts], Values],
    predicted: Values,
    measured: Values,
    clusters: Prompts | None,
    seed: int,
) -> dict[str, float] | None:
    """Returns the statistic with its percentile bootstrap interval over pairs, pairs of one prompt drawn together.

    None for fewer than 3 pairs or prompts, or a constant column. BCa would need a resample without each pair in turn,
    and these statistics are bounded or robust.

    Args:
        statistic: its value in every resample, (resamples,), from both columns and how often each holds each row.
    """
    if len(measured) < FEWEST_PAIRS or np.ptp(predicted) == 0 or np.ptp(measured) == 0:
        return None
    labels = np.arange(len(measured)) if clusters is None else clusters
    if len(np.unique(labels)) < FEWEST_PAIRS:
        return None
    resamples = [statistic(predicted, measured, counts) for counts in _draw_counts(labels, seed)]
    low, high = np.quantile(np.concatenate(resamples), [0.025, 0.975])
    [value] = statistic(predicted, measured, np.ones((1, len(measured))))
    return Interval(float(value), float(low), float(high)).to_dict()


def correlations(predicted: Values, measured: Values, counts: Counts) -> Values:
    """Returns Pearson's correlation in every resample; 0 where one of the two does not vary."""
    return _multiply(*(_normalize(centre_counted(column, counts), counts) for column in (predicted, measured)))


def rank_correlations(predicted: Values, measured: Values, counts: Counts) -> Values:
    """Returns Spearman's correlation in every resample; 0 where one of the two does not vary."""
    return _multiply(*(_normalize(_rank_counted(_sort(column), counts), counts) for column in (predicted, measured)))


def centre_counted(column: Values, counts: Counts) -> Values:
    """Returns each row's value less the mean of every resample, (resamples, rows); what is rounding alone is 0."""
    centred = column - (counts @ column / counts.sum(axis=1))[:, None]
    return np.where(np.abs(centred) > 1e-14 * np.abs(column).max(), centred, 0.0)


def _draw_counts(labels: NDArray[Any], seed: int) -> Iterator[Counts]:
    """Yields `N_RESAMPLES` resamples of the labels, some at a time; rows of one label are drawn together."""
    prompts, prompt_of = np.unique(labels, return_inverse=True)
    draw = np.random.default_rng(seed)
    size = max(1, _CELLS_PER_BLOCK // len(labels))
    for start in range(0, N_RESAMPLES, size):
        drawn = [draw.integers(len(prompts), size=len(prompts)) for _ in range(min(size, N_RESAMPLES - start))]
        counts = np.stack([np.bincount(each, minlength=len(prompts)) for each in drawn])
        yield counts[:, prompt_of].astype(np.float64)


def correlate_many(
    scores: Mapping[str, Values], measured: Values, given: Values, clusters: Prompts | None, *, seed: int = 0
) -> dict[str, dict[str, dict[str, float] | None]]:
    """Returns for each column of scores Spearman's correlation with the measurement, and what is left of it given more.

    `rank_correlation`, and `given` = (r_sm - r_sg r_mg) / sqrt((1 - r_sg^2)(1 - r_mg^2)) of the rank correlations of
    scores, measurement and the given column: what is left where neither may lean on the third. Percentile bootstrap
    over pairs, pairs of one prompt together; one set of resamples serves all columns. A column has None where a
    correlation has no meaning: it does not vary, or there are fewer than 3 pairs or prompts.
    """
    columns = [*scores.values(), given, measured]
    labels = np.arange(len(measured)) if clusters is None else clusters
    if len(np.unique(labels)) < FEWEST_PAIRS or np.ptp(measured) == 0:
        return {name: {"rank_correlation": None, "given": None} for name in scores}
    places = [_sort(column) for column in columns]
    resamples = [_correlate_counted(places, counts) for counts in _draw_counts(labels, seed)]
    ends = np.quantile(np.concatenate(resamples), [0.025, 0.975], axis=0)  # (2, columns, 2)
    values = _correlate_counted(places, np.ones((1, len(measured))))[0]
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


@dataclass(frozen=True, slots=True)
class _Sorted:
    """A column in ascending order, its equal values in one group."""

    order: NDArray[np.intp]
    group_of: NDArray[np.intp]
    """Rank of each row among the values of the column."""
    ends: NDArray[np.intp]
    """Place in `order` of each group's last row."""


def _sort(column: Values) -> _Sorted:
    _, group_of, sizes = np.unique(column, return_inverse=True, return_counts=True)
    return _Sorted(np.argsort(column, kind="stable"), group_of, np.cumsum(sizes) - 1)


def _rank_counted(column: _Sorted, counts: Counts) -> NDArray[np.float64]:
    """Returns each row's rank in every resample less the mean of all ranks, ties sharing theirs: (resamples, rows).

    Sorting is done once: in a resample that holds a row so often, the rows up to and within a group are counted.
    """
    up_to = counts[:, column.order].cumsum(axis=1)[:, column.ends]  # (resamples, groups)
    within = np.diff(up_to, axis=1, prepend=0.0)
    ranks = up_to - within + (within + 1) / 2
    return np.asarray((ranks - (up_to[:, -1:] + 1) / 2)[:, column.group_of])


def _correlate_counted(columns: Sequence[_Sorted], counts: Counts) -> NDArray[np.float64]:
    """Returns each score's rank correlation with the last column, and the same given the last but one.

    Args:
        columns: scores, the given column, the measurement.
        counts: how often each resample holds a row, (resamples, rows).

    Returns:
        (resamples, scores, 2)
    """
    *scores, given, measured = (_normalize(_rank_counted(column, counts), counts) for column in columns)
    m_g = _multiply(measured, given)
    found = []
    for score in scores:
        s_m, s_g = _multiply(score, measured), _multiply(score, given)
        spread = np.sqrt(np.clip((1 - s_g**2) * (1 - m_g**2), 0, None))
        partial = np.divide(s_m - s_g * m_g, spread, out=np.zeros_like(s_m), where=spread > 1e-6)
        found.append(np.stack([s_m, partial], axis=1))
    return np.stack(found, axis=1)


def _normalize(ranks: NDArray[np.float64], counts: Counts) -> NDArray[np.float64]:
    """Scales ranks so that the counted products of two columns add up to their correlation; of one value, to 0."""
    weighted = ranks * np.sqrt(counts)
    norms = np.linalg.norm(weighted, axis=1, keepdims=True)
    return np.asarray(weighted / np.where(norms > 0, norms, 1.0))


def _multiply(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.einsum("ij,ij->i", one, other))
