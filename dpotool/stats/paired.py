"""Paired statistics: the difference of two models on the same pairs, with interval, effect size and p-value.

Differences are taken within a pair, which makes them far surer than two intervals side by side suggest. Where several
pairs share a prompt they are not independent: the pairs of a prompt are drawn, and have their signs turned, together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, permutation_test

from dpotool.stats.bootstrap import (
    CONFIDENCE,
    N_RESAMPLES,
    bca_interval,
    bootstrap_means,
    has_repeats,
    resample_sums,
    sum_clusters,
)
from dpotool.stats.intervals import Interval
from dpotool.stats.odds import estimate_matched_odds, find_exact_interval

N_PERMUTATIONS = 9_999
"""Random sign changes; with the data themselves 10,000, so that the smallest p-value is 0.0001."""
ALPHA = 0.05
"""A difference is called beyond chance where its adjusted p-value is below this."""
MCNEMAR = "exact McNemar test"
SIGN_FLIPS = "sign-flip permutation test"
STANDARDISED, ODDS = "Cohen's d_z", "matched odds ratio"
FEW_DISCORDANT = 10
_CELLS_PER_BATCH = 4_000_000  # permutations x pairs in memory at a time

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Tested:
    """A difference with its interval and its test."""

    difference: Interval
    """Mean of model minus baseline, in the column's unit."""
    p_value: float
    """Two-sided; NaN where there is too little to test."""
    p_adjusted: float | None = None
    """Where several are compared, the p-value adjusted for that (`adjust_family`); None where there is none."""

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the adjusted p-value is below ALPHA."""
        return self.p_adjusted is not None and self.p_adjusted < ALPHA

    @property
    def is_shown(self) -> bool:
        """Whether the difference can be claimed: its interval and its adjusted test both say so.

        Neither alone will do. Bootstrap intervals are too narrow for few pairs (of five with no true difference one in
        six leaves zero out), and know nothing of how many models are compared.
        """
        return self.is_beyond_chance and self.difference.excludes_zero

    def to_dict(self) -> dict[str, Any]:
        """Returns the form of every summary."""
        return {
            "difference": self.difference.to_dict("mean"),
            "p_value": self.p_value,
            "p_adjusted": self.p_adjusted,
        }


@dataclass(frozen=True, kw_only=True)
class PairedDifference(Tested):
    """How a column of one model differs from the same column of another, over the pairs both were scored on."""

    effect_size: Interval
    """No unit. Of means Cohen's d_z, the mean difference over the standard deviation of the differences; of shares the
    matched odds ratio (`stats.odds`)."""
    effect: str
    """STANDARDISED or ODDS."""
    test: str
    """MCNEMAR or SIGN_FLIPS."""
    n: int
    n_ties: int
    """Pairs in which the two do not differ at all."""
    discordant: tuple[int, int] | None = None
    """For a share: pairs that are true for the model alone, and for the baseline alone."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the form of every summary."""
        only_model, only_baseline = self.discordant or (None, None)
        counts = {} if self.discordant is None else {"only_model": only_model, "only_baseline": only_baseline}
        effect = {"kind": self.effect, **self.effect_size.to_dict()}
        about = {"effect_size": effect, "test": self.test, "n": self.n, "n_ties": self.n_ties}
        return {**super().to_dict(), **about, **counts}


