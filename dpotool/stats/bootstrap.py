"""Bootstrap intervals over pairs: for means, shares, ratios of sums (perplexity) and medians.

Means and perplexities are ratios of two sums over pairs (a mean divides by a sum of ones), so one set of resample
counts serves all columns of a table: `counts @ columns`. 10,000 resamples of 60,000 pairs take a few seconds for a
whole summary; `scipy.stats.bootstrap`, which draws anew for each statistic, needs that for one of them
(tests/stats/test_bootstrap.py checks the two against each other). What a resample does to a share or a median has a
known distribution and is drawn from it directly. Pairs are resampled, never tokens or batches; where
several pairs share a prompt (`clusters`), all pairs of a prompt together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import binomtest

from dpotool.stats.intervals import Interval

N_RESAMPLES = 10_000
CONFIDENCE = 0.95
_CELLS_PER_BLOCK = 65_536  # resamples x pairs drawn at a time; stays in cache, which is what makes it fast
_KEPT_CELLS = 2**25  # resamples x pairs whose draws stay in memory, 64 MiB each; counts of so few rows fit 16 bits

Floats = NDArray[np.float64]


def read_clusters(table: pd.DataFrame) -> np.ndarray | None:
    """Returns which prompt each pair belongs to, or None for a table that does not say."""
    prompts = table.get("prompt_id")
    return None if prompts is None or prompts.isna().any() else prompts.to_numpy(dtype=str)


def count_prompts(table: pd.DataFrame) -> int | None:
    """Returns how many prompts the pairs have, or None for a table that does not say."""
    clusters = read_clusters(table)
    return None if clusters is None else len(np.unique(clusters))


def bootstrap_interval(
    values: ArrayLike,
    statistic: str = "mean",
    *,
    n_resamples: int = N_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Returns the interval of one column: `mean` (BCa), `share` of true values (BCa) or `median` (percentile)."""
    column = _as_column(values)
    if statistic == "median":
        return _bootstrap_median(column, n_resamples, confidence, seed)
    if statistic == "share":
        return bootstrap_shares({"": column}, n_resamples=n_resamples, confidence=confidence, seed=seed)[""]
    if statistic == "mean":
        return bootstrap_means({"": column}, n_resamples=n_resamples, confidence=confidence, seed=seed)[""]
    raise ValueError(f"unknown statistic {statistic!r}; known: mean, median, share")


