"""Matched odds: by hand, at the ends, and held by their interval as often as it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dpotool.stats.odds import estimate_matched_odds, find_exact_interval
from dpotool.stats.paired import apply_mcnemar, compare_shares


def flags(n_model: int, n_baseline: int, n_alike: int = 5) -> tuple[np.ndarray, np.ndarray]:
    kinds = np.repeat([0, 1, 2], [n_model, n_baseline, n_alike])
    return kinds == 0, kinds == 1


def test_by_hand():
    """1 of 3 discordant pairs for the model: odds 1/2. Clopper-Pearson of 1 in 3 is [0.0084, 0.9057]: odds to 9.61."""
    odds = estimate_matched_odds(*flags(1, 2))
    assert odds.value == 0.5
    assert (odds.ci_low, odds.ci_high) == pytest.approx((0.0084 / 0.9916, 0.9057 / 0.0943), rel=5e-3)


def test_pairs_that_agree_say_nothing():
    assert estimate_matched_odds(*flags(8, 3, 0)) == estimate_matched_odds(*flags(8, 3, 500))
    assert math.isnan(estimate_matched_odds(*flags(0, 0)).value)


@pytest.mark.parametrize("n", [1, 2, 9, 400])
def test_the_exact_interval_is_scipys(n):
    for n_true in sorted({0, 1, n // 3, n - 1, n}):
        theirs = stats.binomtest(n_true, n).proportion_ci(0.9)
        assert find_exact_interval(n_true, n, 0.9) == pytest.approx((theirs.low, theirs.high), rel=1e-9, abs=1e-11)


def test_all_for_one_is_unbounded():
    """4 of 4: infinite; the lower end p solves p^4 = 0.025, so p = 0.3976 and the odds are 0.66."""
    odds = estimate_matched_odds(*flags(4, 0))
    assert (odds.value, odds.ci_high) == (math.inf, math.inf)
    assert odds.ci_low == pytest.approx(0.3976 / 0.6024, rel=1e-3)
    back = estimate_matched_odds(*flags(0, 4))
    assert (back.value, back.ci_low, back.ci_high) == pytest.approx((0, 0, 1 / odds.ci_low))


@pytest.mark.parametrize(("n_model", "n_baseline"), [(9, 1), (5, 5), (30, 14), (30, 16)])
def test_the_interval_holds_one_where_mcnemar_sees_nothing(n_model: int, n_baseline: int):
    odds = estimate_matched_odds(*flags(n_model, n_baseline))
    assert (odds.ci_low < 1 < odds.ci_high) == (apply_mcnemar(n_model, n_baseline) > 0.05)


def test_pairs_of_one_prompt_widen_it():
    ours, theirs = (np.repeat(side, 4) for side in flags(12, 6, 20))
    alone = estimate_matched_odds(ours, theirs)
    together = estimate_matched_odds(ours, theirs, clusters=np.repeat(np.arange(38), 4))
    assert alone.value == together.value == 2.0
    assert together.ci_low < 0.8 * alone.ci_low and together.ci_high > 1.2 * alone.ci_high


@pytest.mark.parametrize("n_copies", [1, 3])
def test_at_least_95_of_100_intervals_hold_the_truth(n_copies: int):
    """True odds 3: 15 % of prompts for the model alone, 5 % for the baseline; the exact interval errs to the safe."""
    rng = np.random.default_rng(7)
    held = 0
    for seed in range(500):
        kinds = np.repeat(rng.choice(3, size=150, p=[0.15, 0.05, 0.8]), n_copies)
        odds = estimate_matched_odds(
            kinds == 0, kinds == 1, clusters=np.repeat(np.arange(150), n_copies), n_resamples=1000, seed=seed
        )
        held += odds.ci_low <= 3 <= odds.ci_high
    assert 0.93 <= held / 500 <= 0.995


def test_it_is_the_effect_size_of_a_share():
    ours, theirs = flags(2, 1)
    result = compare_shares(ours, theirs).to_dict()["effect_size"]
    assert (result["kind"], result["value"]) == ("matched odds ratio", 2.0)
    share = stats.binomtest(2, 3).proportion_ci(0.95)
    assert result["ci_high"] == pytest.approx(share.high / (1 - share.high))
