"""Losses without a reference: by hand, at their limits, and what they share with DPO."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from loss_cases import Row, checked, lengths, rows, value


def policy(chosen: float, rejected: float) -> dict[str, torch.Tensor]:
    values = {"policy_chosen_logps": chosen, "policy_rejected_logps": rejected}
    return {name: torch.tensor([value], dtype=torch.float64) for name, value in values.items()}


def test_simpo_by_hand():
    """-10 nats over 4 tokens, -20 over 10: -2.5 and -2; beta 2, gamma 1: 2 * -.5 - 1 = -2, log(1 + e^2) = 2.1269280."""
    losses = checked["simpo"](**policy(-10, -20), **lengths(4, 10), beta=2.0, gamma_simpo=1.0)
    assert losses.tolist() == pytest.approx([2.1269280], abs=1e-7)


def test_cpo_by_hand():
    """.1 * (-10 + 20) = 1: log(1 + e^-1) = .3132617, and alpha .5 times 10 nats."""
    losses = checked["cpo"](**policy(-10, -20), beta=0.1, alpha=0.5)
    assert losses.tolist() == pytest.approx([5.3132617], abs=1e-7)


def test_orpo_by_hand():
    """-2.5 and -2 nats a token: p = .0820850 and .1353353; odds .0894256 and .1565176; log of their ratio -.5597776;
    -log s of it = log(1 + e^.5597776) = log 2.7502833 = 1.0117039; 2.5 + .1 * 1.0117039 = 2.6011704.
    """
    losses = checked["orpo"](**policy(-10, -20), **lengths(4, 10), lambda_orpo=0.1)
    assert losses.tolist() == pytest.approx([2.6011704], abs=1e-6)


def test_orpo_of_equal_odds_is_likelihood_and_log_2():
    losses = checked["orpo"](**policy(-10, -5), **lengths(4, 2), lambda_orpo=0.3)
    assert losses.tolist() == pytest.approx([2.5 + 0.3 * math.log(2)])


@pytest.mark.parametrize("logps", [-1e-300, 0.0, -1e-9, -1e5])
def test_orpo_is_finite_with_finite_gradients_for_sure_and_for_hopeless_completions(logps: float):
    arguments = policy(logps, -3.0)
    chosen = arguments["policy_chosen_logps"].requires_grad_()
    losses = checked["orpo"](**arguments, **lengths(1, 1), lambda_orpo=0.1)
    losses.sum().backward()
    assert chosen.grad is not None
    assert losses.isfinite().all() and chosen.grad.isfinite().all()


@given(rows)
def test_cpo_without_its_likelihood_is_dpo_with_a_uniform_reference(row: Row):
    chosen, rejected, *_ = row
    uniform = (chosen, rejected, -7.0, -7.0)
    losses = checked["cpo"](**policy(chosen, rejected), beta=0.1, alpha=0.0)
    assert losses.tolist() == pytest.approx(value("dpo", uniform, beta=0.1))


@given(rows)
def test_simpo_without_target_is_dpo_of_one_token_with_a_uniform_reference(row: Row):
    chosen, rejected, *_ = row
    losses = checked["simpo"](**policy(chosen, rejected), **lengths(1, 1), beta=0.1, gamma_simpo=0.0)
    assert losses.tolist() == pytest.approx(value("dpo", (chosen, rejected, -7.0, -7.0), beta=0.1))
