"""Length control: a judge of length is unmasked, one of quality is left as it is; the fit against a slow truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from dpotool.stats.length_control import PENALTY, control_length, fit_logistic


def test_a_judge_that_prefers_length_is_unmasked():
    """Answers of one model are longer on average; the judge takes the longer one: a high rate, none at equal length."""
    rng = np.random.default_rng(0)
    lengths, others = rng.normal(130, 40, 400), rng.normal(100, 40, 400)
    values = np.sign(lengths - others)
    found = control_length(values, lengths, others)
    assert (values > 0).mean() > 0.65
    assert found.win_rate.ci_low < 0.5 < found.win_rate.ci_high
    assert found.longer_preferred.value == 1 and found.length_weight > 2


def test_a_judge_of_quality_is_left_as_it_is():
    rng = np.random.default_rng(1)
    lengths, others = rng.normal(130, 40, 2000), rng.normal(100, 40, 2000)
    found = control_length(np.where(rng.random(2000) < 0.7, 1, -1), lengths, others)
    assert found.win_rate.value == pytest.approx(0.7, abs=0.05) and abs(found.length_weight) < 0.3


def test_equal_lengths_leave_the_plain_rate():
    """3 wins, 2 ties, 1 loss at one length: (3 + 1) / 6, but for the small penalty."""
    found = control_length([1, 1, 1, 0, 0, -1], np.ones(6), np.ones(6))
    assert found.win_rate.value == pytest.approx(4 / 6, abs=0.002) and np.isnan(found.longer_preferred.value)


def test_swapped_answers_mirror_it():
    rng = np.random.default_rng(2)
    values, lengths, others = rng.integers(-1, 2, 300), rng.normal(130, 40, 300), rng.normal(100, 40, 300)
    there, back = control_length(values, lengths, others), control_length(-values, others, lengths)
    assert there.win_rate.value == pytest.approx(1 - back.win_rate.value)
    assert there.longer_preferred.value == back.longer_preferred.value


def test_newton_finds_what_a_general_optimiser_finds():
    rng = np.random.default_rng(3)
    x, y, weights = rng.normal(size=80), rng.choice([0, 0.5, 1], 80), rng.integers(0, 4, 80).astype(float)

    def loss(b: np.ndarray) -> float:
        margin = b[0] + b[1] * x
        return float(weights @ (np.logaddexp(0, margin) - y * margin) + PENALTY / 2 * (b @ b))

    slow = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x
    assert fit_logistic(x, y, weights[None])[0] == pytest.approx(slow, abs=1e-5)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """120 draws of 300 questions at theta = 0.4, phi = 1.2."""
    rng = np.random.default_rng(4)
    truth, missed = 1 / (1 + np.exp(-0.4)), 0
    for draw in range(120):
        difference = rng.normal(20, 50, 300)
        x = np.tanh(difference / difference.std())
        values = np.where(rng.random(300) < 1 / (1 + np.exp(-0.4 - 1.2 * x)), 1, -1)
        interval = control_length(values, difference, np.zeros(300), n_refits=300, seed=draw).win_rate
        missed += not interval.ci_low <= truth <= interval.ci_high
    assert missed <= 15, missed


def test_a_perfectly_separated_sample_has_an_end():
    found = control_length([1, 1, 1, -1, -1, -1], [9, 8, 7, 1, 2, 3], [5, 5, 5, 5, 5, 5])
    assert np.isfinite([found.win_rate.value, found.win_rate.ci_low, found.win_rate.ci_high]).all()


def test_outcomes_that_are_all_the_same_are_not_certain():
    """Five losses: the plain rate reaches from 0 to 52 %, and so does the one at equal length."""
    lengths, base = [90, 80, 70, 60, 50], [55, 65, 75, 85, 95]
    interval = control_length([-1.0] * 5, lengths, base).win_rate
    assert interval.value < 0.05 and interval.ci_low < 0.01 and 0.5 < interval.ci_high < 0.55