def compare_means(
    model: ArrayLike,
    baseline: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    n_resamples: int = N_RESAMPLES,
    n_permutations: int = N_PERMUTATIONS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> PairedDifference:
    """Compares the means of two columns over the same pairs: BCa bootstrap, sign-flip permutation test.

    Args:
        model, baseline: one value per pair, in the same order.
        clusters: which prompt each pair belongs to.
    """
    differences = np.asarray(model, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    shared: dict[str, Any] = {"clusters": clusters, "n_resamples": n_resamples, "confidence": confidence, "seed": seed}
    return PairedDifference(
        difference=bootstrap_means({"": differences}, **shared)[""],
        effect_size=bootstrap_effect_size(differences, **shared),
        effect=STANDARDISED,
        p_value=flip_signs(differences, clusters, n_permutations=n_permutations, seed=seed),
        test=SIGN_FLIPS,
        n=len(differences),
        n_ties=int(np.sum(differences == 0)),
    )


def compare_shares(
    model: ArrayLike,
    baseline: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    n_resamples: int = N_RESAMPLES,
    n_permutations: int = N_PERMUTATIONS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> PairedDifference:
    """Compares two shares over the same pairs, such as reward accuracy: BCa bootstrap, exact McNemar test.

    With few discordant pairs the bootstrap would claim too much (of three that all speak for the model, no resample
    speaks against it); there the interval also covers the exact one that belongs to McNemar's test.

    McNemar's test takes pairs to be independent; where prompts repeat, the sign-flip test over prompts stands instead.
    """
    ours, theirs = np.asarray(model, dtype=bool), np.asarray(baseline, dtype=bool)
    only_model, only_baseline = int(np.sum(ours & ~theirs)), int(np.sum(theirs & ~ours))
    differences = ours.astype(np.float64) - theirs
    shared: dict[str, Any] = {"clusters": clusters, "n_resamples": n_resamples, "confidence": confidence, "seed": seed}
    is_clustered = has_repeats(clusters)
    return PairedDifference(
        difference=_widen_for_few(bootstrap_means({"": differences}, **shared)[""], differences, clusters, confidence),
        effect_size=estimate_matched_odds(ours & ~theirs, theirs & ~ours, **shared),
        effect=ODDS,
        p_value=flip_signs(differences, clusters, n_permutations=n_permutations, seed=seed)
        if is_clustered
        else apply_mcnemar(only_model, only_baseline),
        test=SIGN_FLIPS if is_clustered else MCNEMAR,
        n=len(differences),
        n_ties=len(differences) - only_model - only_baseline,
        discordant=(only_model, only_baseline),
    )


def _widen_for_few(interval: Interval, differences: Floats, clusters: ArrayLike | None, confidence: float) -> Interval:
    """The hull of an interval and, below FEW_DISCORDANT, the exact one given how many pairs are discordant.

    Of m discordant pairs the share that speaks for the model has the Clopper-Pearson interval [l, h]; the difference
    (2 share - 1) m / n then lies within [(2 l - 1) m / n, (2 h - 1) m / n]. Without a discordant pair in n, either kind
    may still have a share of 1 - (alpha / 2)^(1 / n), the exact bound on what was never seen.
    Where prompts repeat, m are the prompts in which one of the two is right more often, and in the place of m / n
    stands what these would add up to if all of them spoke for one.
    """
    sums = sum_clusters(differences[:, None], clusters)[:, 0] if has_repeats(clusters) else differences
    n_discordant = int(np.count_nonzero(sums))
    if n_discordant >= FEW_DISCORDANT or len(sums) < 2:
        return interval
    if n_discordant:
        ends = find_exact_interval(int(np.sum(sums > 0)), n_discordant, confidence)
        most = float(np.abs(sums).sum()) / len(differences)
        low, high = ((2 * end - 1) * most for end in ends)
    else:
        unseen = 1 - ((1 - confidence) / 2) ** (1 / len(sums))
        low, high = -unseen, unseen
    return Interval(interval.value, min(interval.ci_low, float(low)), max(interval.ci_high, float(high)))


def apply_mcnemar(only_model: int, only_baseline: int) -> float:
    """Returns the p-value of the exact two-sided McNemar test: are the discordant pairs split like coin throws?"""
    n_discordant = only_model + only_baseline
    return float(binomtest(only_model, n_discordant).pvalue) if n_discordant else 1.0


def flip_signs(
    differences: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    n_permutations: int = N_PERMUTATIONS,
    seed: int = 0,
) -> float:
    """Returns the p-value of the two-sided sign-flip test: could model and baseline be exchanged in each pair?

    Exact where all sign changes can be tried, else over `n_permutations` of them. With `clusters`, the signs of all
    pairs of a prompt change together.

    `scipy.stats.permutation_test` does the exact test. Random signs are drawn here as bits: 60,000 pairs take scipy
    two and a half minutes, and this seconds (tests/stats/test_paired.py checks the two against each other).
    """
    values = np.asarray(differences, dtype=np.float64)
    if has_repeats(clusters):
        values = sum_clusters(values[:, None], clusters)[:, 0]
    if len(values) < 2:
        return math.nan
    if not values.any():
        return 1.0
    if 2 ** min(len(values), 60) <= n_permutations:
        exact = permutation_test((values,), np.sum, permutation_type="samples", n_resamples=n_permutations)
        return float(exact.pvalue)
    observed = abs(float(values.sum())) * (1 - 1e-12)  # equal sums differ by rounding
    n_as_far = int(np.sum(np.abs(_sum_with_random_signs(values, n_permutations, seed)) >= observed))
    return (n_as_far + 1) / (n_permutations + 1)


def _sum_with_random_signs(values: Floats, n_permutations: int, seed: int) -> Floats:
    """Sums of the values with random signs, (n_permutations,): a positive sign is a bit that is set."""
    rng = np.random.default_rng(seed)
    n_bytes = -(-len(values) // 8)
    sums = np.empty(n_permutations)
    batch = max(1, _CELLS_PER_BATCH // len(values))
    for start in range(0, n_permutations, batch):
        size = min(batch, n_permutations - start)
        bits = np.unpackbits(rng.integers(0, 256, (size, n_bytes), dtype=np.uint8), axis=1, count=len(values))
        sums[start : start + size] = 2 * (bits.astype(np.float64) @ values) - values.sum()
    return sums


def bootstrap_effect_size(
    differences: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    n_resamples: int = N_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Returns Cohen's d_z with its BCa interval: mean over standard deviation of paired differences.

    A resample needs only the sums of d, d^2 and 1, so it costs no more than that of a mean. NaN where the differences
    do not vary but for rounding. The ends are NaN where more resamples than the interval leaves out have no spread, and
    so no value: of two pairs every second one, and of any number of pairs of which two or fewer differ from the rest.
    """
    d = np.asarray(differences, dtype=np.float64)
    sums = np.column_stack([d, d**2, np.ones(len(d))])
    if has_repeats(clusters):
        sums = sum_clusters(sums, clusters)
    value = float(_effect_sizes(sums.sum(axis=0)[None])[0])
    if len(sums) < 2 or math.isnan(value):
        return Interval(math.nan, math.nan, math.nan)
    replicates = _effect_sizes(resample_sums(sums, n_resamples, seed))
    jackknife = _effect_sizes(sums.sum(axis=0) - sums)
    is_known = np.isfinite(replicates)
    if is_known.mean() < confidence or not np.isfinite(jackknife).all():
        return Interval(value, math.nan, math.nan)
    return bca_interval(value, replicates[is_known], jackknife, confidence)


def _effect_sizes(sums: Floats) -> Floats:
    """d_z from rows of (sum d, sum d^2, n), with the unbiased variance; NaN where all differences are the same."""
    total, squares, n = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (squares - total**2 / n) / (n - 1)
        # what is left of two equal sums is rounding, not spread
        return np.where(variance > 1e-12 * squares / n, total / n / np.sqrt(variance), math.nan)


def adjust_holm(p_values: Sequence[float] | Mapping[str, float]) -> list[float]:
    """Returns p-values adjusted by Holm, which bound the chance of even one false alarm in the family.

    The k-th smallest of m is multiplied by m - k + 1, made no smaller than the one before and at most 1. NaN, a test
    that could not be made, stays NaN and does not count.
    """
    values = np.asarray(list(p_values.values() if isinstance(p_values, Mapping) else p_values), dtype=np.float64)
    adjusted = np.full(len(values), math.nan)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return [float(value) for value in adjusted]


T = TypeVar("T", bound=Tested)


def adjust_family(members: Sequence[T]) -> list[T]:
    """Returns the same differences with `p_adjusted`, Holm over all of them."""
    adjusted = adjust_holm([member.p_value for member in members])
    return [
        replace(member, p_adjusted=None if math.isnan(p) else p) for member, p in zip(members, adjusted, strict=True)
    ]


def adjust_metrics(members: Sequence[Mapping[str, T | None]]) -> list[dict[str, T | None]]:
    """Returns the same differences by metric with `p_adjusted`, Holm's correction for each metric separately."""
    adjusted: list[dict[str, T | None]] = [dict(member) for member in members]
    for name in adjusted[0] if adjusted else ():
        known = [(member, found) for member in adjusted if (found := member[name]) is not None]
        for (member, _), found in zip(known, adjust_family([found for _, found in known]), strict=True):
            member[name] = found
    return adjusted


def read_difference(found: Tested | None) -> Interval | None:
    """Returns the interval of a difference that may not be known."""
    return None if found is None else found.difference
