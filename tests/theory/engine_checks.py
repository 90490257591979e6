"""What the engine's tests share: the comparison with the slow truth, and models without float32 inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dpotool.data.pairs import TokenizedPair
from dpotool.theory.engine import compute_fast_products
from dpotool.theory.products import GradientProducts, compute_gradient_products

NORMS = ("chosen_grad_sq_norm", "rejected_grad_sq_norm", "grad_difference_sq_norm")


class EverythingInFloat64(TorchFunctionMode):
    """Lifts the casts to float32 that transformers makes in norms, soft-max and rotary embeddings of any model."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        if kwargs.get("dtype") is torch.float32:
            kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


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
