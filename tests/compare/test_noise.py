"""The noise floor, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dpotool.compare.noise import summarize_noise


def test_two_pairs_by_hand():
    """Policy moves by (1, 0) and (0, -2), reference by (0, 0) and (0, -1), beta 0.5: margins move by 0.5 and 0.5."""
    policy = np.array([[-10.0, -20.0], [-30.0, -40.0]])
    reference = np.array([[-11.0, -21.0], [-31.0, -41.0]])
    again = policy + np.array([[1.0, 0.0], [0.0, -2.0]]), reference + np.array([[0.0, 0.0], [0.0, -1.0]])
    noise = summarize_noise((policy, reference), again, 0.5)
    assert noise["n"] == 2
    assert noise["logps"] == {"largest": 2.0, "typical": pytest.approx(0.5)}
    assert noise["ref_logps"] == {"largest": 1.0, "typical": 0.0}
    assert noise["reward_margins"] == {"largest": pytest.approx(0.5), "typical": pytest.approx(0.5)}


def test_without_a_reference_there_are_no_margins():
    policy = np.array([[-1.0, -2.0]])
    noise = summarize_noise((policy, None), (policy + 0.25, None), 0.1)
    assert noise == {"n": 1, "logps": {"largest": 0.25, "typical": 0.25}, "ref_logps": None, "reward_margins": None}


def test_values_that_are_no_numbers_say_nothing():
    policy = np.array([[-1.0, np.nan]])
    assert summarize_noise((policy, None), (policy, None), 0.1)["logps"] == {"largest": 0.0, "typical": 0.0}
    assert summarize_noise((policy * np.nan, None), (policy, None), 0.1)["logps"] is None
