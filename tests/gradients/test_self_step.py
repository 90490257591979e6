"""The theory's predictions against real steps of plain gradient descent on a float64 Llama, a pair at a time.

A first-order prediction is right when what it leaves over falls with the square of the step size: the slope of
log residual over log step size is 2. A wrong coefficient leaves a term of first order, slope 1.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.products import GradientProducts, compute_gradient_products
from dpotool.likelihood.batch import collate_pairs
from dpotool.likelihood.completions import compute_completion_logps
from dpotool.losses.registry import get_loss
from dpotool.losses.spec import PairLogps
from dpotool.theory.theorem import compute_paper_gaps, compute_self_step_changes, compute_u, compute_v

RATES = np.array([4e-6, 2e-6, 1e-6])
BETA = 0.7
AWAY = (0.9, -1.3)
"""Log-ratios (a, b) that put the policy off its reference: the reference values are made to fit."""


def step(model: nn.Module, pair: TokenizedPair, *, name: str, shift: float, rate: float, logratios: Sequence[float]):
    """Returns (chosen, rejected) log-probabilities before and after one step on the pair, as two float64 arrays."""
    model = copy.deepcopy(model)
    batch = collate_pairs([pair])
    logps = compute_completion_logps(model, batch)
    before = logps.detach().clone()
    reference = before - torch.tensor(logratios, dtype=torch.float64)
    spec = get_loss(name)
    losses = spec.compute(
        PairLogps(logps[0::2], logps[1::2], reference[0::2], reference[1::2]), spec.resolve_options(beta=BETA), shift
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    losses.sum().backward()
    optimizer.step()
    with torch.no_grad():
        return before.numpy(), compute_completion_logps(model, batch).numpy()


def slope(residuals: Sequence[float]) -> float:
    return float(np.polyfit(np.log(RATES), np.log(np.abs(residuals)), 1)[0])


def three(products: GradientProducts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return products.grad_inner_product, products.chosen_grad_sq_norm, products.rejected_grad_sq_norm


@pytest.mark.parametrize("index", [0, 2, 4])
@pytest.mark.parametrize(("name", "shift"), [("dpo", 1.0), ("shift", 0.6)])
def test_self_step_changes_hold_to_second_order(build_llama, pairs, name: str, shift: float, index: int):
    """d log pi(y_w) = C (‖W‖² - f<W,L>), d log pi(y_l) = C (<W,L> - f‖L‖²), C = eta beta s(beta (f b - a))."""
    model, pair = build_llama(), pairs[index]
    (a, b) = AWAY
    changes = compute_self_step_changes(*three(compute_gradient_products(model, [pair])), shift)
    weight = BETA / (1 + np.exp(-BETA * (shift * b - a)))
    residuals = []
    for rate in RATES:
        before, after = step(model, pair, name=name, shift=shift, rate=rate, logratios=AWAY)
        predicted = rate * weight * np.array([changes.chosen.item(), changes.rejected.item()])
        residuals.append(after - before - predicted)
        np.testing.assert_allclose(after - before, predicted, rtol=0.2)
    for completion in (0, 1):
        assert 1.9 <= slope([residual[completion] for residual in residuals]) <= 2.1


def measure_chosen_gap(model: nn.Module, pair: TokenizedPair, shift: float, rate: float, logratios) -> float:
    """g1 of eq. 7: chosen log-probability after a DPO-Shift step, minus that after a DPO step from the same start."""
    _, shifted = step(model, pair, name="shift", shift=shift, rate=rate, logratios=logratios)
    _, dpo = step(model, pair, name="dpo", shift=1.0, rate=rate, logratios=logratios)
    return shifted[0] - dpo[0]


def test_the_printed_gap_of_a_self_step_is_right_at_the_reference(build_llama, pairs):
    """At a = b = 0 and with gamma read as beta: g1 = eta (1 - f) u, to second order in eta."""
    model, pair, shift = build_llama(), pairs[0], 0.6
    products = compute_gradient_products(model, [pair])
    u = compute_u(products.grad_inner_product, np.zeros(1), np.zeros(1), gamma=BETA)
    printed = compute_paper_gaps(u, compute_v(products.grad_inner_product, products.rejected_grad_sq_norm), shift)
    residuals = [
        measure_chosen_gap(model, pair, shift, rate, (0.0, 0.0)) - rate * printed.chosen.item() for rate in RATES
    ]
    assert 1.9 <= slope(residuals) <= 2.1


def test_the_printed_gap_is_only_approximate_away_from_the_reference(build_llama, pairs):
    """Off the reference the two losses weigh the pair differently; the printed theorem has one weight for both.

    So the residual keeps a first-order term, whichever f enters that weight.
    """
    model, pair, shift = build_llama(), pairs[0], 0.6
    products = compute_gradient_products(model, [pair])
    a, b = (np.array([value]) for value in AWAY)
    for lambda_ in (1.0, shift):
        u = compute_u(products.grad_inner_product, a, b, gamma=BETA, lambda_=lambda_)
        printed = compute_paper_gaps(u, u, shift).chosen.item()
        residuals = [measure_chosen_gap(model, pair, shift, rate, AWAY) - rate * printed for rate in RATES]
        assert 0.9 <= slope(residuals) <= 1.1


def test_v_below_zero_says_that_dpo_lowers_the_rejected(build_llama, pairs):
    model = build_llama()
    products = compute_gradient_products(model, pairs[:-1])
    v = compute_v(products.grad_inner_product, products.rejected_grad_sq_norm)
    assert (v != 0).all()
    for pair, value in zip(pairs, v, strict=False):
        before, after = step(model, pair, name="dpo", shift=1.0, rate=1e-7, logratios=AWAY)
        assert np.sign(after[1] - before[1]) == np.sign(value)
