"""Recomputes some pairs by autograd, one gradient at a time, and measures the error of the fast engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.ghost.modes import training_only
from dpotool.gradients.ghost.selection import ParameterSelection
from dpotool.gradients.products import GradientProducts, PairProducts, collect_products, iter_gradient_products
from dpotool.progress import SILENT, Progress

LARGEST_ERROR = {"float64": 1e-6, "float32": 1e-4}
"""Relative error above which a check fails. Some models compute norms in float32 also where weights are float64."""
LARGEST_ERROR_COARSE = 5e-2
"""For bfloat16 and float16, where autograd itself rounds whole gradients."""


def check_products(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    products: Sequence[PairProducts],
    selection: ParameterSelection,
    n_checked: int,
    *,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Compares <W,L>, ‖W‖², ‖L‖² of some pairs, spread evenly, with the slow truth.

    Args:
        pairs, products: aligned.
        n_checked: how many pairs; all, if there are fewer.

    Returns `n`, `largest_error` (relative to ‖W‖‖L‖, ‖W‖² and ‖L‖²), `tolerance` and `passed`.
    """
    places = np.unique(np.linspace(0, len(pairs) - 1, min(n_checked, len(pairs))).round().astype(int))
    slow = []
    with training_only(model, selection.parameters.values()), progress.track("autograd check", len(places)) as advance:
        for one in iter_gradient_products(model, [pairs[place] for place in places]):
            slow.append(one)
            advance(1)
    error = find_largest_error(collect_products(products[place] for place in places), collect_products(slow))
    dtype = str(next(iter(selection.parameters.values())).dtype).removeprefix("torch.")
    tolerance = LARGEST_ERROR.get(dtype, LARGEST_ERROR_COARSE)
    return {"n": len(places), "largest_error": error, "tolerance": tolerance, "passed": error <= tolerance}


def find_largest_error(fast: GradientProducts, slow: GradientProducts) -> float:
    """Returns the largest relative error; that of <W,L>, which may be near zero, is relative to ‖W‖‖L‖."""
    chosen, rejected = slow.chosen_grad_sq_norm, slow.rejected_grad_sq_norm
    scales = {
        "grad_inner_product": np.sqrt(chosen * rejected),
        "chosen_grad_sq_norm": chosen,
        "rejected_grad_sq_norm": rejected,
    }
    return max(
        float(np.max(np.abs(getattr(fast, name) - getattr(slow, name)) / np.where(scale > 0, scale, 1.0)))
        for name, scale in scales.items()
    )
