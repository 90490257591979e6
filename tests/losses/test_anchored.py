"""Losses that place each answer by itself: by hand, and where their minimum lies."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from loss_cases import PAIR, Row, checked, logps, rows, value


def test_cal_dpo_by_hand():
    """a = 2, b = -5, 1/(2 beta) = 5: -log s(7) = .0009115, (2 - 5)^2 = 9, (-5 + 5)^2 = 0."""
    assert value("cal-dpo", PAIR, beta=0.1) == pytest.approx([9.0009115], abs=1e-7)


def test_apo_zero_by_hand():
    """beta a = .2, beta b = -.5: 1 - .5498340 + .3775407 = .8277067."""
    assert value("apo-zero", PAIR, beta=0.1) == pytest.approx([0.8277067], abs=1e-7)


def test_apo_down_by_hand():
    """s(.2) + 1 - s(.7) = .5498340 + 1 - .6681878 = .8816462."""
    assert value("apo-down", PAIR, beta=0.1) == pytest.approx([0.8816462], abs=1e-7)


def test_nca_by_hand():
    """-log s(.2) = .5981389; half of -log s(-.2) = .7981389 and of -log s(.5) = .4740770: 1.2342468."""
    assert value("nca", PAIR, beta=0.1) == pytest.approx([1.2342468], abs=1e-6)


def test_sppo_by_hand():
    """a = 2, b = -5, targets 5 and -5: 9 + 0."""
    assert value("sppo", PAIR, beta=0.1) == pytest.approx([9.0])


def test_at_the_reference():
    """a = b = 0: apo-zero 1 - .5 + .5, apo-down .5 + 1 - .5, nca 2 log 2, sppo 2 * 25, cal-dpo log 2 more."""
    row = (-10.0, -20.0, -10.0, -20.0)
    values = {name: value(name, row, beta=0.1)[0] for name in ("apo-zero", "apo-down", "nca", "sppo", "cal-dpo")}
    expected = {"apo-zero": 1.0, "apo-down": 1.0, "nca": 2 * math.log(2), "sppo": 50.0, "cal-dpo": 50 + math.log(2)}
    assert values == pytest.approx(expected)


@given(rows)
def test_cal_dpo_is_sppo_and_dpo_without_beta(row: Row):
    together = value("sppo", row, beta=0.1)[0] + value("dpo", row, beta=1.0)[0]
    assert value("cal-dpo", row, beta=0.1) == pytest.approx([together])


@pytest.mark.parametrize(
    ("name", "chosen", "rejected"), [("apo-zero", -1, 1), ("apo-down", 1, 1), ("sppo", -1, 1), ("cal-dpo", -1, 1)]
)
def test_where_each_answer_is_sent(name: str, chosen: int, rejected: int):
    """Signs of the gradients at the reference, of which -1 raises an answer and 1 lowers it.

    APO-down lowers both. At the reference itself its chosen gradient is 0, so it is taken a little away from there.
    """
    row = (-9.9, -22.0, -10.0, -20.0) if name == "apo-down" else (-10.0, -20.0, -10.0, -20.0)
    arguments = logps(row)
    policy = [arguments[key].requires_grad_() for key in ("policy_chosen_logps", "policy_rejected_logps")]
    gradients = torch.autograd.grad(checked[name](**arguments, beta=0.1).sum(), policy)
    assert [math.copysign(1, gradient.item()) for gradient in gradients] == [chosen, rejected]


def test_sppo_has_its_minimum_at_its_targets():
    """a = 5 = 1/(2 * .1) and b = -5: nothing left to do."""
    assert value("sppo", (-5.0, -25.0, -10.0, -20.0), beta=0.1) == [0.0]


@pytest.mark.parametrize("name", ["apo-zero", "apo-down", "nca"])
def test_huge_log_ratios_stay_finite(name: str):
    for row in ((-1e6, -1.0, -1.0, -1e6), (-1.0, -1e6, -1e6, -1.0)):
        assert math.isfinite(value(name, row, beta=0.1)[0])
