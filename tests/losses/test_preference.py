"""Losses of a margin against arithmetic done by hand, and the identities that tie them together."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from loss_cases import PAIR, checked, logps, nats, rows, scores, value

from dpotool.errors import DpotoolError

WITH_MARGIN = {
    "dpo": {"beta": 0.1},
    "shift": {"beta": 0.1, "shift": 0.9},
    "hinge": {"beta": 0.1},
    "robust": {"beta": 0.1, "label_smoothing": 0.2},
}
"""Losses of the four log-probabilities alone, with some options each."""


def test_sft_is_the_negative_chosen_logps():
    """Two completions with logps -10 and -4: numerators 10 and 4; the step divides 14 by its chosen tokens."""
    assert checked["sft"](torch.tensor([-10.0, -4.0])).tolist() == [10.0, 4.0]


def test_dpo_by_hand():
    """beta .1, margin 7: -log s(.7) = log(1 + e^-.7) = log(1.4965853) = 0.4031860."""
    assert value("dpo", PAIR, beta=0.1) == pytest.approx([0.4031860], abs=1e-7)


def test_cdpo_by_hand():
    """e = .1: .9 * -log s(.7) + .1 * -log s(-.7) = .9 * .4031860 + .1 * 1.1031860 = .4731860 (they differ by .7)."""
    assert value("dpo", PAIR, beta=0.1, label_smoothing=0.1) == pytest.approx([0.4731860], abs=1e-7)


def test_robust_by_hand():
    """e = .1: (.9 * .4031860 - .1 * 1.1031860) / .8 = (.3628674 - .1103186) / .8 = .3156860."""
    assert value("robust", PAIR, beta=0.1, label_smoothing=0.1) == pytest.approx([0.3156860], abs=1e-7)


def test_shift_by_hand():
    """beta .1, f = .5: .1 * 2 - .5 * .1 * -5 = .2 + .25 = .45; log(1 + e^-.45) = log(1.6376282) = .4932490."""
    assert value("shift", PAIR, beta=0.1, shift=0.5) == pytest.approx([0.4932490], abs=1e-7)


def test_ipo_by_hand():
    """4 chosen and 10 rejected tokens: 2/4 - -5/10 = 1; beta .1: (1 - 1/.2)^2 = (-4)^2 = 16."""
    losses = checked["ipo"](
        **logps(PAIR), chosen_tokens=torch.tensor([4]), rejected_tokens=torch.tensor([10]), beta=0.1
    )
    assert losses.tolist() == pytest.approx([16.0])


def test_hinge_by_hand():
    """beta .1: 1 - .7 = .3; with the pair swapped 1 + .7 = 1.7; with beta 1 the margin 7 is past 1, so 0."""
    swapped = (-20.0, -10.0, -15.0, -12.0)
    assert value("hinge", PAIR, swapped, beta=0.1) == pytest.approx([0.3, 1.7])
    assert value("hinge", PAIR, beta=1.0) == [0.0]


@pytest.mark.parametrize(("score_offset", "expected"), [("log", 0.6206362), ("raw", 1.1711007), ("ratio", 0.5795138)])
def test_odpo_by_hand(score_offset: str, expected: float):
    """beta .1, margin .7, alpha .5, scores 5 and 2.

    log: Delta = .5 log 3 = .5493061, log(1 + e^-.1506939) = log 1.8601110 = .6206362;
    raw: Delta = .5 * 3 = 1.5, log(1 + e^.8) = log 3.2255409 = 1.1711007;
    ratio: Delta = .5 log 2.5 = .4581454, log(1 + e^-.2418546) = log 1.7851703 = .5795138.
    """
    losses = checked["odpo"](**logps(PAIR), **scores(5.0, 2.0), beta=0.1, score_offset=score_offset, alpha=0.5)
    assert losses.tolist() == pytest.approx([expected], abs=1e-7)


@pytest.mark.parametrize("rejected", [5.0, 6.0, math.nan])
def test_odpo_refuses_scores_without_an_offset(rejected: float):
    with pytest.raises(DpotoolError, match="score_chosen does not exceed score_rejected in every pair"):
        checked["odpo"](**logps(PAIR), **scores(5.0, rejected), beta=0.1, score_offset="log", alpha=1.0)


def test_odpo_ratio_refuses_scores_that_are_not_positive():
    with pytest.raises(DpotoolError, match="the 'ratio' offset of the scores is not finite"):
        checked["odpo"](**logps(PAIR), **scores(5.0, 0.0), beta=0.1, score_offset="ratio", alpha=1.0)


@given(rows)
def test_shift_of_one_is_dpo(row: tuple[float, float, float, float]):
    assert value("shift", row, beta=0.1, shift=1.0) == pytest.approx(value("dpo", row, beta=0.1), abs=1e-12)


@given(nats, nats, st.floats(0.01, 1.0))
def test_policy_equal_to_reference_gives_log_2_for_any_shift(chosen: float, rejected: float, shift: float):
    assert value("shift", (chosen, rejected, chosen, rejected), beta=0.1, shift=shift) == [math.log(2)]


@given(rows)
def test_swapping_the_pair_negates_the_margin(row: tuple[float, float, float, float]):
    """-log s(z) - -log s(-z) = -z, so the two DPO losses differ by the reward margin."""
    pc, pr, rc, rr = row
    (loss,), (swapped,) = value("dpo", row, beta=0.1), value("dpo", (pr, pc, rr, rc), beta=0.1)
    assert swapped - loss == pytest.approx(0.1 * ((pc - rc) - (pr - rr)), abs=1e-9)


@given(rows)
def test_half_the_labels_wrong_makes_cdpo_symmetric(row: tuple[float, float, float, float]):
    pc, pr, rc, rr = row
    assert value("dpo", row, beta=0.1, label_smoothing=0.5) == pytest.approx(
        value("dpo", (pr, pc, rr, rc), beta=0.1, label_smoothing=0.5)
    )


@given(rows, st.floats(0.0, 0.45))
def test_robust_is_unbiased_for_dpo_under_flipped_labels(row: tuple[float, float, float, float], e: float):
    """(1-e) robust(pair) + e robust(swapped pair) = DPO's loss: what arXiv:2403.00409 builds it for."""
    pc, pr, rc, rr = row
    (kept,), (flipped,) = (value("robust", each, beta=0.1, label_smoothing=e) for each in (row, (pr, pc, rr, rc)))
    assert (1 - e) * kept + e * flipped == pytest.approx(value("dpo", row, beta=0.1)[0], abs=1e-9)


