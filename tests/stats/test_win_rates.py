"""Win rates: by hand, mirrored, at the ends, covered by their intervals; what a judge of places gives away."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dpotool.stats.win_rates import estimate_order_effect, estimate_win_rate


def outcomes(wins: int, ties: int, losses: int) -> np.ndarray:
    return np.repeat([1.0, 0.0, -1.0], [wins, ties, losses])


def test_three_rates_by_hand():
    """6 wins, 2 ties, 2 losses of 10: ties as half 7/10, without ties 6/8, ties as wins 8/10; 6 of 8: p = 74/256."""
    rate = estimate_win_rate(outcomes(6, 2, 2))
    assert (rate.wins, rate.ties, rate.losses, rate.n) == (6, 2, 2, 10)
    assert (rate.ties_half.value, rate.without_ties.value, rate.ties_as_wins.value) == pytest.approx((0.7, 0.75, 0.8))
    assert rate.p_value == pytest.approx(74 / 256) and rate.test == "exact sign test"


def test_the_sign_test_is_scipys():
    assert estimate_win_rate(outcomes(930, 393, 676)).p_value == pytest.approx(stats.binomtest(930, 1606).pvalue)


def test_swapped_answers_mirror_the_rate():
    rate, back = estimate_win_rate(outcomes(40, 10, 20)), estimate_win_rate(outcomes(20, 10, 40))
    assert rate.ties_half.value == pytest.approx(1 - back.ties_half.value)
    assert rate.without_ties.value == pytest.approx(1 - back.without_ties.value)
    assert rate.ties_half.ci_low == pytest.approx(1 - back.ties_half.ci_high, abs=0.01)
    assert rate.p_value == pytest.approx(back.p_value)


def test_all_wins_or_all_ties_are_not_certain():
    """5 of 5: at least 0.025^(1/5) = 0.478 of the decided; ties alone leave room for one that might be none."""
    won, tied = estimate_win_rate(outcomes(5, 0, 0)), estimate_win_rate(outcomes(0, 20, 0))
    assert won.ties_half.value == 1 and won.ties_half.ci_low == pytest.approx(0.478, abs=1e-3)
    assert tied.ties_half.value == 0.5 and tied.ties_half.ci_low < 0.5 < tied.ties_half.ci_high
    assert math.isnan(tied.without_ties.value)


def test_nothing_judged_is_nothing():
    assert estimate_win_rate([]).n == 0 and math.isnan(estimate_win_rate([]).ties_half.value)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """200 draws of 150 questions with 45 % wins and 20 % ties: a 95 % interval may miss ten or so."""
    rng = np.random.default_rng(1)
    truth = {"ties_half": 0.55, "without_ties": 0.45 / 0.8, "ties_as_wins": 0.65}
    missed = dict.fromkeys(truth, 0)
    for draw in range(200):
        rate = estimate_win_rate(rng.choice([1, 0, -1], size=150, p=[0.45, 0.2, 0.35]), n_resamples=1000, seed=draw)
        for name, value in truth.items():
            missed[name] += not getattr(rate, name).ci_low <= value <= getattr(rate, name).ci_high
    assert all(3 <= n <= 20 for n in missed.values()), missed


def test_repeated_prompts_widen_the_interval():
    """Each question four times: four times the judgments and no more knowledge."""
    once = outcomes(30, 10, 20)
    four = estimate_win_rate(np.repeat(once, 4), clusters=np.repeat(np.arange(60), 4)).ties_half
    single = estimate_win_rate(once).ties_half
    assert four.ci_high - four.ci_low == pytest.approx(single.ci_high - single.ci_low, rel=0.1)


def test_a_judge_that_takes_the_first_answer_is_unmasked():
    """It prefers the model when that stands first, the baseline otherwise."""
    forward, reverse = np.ones(30), -np.ones(30)
    effect = estimate_order_effect(forward, reverse)
    assert (effect.agreement.value, effect.position_bias.value) == (0, 1)


def test_a_judge_that_looks_at_answers_has_no_bias():
    """Verdicts +, +, -, 0 in both orders: each decided question gives one first and one second."""
    effect = estimate_order_effect([1, 1, -1, 0], [1, 1, -1, 0])
    assert (effect.agreement.value, effect.position_bias.value) == (1, 0)


def test_bias_by_hand():
    """Forward +, +, 0; reverse +, -, -: first won in f1, f2, r2, r3 (4), second in r1 (1); bias (4 - 1) / 5."""
    effect = estimate_order_effect([1, 1, 0], [1, -1, -1])
    assert effect.position_bias.value == pytest.approx(0.6) and effect.agreement.value == pytest.approx(1 / 3)