def bootstrap_means(
    columns: Mapping[str, ArrayLike],
    *,
    clusters: ArrayLike | None = None,
    n_resamples: int = N_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> dict[str, Interval]:
    """Returns BCa intervals for the means of several columns over the same pairs, from the same resamples."""
    ratios = {name: (values, np.ones(np.size(values))) for name, values in columns.items()}
    return bootstrap_ratios(ratios, clusters=clusters, n_resamples=n_resamples, confidence=confidence, seed=seed)


def bootstrap_shares(
    columns: Mapping[str, ArrayLike],
    *,
    clusters: ArrayLike | None = None,
    n_resamples: int = N_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> dict[str, Interval]:
    """Returns BCa intervals for the share of true values in each column; a resample's count is binomial.

    Where all or none are true every resample is the same and the bootstrap would claim certainty; there the Wilson
    score interval is used instead, over clusters if there are any.
    """
    if not has_repeats(clusters):
        return {
            name: _bootstrap_share(_as_column(values), n_resamples, confidence, seed)
            for name, values in columns.items()
        }
    n_clusters = len(np.unique(np.asarray(clusters)))
    intervals = bootstrap_means(columns, clusters=clusters, n_resamples=n_resamples, confidence=confidence, seed=seed)
    return {
        name: _wilson(share.value, n_clusters, confidence) if share.value in (0, 1) else share
        for name, share in intervals.items()
    }


def bootstrap_ratios(
    ratios: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    clusters: ArrayLike | None = None,
    n_resamples: int = N_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> dict[str, Interval]:
    """Returns BCa intervals for sum(numerators) / sum(denominators), all from the same resamples of pairs.

    Args:
        ratios: name -> (numerators, denominators), every array one value per pair, all of the same length.
        clusters: a label per pair (its prompt); pairs of one label are drawn together. A ratio of sums over pairs is
            one of sums over clusters, so nothing else changes.

    Raises ValueError for arrays of different lengths or with values that are not finite.
    """
    if not ratios:
        return {}
    names = list(ratios)
    tops = np.column_stack([_as_column(ratios[name][0]) for name in names])  # (n_pairs, n_statistics)
    bottoms = np.column_stack([_as_column(ratios[name][1]) for name in names])
    if len(tops) == 0:
        return {name: Interval(math.nan, math.nan, math.nan) for name in names}
    if has_repeats(clusters):
        tops, bottoms = sum_clusters(tops, clusters), sum_clusters(bottoms, clusters)
    values = tops.sum(axis=0) / bottoms.sum(axis=0)
    if len(tops) == 1:
        return {name: Interval(float(value), math.nan, math.nan) for name, value in zip(names, values, strict=True)}
    is_mean = (bottoms == 1).all(axis=0)  # their sums of ones need no drawing
    sums = resample_sums(np.hstack([tops, bottoms[:, ~is_mean]]), n_resamples, seed)
    replicates = sums[:, : len(names)] / len(tops)
    replicates[:, ~is_mean] = sums[:, : len(names)][:, ~is_mean] / sums[:, len(names) :]
    jackknife = (tops.sum(axis=0) - tops) / (bottoms.sum(axis=0) - bottoms)
    return {
        name: bca_interval(float(values[i]), replicates[:, i], jackknife[:, i], confidence)
        for i, name in enumerate(names)
    }


def has_repeats(clusters: ArrayLike | None) -> bool:
    """Whether some cluster has more than one pair; otherwise pairs are drawn one by one."""
    if clusters is None:
        return False
    labels = np.asarray(clusters)
    return len(np.unique(labels)) < len(labels)


def sum_clusters(columns: Floats, clusters: ArrayLike | None) -> Floats:
    """Sums each column within each cluster: (n_pairs, n_columns) -> (n_clusters, n_columns)."""
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((index.max() + 1, columns.shape[1]))
    np.add.at(sums, index, columns)
    return sums


def resample_sums(columns: Floats, n_resamples: int, seed: int) -> Floats:
    """Returns column sums of `n_resamples` samples of rows drawn with replacement, (n_resamples, n_columns)."""
    n_pairs = len(columns)
    is_kept = n_resamples * n_pairs <= _KEPT_CELLS
    blocks = (_keep_counts if is_kept else _draw_counts)(n_pairs, n_resamples, seed)
    return np.concatenate([counts.astype(np.float64) @ columns for counts in blocks])


def _draw_counts(n_pairs: int, n_resamples: int, seed: int) -> Iterator[NDArray[np.integer]]:
    """Yields how often each row is in each resample, some resamples at a time, (block, n_pairs)."""
    rng = np.random.default_rng(seed)
    block = max(1, _CELLS_PER_BLOCK // n_pairs)
    for start in range(0, n_resamples, block):
        size = min(block, n_resamples - start)
        drawn = rng.integers(0, n_pairs, size=(size, n_pairs), dtype=np.int32)
        drawn += n_pairs * np.arange(size, dtype=np.int32)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * n_pairs).reshape(size, n_pairs)


@lru_cache(maxsize=2)
def _keep_counts(n_pairs: int, n_resamples: int, seed: int) -> tuple[NDArray[np.integer], ...]:
    """Caches `_draw_counts`: a comparison needs the same draws many times, and drawing takes most of its time."""
    return tuple(counts.astype(np.uint16) for counts in _draw_counts(n_pairs, n_resamples, seed))


def bca_interval(value: float, replicates: Floats, jackknife: Floats, confidence: float) -> Interval:
    """Returns the bias-corrected and accelerated interval (Efron 1987); ties with the estimate count half."""
    tail = (1 - confidence) / 2
    levels = np.array([tail, 1 - tail])
    below = float(np.mean(replicates < value) + np.mean(replicates == value) / 2)
    deviations = jackknife.mean() - jackknife
    spread = float(np.sum(deviations**2))
    if 0 < below < 1 and spread > 0:  # else a constant column, where nothing is left to correct
        bias = ndtri(below)  # `scipy.stats.norm` does the same and takes a hundred times as long
        acceleration = np.sum(deviations**3) / (6 * spread**1.5)
        shifted = bias + ndtri(levels)
        levels = ndtr(bias + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(replicates, levels)
    return Interval(value, float(low), float(high))


def _bootstrap_share(column: Floats, n_resamples: int, confidence: float, seed: int) -> Interval:
    n_true, n_pairs = int(column.sum()), len(column)
    if n_pairs == 0:
        return Interval(math.nan, math.nan, math.nan)
    share = n_true / n_pairs
    if n_true in (0, n_pairs):
        return _wilson(share, n_pairs, confidence)
    replicates = np.random.default_rng(seed).binomial(n_pairs, share, size=n_resamples) / n_pairs
    jackknife = (n_true - column) / (n_pairs - 1)
    return bca_interval(share, replicates, jackknife, confidence)


def _wilson(share: float, n: int, confidence: float) -> Interval:
    """The score interval of a share of none or all of n."""
    wilson = binomtest(round(share * n), n).proportion_ci(confidence, method="wilson")
    return Interval(share, float(wilson.low), float(wilson.high))


def _bootstrap_median(column: Floats, n_resamples: int, confidence: float, seed: int) -> Interval:
    """The percentile interval of the median, drawing each resample's median directly instead of the resample.

    The m-th smallest of n uniform numbers is Beta(m, n - m + 1), and floor(n * it) is the rank, in the sorted column,
    of the m-th smallest value of a resample; given it, the next one is the smallest of n - m uniforms above it. So the
    bootstrap distribution is exact and costs the same for any n.
    """
    n_pairs = len(column)
    if n_pairs < 2:
        return Interval(float(column[0]) if n_pairs else math.nan, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    ordered = np.sort(column)
    rank = (n_pairs + 1) // 2
    middle = rng.beta(rank, n_pairs - rank + 1, size=n_resamples)
    medians = ordered[_rank_of(middle, n_pairs)]
    if n_pairs % 2 == 0:
        above = middle + (1 - middle) * rng.beta(1, n_pairs - rank, size=n_resamples)
        medians = (medians + ordered[_rank_of(above, n_pairs)]) / 2
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return Interval(float(np.median(column)), float(low), float(high))


def _rank_of(uniform: Floats, n_pairs: int) -> NDArray[np.intp]:
    return np.minimum((uniform * n_pairs).astype(np.intp), n_pairs - 1)


def _as_column(values: ArrayLike) -> Floats:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1:
        raise ValueError(f"expected one value per pair, got shape {column.shape}")
    if not np.isfinite(column).all():
        raise ValueError("a column with NaN or infinite values has no bootstrap interval; leave those pairs out first")
    return column