@given(rows)
def test_no_smoothing_makes_robust_and_zero_alpha_makes_odpo_the_same_as_dpo(row: tuple[float, float, float, float]):
    expected = pytest.approx(value("dpo", row, beta=0.1))
    assert value("robust", row, beta=0.1, label_smoothing=0.0) == expected
    odpo = checked["odpo"](**logps(row), **scores(3.0, 1.0), beta=0.1, score_offset="log", alpha=0.0)
    assert odpo.tolist() == expected


def test_shift_may_differ_by_pair():
    together = checked["shift"](**logps(PAIR, PAIR), beta=0.1, shift=torch.tensor([0.5, 1.0], dtype=torch.float64))
    assert together.tolist() == value("shift", PAIR, beta=0.1, shift=0.5) + value("shift", PAIR, beta=0.1, shift=1.0)


@pytest.mark.parametrize("name", ["dpo", "shift", "robust", "hinge"])
def test_huge_margins_stay_finite(name: str):
    """A reward margin of -2e5 overflows exp; the losses there grow like the margin, to 1e5 or more."""
    policy = logps((-1e6, -1.0, -1.0, -1e6))
    losses = checked[name](**policy, **WITH_MARGIN[name])
    assert losses.isfinite().all()
    assert losses.item() > 9e4


def test_shift_gradient_is_the_weight_of_the_theory():
    """d loss / d log pi(y_w) = -beta s(beta (f b - a)), and f times its negative for the rejected completion.

    beta .1, f .5, a = 2, b = -5: s(.1 * (-2.5 - 2)) = s(-.45) = .3893608, so -.03893608 and +.01946804.
    """
    arguments = logps(PAIR)
    chosen = arguments["policy_chosen_logps"].requires_grad_()
    rejected = arguments["policy_rejected_logps"].requires_grad_()
    checked["shift"](**arguments, beta=0.1, shift=0.5).sum().backward()
    assert chosen.grad.tolist() == pytest.approx([-0.03893608], abs=1e-8)
    assert rejected.grad.tolist() == pytest.approx([0.01946804], abs=1e-8)


def test_the_functions_are_checked_for_shape_in_these_tests():
    arguments = logps(PAIR, PAIR) | {"reference_chosen_logps": torch.zeros(3, dtype=torch.float64)}
    with pytest.raises(TypeCheckError, match="reference_chosen_logps"):
        checked["dpo"](**arguments, beta=0.1)
