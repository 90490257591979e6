"""The formulas by hand, their identities, and their properties over all norms and angles that gradients can have."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from dpotool.theory.theorem import (
    BOTH_DOWN,
    BOTH_UP,
    CHOSEN_UP_REJECTED_DOWN,
    ENTANGLEMENT_CASES,
    UNMOVED,
    classify_entanglement,
    compute_admissible_band,
    compute_band_center,
    compute_grad_cosine,
    compute_paper_gaps,
    compute_self_step_changes,
    compute_u,
    compute_v,
)

# W = (1, 2) and L = (3, 1): <W,L> = 5, ‖W‖² = 5, ‖L‖² = 10.
# W = (3, 1) and L = (1, 1): <W,L> = 4, ‖W‖² = 10, ‖L‖² = 2.
# W = (1, 1) and L = (3, 1): <W,L> = 4, ‖W‖² = 2, ‖L‖² = 10.
# W = (2, 1) and L = (1, 2): <W,L> = 4, ‖W‖² = 5, ‖L‖² = 5.
# W = (1, 0) and L = (-2, 1): <W,L> = -2, ‖W‖² = 1, ‖L‖² = 5.
HAND = tuple(np.array([(5, 5, 10), (4, 10, 2), (4, 2, 10), (4, 5, 5), (-2, 1, 5)], dtype=float).T)


def test_entanglement_by_hand():
    """DPO changes (‖W‖² - <W,L>, <W,L> - ‖L‖²): (0, -5) boundary, (6, 2), (-2, -6), (1, -1), (3, -7)."""
    changes = compute_self_step_changes(*HAND, 1.0)
    assert changes.chosen.tolist() == [0, 6, -2, 1, 3]
    assert changes.rejected.tolist() == [-5, 2, -6, -1, -7]
    assert classify_entanglement(*HAND).tolist() == [
        CHOSEN_UP_REJECTED_DOWN,
        BOTH_UP,
        BOTH_DOWN,
        CHOSEN_UP_REJECTED_DOWN,
        CHOSEN_UP_REJECTED_DOWN,
    ]


def test_band_by_hand():
    """Ends <W,L>/‖L‖² and ‖W‖²/<W,L>: [1/2, 1], [2, 5/2], [2/5, 1/2], [4/5, 5/4], and all of f > 0."""
    band = compute_admissible_band(*HAND)
    assert band.low.tolist() == [0.5, 2.0, 0.4, 0.8, 0.0]
    assert band.high.tolist() == [1.0, 2.5, 0.5, 1.25, math.inf]
    center = compute_band_center(HAND[1], HAND[2])
    assert center.tolist() == pytest.approx([math.sqrt(value) for value in (5 / 10, 10 / 2, 2 / 10, 1, 1 / 5)])


def test_u_and_v_by_hand():
    """gamma 2, a = 1, b = -1, f = .5: c = 2 s(.5 * 2 * -1 - 2 * 1) = 2 s(-3) = .0948517; <W,L> = 5: u = .4742587.

    v = <W,L> - ‖L‖² = 5 - 10 = -5.
    """
    product, a, b = np.array([5.0]), np.array([1.0]), np.array([-1.0])
    assert compute_u(product, a, b, gamma=2.0, lambda_=0.5).tolist() == pytest.approx([0.4742587], abs=1e-7)
    assert compute_v(product, np.array([10.0])).tolist() == [-5.0]


def test_at_the_reference_every_f_gives_half_gamma():
    zero = np.zeros(5)
    for lambda_ in (0.5, 0.95, 1.0):
        np.testing.assert_allclose(compute_u(HAND[0], zero, zero, gamma=0.1, lambda_=lambda_), 0.05 * HAND[0])


def test_u_stays_finite_for_huge_logratios():
    u = compute_u(np.array([2.0, 2.0]), np.array([1e6, -1e6]), np.array([-1e6, 1e6]))
    assert u.tolist() == [0.0, 2.0]


def test_paper_gaps_by_hand():
    """f = .75: g1 = .25 * 8 = 2, g2 = .25 * -4 = -1; f = 1 is DPO itself, no gap."""
    gaps = compute_paper_gaps(np.array([8.0]), np.array([-4.0]), 0.75)
    assert (gaps.chosen.item(), gaps.accuracy.item()) == (2.0, -1.0)
    assert compute_paper_gaps(np.array([8.0]), np.array([-4.0]), 1.0) == (0.0, 0.0)


def test_cosine_by_hand_and_without_direction():
    """W = (3, 1), L = (1, 1): 4 / sqrt(20) = .8944272. A zero gradient has no direction."""
    cosine = compute_grad_cosine(np.array([4.0, 0.0]), np.array([10.0, 0.0]), np.array([2.0, 1.0]))
    assert cosine[0] == pytest.approx(0.8944272, abs=1e-7)
    assert math.isnan(cosine[1])


def test_identical_completions_are_unmoved_and_admit_only_dpo():
    three = tuple(np.array([number]) for number in (7.3, 7.3, 7.3))
    assert classify_entanglement(*three).tolist() == [UNMOVED]
    band = compute_admissible_band(*three)
    assert (band.low.item(), band.high.item()) == (1.0, 1.0)


def test_gradients_that_differ_by_rounding_are_unmoved():
    """The inner product comes out one unit in the last place above both norms, which no two vectors allow."""
    norm = 2.993873364196276
    three = tuple(np.array([number]) for number in (np.nextafter(norm, 3), norm, norm))
    assert classify_entanglement(*three).tolist() == [UNMOVED]


def test_zero_gradients_do_not_break_the_band():
    band = compute_admissible_band(np.zeros(2), np.array([0.0, 3.0]), np.zeros(2))
    assert band.low.tolist() == [0.0, 0.0]
    assert band.high.tolist() == [math.inf, math.inf]


lengths = st.floats(1e-6, 1e6)
cosines = st.floats(-1.0, 1.0)


def products(chosen_norm: float, rejected_norm: float, cosine: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values = (cosine * chosen_norm * rejected_norm, chosen_norm**2, rejected_norm**2)
    return tuple(np.array([value]) for value in values)  # type: ignore[return-value]


@given(lengths, lengths, cosines)
@example(0.09778043484747923, 0.8034890964761526, 1.0)  # parallel: both quotients round, past each other
def test_the_band_is_never_empty_and_holds_its_center(chosen_norm: float, rejected_norm: float, cosine: float):
    three = products(chosen_norm, rejected_norm, cosine)
    low, high = (end.item() for end in compute_admissible_band(*three))
    assert 0 <= low <= compute_band_center(three[1], three[2]).item() <= high
    if cosine > 1e-3:
        assert math.sqrt(low * high) == pytest.approx(chosen_norm / rejected_norm, rel=1e-9)


@given(lengths, lengths, cosines, st.floats(0.01, 100.0))
def test_f_in_the_band_is_chosen_not_down_and_rejected_not_up(
    chosen_norm: float, rejected_norm: float, cosine: float, shift: float
):
    three = products(chosen_norm, rejected_norm, cosine)
    low, high = (end.item() for end in compute_admissible_band(*three))
    assume(abs(shift - low) > 1e-9 * shift and abs(shift - high) > 1e-9 * shift)  # on an end, rounding decides
    changes = compute_self_step_changes(*three, shift)
    is_inside = low <= shift <= high
    assert is_inside == bool(changes.chosen >= 0 and changes.rejected <= 0)


@given(lengths, lengths, cosines)
def test_the_case_says_what_dpo_does_and_whether_f_must_change(chosen_norm: float, rejected_norm: float, cosine: float):
    """both_down: the band lies below 1 (shift less); both_up: above 1; else 1 is in it. v < 0 unless both go up."""
    three = products(chosen_norm, rejected_norm, cosine)
    (case,), band = classify_entanglement(*three), compute_admissible_band(*three)
    assert case in ENTANGLEMENT_CASES
    v = compute_v(three[0], three[2])
    if case == BOTH_DOWN:
        assert band.high <= 1
        assert v <= 0
    elif case == BOTH_UP:
        assert band.low >= 1
        assert v > 0
    else:
        assert band.low <= 1 + 1e-12
        assert band.high >= 1 - 1e-12
        assert v <= 0


def test_the_middle_of_the_band_is_the_ratio_of_the_norms():
    """‖W‖² = 9, ‖L‖² = 4: 3/2. Without L it is infinite, without both it is not a number; neither warns."""
    center = compute_band_center(np.array([9.0, 1.0, 0.0]), np.array([4.0, 0.0, 0.0]))
    np.testing.assert_array_equal(center, [1.5, np.inf, np.nan])
