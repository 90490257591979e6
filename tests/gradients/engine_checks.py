"""What the engine's tests share: the comparison with the slow truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.engine import compute_fast_products
from dpotool.gradients.products import GradientProducts, compute_gradient_products

NORMS = ("chosen_grad_sq_norm", "rejected_grad_sq_norm")


def find_errors(fast: GradientProducts, slow: GradientProducts) -> dict[str, float]:
    """Largest relative errors; that of <W,L>, which may be near zero, relative to ‖W‖‖L‖."""
    scale = np.sqrt(slow.chosen_grad_sq_norm * slow.rejected_grad_sq_norm)
    errors = {"grad_inner_product": np.max(np.abs(fast.grad_inner_product - slow.grad_inner_product) / scale)}
    for name in NORMS:
        expected = getattr(slow, name)
        errors[name] = np.max(np.abs(getattr(fast, name) - expected) / np.where(expected == 0, 1, expected))
    return {name: float(error) for name, error in errors.items()}


def assert_equals_slow_truth(
    model: nn.Module, pairs: Sequence[TokenizedPair], *, tolerance: float, batch_tokens: int = 60
) -> tuple[str, ...]:
    """Compares every number of every pair, and returns the names of the parameters left to the fallback."""
    slow = compute_gradient_products(model, pairs)
    fast, report = compute_fast_products(model, pairs, batch_tokens=batch_tokens)
    assert fast.pair_id.tolist() == slow.pair_id.tolist() == [pair.pair_id for pair in pairs]
    np.testing.assert_allclose(fast.chosen_logps, slow.chosen_logps, rtol=max(tolerance, 1e-7))
    np.testing.assert_allclose(fast.rejected_logps, slow.rejected_logps, rtol=max(tolerance, 1e-7))
    errors = find_errors(fast, slow)
    assert max(errors.values()) <= tolerance, errors
    assert (slow.chosen_grad_sq_norm > 0).all()
    return report.fallback
