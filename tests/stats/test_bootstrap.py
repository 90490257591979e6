from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy import stats

from dpotool.stats.bootstrap import bootstrap_interval, bootstrap_means, bootstrap_ratios, bootstrap_shares
from dpotool.stats.intervals import Interval


def ends(interval: Interval) -> tuple[float, float]:
    return interval.ci_low, interval.ci_high


def test_two_values_by_hand():
    """Resamples of (0, 1) have mean 0, 1/2, 1 with probability 1/4, 1/2, 1/4: the 95 % interval is all of [0, 1]."""
    interval = bootstrap_interval([0.0, 1.0])

    assert interval == Interval(0.5, 0.0, 1.0)
    assert interval.to_dict("mean") == {"mean": 0.5, "ci_low": 0.0, "ci_high": 1.0}


def test_a_constant_column_has_a_point_for_an_interval():
    assert bootstrap_interval(np.full(20, -3.5)) == Interval(-3.5, -3.5, -3.5)
    assert bootstrap_interval(np.full(20, -3.5), "median") == Interval(-3.5, -3.5, -3.5)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_one_pair_has_a_value_and_no_interval_and_none_has_neither(statistic):
    one, none = bootstrap_interval([2.0], statistic), bootstrap_interval([], statistic)

    assert one.value == 2.0
    assert math.isnan(one.ci_low)
    assert math.isnan(one.ci_high)
    assert math.isnan(none.value)


@pytest.mark.parametrize("n", [40, 301])
def test_means_are_scipys_bca(n):
    values = np.random.default_rng(1).lognormal(0, 1, n)

    ours = bootstrap_interval(values, n_resamples=100_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=100_000, batch=1000, rng=2).confidence_interval

    assert ours.value == pytest.approx(values.mean(), rel=1e-12)
    width = theirs.high - theirs.low
    assert ends(ours) == pytest.approx((theirs.low, theirs.high), abs=0.02 * width)


@pytest.mark.parametrize("n", [40, 301])
def test_medians_are_scipys_percentile_bootstrap_for_even_and_odd_n(n):
    values = np.random.default_rng(1).lognormal(0, 1, n)

    ours = bootstrap_interval(values, "median", n_resamples=100_000)
    theirs = stats.bootstrap(
        (values,), np.median, method="percentile", n_resamples=100_000, batch=1000, rng=2
    ).confidence_interval

    assert ours.value == np.median(values)
    assert ends(ours) == pytest.approx((theirs.low, theirs.high), abs=0.03 * (theirs.high - theirs.low))


def test_the_bootstrap_distribution_of_a_median_is_exact_for_three_values():
    """The median of a resample of (0, 1, 2) is 0 with probability 7/27, and so is 2; the middle 40 % are all 1."""
    narrow = bootstrap_interval([0.0, 1.0, 2.0], "median", confidence=0.40)
    wide = bootstrap_interval([0.0, 1.0, 2.0], "median", confidence=0.60)

    assert ends(narrow) == (1.0, 1.0)
    assert ends(wide) == (0.0, 2.0)


def test_ratios_are_scipys_paired_bca():
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 80, 200).astype(float)
    logps = -tokens * rng.lognormal(0, 0.3, 200)

    ours = bootstrap_ratios({"": (logps, tokens)}, n_resamples=50_000)[""]
    theirs = stats.bootstrap(
        (logps, tokens),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        n_resamples=50_000,
        batch=1000,
        rng=2,
    ).confidence_interval

    assert ours.value == pytest.approx(logps.sum() / tokens.sum(), rel=1e-12)
    assert ends(ours) == pytest.approx((theirs.low, theirs.high), abs=0.03 * (theirs.high - theirs.low))


def test_perplexity_is_the_exponential_with_its_ends_in_order():
    interval = Interval(-math.log(4), -math.log(5), -math.log(3)).to_perplexity()

    assert (interval.value, *ends(interval)) == pytest.approx((4, 3, 5))
    assert Interval(-1e4, -2e4, -1.0).to_perplexity().ci_high == math.inf


def test_shares_of_all_or_none_have_the_wilson_interval_not_a_point():
    """Wilson for 0 of n: [0, z^2 / (n + z^2)], with z = 1.96 and n = 10: 3.8415 / 13.8415 = 0.2775."""
    shares = bootstrap_shares({"none": [False] * 10, "all": [True] * 10})

    assert (shares["none"].value, *ends(shares["none"])) == pytest.approx((0, 0, 0.27753), abs=1e-4)
    assert (shares["all"].value, *ends(shares["all"])) == pytest.approx((1, 1 - 0.27753, 1), abs=1e-4)


def test_columns_get_the_same_interval_alone_and_together():
    rng = np.random.default_rng(5)
    columns = {"a": rng.normal(size=50), "b": rng.exponential(size=50)}

    together = bootstrap_means(columns, seed=3)

    assert together["b"].value == pytest.approx(columns["b"].mean())
    alone = bootstrap_interval(columns["b"], seed=3)
    assert ends(together["b"]) == pytest.approx(ends(alone), rel=1e-12)


def test_the_seed_decides_the_resamples():
    values = np.random.default_rng(5).normal(size=50)

    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert ends(bootstrap_interval(values, seed=1)) != ends(bootstrap_interval(values, seed=2))


@pytest.mark.parametrize("values", [[1.0, np.nan], [1.0, -np.inf]])
def test_values_that_are_not_finite_are_refused(values):
    with pytest.raises(ValueError, match="leave those pairs out first"):
        bootstrap_interval(values)


def test_an_unknown_statistic_is_refused():
    with pytest.raises(ValueError, match="unknown statistic 'mode'; known: mean, median, share"):
        bootstrap_interval([1.0], "mode")


@pytest.mark.parametrize(
    ("statistic", "draw", "truth"),
    [
        ("mean", lambda rng: rng.gamma(2.0, 1.0, 80), 2.0),
        ("share", lambda rng: rng.random(120) < 0.7, 0.7),
        ("median", lambda rng: rng.lognormal(0.0, 1.0, 81), 1.0),
    ],
)
def test_about_95_of_100_intervals_hold_the_truth(statistic, draw, truth):
    """600 samples: a standard error of 0.9 %; small skewed samples cost the bootstrap a little."""
    rng = np.random.default_rng(11)
    intervals = [bootstrap_interval(draw(rng), statistic, n_resamples=1000, seed=i) for i in range(600)]

    coverage = np.mean([i.ci_low <= truth <= i.ci_high for i in intervals])

    assert 0.92 <= coverage <= 0.975


def test_sixty_thousand_pairs_take_seconds():
    rng = np.random.default_rng(0)
    columns = {str(i): rng.normal(size=60_000) for i in range(10)}

    start = time.process_time()
    intervals = bootstrap_means(columns, n_resamples=1000)

    assert time.process_time() - start < 5  # measured: 0.4 s
    standard_error = 1 / math.sqrt(60_000)
    assert intervals["0"].ci_high - intervals["0"].ci_low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)
