"""Exact gaps: by hand at the reference, and against finite differences of real losses away from it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import nn

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.batch_products import compute_batch_products
from dpotool.gradients.ghost.selection import select_parameters
from dpotool.gradients.products import compute_gradient_products
from dpotool.likelihood.batch import collate_pairs
from dpotool.likelihood.completions import compute_completion_logps
from dpotool.losses.registry import get_loss
from dpotool.losses.spec import PairLogps
from dpotool.theory.theorem import (
    compute_accuracy_slopes,
    compute_batch_gaps,
    compute_gap_weights,
    compute_self_step_gaps,
    compute_step_weights,
)

BETA, GAMMA, SHIFT = 0.7, 1.3, 0.6
AWAY = (np.array([0.9, -0.4, 1.5, 0.2, -1.1]), np.array([-1.3, 0.3, 0.8, -0.6, 0.5]))
"""Log-ratios (a, b) of five pairs; the reference values are made to fit."""


def test_weights_by_hand():
    """At a = b = 0 every c is beta/2: d = 0, e = beta (1 - f)/2; k = gamma/4.

    At a = 1, b = 2, beta 1, f .5: c^f = s(0) = .5, c^1 = s(1) = .7310586; d = -.2310586, e = .7310586 - .25.
    """
    zero, one = np.zeros(1), np.ones(1)
    d, e = compute_gap_weights(zero, zero, SHIFT, BETA)
    assert d.item() == 0 and e.item() == pytest.approx(BETA * (1 - SHIFT) / 2)
    assert compute_accuracy_slopes(zero, zero, GAMMA).item() == pytest.approx(GAMMA / 4)
    assert compute_step_weights(one, 2 * one, 0.5, 1.0).item() == pytest.approx(0.5)
    d, e = compute_gap_weights(one, 2 * one, 0.5, 1.0)
    assert (d.item(), e.item()) == pytest.approx((-0.2310586, 0.4810586), abs=1e-7)


def test_self_step_gaps_by_hand_at_the_reference():
    """<W,L> = 4, |W|^2 = 2, |L|^2 = 10, beta 1, f .5, gamma 4: e = .25, k = 1; g1 = .25 * 4, g2 = .25 (4 - 10)."""
    four, two, ten, zero = (np.array([value]) for value in (4.0, 2.0, 10.0, 0.0))
    gaps = compute_self_step_gaps(four, two, ten, zero, zero, shift=0.5, beta=1.0, gamma=4.0)
    assert (gaps.chosen.item(), gaps.accuracy.item()) == (1.0, -1.5)


def measure_gap(
    model: nn.Module, stepped: list[TokenizedPair], seen: list[TokenizedPair], logratios: dict[int, tuple], rate: float
) -> tuple[float, float]:
    """(w1, w2) of the seen pairs after a DPO-Shift step minus after a DPO step on the stepped ones."""

    def reference(pairs: list[TokenizedPair]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            logps = compute_completion_logps(model, collate_pairs(pairs))
        away = torch.tensor([logratios[pair.pair_id] for pair in pairs], dtype=torch.float64)
        return logps[0::2] - away[:, 0], logps[1::2] - away[:, 1]

    targets = []
    of_stepped, of_seen = reference(stepped), reference(seen)
    for name, shift in (("shift", SHIFT), ("dpo", 1.0)):
        moved = copy.deepcopy(model)
        logps = compute_completion_logps(moved, collate_pairs(stepped))
        spec = get_loss(name)
        losses = spec.compute(PairLogps(logps[0::2], logps[1::2], *of_stepped), spec.resolve_options(beta=BETA), shift)
        losses.mean().backward()
        torch.optim.SGD(moved.parameters(), lr=rate).step()
        with torch.no_grad():
            logps = compute_completion_logps(moved, collate_pairs(seen))
        margins = (logps[0::2] - of_seen[0]) - (logps[1::2] - of_seen[1])
        targets.append((logps[0::2].mean().item(), expit(GAMMA * margins.numpy()).mean()))
    return targets[0][0] - targets[1][0], targets[0][1] - targets[1][1]


def differentiate_gap(*args: object) -> np.ndarray:
    """Central difference in the learning rate, at 0: a step of negative size is a step uphill."""
    size = 1e-7
    up, down = (np.array(measure_gap(*args, rate=rate)) for rate in (size, -size))  # type: ignore[arg-type]
    return (up - down) / (2 * size)


def logratios_of(pairs: list[TokenizedPair]) -> dict[int, tuple]:
    return {pair.pair_id: both for pair, *both in zip(pairs, *AWAY, strict=True)}


def allow_negative_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    class Descent:
        def __init__(self, parameters, lr: float) -> None:
            self.parameters, self.lr = list(parameters), lr

        @torch.no_grad()
        def step(self) -> None:
            for parameter in self.parameters:
                parameter -= self.lr * parameter.grad

    monkeypatch.setattr(torch.optim, "SGD", Descent)


def test_self_step_gaps_are_finite_differences_away_from_the_reference(build_llama, pairs, monkeypatch):
    allow_negative_rates(monkeypatch)
    model, pairs = build_llama(), pairs[:5]
    products = compute_gradient_products(model, pairs)
    gaps = compute_self_step_gaps(
        products.grad_inner_product,
        products.chosen_grad_sq_norm,
        products.rejected_grad_sq_norm,
        *AWAY,
        shift=SHIFT,
        beta=BETA,
        gamma=GAMMA,
    )
    for place, pair in enumerate(pairs):
        measured = differentiate_gap(model, [pair], [pair], logratios_of(pairs))
        np.testing.assert_allclose([gaps.chosen[place], gaps.accuracy[place]], measured, rtol=1e-5)


@pytest.mark.parametrize("is_away", [True, False])
def test_batch_gaps_are_finite_differences(build_llama, pairs, monkeypatch, is_away: bool):
    allow_negative_rates(monkeypatch)
    model, pairs = build_llama(tied=True), pairs[:5]
    a, b = AWAY if is_away else (np.zeros(5), np.zeros(5))
    batch = compute_batch_products(model, pairs, select_parameters(model), (a, b), gamma=GAMMA, batch_tokens=40)
    gaps = compute_batch_gaps(batch.with_mean_chosen, batch.with_accuracy, a, b, shift=SHIFT, beta=BETA)
    logratios = {pair.pair_id: both for pair, *both in zip(pairs, a, b, strict=True)}
    measured = differentiate_gap(model, pairs, pairs, logratios)
    np.testing.assert_allclose([gaps.chosen.mean(), gaps.accuracy.mean()], measured, rtol=1e-5)
