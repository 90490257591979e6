"""Power: a textbook's number, its inverse, and what simulated sign tests find at that many questions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from dpotool.stats.power import count_questions_needed, find_detectable_rate


def test_by_hand():
    """p = 0.6: ((1.96 / 2 + 0.8416 sqrt(0.24)) / 0.1)^2 = (1.3923 / 0.1)^2 = 193.8.

    Corrected for whole counts: times (1 + sqrt(1.1032))^2 / 4, which makes 203.7.
    """
    assert count_questions_needed(0.6, 0) == 204
    assert count_questions_needed(0.6, 0.2) == 255
    assert count_questions_needed(0.4, 0) == 204, "losing is found as soon as winning"


def test_ends():
    assert math.isinf(count_questions_needed(0.5, 0)) and math.isinf(count_questions_needed(0.6, 1))
    assert math.isnan(count_questions_needed(math.nan, 0.5)) and math.isnan(find_detectable_rate(3, 0))


def test_so_many_questions_find_it_four_times_of_five():
    n = int(count_questions_needed(0.6, 0))
    significant = np.array([binomtest(k, n).pvalue < 0.05 for k in range(n + 1)])
    power = binom.pmf(np.arange(n + 1), n, 0.6) @ significant
    assert power == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("tie_share", [0, 0.3])
def test_detectable_is_the_inverse(tie_share: float):
    rate = find_detectable_rate(400, tie_share)
    assert count_questions_needed(rate, tie_share) <= 400 < count_questions_needed(rate - 0.001, tie_share)
